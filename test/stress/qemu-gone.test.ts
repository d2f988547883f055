/**
 * `multifd stress qemu` with a QEMU that is not there, that goes in a run, or that never has done with one: it is said which, and
 * how the run is repeated.
 */
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import t, { type Test } from 'tap';
import { requireReached } from '../../src/stress/qemu-destination.js';
import { Run, run } from '../cli/cli.js';
import { readBytes } from '../migration/captures.js';
import { fakeQmp } from '../qmp/fake-qmp.js';
import { FakeVm } from '../qmp/fake-vm.js';

function shortFolder(t: Test): string {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'mfd-'));
  t.teardown(() => fs.rmSync(folder, { recursive: true, force: true }));
  return folder;
}

t.test('a destination where nobody listens is an address that is wrong, and no verdict', async (t) => {
  const folder = shortFolder(t);
  const file = path.join(folder, 'vm.mig');
  fs.writeFileSync(file, readBytes('q100-mappedram-multifd.mig'));
  const to = `unix:${path.join(folder, 'none')}`;
  const args = ['stress', 'qemu', '--incoming', to, '--file', file, '--limit', '5', '--seed', '5'];
  const { code, stdout, stderr } = await run(t, args);
  t.equal(code, 1);
  t.match(stderr, new RegExp(`cannot connect to ${to}: .*ENOENT`));
  t.notMatch(stdout, /this side|closed/);
});

t.test('who was reached once may turn away what comes later, and that is a finding', async (t) => {
  const to = { host: '127.0.0.1', port: 4 };
  const refused = new Error('connect ECONNREFUSED');
  const reached = (...connections: Parameters<typeof requireReached>[0]['connections'][number][]) =>
    requireReached({ connections }, to, 7);
  const no = { hasReached: false, refused };
  t.throws(() => reached(no, no), {
    code: 'ERR_MULTIFD_CONNECT',
    message: /tcp:127.0.0.1:4: .*ECONNREFUSED/,
  });
  t.throws(() => reached({ hasReached: undefined, refused: undefined }), {
    code: 'ERR_MULTIFD_TIMEOUT',
    message: 'no connection to tcp:127.0.0.1:4 within 7 ms',
  });
  t.doesNotThrow(() => reached({ hasReached: true, refused: undefined }, no));
  t.doesNotThrow(
    () => reached({ hasReached: false, refused: undefined }),
    'one that the fault has cut before',
  );
  t.doesNotThrow(() => reached());
});

/** Its monitor closes in the run with this number. */
async function losing(t: Test, onRun: number, isForGood: boolean, args: string[]) {
  const vm = new FakeVm();
  let runs = 0;
  vm.connect = () => (vm.migration = { status: 'failed' });
  const fake = await fakeQmp(t, (command) => {
    const said = vm.say(command);
    if (command.execute !== 'migrate' || runs++ !== onRun) return said;
    if (isForGood) fake.end();
    else fake.cut();
    return undefined;
  });
  const all = ['--qmp', `unix:${fake.path}`, '--limit', '1', '--seed', '9', '--fault', 'none', ...args];
  return { ...(await run(t, ['stress', 'qemu', ...all])), vm, qmp: fake.path };
}

t.test(
  'a source whose monitor closes in a run: the run is told, and how it is repeated',
  { jobs: 3 },
  async (t) => {
    await Promise.all([
      t.test('for good, to people', { buffered: true }, async (t) => {
        const { code, stdout, stderr, qmp } = await losing(t, 1, true, ['--minutes', '1']);
        t.equal(code, 1);
        t.match(
          stderr,
          /run 1: none: QEMU gone\n  QEMU says: .*QEMU has closed QMP, while migrate was under way/,
        );
        t.match(stderr, new RegExp(`  again: multifd stress qemu --qmp unix:${qmp} .*--seed 9 --run 1\n`));
        t.match(stderr, /ERR_CLI_STRESS: .*if it lives, .* they were multifd false, .*multifd-channels 7/);
        t.match(stdout, /left behind/);
        t.match(stdout, /none +2 +failed 1, gone 1/);
      }),
      t.test('for good, to machines', { buffered: true }, async (t) => {
        const { code, lines, result } = await losing(t, 0, true, ['--minutes', '1', '--json']);
        t.equal(code, 1);
        t.match(
          lines.find(({ type }) => type === 'run'),
          { run: 0, verdict: 'gone', repeat: /--seed 9 --run 0$/ },
        );
        t.match(result, { ok: false, runs: 1, error: { code: 'ERR_CLI_STRESS', message: /not heard of/ } });
      }),
      t.test('and is there again: its settings are put back', { buffered: true }, async (t) => {
        const { code, result, vm } = await losing(t, 0, false, ['--minutes', '1', '--json']);
        t.equal(code, 0);
        t.match(result, { ok: true, runs: 1, faults: { none: { verdicts: { 'monitor lost': 1 } } } });
        t.match(vm.parameters, { 'multifd-channels': 7, 'multifd-compression': 'zlib' });
        t.equal(vm.capabilities.multifd, false);
      }),
    ]);
  },
);

/** It says that its migration has failed, and has something left of it for ever. */
async function neverDone(t: Test) {
  const vm = new FakeVm();
  vm.putsAway = Infinity;
  vm.connect = () => (vm.migration = { status: 'failed' });
  const fake = await fakeQmp(t, vm.say);
  const args = ['stress', 'qemu', '--qmp', `unix:${fake.path}`, '--seed', '9', '--fault', 'none', '--json'];
  return { vm, fake, args };
}

t.test('a source that has failed, and never has done with it: it hangs', async (t) => {
  const { vm, args } = await neverDone(t);
  const { code, lines, result } = await run(t, [...args, '--limit', '1', '--minutes', '1']);
  t.equal(code, 0);
  t.match(
    lines.find(({ type }) => type === 'run'),
    {
      verdict: 'hung',
      words: /received migration status failed, expected that QEMU has put away .* 1000 ms/,
    },
  );
  t.match(result, { runs: 1, faults: { none: { verdicts: { hung: 1 } } } });
  t.match(vm.parameters, { 'multifd-channels': 7 });
});

t.test('Ctrl-C meanwhile, and settings that are not taken back: it is said what they were', async (t) => {
  const { vm, fake, args } = await neverDone(t);
  const command = new Run(t, [...args, '--limit', '60']);
  while (!fake.commands.some(({ execute }) => execute === 'query-yank')) await sleep(20);
  vm.refused['migrate-set-parameters'] = 'no more';
  command.child.kill('SIGINT');
  const { code } = await command.ended;
  t.equal(code, 130);
  t.match(command.result, {
    ok: false,
    runs: 0,
    error: { code: 'ERR_CLI_SIGNAL' },
    problem: /multifd-channels 7, .*no more$/,
  });
});
