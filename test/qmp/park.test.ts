/** parkVm() with a QEMU that is played: states that a real one passes through too fast, and what a strange one may say. */
import fs from 'node:fs';
import net from 'node:net';
import path from 'node:path';
import t, { type Test } from 'tap';
import { MultifdError, parkVm, type ParkVmOptions } from '../../src/index.js';
import { within } from '../support/within.js';
import { answer, fakeQmp, refusal, type Command, type FakeQmp } from './fake-qmp.js';

const WAIT_MS = 20_000;

/** A VM as its monitor shows it, with settings of its own and things that nobody knows here. */
class FakeVm {
  capabilities: Record<string, boolean> = {
    multifd: false,
    'return-path': false,
    xbzrle: true,
    events: true,
    'x-of-the-future': true,
  };
  parameters: Record<string, unknown> = {
    'multifd-channels': 7,
    'multifd-compression': 'zlib',
    'max-bandwidth': 1234,
    'tls-creds': null,
    mode: 'normal',
    future: { a: [1] },
  };
  guest = 'running';
  migration: Record<string, unknown> = {};
  /** What happens at `migrate`. */
  onMigrate = (): void => {};
  /** The state that it is in when it was cancelled, with its guest. */
  cancelled = { status: 'cancelled', guest: 'running' };
  connected: net.Socket | undefined;
  /** Commands that QEMU refuses, with its words. */
  refused: Record<string, string> = {};

  readonly say = (command: Command): string | undefined => {
    const { execute, arguments: args } = command;
    if (this.refused[execute] !== undefined) return refusal(command, this.refused[execute]);
    switch (execute) {
      case 'query-qmp-schema':
        return answer(command, SCHEMA);
      case 'query-status':
        return answer(command, { status: this.guest, running: this.guest === 'running', new: 1 });
      case 'query-migrate':
        return answer(command, this.migration);
      case 'query-migrate-capabilities':
        return answer(
          command,
          Object.entries(this.capabilities).map(([capability, state]) => ({ capability, state })),
        );
      case 'query-migrate-parameters':
        return answer(command, this.parameters);
      case 'migrate-set-capabilities':
        for (const { capability, state } of args.capabilities as { capability: string; state: boolean }[])
          this.capabilities[capability] = state;
        return answer(command);
      case 'migrate-set-parameters':
        Object.assign(this.parameters, args);
        return answer(command);
      case 'migrate':
        this.migration = { status: 'setup' };
        this.connected = net.connect((args.uri as string).slice('unix:'.length));
        this.connected.on('error', () => {});
        this.onMigrate();
        return answer(command);
      case 'migrate_cancel':
        this.migration = { status: this.cancelled.status };
        this.guest = this.cancelled.guest;
        return answer(command);
      case 'cont':
        this.guest = 'running';
        return answer(command);
      default:
        return refusal(command, `The command ${execute} has not been found`);
    }
  };
}

const SCHEMA = [
  { name: 'migrate-set-capabilities', 'meta-type': 'command', 'arg-type': '1', 'ret-type': '0' },
  { name: '1', 'meta-type': 'object', members: [{ name: 'capabilities', type: '[2]' }, { odd: 1 }, null] },
  { name: '[2]', 'meta-type': 'array', 'element-type': '2' },
  { name: '2', 'meta-type': 'object', members: [{ name: 'capability', type: '3' }] },
  {
    name: '3',
    'meta-type': 'enum',
    members: ['multifd', 'return-path', 'x-of-the-future'].map((name) => ({ name })),
  },
  { name: 'migrate-set-parameters', 'meta-type': 'command', 'arg-type': '4' },
  {
    name: '4',
    'meta-type': 'object',
    members: [
      { name: 'multifd-channels', type: 'int' },
      { name: 'multifd-compression', type: '5' },
      { name: 'mode', type: '6' },
    ],
  },
  // Without members, as it was before 6.2.
  { name: '5', 'meta-type': 'enum', values: ['none', 'zlib', 'lz99'] },
  { name: '6', 'meta-type': 'something-new', values: 'no list' },
  { 'meta-type': 'nameless' },
  null,
  'text',
];

interface Scene {
  vm: FakeVm;
  fake: FakeQmp;
  out: string;
  park: (options?: Partial<ParkVmOptions>) => Promise<MultifdError>;
}

async function scene(t: Test): Promise<Scene> {
  const vm = new FakeVm();
  const fake = await fakeQmp(t, vm.say);
  t.teardown(() => vm.connected?.destroy());
  const out = path.join(t.testdir({}), 'vm.mig');
  const park = async (options: Partial<ParkVmOptions> = {}): Promise<MultifdError> => {
    const parked = parkVm({ qmp: { path: fake.path }, out, ...options });
    const thrown = await within(
      parked.then(
        () => undefined,
        (error: unknown) => error,
      ),
      WAIT_MS,
      'an error',
    );
    if (!(thrown instanceof MultifdError)) throw new Error(`no MultifdError: ${String(thrown)}`);
    t.same(fs.readdirSync(path.dirname(out)), [], 'nothing is left of the file');
    return thrown;
  };
  return { vm, fake, out, park };
}

for (const state of ['setup', 'active', 'pre-switchover', 'device', 'a-new-state']) {
  t.test(`an abort in state ${state}: cancelled, the guest runs on, its settings are put back`, async (t) => {
    const { vm, fake, park } = await scene(t);
    const [parameters, capabilities] = structuredClone([vm.parameters, vm.capabilities]);
    const controller = new AbortController();
    vm.onMigrate = () => {
      vm.migration = { status: state, ram: { remaining: 1 }, more: {} };
      if (state === 'device') vm.guest = 'finish-migrate';
      setTimeout(() => controller.abort(new Error('enough')), 200);
    };
    // QEMU has left it so.
    if (state === 'device') vm.cancelled.guest = 'postmigrate';
    let during: unknown;
    const error = await park({
      signal: controller.signal,
      onProgress: () => (during ??= structuredClone([vm.capabilities, vm.parameters])),
    });
    t.match(error, { code: 'ERR_MULTIFD_ABORTED', cause: { message: 'enough' } });
    t.match(during, [
      { multifd: true, 'return-path': true, xbzrle: false, events: true, 'x-of-the-future': false },
      { 'multifd-channels': 2, 'multifd-compression': 'none', 'tls-creds': '' },
    ]);
    t.ok(fake.commands.some(({ execute }) => execute === 'migrate_cancel'));
    t.same(vm.capabilities, capabilities);
    // It takes no null.
    t.same({ ...vm.parameters, 'tls-creds': null }, parameters);
    t.equal(vm.guest, 'running');
  });
}

t.test('a guest that was paused, or stands still for a reason of its own, is not let go', async (t) => {
  for (const [before, after] of [
    ['paused', 'paused'],
    ['running', 'io-error'],
  ]) {
    const { vm, fake, park } = await scene(t);
    vm.guest = before;
    vm.onMigrate = () => {
      vm.migration = { status: 'failed', 'error-desc': 'No space' };
      vm.guest = after;
    };
    t.match(await park(), { code: 'ERR_MULTIFD_QMP', message: /QEMU's migration has failed: No space/ });
    t.notOk(fake.commands.some(({ execute }) => execute === 'cont'));
    t.equal(vm.guest, after);
  }
});

t.test('what QEMU says before anything is set leaves the VM untouched', async (t) => {
  for (const [change, message] of [
    [
      (vm: FakeVm) => (vm.migration = { 'blocked-reasons': ['VFIO says no'] }),
      /cannot be migrated.*VFIO says no/,
    ],
    [
      (vm: FakeVm) => (vm.migration = { status: 'active' }),
      /a migration is under way already, in state active/,
    ],
    [(vm: FakeVm) => (vm.guest = 'inmigrate'), /inmigrate, expected a VM that is there/],
  ] as const) {
    const { vm, fake, park } = await scene(t);
    change(vm);
    t.match(await park(), { code: 'ERR_MULTIFD_QMP', message });
    t.notOk(fake.commands.some(({ execute }) => /set|^migrate|cont/.test(execute)));
  }
});

t.test('a method that this QEMU has not got, by its schema', async (t) => {
  const { park } = await scene(t);
  t.match(await park({ compression: 'zstd' }), {
    code: 'ERR_MULTIFD_QMP',
    message: /this QEMU has no multifd-compression zstd, only none, zlib, lz99/,
  });
});

t.test('settings that QEMU does not take back are named', async (t) => {
  const { vm, park } = await scene(t);
  vm.onMigrate = () => {
    vm.migration = { status: 'failed' };
    vm.refused['migrate-set-parameters'] = 'it is Sunday';
  };
  t.match(await park(), {
    code: 'ERR_MULTIFD_QMP',
    message: /could not be put back: multifd-channels.*it is Sunday/,
  });
  t.equal(vm.capabilities.xbzrle, true, 'the others are');
});

t.test('QEMU refuses to migrate: its words, and all is as it was', async (t) => {
  const { vm, park } = await scene(t);
  vm.refused.migrate = "State blocked by non-migratable device 'nvme'";
  t.match(await park(), {
    code: 'ERR_MULTIFD_QMP',
    message: /QEMU refuses migrate: State blocked by non-migratable/,
  });
  t.equal(vm.parameters['multifd-channels'], 7);
});

t.test('a busy monitor: nothing is left when it is given up', async (t) => {
  const { out } = await scene(t);
  const busy = await fakeQmp(t, answer, '');
  const controller = new AbortController();
  setTimeout(() => controller.abort(), 200);
  const parked = parkVm({ qmp: { path: busy.path }, out, signal: controller.signal });
  await t.rejects(within(parked, WAIT_MS, 'an error'), { code: 'ERR_MULTIFD_ABORTED' });
  t.same(fs.readdirSync(path.dirname(out)), []);
});

t.test('options are checked before anything is opened', async (t) => {
  for (const [options, message] of [
    [{ qmp: 'localhost:1' }, /option qmp/],
    [{ then: 'go' }, /option then.*quit, stop, leave/],
    [{ outt: 1 }, /unknown option.*did you mean out\?/],
    [{ qemuTls: { creds: 'x' } }, /option qemuTls.*only with option tls/],
    [{ maxBandwidth: -1 }, /option maxBandwidth/],
  ] as const) {
    const all = Object.assign({ qmp: 'unix:/none', out: '/none/x' }, options) as unknown as ParkVmOptions;
    await t.rejects(parkVm(all), { code: 'ERR_MULTIFD_OPTION', message });
  }
});
