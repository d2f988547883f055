import t from 'tap';
import { paintFor } from '../../src/cli/terminal/colour.js';
import {
  formatRate,
  formatRatio,
  formatShare,
  formatSize,
  formatTimeLeft,
} from '../../src/cli/terminal/format.js';
import { columnsOf, wrap } from '../../src/cli/terminal/columns.js';
import { table } from '../../src/cli/terminal/output.js';
import { ProgressLine, progressText } from '../../src/cli/terminal/progress-line.js';
import { textOf as qemuText, type QemuDemoResult } from '../../src/cli/demo/demo-qemu.js';
import { blockTable } from '../../src/cli/commands/inspect.js';
import type { MappedRamDescription } from '../../src/index.js';
import { formatResult } from '../../src/cli/demo/report-table.js';
import type { DemoResult } from '../../src/cli/demo/report-records.js';

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

t.test('on a narrow terminal a progress line has fewer figures, and none of them in part', async (t) => {
  const size = '512 MiB of 1 GiB';
  for (const [columns, expected] of [
    [68, `${size}  1.50 GB/s  zero 25.0 %  ratio 2.00:1  0:02 left`],
    [63, `${size}  1.50 GB/s  zero 25.0 %  0:02 left`],
    [47, `${size}  1.50 GB/s  0:02 left`],
    [36, `${size}  0:02 left`],
    [26, size],
    [16, size],
    [5, size],
  ] as const) {
    t.equal(progressText(progress, columns), expected, `${columns}`);
    t.ok(expected.length <= columns || columns < size.length);
  }
  const { written, stream: tty } = stream(true, 60);
  new ProgressLine(tty, true, {}).show((columns) => progressText(progress, columns));
  t.strictSame(written, [`\r\x1b[K${size}  1.50 GB/s  zero 25.0 %  0:02 left`]);
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
  line.show('a\nb\x1b[2J');
  line.clear();
  line.clear();
  t.strictSame(written, ['\r\x1b[K512 MiB of', '\r\x1b[Kshort', '\r\x1b[Ka\\x0ab\\x1b', '\r\x1b[K']);
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

t.test(
  'colour is for terminals or where FORCE_COLOR asks for it, and not where NO_COLOR is set',
  async (t) => {
    const coloured = (isTTY: boolean, env: NodeJS.ProcessEnv): boolean =>
      paintFor({ isTTY }, env).good('x') !== 'x' && paintFor({ isTTY }, env).bad('x') !== 'x';
    t.ok(coloured(true, {}));
    t.ok(coloured(true, { NO_COLOR: '' }), 'an empty NO_COLOR is none');
    t.notOk(coloured(true, { NO_COLOR: '1' }));
    t.notOk(coloured(true, { TERM: 'dumb' }));
    t.notOk(coloured(false, {}));
    t.ok(coloured(false, { FORCE_COLOR: '1' }));
    t.ok(coloured(true, { FORCE_COLOR: '3', TERM: 'dumb' }));
    t.notOk(coloured(false, { FORCE_COLOR: '' }), 'an empty FORCE_COLOR is none');
    for (const FORCE_COLOR of ['0', 'false']) t.notOk(coloured(true, { FORCE_COLOR }), FORCE_COLOR);
    t.notOk(coloured(true, { NO_COLOR: '1', FORCE_COLOR: '1' }), 'NO_COLOR wins');
  },
);

t.test('texts are broken between words, on terminals alone', async (t) => {
  t.equal(columnsOf({ isTTY: true, columns: 60 }), 60);
  t.equal(columnsOf({ isTTY: true, columns: 0 }), 80, 'a terminal that does not say');
  t.equal(columnsOf({ columns: 60 }), Infinity, 'no terminal');
  const text = 'one two three four five six seven';
  t.same(wrap(text, Infinity), [text]);
  t.same(wrap(text, 33), [text]);
  t.same(wrap(text, 32), ['one two three four five six', 'seven']);
  t.same(wrap(`one ${'x'.repeat(30)} two`, 21), ['one', 'x'.repeat(30), 'two'], 'a long word stays whole');
  t.same(wrap(text, 3), wrap(text, 20), 'below 20 columns nothing is broken any more');
  t.equal(
    table(
      [
        ['a', text],
        ['long', 'x'],
      ],
      30,
    ),
    'a     one two three four five\n      six seven\nlong  x\n',
  );
});

const SHA256 = '0123456789abcdef'.repeat(4);
const OTHER = SHA256.split('').reverse().join('');

function demoResult(different: string[] = []): DemoResult {
  const blocks = [
    { name: 'pc.ram', size: 1008 * 2 ** 20 },
    { name: 'vga.vram', size: 2 ** 24 },
  ].map((block) => {
    const equal = !different.includes(block.name);
    return { ...block, equal, sha256Source: SHA256, sha256Destination: equal ? SHA256 : OTHER };
  });
  return {
    ...{ channels: 255, compression: 'zstd', level: 20, zeroPageDetection: 'multifd', pageSize: 4096 },
    ...{ zeroCopySend: true, zeroCopy: { packets: 2 ** 23, copied: 2 ** 23 } },
    ...{
      maxBandwidth: 0,
      backing: 'shared',
      prefault: false,
      hugePages: false,
      dirtyRounds: 1000,
      ram: null,
      tls: null,
    },
    ...{
      bytes: 2 ** 42,
      seconds: 12345.678,
      startupSeconds: 12.345,
      bytesPerSecond: 2.34e9,
      wireBytes: 2 ** 40,
    },
    ...{ normalPages: 2 ** 29, zeroPages: 2 ** 29, blocks },
    dirtyPages: { rewritten: 123456789, becameZero: 123456789, stoppedBeingZero: 123456789 },
  };
}

const marks = { good: (text: string) => `+${text}+`, bad: (text: string) => `!${text}!` };
const plain = { good: (text: string) => text, bad: (text: string) => text };

t.test('the first screen fits the terminal, and says in words what was proven', async (t) => {
  for (const columns of [120, 80, 60, 40]) {
    for (const different of [[], ['pc.ram']]) {
      const lines = formatResult(demoResult(different), plain, columns).split('\n');
      const wide = lines.filter(
        (line) => line.length > (different.length > 0 ? Math.max(columns, 52) : columns),
      );
      t.same(wide, [], `${columns} columns`);
    }
  }
  const screen = formatResult(demoResult(), marks, 80);
  t.match(screen, /^pc\.ram +1008 MiB {2}0123456789abcdef {2}\+equal\+$/m);
  t.match(screen, /^block +size {2}SHA-256, first 16 digits$/m);
  t.match(
    screen,
    "\n\n+Proven: the destination's RAM equals the source's. SHA-256 of all 2 blocks+\n+compared (1 GiB), which each process took of its own RAM.+\n",
  );
  const file = formatResult(demoResult(), plain, Infinity);
  t.match(
    file,
    new RegExp(`^pc\\.ram +1008 MiB {2}${SHA256} {2}equal$`, 'm'),
    'whole where there is no terminal',
  );
  t.match(file, /^block +size {2}SHA-256$/m);
});

t.test('RAM that differs is said as loudly, and nothing is called proven', async (t) => {
  const screen = formatResult(demoResult(['vga.vram']), marks, 80);
  t.notMatch(screen, /Proven/i);
  t.match(screen, "!The destination's RAM DIFFERS from the source's, in vga.vram.");
  t.match(screen, /^pc\.ram.* {2}\+equal\+$/m);
  t.match(
    screen,
    /^vga\.vram +16 MiB {2}0123456789abcdef {2}source\n {20}fedcba9876543210 {2}destination {2}!DIFFERENT!$/m,
  );
});

t.test('demo --qemu says in words what was proven, too', async (t) => {
  const stats = {
    pageBytes: 2 ** 27,
    bytes: 2 ** 25,
    normalPages: 1,
    zeroPages: 1,
    syncs: 2,
    channels: [{}],
  };
  const result = {
    ...{ qemu: '10.0.2', ramBytes: 2 ** 27, differing: [] as string[], running: true, tls: null },
    parked: { machine: 'pc-i440fx-10.0', fileBytes: 2 ** 27, blocks: [], seconds: 0.5, stats },
    resumed: { seconds: 0.5, stats },
  } as unknown as QemuDemoResult;
  const plan = { channels: 2, compression: 'none', level: {}, tls: null } as const;
  const screen = (more: Partial<QemuDemoResult>, columns = Infinity): string =>
    qemuText(plan, { ...result, ...more }, marks, columns);
  t.match(
    screen({}),
    "\n\n+Proven: the second QEMU's RAM equals the first's, compared byte by byte, 128 MiB without VGA memory and shadows of ROMs, and the guest runs on.+\n",
  );
  t.match(
    screen({ differing: ['0x1000-0x1fff (1 pages)'] }),
    "\n!The second QEMU's RAM DIFFERS from the first's",
  );
  t.match(
    screen({ running: false }),
    /\n!The second QEMU's RAM equals .*, but the guest DOES NOT RUN ON\.!\n/,
  );
  for (const more of [{ differing: ['0x1000'] }, { running: false }]) t.notMatch(screen(more), 'Proven');
  for (const columns of [80, 60]) {
    // The marks of colour take no room on a terminal.
    const wide = screen({}, columns)
      .split('\n')
      .filter((line) => line.replaceAll('+', '').length > columns);
    t.same(wide, [], `${columns} columns`);
  }
});

t.test(
  'inspect --verify has whole digests on any terminal, below their blocks where it is narrow',
  async (t) => {
    const block = { usedLength: 2 ** 22, presentPages: 80, zeroPages: 944 };
    const blocks = [
      { ...block, name: 'pc.ram' },
      { ...block, name: '/rom@etc/acpi/tables' },
    ] as unknown as MappedRamDescription['blocks'];
    const verified = [{ sha256: SHA256 }, { sha256: OTHER }];
    const ram = 'pc.ram                4 MiB  80 present  944 zero';
    const tables = '/rom@etc/acpi/tables  4 MiB  80 present  944 zero';
    const beside = `${ram}  ${SHA256}\n${tables}  ${OTHER}\n`;
    t.equal(blockTable({ blocks }, verified, Infinity), beside);
    t.equal(blockTable({ blocks }, verified, 115), beside);
    t.equal(blockTable({ blocks }, verified, 114), `${ram}\n  ${SHA256}\n${tables}\n  ${OTHER}\n`);
    t.equal(blockTable({ blocks }, [], 40), `${ram}\n${tables}\n`, 'not verified');
  },
);
