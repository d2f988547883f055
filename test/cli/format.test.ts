import t from 'tap';
import { paintFor } from '../../src/cli/colour.js';
import { formatRate, formatRatio, formatShare, formatSize, formatTimeLeft } from '../../src/cli/format.js';
import { ProgressLine, progressText } from '../../src/cli/progress-line.js';

t.test('figures are short and have their unit', async (t) => {
  t.equal(formatSize(0), '0 B');
  t.equal(formatSize(1023), '1023 B');
  t.equal(formatSize(4096), '4 KiB');
  t.equal(formatSize(1.25 * 2 ** 30), '1.25 GiB');
  t.equal(formatSize(1008 * 2 ** 20 - 2 ** 17), '1008 MiB');
  t.equal(formatSize(5000 * 2 ** 40), '5000 TiB');
  t.equal(formatRate(2_345_000_000), '2.35 GB/s');
  t.equal(formatRate(98_760_000), '98.8 MB/s');
  t.equal(formatShare(1, 3), '33.3 %');
  t.equal(formatShare(0, 0), '-');
  t.equal(formatRatio(200, 100), '2.00:1');
  t.equal(formatRatio(0, 0), '-');
});

t.test('the time left has minutes and seconds, and hours where it needs them', async (t) => {
  t.equal(formatTimeLeft(0), '0:00');
  t.equal(formatTimeLeft(4.2), '0:05');
  t.equal(formatTimeLeft(65), '1:05');
  t.equal(formatTimeLeft(3600 + 61), '1:01:01');
  t.equal(formatTimeLeft(-1), '0:00');
  t.equal(formatTimeLeft(Infinity), '-:--');
});

const progress = {
  seconds: 2,
  bytes: 512 * 2 ** 20,
  totalBytes: 2 ** 30,
  wireBytes: 256 * 2 ** 20,
  normalPages: 3,
  zeroPages: 1,
  bytesPerSecond: 1.5e9,
};

t.test('a progress line has bytes, rate, zero share, ratio and time left', async (t) => {
  t.equal(progressText(progress), '512 MiB of 1 GiB  1.50 GB/s  zero 25.0 %  ratio 2.00:1  0:02 left');
  const before = { ...progress, seconds: 0, bytes: 0, wireBytes: 0, normalPages: 0, zeroPages: 0 };
  t.match(progressText(before), /-:-- left$/);
});

/** A terminal, or not, that keeps what is written to it. */
function stream(isTTY: boolean, columns = 80) {
  const written: string[] = [];
  const fake = { isTTY, columns, write: (text: string) => written.push(text) };
  return { written, stream: fake as unknown as NodeJS.WriteStream };
}

t.test('a progress line is written over itself, cut to the width, and cleared at the end', async (t) => {
  const { written, stream: tty } = stream(true, 11);
  const line = new ProgressLine(tty, true, {});
  line.clear();
  t.strictSame(written, [], 'nothing to clear yet');
  line.show(() => progressText(progress));
  line.show('short');
  line.clear();
  line.clear();
  t.strictSame(written, ['\r\x1b[K512 MiB of', '\r\x1b[Kshort', '\r\x1b[K']);
});

t.test('there is no progress line without a terminal, on a dumb one, or unwanted', async (t) => {
  const cases: [boolean, boolean, NodeJS.ProcessEnv][] = [
    [false, true, {}],
    [true, false, {}],
    [true, true, { TERM: 'dumb' }],
  ];
  for (const [isTTY, wanted, env] of cases) {
    const { written, stream: out } = stream(isTTY);
    const line = new ProgressLine(out, wanted, env);
    line.show(() => progressText(progress));
    line.clear();
    t.strictSame(written, []);
  }
});

t.test('colour is for terminals, and not where NO_COLOR is set', async (t) => {
  const coloured = (isTTY: boolean, env: NodeJS.ProcessEnv): boolean =>
    paintFor({ isTTY }, env).good('x') !== 'x' && paintFor({ isTTY }, env).bad('x') !== 'x';
  t.ok(coloured(true, {}));
  t.ok(coloured(true, { NO_COLOR: '' }), 'an empty NO_COLOR is none');
  t.notOk(coloured(true, { NO_COLOR: '1' }));
  t.notOk(coloured(true, { TERM: 'dumb' }));
  t.notOk(coloured(false, {}));
});
