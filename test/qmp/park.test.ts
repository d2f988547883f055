/** parkVm() with a QEMU that is played: states that a real one passes through too fast, and what a strange one may say. */
import fs from 'node:fs';
import net from 'node:net';
import os from 'node:os';
import path from 'node:path';
import t, { type Test } from 'tap';
import { MultifdError, parkVm, type ParkVmOptions } from '../../src/index.js';
import { Qmp } from '../../src/qmp/qmp.js';
import { CAPTURES, streamsOf } from '../migration/captures.js';
import { HandSource, askingMain } from '../migration/peers.js';
import { eventually } from '../support/raw-channel.js';
import { CREDENTIALS, WRONG_KEY, beginTls } from '../support/tls-peers.js';
import { within } from '../support/within.js';
import { answer, fakeQmp, type FakeQmp } from './fake-qmp.js';
import { FakeVm } from './fake-vm.js';

const WAIT_MS = 20_000;
const execute = Object.getOwnPropertyDescriptor(Qmp.prototype, 'execute')?.value as Qmp['execute'];

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

for (const how of ['fails', 'is aborted'] as const) {
  t.test(`a park that ${how}: no setting is touched while QEMU puts away what it had for it`, async (t) => {
    const { vm, fake, park } = await scene(t);
    const capabilities = structuredClone(vm.capabilities);
    const controller = new AbortController();
    vm.putsAway = 3;
    vm.onMigrate = () => {
      vm.migration =
        how === 'fails' ? { status: 'failed', 'error-desc': 'of its own' } : { status: 'active' };
      if (how === 'is aborted') controller.abort();
    };
    await park({ signal: controller.signal });
    const commands = fake.commands.map(({ execute }) => execute);
    const behind = commands.slice(commands.indexOf('migrate'));
    const asked = behind.indexOf('query-yank');
    const put = behind.findIndex((execute) => execute.startsWith('migrate-set-'));
    t.ok(asked > 0 && put > asked, behind.join(', '));
    t.equal(behind.slice(0, put).filter((execute) => execute === 'query-yank').length >= 4, true);
    t.same(vm.capabilities, capabilities);
  });
}

for (const status of ['failed', 'cancelled']) {
  t.test(
    `all has come, its source is gone, and QEMU says ${status}: no file is kept of a guest that goes on`,
    async (t) => {
      const { vm, park } = await scene(t);
      const { main, channels } = streamsOf(CAPTURES[0]);
      vm.connect = () => {
        const source = new HandSource(t, { path: vm.uri }, channels.length);
        source.main.end(askingMain(main));
        channels.forEach((bytes, i) => source.channels[i].write(bytes));
      };
      vm.onMigrate = () => {
        vm.migration = { status: 'active' };
        setTimeout(() => (vm.migration = { status }), 1000);
      };
      const { message } = await park({ channels: channels.length });
      t.notMatch(message, /kept as/);
      t.match(message, new RegExp(`QEMU's migration (is|has|was) ${status}`));
    },
  );
}

t.test(
  "QEMU's migration fails because it was refused here: the reason that is known here comes first",
  async (t) => {
    for (const how of ['QEMU fails', 'is aborted']) {
      const { vm, park } = await scene(t);
      const controller = new AbortController();
      vm.tlsCreds = { tls0: 'client' };
      const words = 'TLS handshake failed: A TLS fatal alert has been received.';
      vm.connect = () => {
        vm.connected = net.connect(vm.uri);
        const secure = beginTls(vm.connected, { key: WRONG_KEY });
        vm.connected.on('close', () => {
          if (how === 'QEMU fails') vm.migration = { status: 'failed', 'error-desc': words };
          else controller.abort(new Error('enough'));
        });
        secure.on('error', () => {});
      };
      const tls = { tls: CREDENTIALS, qemuTls: { creds: 'tls0' } };
      const error = await park({ ...tls, signal: controller.signal });
      if (how === 'QEMU fails') {
        t.match(error, {
          code: 'ERR_MULTIFD_TLS',
          message: /^TLS as server: .*keys \(PSK\).*differ.*; QEMU says: TLS handshake failed: A TLS fatal/,
          suppressed: [{ code: 'ERR_MULTIFD_QMP' }],
        });
      } else t.match(error, { code: 'ERR_MULTIFD_ABORTED', cause: { message: 'enough' } });
    }
  },
);

t.test("another monitor's migrate_cancel is told as such, ours is not", async (t) => {
  for (const how of ['theirs', 'theirs, with a connection that broke', 'ours']) {
    const { vm, park } = await scene(t);
    const controller = new AbortController();
    const cancelled = { status: 'cancelled', 'error-desc': 'Channel error: Input/output error' };
    vm.onMigrate = () => {
      vm.migration = { status: 'active' };
      setTimeout(() => {
        if (how === 'ours') return controller.abort(new Error('enough'));
        vm.migration = cancelled;
        if (how !== 'theirs') vm.connected?.end('QEVM');
      }, 200);
    };
    const { message } = await park({ signal: controller.signal });
    if (how === 'ours') t.notMatch(message, 'not from here');
    else t.match(message, /QEMU's migration was cancelled, not from here.*monitor/, how);
  }
});

t.test('what QEMU calls its failure names no file to be removed', async (t) => {
  const { vm, park } = await scene(t);
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'multifd-'));
  t.teardown(() => fs.rmSync(folder, { recursive: true }));
  const mine = path.join(folder, 'mine');
  fs.writeFileSync(mine, '');
  vm.onMigrate = () => {
    vm.migration = { status: 'failed', 'error-desc': `no; the whole file is kept as ${mine}` };
  };
  const { message } = await park();
  t.match(message, 'the whole file is kept as');
  t.ok(fs.existsSync(mine));
});

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

t.test(
  'an abort while an answer is held back does not wait for it, where nothing has been set',
  async (t) => {
    for (const held of ['query-qmp-schema', 'query-migrate-capabilities', 'query-migrate-parameters']) {
      const { vm, out } = await scene(t);
      const silent = await fakeQmp(t, (command) => (command.execute === held ? undefined : vm.say(command)));
      const controller = new AbortController();
      const parked = parkVm({ qmp: { path: silent.path }, out, signal: controller.signal });
      parked.catch(() => {});
      await eventually(() => silent.commands.at(-1)?.execute === held, held);
      controller.abort(new Error('enough'));
      // Its own limit for an answer is 20 s.
      const late = within(parked, WAIT_MS / 2, 'an error');
      await t.rejects(late, { code: 'ERR_MULTIFD_ABORTED', cause: { message: 'enough' } });
      t.same(fs.readdirSync(path.dirname(out)), [], held);
    }
  },
);

t.test('an abort while the answer to migrate is held back does not wait for it', async (t) => {
  const { vm, out } = await scene(t);
  const [parameters, capabilities] = structuredClone([vm.parameters, vm.capabilities]);
  const silent = await fakeQmp(t, (command) => {
    const said = vm.say(command);
    return command.execute === 'migrate' ? undefined : said;
  });
  const controller = new AbortController();
  const parked = parkVm({ qmp: { path: silent.path }, out, signal: controller.signal });
  parked.catch(() => {});
  await eventually(() => silent.commands.some(({ execute }) => execute === 'migrate'), 'migrate');
  controller.abort(new Error('enough'));
  const late = within(parked, WAIT_MS / 2, 'an error');
  await t.rejects(late, { code: 'ERR_MULTIFD_ABORTED', cause: { message: 'enough' } });
  t.same(vm.capabilities, capabilities);
  t.same({ ...vm.parameters, 'tls-creds': null }, parameters);
  t.same(fs.readdirSync(path.dirname(out)), []);
});

t.test(
  'a QEMU that hangs in the middle is not asked again for each thing that is to be undone',
  async (t) => {
    const { vm, out } = await scene(t);
    let asked = 0;
    const hanging = await fakeQmp(t, (command) => {
      if (vm.connected === undefined) return vm.say(command);
      asked++;
      return command.execute === 'migrate' ? vm.say(command) : undefined;
    });
    t.capture(Qmp.prototype, 'execute', async function (this: Qmp, command: string, args?: object) {
      return execute.call(this, command, args, 200);
    });
    const parked = parkVm({ qmp: { path: hanging.path }, out });
    const error = await within(
      parked.then(
        () => undefined,
        (thrown: unknown) => thrown as MultifdError,
      ),
      WAIT_MS,
      'an error',
    );
    t.match(error, { code: 'ERR_MULTIFD_TIMEOUT', message: /QEMU is not heard of .* multifd-channels 7/ });
    t.ok(asked <= 4, `${asked} commands`);
  },
);
