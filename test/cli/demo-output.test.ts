/** What people see: the table, the progress line, colours. */
import { spawn, spawnSync } from 'node:child_process';
import t, { type Test } from 'tap';
import { MAIN, WITHOUT_TAP, run } from './cli.js';

const hasScript = process.platform === 'linux' && spawnSync('script', ['--version']).error === undefined;
const COLUMNS = 80;
const NO_SCRIPT = hasScript ? false : 'needs script(1) of util-linux';

t.test('the table has the figures and the digests, without colours where there is no terminal', async (t) => {
  const args = ['demo', '--size', '8M', '--compression', 'zlib', '--level', '2', '--dirty-rounds', '1'];
  const { code, stdout, stderr } = await run(t, args, { env: { NO_COLOR: undefined } });
  t.equal(code, 0);
  t.equal(stderr, '');
  t.match(stdout, /^guest RAM {4}8\.\d+ MiB, \d+ pages of 4 KiB$/m);
  t.match(stdout, /^dirty pages {2}\d+ rewritten, \d+ became zero, \d+ stopped being zero, in 1 rounds$/m);
  t.match(stdout, /^zero pages {3}\d+ \(\d+\.\d %\), detection multifd$/m);
  t.match(stdout, /^channels {5}2, compression zlib level 2$/m);
  t.match(stdout, /^on the wire {2}[\d.]+ MiB, ratio [\d.]+:1$/m);
  t.match(stdout, /^start-up {5}[\d.]+ s$/m);
  t.match(stdout, /^migration {4}[\d.]+ s, [\d.]+ [kMG]B\/s$/m);
  t.match(stdout, /^pc\.ram +[\d.]+ MiB {2}[0-9a-f]{64} {2}equal$/m);
  t.match(stdout, /^pc\.bios +256 KiB {2}[0-9a-f]{64} {2}equal$/m);
  t.match(
    stdout,
    /\nProven: the destination's RAM equals the source's\. SHA-256 of all 4 blocks compared \(8 MiB\), which each process took of its own RAM\.\n$/,
  );
  t.notMatch(stdout, '\x1b');
});

t.test(
  'on a terminal there is a progress line, which is cleared, and a colour unless NO_COLOR',
  { skip: NO_SCRIPT },
  async (t) => {
    const coloured = await onTerminal(t, [], {});
    t.match(
      coloured,
      /\r\x1b\[K[\d.]+ MiB of 8 MiB {2}[\d.]+ [kMG]?B\/s {2}zero [\d.]+ % {2}ratio [\d.]+:1 {2}\d:\d\d left/,
    );
    t.match(coloured, '\r\x1b[Kguest RAM', 'the table begins on a cleared line');
    t.match(coloured, '\x1b[32mequal\x1b[39m');
    t.match(coloured, "\x1b[32mProven: the destination's RAM equals the source's.");
    const lines = coloured.split(/\r*\n|\r\x1b\[K/).map((line) => line.replaceAll(/\x1b\[\d+m/g, ''));
    t.same(
      lines.filter((line) => line.length > COLUMNS),
      [],
      'nothing is wider than the terminal',
    );
    t.match(coloured, /^pc\.ram +[\d.]+ MiB {2}[0-9a-f]{16} {2}\S*equal/m, 'short digests');

    const plain = await onTerminal(t, [], { NO_COLOR: '1' });
    t.match(plain, / left/);
    t.notMatch(plain, /\x1b\[\d+m/);

    const quiet = await onTerminal(t, ['--no-progress'], {});
    t.match(quiet, '\x1b[32mequal');
    t.notMatch(quiet, / left/);

    const json = await onTerminal(t, ['--json'], {});
    t.notMatch(json, '\x1b', 'records and a line on one terminal would be mixed up');
    t.match(json, '"type":"progress"');
  },
);

/** Runs a small demo on a pseudo terminal; all that is written to it. */
async function onTerminal(t: Test, more: string[], env: NodeJS.ProcessEnv): Promise<string> {
  const words = [
    'env',
    ...WITHOUT_TAP,
    process.execPath,
    MAIN,
    'demo',
    '--size',
    '8M',
    '--max-bandwidth',
    '16M',
    ...more,
  ];
  const command = words.map((word) => `'${word}'`).join(' ');
  const merged: NodeJS.ProcessEnv = { ...process.env, TERM: 'xterm', ...env };
  if (env.NO_COLOR === undefined) delete merged.NO_COLOR;
  // stdin stays open: at its end script(1) would send the terminal an end of file.
  const child = spawn('script', ['-qfec', `stty cols ${COLUMNS}; ${command}`, '/dev/null'], { env: merged });
  t.teardown(() => child.kill('SIGKILL'));
  let text = '';
  child.stdout.setEncoding('utf8').on('data', (piece: string) => (text += piece));
  const code = await new Promise((resolve) => child.on('close', resolve));
  t.equal(code, 0, text);
  return text;
}
