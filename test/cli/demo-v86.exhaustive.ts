/** `multifd demo --v86`. */
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import t from 'tap';
import { MAIN, Run, gone, run, tempRoot } from './cli.js';

const root = fileURLToPath(new URL('../../../', import.meta.url));

t.test('a PC is moved there and back, parked, resumed twice, and loses nothing', async (t) => {
  const temp = tempRoot(t);
  const { code, stderr, result, lines } = await run(t, ['demo', '--v86', '--json'], temp);
  t.equal(code, 0, stderr);
  const [first, second] = lines[0].pids as number[];
  t.match(lines[0], { type: 'start', channels: 2, compression: 'none' });
  t.match(result, { ok: true, equal: true });
  const hops = result?.hops as { what: string; from: unknown; to: unknown; downtimeMs?: number }[];
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
  for (const hop of hops.slice(0, 3)) {
    t.match(hop, { rounds: Number, dirtyBytesPerSecond: Number, downtimeMs: Number, wireBytes: Number });
    t.ok((hop.downtimeMs as number) > 0);
  }
  // What one process has begun the other one goes on with.
  const parked = lines.findIndex(({ type, what }) => type === 'hop' && what === 'parked');
  let [owner, number] = [first, 0];
  for (const { type, pid, to, text } of lines.slice(0, parked)) {
    if (type === 'hop') owner = to as number;
    if (type !== 'console') continue;
    t.equal(pid, owner);
    const digits = (++number).toString(16).padStart(8, '0');
    t.match(text, new RegExp(`^line ${digits} steps [0-9a-f]{8} sum [0-9a-f]{8} ok$`));
  }
  t.ok(number >= 9, `${number} lines`);
  await Promise.all([gone(first), gone(second)]);
  t.same(temp.left(), []);
});

t.test('for people: the lines with their process, and what it proves', async (t) => {
  const { code, stdout, stderr } = await run(t, ['demo', '--v86', '--compression', 'zlib']);
  t.equal(code, 0, stderr);
  t.match(stderr, /^process \d+ {2}line 00000001 steps [0-9a-f]{8} sum [0-9a-f]{8} ok$/m);
  t.match(stderr, /^moved from process \d+ to process \d+: .* rounds, .*B\/s dirtied, downtime [\d.]+ ms$/m);
  t.match(stdout, /^PC {8}v86 0\.5\..*, 32 MiB of RAM$/m);
  t.match(stdout, /^channels {2}2, compression zlib$/m);
  t.match(stdout, /^Proven: the guest has lost nothing\./m);
});

t.test('cancelled in the middle: exit code 130, no process and no file is left', async (t) => {
  const temp = tempRoot(t);
  const command = new Run(t, ['demo', '--v86', '--json'], temp);
  const { pids } = await command.line((line) => line.type === 'start');
  await command.line((line) => line.type === 'hop' && line.what === 'parked');
  command.child.kill('SIGINT');
  t.equal((await command.ended).code, 130);
  t.match(command.result, { ok: false, error: { code: 'ERR_CLI_SIGNAL' } });
  for (const pid of pids as number[]) await gone(pid);
  t.same(temp.left(), []);
});

t.test('a process with a PC that is killed ends it, with exit code 1', async (t) => {
  const command = new Run(t, ['demo', '--v86', '--json']);
  const [first, second] = (await command.line((line) => line.type === 'start')).pids as number[];
  await command.line((line) => line.type === 'console');
  process.kill(second, 'SIGKILL');
  const { code, stderr } = await command.ended;
  t.equal(code, 1);
  t.match(stderr, /ERR_CLI_DESTINATION: the second PC process was killed by SIGKILL before it was done/);
  await gone(first);
});

t.test('without the package v86: exit code 2, and what to do about it', async (t) => {
  // A copy of the command with its dependencies beside it, and nothing else.
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'multifd-no-v86-'));
  t.teardown(() => fs.rmSync(folder, { recursive: true, force: true }));
  fs.cpSync(path.join(root, 'dist/cli'), path.join(folder, 'dist/cli'), { recursive: true });
  fs.copyFileSync(path.join(root, 'package.json'), path.join(folder, 'package.json'));
  for (const name of ['@mongodb-js', 'commander', 'fflate', 'piscina']) {
    fs.mkdirSync(path.join(folder, 'node_modules'), { recursive: true });
    fs.symlinkSync(path.join(root, 'node_modules', name), path.join(folder, 'node_modules', name));
  }
  const main = path.join(folder, 'dist/cli/main.js');
  const { code, stderr, result } = await run(t, ['demo', '--v86', '--json'], { main });
  t.equal(code, 2);
  t.match(stderr, /^multifd: ERR_CLI_V86: this needs the package v86, .* \(npm install v86\)$/m);
  t.match(result, { ok: false, error: { code: 'ERR_CLI_V86' } });
});

t.test('it takes no options of the generated guest', async (t) => {
  for (const option of [['--size', '64M'], ['--qemu'], ['--tls'], ['--dirty-rounds', '2']]) {
    const { code, stderr } = await run(t, ['demo', '--v86', ...option]);
    t.equal(code, 2);
    t.match(stderr, /'--v86' cannot be used with option '--/);
  }
});

t.test('its process is not started by hand', async (t) => {
  const main = MAIN.replace(/main\.js$/, MAIN.includes('/src/') ? 'demo/v86/pc-process.js' : 'pc-process.js');
  const { code, stderr } = await run(t, [], { main });
  t.equal(code, 1);
  t.match(stderr, 'ERR_CLI_DESTINATION');
});
