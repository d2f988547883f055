/** `multifd demo --json` from end to end: the last line, and that the RAM arrived. */
import { createHash } from 'node:crypto';
import fs from 'node:fs';
import path from 'node:path';
import t, { type Test } from 'tap';
import { findSystemCalls } from '../../src/native/system-calls.js';
import { Run, run, tempRoot, type BlockLine, type Line } from './cli.js';

// Most of the time goes into starting processes and waiting for them.
t.jobs = 3;

const MIB = 2 ** 20;
const SIZE = 8 * MIB;
/** Elsewhere a file's blocks do not tell. */
const NO_HOLES = process.platform === 'linux' ? false : 'needs Linux';
const SMALL = ['demo', '--json', '--size', '8M'];

/** The result of a run that must succeed. */
async function resultOf(t: Test, args: string[], env?: NodeJS.ProcessEnv): Promise<Line> {
  const { code, stderr, lines, result } = await run(t, args, { env });
  t.equal(code, 0, stderr);
  t.equal(stderr, '', 'no terminal, so nothing on stderr');
  t.equal(lines[0]?.type, 'start');
  t.equal(lines.at(-1), result, 'the result is the last line');
  t.equal(result?.ok, true);
  return result as Line;
}

function checkBlocks(t: Test, result: Line): BlockLine[] {
  const blocks = result.blocks as BlockLine[];
  for (const block of blocks) {
    t.match(block.sha256Source, /^[0-9a-f]{64}$/, block.name);
    t.equal(block.sha256Destination, block.sha256Source);
    t.equal(block.equal, true);
  }
  return blocks;
}

t.test('each method and each backing: every block arrives, the figures fit', async (t) => {
  const wire: Record<string, number> = {};
  for (const backing of ['shared', 'file']) {
    for (const compression of ['none', 'zlib', 'zstd']) {
      const temp = tempRoot(t);
      const args = [...SMALL, '--backing', backing, '--compression', compression];
      const result = await resultOf(t, args, temp.env);
      const blocks = checkBlocks(t, result);
      t.equal(
        blocks.reduce((sum, block) => sum + block.size, 0),
        SIZE,
      );
      t.equal(new Set(blocks.map((block) => block.sha256Source)).size, blocks.length);
      t.match(result, {
        channels: 2,
        compression,
        level: compression === 'none' ? null : 1,
        zeroPageDetection: 'multifd',
        pageSize: 4096,
        backing,
        bytes: SIZE,
      });
      const { seconds, startupSeconds, wireBytes, normalPages, zeroPages } = result as Record<string, number>;
      t.ok(seconds > 0 && startupSeconds > 0);
      t.equal(normalPages + zeroPages, SIZE / 4096);
      t.ok(zeroPages > 0 && normalPages > 0);
      if (compression === 'none') t.ok(wireBytes > normalPages * 4096, 'pages and headers');
      wire[compression] = wireBytes;
      t.strictSame(temp.left(), [], 'no temporary file is left');
    }
  }
  t.ok(wire.zlib < wire.none && wire.zstd < wire.none, 'what is compressed is less');
});

t.test('zero-page detection: legacy and multifd find the same pages, none finds none', async (t) => {
  const found: Record<string, unknown> = {};
  const cases = [
    ['multifd', 'shared'],
    ['legacy', 'shared'],
    ['legacy', 'file'],
    ['none', 'shared'],
  ];
  for (const [where, backing] of cases) {
    const temp = tempRoot(t);
    const args = [...SMALL, '--zero-page-detection', where, '--backing', backing, '--dirty-rounds', '1'];
    const result = await resultOf(t, args, temp.env);
    checkBlocks(t, result);
    t.equal(result.zeroPageDetection, where);
    found[`${where} ${backing}`] = result.zeroPages;
  }
  t.ok((found['multifd shared'] as number) > 0);
  t.equal(found['legacy shared'], found['multifd shared']);
  t.equal(found['legacy file'], found['multifd shared']);
  t.equal(found['none shared'], 0);
});

t.test('dirty rounds: pages change in every way between the syncs, and arrive', async (t) => {
  for (const backing of ['shared', 'file']) {
    const temp = tempRoot(t);
    const args = [
      ...SMALL,
      '--dirty-rounds',
      '3',
      '--backing',
      backing,
      '--page-size',
      '64K',
      '--channels',
      '3',
      '--prefault',
    ];
    const result = await resultOf(t, args, temp.env);
    checkBlocks(t, result);
    const { rewritten, becameZero, stoppedBeingZero } = result.dirtyPages as Record<string, number>;
    t.ok(rewritten > 0 && becameZero > 0 && stoppedBeingZero > 0);
    t.equal(result.bytes, SIZE + (rewritten + becameZero + stoppedBeingZero) * 65536);
    t.match(result, { dirtyRounds: 3, channels: 3, pageSize: 65536, prefault: true });
    t.strictSame(temp.left(), []);
  }
});

t.test(
  "the destination's RAM is written beforehand with --prefault, and a hole without",
  { skip: NO_HOLES },
  async (t) => {
    const temp = tempRoot(t);
    const allocated: number[] = [];
    for (const more of [[], ['--prefault']]) {
      const args = [...SMALL, '--backing', 'file', '--max-bandwidth', '1M', ...more];
      const started = new Run(t, args, { env: temp.env });
      const start = await started.line((line) => line.type === 'start');
      t.equal(start.prefault, more.length > 0);
      allocated.push(fs.statSync(start.destinationFile as string).blocks * 512);
      started.child.kill('SIGINT');
      await started.ended;
    }
    t.ok(allocated[0] < SIZE);
    t.ok(allocated[1] >= SIZE);
  },
);

/** Has a process asked for huge pages anywhere? By the flag that smaps shows. */
function asksForHugePages(pid: number): boolean {
  return / hg( |$)/m.test(fs.readFileSync(`/proc/${pid}/smaps`, 'utf8'));
}

t.test(
  '--huge-pages: both sides ask for them where koffi is, and not without',
  { skip: NO_HOLES },
  async (t) => {
    const temp = tempRoot(t);
    for (const more of [[], ['--huge-pages']]) {
      const started = new Run(t, [...SMALL, '--max-bandwidth', '1M', ...more], { env: temp.env });
      const start = await started.line((line) => line.type === 'start');
      const asked = more.length > 0;
      t.equal(start.hugePages, asked);
      const expected = asked && findSystemCalls() !== undefined;
      for (const pid of [start.pid, start.destinationPid]) t.equal(asksForHugePages(pid as number), expected);
      started.child.kill('SIGINT');
      await started.ended;
    }
  },
);

t.test('--ram FILE: its bytes and a page of padding arrive, and it is not touched', async (t) => {
  const whole = Buffer.concat([randomish(3 * MIB), Buffer.alloc(MIB)]);
  const cases: { name: string; bytes: Buffer; rounds: number; backing: string; inPlace: boolean }[] = [
    { name: 'whole pages, shared', bytes: whole, rounds: 0, backing: 'shared', inPlace: false },
    { name: 'padded, shared', bytes: whole.subarray(0, -100), rounds: 0, backing: 'shared', inPlace: false },
    { name: 'whole pages, file', bytes: whole, rounds: 0, backing: 'file', inPlace: true },
    { name: 'padded, file', bytes: whole.subarray(0, -100), rounds: 0, backing: 'file', inPlace: false },
    { name: 'dirtied, shared', bytes: whole, rounds: 2, backing: 'shared', inPlace: false },
    { name: 'dirtied, file', bytes: whole, rounds: 2, backing: 'file', inPlace: false },
  ];
  for (const { name, bytes, rounds, backing, inPlace } of cases) {
    await t.test(name, async (t) => {
      const file = path.join(t.testdir({ tmp: {} }), 'guest.bin');
      const env = { TMPDIR: path.join(path.dirname(file), 'tmp') };
      fs.writeFileSync(file, bytes);
      const before = fs.statSync(file);
      const args = ['demo', '--json', '--ram', file, '--backing', backing, '--dirty-rounds', String(rounds)];
      const { code, stderr, lines, result } = await run(t, args, { env });
      t.equal(code, 0, stderr);
      const [block, ...others] = checkBlocks(t, result as Line);
      t.strictSame(others, []);
      const size = Math.ceil(bytes.length / 4096) * 4096;
      t.match(block, { name: 'pc.ram', size });
      t.equal(result?.ram, file);
      if (backing === 'file') t.equal(lines[0].sourceFile === file, inPlace);
      const padded = Buffer.concat([bytes, Buffer.alloc(size - bytes.length)]);
      const expected = createHash('sha256').update(padded).digest('hex');
      if (rounds === 0) t.equal(block.sha256Source, expected, 'the digest is that of the file');
      else t.not(block.sha256Source, expected, 'the RAM went on');
      const after = fs.statSync(file);
      t.ok(fs.readFileSync(file).equals(bytes));
      t.equal(after.mtimeMs, before.mtimeMs);
      t.equal(after.ctimeMs, before.ctimeMs);
      t.strictSame(fs.readdirSync(env.TMPDIR), []);
    });
  }
});

t.test('progress is told as it goes, and not with --no-progress', async (t) => {
  const { lines } = await run(t, [...SMALL, '--max-bandwidth', '8M']);
  const start = lines[0] as Line & { totalBytes: number };
  t.equal(start.totalBytes, SIZE);
  const seen = lines.filter((line) => line.type === 'progress') as unknown as Record<string, number>[];
  t.ok(seen.length >= 3);
  for (const [i, line] of seen.entries()) {
    t.ok(i === 0 || line.bytes >= seen[i - 1].bytes);
    t.equal(line.bytes, (line.normalPages + line.zeroPages) * 4096);
    t.equal(line.totalBytes, SIZE);
    t.ok(line.wireBytes > 0 && line.bytesPerSecond >= 0 && line.seconds > 0);
  }
  t.equal(seen.at(-1)?.bytes, SIZE);

  const quiet = await run(t, [...SMALL, '--no-progress']);
  t.strictSame(
    quiet.lines.map((line) => line.type),
    ['start', 'result'],
  );
});

t.test('RAM that differs is told: exit code 1, and which block', async (t) => {
  const temp = tempRoot(t);
  const args = [...SMALL, '--backing', 'file', '--max-bandwidth', '4M'];
  const started = new Run(t, args, { env: temp.env });
  const { start } = await started.running();
  await started.line((line) => line.type === 'progress' && (line.bytes as number) > 2 * MIB);
  // The source's first page, which has been sent, is changed behind its back.
  const fd = fs.openSync(start.sourceFile as string, 'r+');
  fs.writeSync(fd, 'changed', 0);
  fs.closeSync(fd);
  const { code, stderr } = await started.ended;
  t.equal(code, 1);
  t.equal(stderr, 'multifd: ERR_CLI_DIFFERENT: SHA-256 differs of pc.ram\n');
  const { result } = started;
  t.match(result, { ok: false, error: { code: 'ERR_CLI_DIFFERENT' }, bytes: SIZE });
  const [ram, ...others] = result?.blocks as BlockLine[];
  t.equal(ram.equal, false);
  t.not(ram.sha256Destination, ram.sha256Source);
  for (const block of others) t.equal(block.equal, true);
  t.strictSame(temp.left(), []);
});

/** Bytes that are not zero and do not repeat soon. */
function randomish(length: number): Buffer {
  const bytes = Buffer.alloc(length);
  for (let i = 0; i < length; i += 4) bytes.writeInt32LE(Math.imul(i + 1, 0x9e3779b1), i);
  return bytes;
}
