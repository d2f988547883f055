/**
 * `multifd park` and `multifd resume`, stopped by each signal in the states before pages are on their way, and a monitor that is
 * lost, with a real QEMU. The states in which they are: park-command.ts.
 */
import fs from 'node:fs';
import net from 'node:net';
import path from 'node:path';
import t, { type Test } from 'tap';
import { differingPages } from '../../src/cli/demo/qemu/compare-ram.js';
import { Run } from '../cli/cli.js';
import { within } from '../support/within.js';
import { monitorProxy, silentSocket, type MonitorProxy } from './monitor-proxy.js';
import {
  RUN_MS,
  counts,
  ended,
  eventually,
  giveOwnSettings,
  settingsOf,
  sourceOf,
  startVm,
  type Vm,
} from './park-command.js';
import type { Program } from './programs.js';
import { workFolder } from './qemu.js';
import { makeFolders } from './tls.js';

const EXIT_CODES = { SIGINT: 130, SIGTERM: 143 };

interface Reached {
  qmp: string;
  reached: Promise<unknown>;
  /** After the signal. */
  behind?: () => void;
}

export function runParkSignals(program: Program): void {
  const folder = workFolder(t);
  let files = 0;
  let creds: ReturnType<typeof makeFolders> | undefined;
  const newFile = (): string => path.join(folder, `s${files++}.mig`);
  const left = (file: string): string[] =>
    fs.readdirSync(folder).filter((name) => name.startsWith(path.basename(file)));
  const held = async (t: Test, vm: Vm, hold: string): Promise<MonitorProxy> =>
    monitorProxy(t, folder, vm.qmp, { hold });

  /** Has anything been set by then? */
  const STATES: Record<string, { isSet: boolean; tls?: true; reach: (t: Test, vm: Vm) => Promise<Reached> }> =
    {
      'before the greeting': { isSet: false, reach: async (t, vm) => held(t, vm, 'greeting') },
      'before anything is set': {
        isSet: false,
        reach: async (t, vm) => held(t, vm, 'query-migrate-capabilities'),
      },
      'while it is set': {
        isSet: true,
        // What is set has an answer, which is waited for.
        reach: async (t, vm) => {
          const proxy = await held(t, vm, 'migrate-set-parameters');
          return { ...proxy, behind: () => void setTimeout(proxy.release, 200) };
        },
      },
      'when migrate has no answer yet': { isSet: true, reach: async (t, vm) => held(t, vm, 'migrate') },
      // Where the handshake has no answer QEMU is in state `setup`; 7.2 and 11.1 answer nothing at their monitors meanwhile.
      'in state setup': {
        isSet: true,
        tls: true,
        reach: async (t, vm) => {
          const { migrateTo, reached } = await silentSocket(t, folder);
          const { qmp } = await monitorProxy(t, folder, vm.qmp, { migrateTo });
          return { qmp, reached };
        },
      },
    };

  for (const [state, { isSet, tls, reach }] of Object.entries(STATES)) {
    for (const signal of ['SIGINT', 'SIGTERM', 'SIGKILL'] as const) {
      t.test(`QEMU ${program.version}: ${signal} ${state}`, async (t) => {
        const dir = tls === true ? (await (creds ??= makeFolders(folder))).psk : '';
        const extra = tls === true ? ['-object', `tls-creds-psk,id=tls0,endpoint=client,dir=${dir}`] : [];
        const vm = await startVm(t, program, folder, { extra });
        await giveOwnSettings(vm);
        const settings = await settingsOf(vm);
        const { qmp, reached, behind } = await reach(t, vm);
        const out = newFile();
        const args = tls === true ? ['--tls-creds', dir, '--qemu-tls-creds', 'tls0'] : [];
        const env = { TMPDIR: folder };
        const run = new Run(t, ['park', '--qmp', qmp, '--out', out, '--json', ...args], { env });
        await within(reached, RUN_MS, state);
        run.child.kill(signal);
        behind?.();
        const { code, stderr } = await ended(run, 'park');
        await eventually(async () => {
          const { status } = await vm.qemu.migration();
          return [undefined, 'none', 'cancelled', 'failed'].includes(status);
        }, 'its end');
        await eventually(async () => (await vm.qemu.status()) === 'running', 'that the guest runs on');
        await counts(t, vm.qemu, 'the guest runs on');
        if (signal === 'SIGKILL') {
          t.notOk(fs.existsSync(out), 'the file has no name');
          if (!isSet) t.equal(await settingsOf(vm), settings, 'its settings are as they were');
          else
            t.match(
              await settingsOf(vm),
              /"capability":"multifd","state":true|"state":true,"capability":"multifd"/,
            );
          return;
        }
        t.equal(code, EXIT_CODES[signal], stderr);
        t.match(run.result, { ok: false, error: { code: 'ERR_CLI_SIGNAL' } });
        t.equal(await settingsOf(vm), settings, 'its settings are as they were');
        t.same(left(out), [], 'nothing is left of the file');
      });
    }
  }

  t.test(`QEMU ${program.version}: a monitor that another client holds`, async (t) => {
    const vm = await startVm(t, program, folder);
    const settings = await settingsOf(vm);
    const other = net.connect(vm.qmp.slice('unix:'.length)).on('error', () => {});
    t.teardown(() => other.destroy());
    await new Promise((resolve) => other.once('data', resolve));
    const out = newFile();
    const run = new Run(t, ['park', '--qmp', vm.qmp, '--out', out, '--json']);
    t.equal((await ended(run, 'park')).code, 1);
    t.match(run.result?.error, { code: 'ERR_MULTIFD_TIMEOUT', message: /busy: another client/ });
    t.equal(await settingsOf(vm), settings);
    t.same(left(out), []);
  });

  t.test(`QEMU ${program.version}: a monitor that is lost while it migrates`, async (t) => {
    for (const forGood of [false, true]) {
      const vm = await startVm(t, program, folder);
      await giveOwnSettings(vm);
      const settings = await settingsOf(vm);
      const proxy = await monitorProxy(t, folder, vm.qmp);
      const out = newFile();
      const args = ['--max-bandwidth', '8M', '--downtime-limit', '5000'];
      const run = new Run(t, ['park', '--qmp', proxy.qmp, '--out', out, '--json', ...args]);
      await within(
        run.line((line) => sourceOf(line).status === 'active' && (line.normalPages as number) > 0),
        RUN_MS,
        'pages',
      );
      if (forGood) proxy.end();
      else proxy.cut();
      const { code, stderr } = await ended(run, 'park');
      t.equal(await vm.qemu.status(), 'postmigrate', 'what was told goes on');
      t.same(left(out), [path.basename(out)]);
      if (forGood) {
        t.equal(code, 1);
        t.match(
          run.result?.error?.message,
          /whole in .*, and QEMU was told so, which has not said .* multifd-channels 5/,
        );
      } else {
        t.equal(code, 0, stderr);
        t.match(run.result, { ok: true, source: 'postmigrate', problem: null });
        t.equal(await settingsOf(vm), settings, 'its settings are as they were');
      }
      await vm.qemu.kill();
    }
  });

  t.test(`QEMU ${program.version}: resume, stopped in the middle and done again`, async (t) => {
    const source = await startVm(t, program, folder);
    const out = newFile();
    const parked = new Run(t, ['park', '--qmp', source.qmp, '--out', out, '--json']);
    t.equal((await ended(parked, 'park')).code, 0);
    const machine = parked.result?.machine as string;
    const ram = await source.qemu.ram();
    const waiting = async (): Promise<Vm> => startVm(t, program, folder, { machine, incoming: true });
    for (const [args, signal, status] of [
      [[], 'SIGINT', 'paused'],
      [['--cont'], 'SIGINT', 'running'],
      [['--paused'], 'SIGTERM', 'paused'],
    ] as const) {
      const name = `${signal} during resume ${args.join(' ')}`;
      const first = await waiting();
      const run = new Run(t, ['resume', out, '--qmp', first.qmp, '--json', '--max-bandwidth', '2M', ...args]);
      await within(
        run.line((line) => line.type === 'progress' && (line.bytes as number) > 0),
        RUN_MS,
        'pages',
      );
      run.child.kill(signal);
      const { code, stderr } = await ended(run, name);
      t.equal(code, EXIT_CODES[signal], stderr);
      t.match(run.result?.error?.message, /start a new QEMU for the next attempt/);
      await first.qemu.kill();

      const early = await waiting();
      const settings = await settingsOf(early);
      const proxy = await held(t, early, 'query-migrate-capabilities');
      const before = new Run(t, ['resume', out, '--qmp', proxy.qmp, '--json', ...args]);
      await within(proxy.reached, RUN_MS, 'its question');
      before.child.kill(signal);
      t.equal((await ended(before, name)).code, EXIT_CODES[signal]);
      t.equal(await settingsOf(early), settings, 'nothing was set');
      const again = new Run(t, ['resume', out, '--qmp', early.qmp, '--json', ...args]);
      const end = await ended(again, 'resume');
      t.equal(end.code, 0, end.stderr);
      t.match(again.result, { ok: true, status });
      if (status === 'paused')
        t.same(differingPages(await early.qemu.ram(), ram), [], 'all guest RAM is equal');
      else await counts(t, early.qemu, 'the guest runs on');
      await early.qemu.kill();
    }
  });

  t.test(`QEMU ${program.version}: resume with a monitor that is lost`, async (t) => {
    const source = await startVm(t, program, folder);
    const out = newFile();
    const parked = new Run(t, ['park', '--qmp', source.qmp, '--out', out, '--json', '--then', 'quit']);
    t.equal((await ended(parked, 'park')).code, 0);
    const machine = parked.result?.machine as string;
    for (const forGood of [false, true]) {
      const vm = await startVm(t, program, folder, { machine, incoming: true });
      const settings = await settingsOf(vm);
      const proxy = await monitorProxy(t, folder, vm.qmp);
      const args = ['--json', '--cont', '--max-bandwidth', '20M'];
      const run = new Run(t, ['resume', out, '--qmp', proxy.qmp, ...args]);
      await within(
        run.line((line) => line.type === 'progress' && (line.bytes as number) > 0),
        RUN_MS,
        'pages',
      );
      if (forGood) proxy.end();
      else proxy.cut();
      const { code, stderr } = await ended(run, 'resume');
      if (forGood) {
        t.equal(code, 1);
        t.match(run.result?.error?.message, /the guest is loaded, QEMU has accepted all of it/);
        t.equal(await vm.qemu.status(), 'paused', 'it is loaded');
      } else {
        t.equal(code, 0, stderr);
        t.match(run.result, { ok: true, status: 'running', problem: null });
        t.equal(await settingsOf(vm), settings, 'its settings are as they were');
        await counts(t, vm.qemu, 'the guest runs on');
      }
      await vm.qemu.kill();
    }
  });
}
