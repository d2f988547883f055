/** Packing and unpacking: the same bytes again, by whatever decodes them, and what is made of damaged ones. */
import { spawnSync } from 'node:child_process';
import fs from 'node:fs';
import zlib from 'node:zlib';
import t from 'tap';
import {
  describeMigrationFile,
  packMigration,
  unpackMigration,
  verifyMappedRam,
  type MappedRamDescription,
} from '../../src/index.js';
import { encodeSeekTable, readSeekTable } from '../../src/packed/seek-table.js';
import { openToRead } from '../../src/stream/positioned-file.js';
import { readBytes } from '../migration/captures.js';
import { refusedHere } from '../migration/direct.js';
import { within } from '../support/within.js';
import { MIB, WAIT_MS, folderOf, park } from './vm.js';

const at = folderOf(t);
const plain = at('vm.mig');
const packed = `${plain}.zst`;
await park(t, plain);
const bytes = fs.readFileSync(plain);

t.test('it is smaller, and unpacked it is the same, with its holes', async (t) => {
  const progress: number[] = [];
  const made = await packMigration({ file: plain, onProgress: (done) => progress.push(done) });
  t.match(made, { out: packed, plainBytes: bytes.length, packedBytes: fs.statSync(packed).size });
  t.ok(made.packedBytes < bytes.length / 2);
  t.equal(progress.at(-1), bytes.length);
  t.same(
    progress,
    [...progress].sort((a, b) => a - b),
  );
  t.equal(fs.statSync(packed).mode & 0o777, 0o600);
  const out = at('again.mig');
  t.match(await unpackMigration({ file: packed, out }), { out, plainBytes: bytes.length });
  t.ok(fs.readFileSync(out).equals(bytes));
  t.ok(fs.statSync(out).blocks * 512 < bytes.length - 3 * MIB, 'what was a hole is one');
  t.same(
    fs.readdirSync(at('.')).filter((name) => name.includes('part')),
    [],
  );
});

t.test('the zstd of others decodes it to the same', async (t) => {
  const zstd = spawnSync('zstd', ['-dc', packed], { maxBuffer: 2 ** 28, timeout: WAIT_MS });
  const { zstdDecompressSync } = zlib as { zstdDecompressSync?: (packed: Buffer) => Buffer };
  // Of two frames Node's call gives the first: it is given them one by one.
  if (zstd.error === undefined) t.ok(zstd.stdout.equals(bytes), 'the program');
  if (zstdDecompressSync !== undefined)
    t.ok(Buffer.concat(await framesOf(packed, zstdDecompressSync)).equals(bytes));
  if (zstd.error !== undefined && zstdDecompressSync === undefined) {
    const { decompress } = await import('@mongodb-js/zstd');
    const frames = await Promise.all(await framesOf(packed, (frame) => decompress(frame)));
    t.ok(Buffer.concat(frames).equals(bytes), 'the package');
  }
});

async function framesOf<T>(file: string, decode: (frame: Buffer) => T): Promise<T[]> {
  await using handle = await openToRead(file);
  const table = (await readSeekTable(handle)) as NonNullable<Awaited<ReturnType<typeof readSeekTable>>>;
  const all = fs.readFileSync(file);
  return Array.from({ length: table.count }, (_, i) =>
    decode(all.subarray(table.packedOffset(i), table.packedOffset(i + 1))),
  );
}

t.test('a capture of a real QEMU comes back as it was', async (t) => {
  const file = at('qemu.mig');
  for (const name of ['q100-mappedram-multifd', 'q100-mappedram-single']) {
    fs.writeFileSync(file, readBytes(`${name}.mig`));
    await packMigration({ file, overwrite: true, zstdLevel: 19 });
    await unpackMigration({ file: `${file}.zst`, out: at('back.mig'), overwrite: true });
    t.ok(fs.readFileSync(at('back.mig')).equals(readBytes(`${name}.mig`)), name);
  }
});

t.test('past the page cache the same comes of it, both ways', async (t) => {
  if (await refusedHere(t)) return;
  const [out, back] = [at('direct.zst'), at('direct.mig')];
  await packMigration({ file: plain, out, directIo: true });
  t.ok(fs.readFileSync(out).equals(fs.readFileSync(packed)));
  await unpackMigration({ file: out, out: back, directIo: true });
  t.ok(fs.readFileSync(back).equals(bytes));
});

t.test('inspect and its proof say the same of both', async (t) => {
  const [one, other] = [await describeMigrationFile(plain), await describeMigrationFile(packed)];
  const { packed: sizes, ...same } = other;
  t.same(same, one);
  t.same(sizes, { bytes: fs.statSync(packed).size, plainBytes: bytes.length });
  const [a, b] = await Promise.all([
    verifyMappedRam(plain, one as MappedRamDescription),
    verifyMappedRam(packed, other as MappedRamDescription),
  ]);
  t.same(b, a);
});

t.test('what cannot be packed, or unpacked, is refused, and nothing is made', async (t) => {
  const before = fs.readdirSync(at('.'));
  fs.writeFileSync(at('text'), 'no migration at all');
  const option = (what: RegExp) => ({ code: 'ERR_MULTIFD_OPTION', message: what });
  await t.rejects(packMigration({ file: at('text') }), { code: 'ERR_MULTIFD_STREAM' });
  await t.rejects(packMigration({ file: packed }), option(/option file: .*already/));
  await t.rejects(packMigration({ file: plain, out: plain, overwrite: true }), option(/option out/));
  await t.rejects(packMigration({ file: plain }), { code: 'ERR_MULTIFD_IO', message: /overwrite/ });
  await t.rejects(packMigration({ file: plain, zstdLevel: 0 }), option(/zstdLevel/));
  await t.rejects(packMigration({ file: '' }), option(/option file/));
  await t.rejects(packMigration({ file: plain, level: 3 } as never), option(/level/));
  await t.rejects(unpackMigration({ file: plain }), option(/option file: .*not packed/));
  await t.rejects(unpackMigration({ file: packed }), { code: 'ERR_MULTIFD_IO', message: /overwrite/ });
  fs.copyFileSync(packed, at('noname'));
  await t.rejects(unpackMigration({ file: at('noname') }), option(/option out/));
  const hook = { file: plain, out: at('hook'), onProgress: () => assert() };
  await t.rejects(packMigration(hook), { code: 'ERR_MULTIFD_HOOK', message: /onProgress/ });
  for (const name of ['text', 'noname']) fs.rmSync(at(name));
  t.same(fs.readdirSync(at('.')), before);
  t.ok(fs.readFileSync(plain).equals(bytes));
});

function assert(): never {
  throw new Error('of the test');
}

t.test('an abort in the middle leaves nothing behind', async (t) => {
  const before = fs.readdirSync(at('.'));
  for (const [call, file] of [
    [packMigration, plain],
    [unpackMigration, packed],
  ] as const) {
    const stop = new AbortController();
    const making = call({
      file,
      out: at('stopped'),
      signal: stop.signal,
      onProgress: () => stop.abort('by the test'),
    });
    await t.rejects(within(making, WAIT_MS, 'the abort'), {
      code: 'ERR_MULTIFD_ABORTED',
      cause: 'by the test',
    });
    t.same(fs.readdirSync(at('.')), before);
  }
});

t.test('a file that somebody writes to while it is packed is not packed', async (t) => {
  const file = at('written.mig');
  fs.copyFileSync(plain, file);
  let isWritten = false;
  const packing = packMigration({
    file,
    onProgress: () => {
      if (isWritten) return;
      isWritten = true;
      const fd = fs.openSync(file, 'r+');
      fs.writeSync(fd, 'other bytes', bytes.length - 100);
      fs.closeSync(fd);
    },
  });
  await t.rejects(packing, { code: 'ERR_MULTIFD_IO', message: /written to it/ });
  t.notOk(fs.existsSync(`${file}.zst`));
  fs.rmSync(file);
});

t.test('a damaged frame that holds no page is found by the proof of all, as by unpacking', async (t) => {
  // The guest's memory from 3 to 7 MiB is a hole; the file has it from 1 MiB on.
  const file = await damaged((frames) => (frames[5][frames[5].length - 1] ^= 1));
  const description = (await describeMigrationFile(packed)) as MappedRamDescription;
  const refused = { code: 'ERR_MULTIFD_STREAM', message: /frame 5 at byte/ };
  await t.rejects(verifyMappedRam(file, description), refused);
  await t.rejects(unpackMigration({ file, out: at('none.mig') }), refused);
});

/** The packed file with its frames changed, and a table that fits them. */
async function damaged(change: (frames: Buffer[], plainSizes: number[]) => void): Promise<string> {
  const frames = (await framesOf(packed, (frame) => Buffer.from(frame))) as Buffer[];
  await using handle = await openToRead(packed);
  const table = await readSeekTable(handle);
  const sizes = frames.map((_, i) => (table?.plainOffset(i + 1) ?? 0) - (table?.plainOffset(i) ?? 0));
  change(frames, sizes);
  const file = at('damaged.zst');
  const entries = frames.map((frame, i) => ({ packed: frame.length, plain: sizes[i] }));
  fs.writeFileSync(file, Buffer.concat([...frames, encodeSeekTable(entries)]));
  return file;
}

/** RLE: 5 bytes that decode to 128 KiB, as often as is wanted. */
function bomb(blocks: number): Buffer {
  const head = Buffer.from('28b52ffd0058', 'hex');
  const block = (last: number): Buffer => {
    const bytes = Buffer.alloc(4, 0x5a);
    bytes.writeUIntLE(((2 ** 17) << 3) | 2 | last, 0, 3);
    return bytes;
  };
  return Buffer.concat([head, ...Array.from({ length: blocks - 1 }, () => block(0)), block(1)]);
}

const DAMAGE: Record<string, [(frames: Buffer[], sizes: number[]) => void, RegExp]> = {
  'a byte that has changed': [(frames) => (frames[1][frames[1].length >> 1] ^= 0x10), /frame 1 at byte/],
  'a checksum that is wrong': [(frames) => (frames[2][frames[2].length - 1] ^= 1), /frame 2 at byte/],
  'a frame that is cut': [(frames) => (frames[1] = frames[1].subarray(0, -9)), /frame 1 at byte/],
  'two frames in place of one': [
    (frames, sizes) => {
      frames.splice(1, 2, Buffer.concat([frames[1], frames[2]]));
      sizes.splice(1, 2, sizes[1] + sizes[2]);
    },
    /frame 1 at byte .*whole/,
  ],
  'a frame that bombs': [(frames) => (frames[1] = bomb(2000)), /frame 1 at byte .*received/],
  'a frame of less than was said': [(frames) => (frames[1] = bomb(7)), /frame 1 at byte/],
  'no frame at all': [(frames) => frames[1].fill(0), /frame 1 at byte .*magic/],
  'a skippable frame that is said to hold something': [
    (frames) => frames[1].writeUInt32LE(0x184d2a50, 0),
    /frame 1 at byte/,
  ],
};
for (const [name, [change, message]] of Object.entries(DAMAGE)) {
  t.test(`${name} is told with its place, and no file is made of it`, async (t) => {
    const file = await damaged(change);
    const refused = { name: 'MultifdError', code: 'ERR_MULTIFD_STREAM', message };
    await t.rejects(unpackMigration({ file, out: at('none.mig') }), refused);
    t.notOk(fs.existsSync(at('none.mig')));
    t.notOk(fs.existsSync(at('none.mig.part')));
    const before = process.memoryUsage().rss;
    const description = (await describeMigrationFile(packed)) as MappedRamDescription;
    await t.rejects(verifyMappedRam(file, description), refused);
    t.ok(process.memoryUsage().rss - before < 100 * MIB, 'no more memory than a few frames');
  });
}

t.test(
  'a sound file of another program, with no mapped-ram file in it, is refused as pack would',
  async (t) => {
    const file = await damaged((frames, sizes) => {
      frames.splice(0, frames.length, bomb(8));
      sizes.splice(0, sizes.length, 8 * 2 ** 17);
    });
    const refused = { code: 'ERR_MULTIFD_STREAM', message: /magic: received 0x5a5a5a5a, expected/ };
    await t.rejects(unpackMigration({ file, out: at('none.mig') }), refused);
    t.notOk(fs.existsSync(at('none.mig')));
  },
);
