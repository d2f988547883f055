/**
 * `multifd park` and `multifd resume` as users run them, with a real QEMU: what becomes of the guest, of the file and of the
 * VM's settings, whichever way it ends.
 */
import fs from 'node:fs';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import t, { type Test } from 'tap';
import { formatQmpJson } from '../../src/qmp/json.js';
import { parkVm, parseAddress } from '../../src/index.js';
import type { Compression } from '../../src/options.js';
import { differingPages } from '../../src/cli/demo/qemu/compare-ram.js';
import { Run, type Ended, type Line } from '../cli/cli.js';
import { within } from '../support/within.js';
import { resume as runOn } from './park.js';
import type { Program } from './programs.js';
import { holdDevices } from './held.js';
import { Qemu, workFolder, type QemuOptions } from './qemu.js';

export const RUN_MS = 60_000;
const POLL_MS = 20;
/** Settings of an operator's own, which are to be found again: a number that no double holds among them. */
const OWN_PARAMETERS = {
  'multifd-channels': 5,
  'multifd-compression': 'zlib',
  'max-bandwidth': 9223372036853727232n,
  'downtime-limit': 777,
  'tls-hostname': 'somebody.example',
};
const METHODS: readonly Compression[] = ['none', 'zlib', 'zstd'];

export interface Vm {
  qemu: Qemu;
  /** Of a monitor that no other client holds. */
  qmp: string;
}

let vms = 0;

export async function startVm(
  t: Test,
  program: Program,
  folder: string,
  { waits = false, ...options }: QemuOptions & { waits?: boolean } = {},
): Promise<Vm> {
  const qmp = path.join(folder, `free${vms++}.qmp`);
  const qemu = await Qemu.start(t, program, folder, {
    ...options,
    extra: [...(options.extra ?? []), '-qmp', `unix:${qmp},server=on,wait=off`],
  });
  if (options.incoming !== true && !waits) await qemu.waitUntilReady();
  return { qemu, qmp: `unix:${qmp}` };
}

/** Its settings for migrations, as text. */
export async function settingsOf({ qemu }: Vm): Promise<string> {
  const parameters = await qemu.execute('query-migrate-parameters');
  const capabilities = await qemu.execute('query-migrate-capabilities');
  return formatQmpJson({ parameters, capabilities });
}

export async function giveOwnSettings({ qemu }: Vm): Promise<void> {
  await qemu.setCapabilities({ xbzrle: true, 'auto-converge': true, 'pause-before-switchover': true });
  await qemu.setParameters(OWN_PARAMETERS);
}

export async function ended(run: Run, what: string): Promise<Ended> {
  return within(run.ended, RUN_MS, what);
}

export const sourceOf = (line: Line): { status?: string; dirtySyncCount?: number } => line.source ?? {};

export async function counts(t: Test, qemu: Qemu, what: string): Promise<void> {
  t.equal(await qemu.status(), 'running', what);
  const before = await qemu.counter();
  const late = performance.now() + RUN_MS;
  while ((await qemu.counter()) === before && performance.now() < late) await sleep(POLL_MS);
  t.ok((await qemu.counter()) > before, 'and counts on');
}

export async function eventually(condition: () => Promise<boolean>, what: string): Promise<void> {
  const late = performance.now() + RUN_MS;
  while (!(await condition())) {
    if (performance.now() > late) throw new Error(`not within ${RUN_MS} ms: ${what}`);
    await sleep(POLL_MS);
  }
}

export function runParkCommand(program: Program): void {
  const folder = workFolder(t);
  let files = 0;
  const newFile = (): string => path.join(folder, `p${files++}.mig`);
  const left = (file: string): string[] =>
    fs.readdirSync(folder).filter((name) => name.startsWith(path.basename(file)));

  t.test(`QEMU ${program.version}: parked, and its settings are as they were`, async (t) => {
    const vm = await startVm(t, program, folder);
    await giveOwnSettings(vm);
    const settings = await settingsOf(vm);
    for (const compression of METHODS) {
      for (const paused of [false, true]) {
        await t.test(`${compression}, ${paused ? 'paused' : 'running'}`, async (t) => {
          if (paused) await vm.qemu.execute('stop');
          const out = newFile();
          const args = ['park', '--qmp', vm.qmp, '--out', out, '--json', '--compression', compression];
          const run = new Run(t, args);
          const { code, stderr } = await ended(run, 'park');
          t.equal(code, 0, stderr);
          t.match(run.result, { ok: true, out, source: 'postmigrate', then: 'stop', problem: null });
          t.same(run.result?.switchedOff, ['xbzrle', 'pause-before-switchover']);
          t.ok(run.lines.some((line) => line.type === 'progress' && sourceOf(line).status !== undefined));
          t.equal(fs.statSync(out).mode & 0o777, 0o600);
          t.equal(await settingsOf(vm), settings, 'its settings are as they were');
          t.equal(await vm.qemu.status(), 'postmigrate');
          await checkResumed(t, vm, run.result?.machine as string, out, compression);
          await runOn(vm.qemu);
        });
      }
    }
  });

  /** A guest in another QEMU, from the file: RAM equal before it runs, and then it counts on. */
  async function checkResumed(
    t: Test,
    source: Vm,
    machine: string,
    file: string,
    compression: Compression,
  ): Promise<void> {
    const ram = await source.qemu.ram();
    const counter = await source.qemu.counter();
    const vm = await startVm(t, program, folder, { machine, incoming: true });
    const settings = await settingsOf(vm);
    const run = new Run(t, ['resume', file, '--qmp', vm.qmp, '--json', '--compression', compression]);
    const { code, stderr } = await ended(run, 'resume');
    t.equal(code, 0, stderr);
    t.match(run.result, { ok: true, status: 'paused', problem: null });
    t.equal(await settingsOf(vm), settings, "the new QEMU's settings are as they were");
    t.same(differingPages(await vm.qemu.ram(), ram), [], 'all guest RAM is equal');
    await vm.qemu.execute('cont');
    await vm.qemu.waitForSerial(/\.{2}/);
    t.ok((await vm.qemu.counter()) > counter, 'the guest counts on');
    await vm.qemu.kill();
  }

  /** States of a migration in which a signal comes, and how to get there. */
  const STATES: Record<
    string,
    { args: string[]; held?: boolean; reached: (run: Run, vm: Vm) => Promise<void> }
  > = {
    'the first pass': {
      args: ['--max-bandwidth', '2M'],
      reached: async (run) => {
        await run.line((line) => sourceOf(line).status === 'active' && (line.normalPages as number) > 0);
      },
    },
    'a later pass': {
      args: ['--max-bandwidth', '8M', '--downtime-limit', '1'],
      reached: async (run) => {
        await run.line((line) => (sourceOf(line).dirtySyncCount ?? 0) >= 3);
      },
    },
    'state device': {
      args: [],
      held: true,
      // QEMU 7.2 calls it `active` to the end; its guest stands still all the same.
      reached: async (_run, vm) =>
        eventually(async () => (await vm.qemu.status()) === 'finish-migrate', 'state device'),
    },
  };

  for (const [state, { args, held, reached }] of Object.entries(STATES)) {
    for (const signal of ['SIGINT', 'SIGTERM', 'SIGKILL'] as const) {
      t.test(`QEMU ${program.version}: ${signal} in ${state}`, async (t) => {
        const vm = await startVm(t, program, folder);
        await giveOwnSettings(vm);
        const settings = await settingsOf(vm);
        const out = newFile();
        const qmp = held === true ? await holdDevices(t, folder, vm.qmp) : vm.qmp;
        // One that is killed leaves its folder behind.
        const env = { TMPDIR: folder };
        const run = new Run(t, ['park', '--qmp', qmp, '--out', out, '--json', ...args], { env });
        await within(reached(run, vm), RUN_MS, state);
        run.child.kill(signal);
        const { code, stderr } = await ended(run, 'park');
        await eventually(async () => {
          const { status = '' } = await vm.qemu.migration();
          return ['cancelled', 'failed', 'completed'].includes(status);
        }, 'its end');
        if (signal === 'SIGKILL') {
          await eventually(async () => (await vm.qemu.status()) === 'running', 'that the guest runs on');
          await counts(t, vm.qemu, 'the guest runs on');
          t.notOk(fs.existsSync(out), 'the file has no name');
          return;
        }
        t.equal(code, signal === 'SIGINT' ? 130 : 143, stderr);
        t.match(run.result, { ok: false, error: { code: 'ERR_CLI_SIGNAL' } });
        t.equal(await settingsOf(vm), settings, 'its settings are as they were');
        await counts(t, vm.qemu, 'the guest runs on');
        t.same(left(out), [], 'nothing is left of the file');
      });
    }
  }

  t.test(`QEMU ${program.version}: QEMU is killed in the middle`, async (t) => {
    const vm = await startVm(t, program, folder);
    const out = newFile();
    const run = new Run(t, ['park', '--qmp', vm.qmp, '--out', out, '--json', '--max-bandwidth', '2M']);
    await within(STATES['the first pass'].reached(run, vm), RUN_MS, 'the first pass');
    await vm.qemu.kill();
    const { code, stderr } = await ended(run, 'park');
    t.equal(code, 1, stderr);
    t.match(run.result?.error?.code, /^ERR_MULTIFD_(QMP|CONNECTION|EOF)$/);
    t.same(left(out), [], 'nothing is left of the file');
  });

  t.test(`QEMU ${program.version}: a VM that cannot be migrated is told in QEMU's words`, async (t) => {
    fs.mkdirSync(path.join(folder, 'disc'));
    const vm = await startVm(t, program, folder, {
      // A folder as a disc that can be written to.
      extra: ['-blockdev', `driver=vvfat,node-name=v,rw=on,dir=${folder}/disc`],
    });
    const settings = await settingsOf(vm);
    const out = newFile();
    const run = new Run(t, ['park', '--qmp', vm.qmp, '--out', out, '--json']);
    const { code } = await ended(run, 'park');
    t.equal(code, 1);
    t.match(run.result?.error, {
      code: 'ERR_MULTIFD_QMP',
      message: /cannot be migrated, QEMU says: .*vvfat.* does not support live migration/,
    });
    t.equal(await settingsOf(vm), settings);
    await counts(t, vm.qemu, 'the guest runs on');
    t.same(left(out), []);
  });

  t.test(`QEMU ${program.version}: parked, and QEMU is ended`, async (t) => {
    const vm = await startVm(t, program, folder);
    const out = newFile();
    const run = new Run(t, ['park', '--qmp', vm.qmp, '--out', out, '--json', '--then', 'quit']);
    const { code, stderr } = await ended(run, 'park');
    t.equal(code, 0, stderr);
    t.match(run.result, { ok: true, source: 'gone', then: 'quit' });
    await eventually(async () => vm.qemu.ended, 'the end of QEMU');
  });

  t.test(
    `QEMU ${program.version}: what does not fit a file is told, not only written to a log`,
    async (t) => {
      const vm = await startVm(t, program, folder);
      const out = newFile();
      const parked = new Run(t, ['park', '--qmp', vm.qmp, '--out', out, '--json']);
      t.equal((await ended(parked, 'park')).code, 0);
      const machine = parked.result?.machine as string;
      const inspected = new Run(t, ['inspect', out, '--json']);
      await ended(inspected, 'inspect');
      t.match(inspected.result?.needs, { machine, memoryBytes: 128 * 2 ** 20 });

      const refused = async (to: Vm, args: string[], message: RegExp): Promise<void> => {
        const run = new Run(t, ['resume', out, '--qmp', to.qmp, '--json', ...args]);
        const { code, stderr } = await ended(run, 'resume');
        t.equal(code, 1, stderr);
        t.match(run.result?.error?.message, message);
      };
      await refused(vm, [], /in state postmigrate, expected inmigrate: start it with -incoming defer/);
      await vm.qemu.kill();
      const other = await startVm(t, program, folder, { machine: 'q35', incoming: true });
      const needs = `start QEMU with -machine ${machine} -m 128M -incoming defer`;
      await refused(other, [], new RegExp(`machine type: received pc-q35-.*${needs}`));
      await other.qemu.kill();
      const small = await startVm(t, program, folder, { machine, incoming: true, extra: ['-m', '64M'] });
      await refused(small, [], new RegExp(`pc\\.ram: received 67108864, expected 134217728.*${needs}`));
      await small.qemu.kill();
      // A device too many: QEMU alone knows, and has said it after all RAM.
      const more = await startVm(t, program, folder, {
        machine,
        incoming: true,
        extra: ['-device', 'virtio-rng-pci'],
      });
      const run = new Run(t, ['resume', out, '--qmp', more.qmp, '--json', '--cont']);
      const { code } = await ended(run, 'resume');
      if (code === 0) t.equal(await more.qemu.status(), 'running', 'this QEMU minds no device that is new');
      else
        t.match(
          run.result?.error?.message,
          new RegExp(`QEMU.*the file is of a QEMU with -machine ${machine}`),
        );
    },
  );

  t.test(`QEMU ${program.version}: an abort that comes too late says where the guest is`, async (t) => {
    const vm = await startVm(t, program, folder);
    const settings = await settingsOf(vm);
    const out = newFile();
    const controller = new AbortController();
    const reason = new Error('enough');
    const parked = parkVm({
      qmp: parseAddress(vm.qmp),
      out,
      then: 'quit',
      signal: controller.signal,
      onProgress: ({ source }) => {
        if (source.status === 'completed') controller.abort(reason);
      },
    });
    await t.rejects(within(parked, RUN_MS, 'parkVm()'), {
      code: 'ERR_MULTIFD_ABORTED',
      message: /too late: the guest is whole in .*, and stands still in its QEMU/,
      cause: reason,
    });
    t.equal(await vm.qemu.status(), 'postmigrate', 'QEMU is not ended');
    t.equal(await settingsOf(vm), settings);
    t.ok(fs.existsSync(out));
  });
}
