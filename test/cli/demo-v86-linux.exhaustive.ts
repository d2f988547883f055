/** `multifd demo --v86 --kernel`: a kernel of 32 bits where there is one, and such as only look like one. */
import fs from 'node:fs';
import path from 'node:path';
import t from 'tap';
import { v86Demo } from '../../src/cli/demo/v86/demo-v86.js';
import { linuxGuest, linuxInitrd } from '../../src/cli/demo/v86/linux-guest.js';
import { NO_KERNEL, fakeKernel, findBios, linuxKernel } from '../support/linux.js';
import { Run, gone, run, tempRoot } from './cli.js';

const kernel = linuxKernel() as string;
const noBios = findBios() === undefined && 'skipped: no seabios here';
const skip = (kernel === undefined && NO_KERNEL) || noBios;

t.test(
  'Linux is moved there and back, parked, resumed twice, and its init loses nothing',
  { skip },
  async (t) => {
    const temp = tempRoot(t);
    const { code, stderr, result, lines } = await run(
      t,
      ['demo', '--v86', '--kernel', kernel, '--json'],
      temp,
    );
    t.equal(code, 0, stderr);
    const [first, second] = lines[0].pids as number[];
    const { version } = linuxGuest(kernel);
    t.match(lines[0], { type: 'start', kernel: version, ramBytes: 96 * 2 ** 20 });
    t.match(result, {
      ok: true,
      equal: true,
      kernel: version,
      guests: [{ differsAt: null }, { differsAt: null }],
    });
    const hops = result?.hops as { what: string; from: unknown; to: unknown }[];
    t.same(
      hops.map(({ what, from, to }) => [what, from, to]),
      [
        ['moved', first, second],
        ['moved', second, first],
        ['parked', first, 'vm.mig'],
        ['resumed', 'vm.mig', second],
        ['resumed', 'vm.mig', first],
      ],
    );
    const said = lines.filter(({ type }) => type === 'console').map(({ text }) => text as string);
    t.ok(
      said.some((text) => text.includes(`Linux version ${version} `)),
      'its boot is shown',
    );
    await Promise.all([gone(first), gone(second)]);
    t.same(temp.left(), []);
  },
);

t.test("another initrd: moved with its memory's digest, and its lines shown", { skip }, async (t) => {
  const initrd = path.join(t.testdir({}), 'initrd');
  fs.writeFileSync(initrd, linuxInitrd({ regionBytes: 2 ** 20, ticksPerLine: 50 }));
  const { code, stdout, stderr } = await run(t, ['demo', '--v86', '--kernel', kernel, '--initrd', initrd]);
  t.equal(code, 0, stderr);
  t.ok(/^process \d+ {2}line 00000001 /m.test(stderr), 'its first line');
  t.match(stdout, /^guest +in process \d+: \d+ lines$/m);
  t.match(stdout, /compared by digest .* What it says is its own/s);
});

t.test('cancelled while it boots: exit code 130, no process and no file is left', { skip }, async (t) => {
  const temp = tempRoot(t);
  const command = new Run(t, ['demo', '--v86', '--kernel', kernel, '--json'], temp);
  const { pids } = await command.line((line) => line.type === 'start');
  await command.line((line) => line.type === 'console');
  command.child.kill('SIGINT');
  t.equal((await command.ended).code, 130);
  t.match(command.result, { ok: false, error: { code: 'ERR_CLI_SIGNAL' } });
  for (const pid of pids as number[]) await gone(pid);
  t.same(temp.left(), []);
});

t.test('a kernel that stops at its start: an error with what it said last', { skip: noBios }, async (t) => {
  const file = path.join(t.testdir({}), 'kernel');
  fs.writeFileSync(file, fakeKernel({ says: 'Loading...\nno room' }));
  const errors: unknown[] = [];
  let pids: number[] = [];
  const nothing = (): void => {};
  const output = {
    note: nothing,
    progress: nothing,
    result: nothing,
    said: (_type: string, record: { pids?: number[] }) => void (pids = record.pids ?? pids),
    failed: (error: unknown) => void errors.push(error),
  };
  const plan = { channels: 1, compression: 'none' as const, level: {}, maxBandwidth: 0 };
  const demo = (bootLimitMs: number): Promise<void> =>
    v86Demo({ ...plan, linux: linuxGuest(file), bootLimitMs }, output, new AbortController().signal);
  // However slow the day: longer, until it has said something.
  let message = 'nothing was seen';
  for (let limitMs = 2000; message.includes('nothing was seen') && limitMs < 100_000; limitMs *= 2) {
    await t.rejects(demo(limitMs), { code: 'ERR_CLI_GUEST' });
    ({ message } = errors.at(-1) as Error);
    for (const pid of pids) await gone(pid);
  }
  t.match(message, /the guest's line 3 has not come within \d+ s; the last on its serial port: "no room"$/);
});
