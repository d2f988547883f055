import t, { type Test } from 'tap';
import { createHash } from 'node:crypto';
import fs from 'node:fs';
import path from 'node:path';
import { digestBlocks } from '../../src/cli/demo/digest.js';
import { dirtyPageCount, dirtyPages, type DirtyCounts } from '../../src/cli/demo/dirty-pages.js';
import { MIN_SIZE, fillGuestImage, guestBlocks } from '../../src/cli/demo/guest-image.js';
import { FileRam, PIECE_BYTES, SharedRam, type GuestRam } from '../../src/cli/demo/guest-ram.js';
import { seededRandom } from '../../src/cli/demo/random.js';

const never = new AbortController().signal;
const MIB = 2 ** 20;

/** All bytes of a block. */
function bytesOf(ram: GuestRam, index: number): Buffer {
  const block = ram.blocks[index];
  const pieces: Buffer[] = [];
  for (let at = 0; at < block.size; at += PIECE_BYTES) {
    pieces.push(Buffer.from(ram.read(block, at, Math.min(PIECE_BYTES, block.size - at))));
  }
  return Buffer.concat(pieces);
}

/** The same RAM both ways. */
function eachBacking(t: Test, blocks: { name: string; size: number }[]): [string, GuestRam][] {
  const file = new FileRam(blocks, path.join(t.testdir({}), 'ram'), 'w+');
  t.teardown(() => file.close());
  return [
    ['shared', new SharedRam(blocks)],
    ['file', file],
  ];
}

t.test('the blocks have QEMU names, fit every page size, and sum up to the size', async (t) => {
  for (const size of [MIN_SIZE, MIN_SIZE + 65536, 32 * MIB, 2 ** 30, 2 ** 40]) {
    const blocks = guestBlocks(size);
    t.strictSame(
      blocks.map((block) => block.name),
      ['pc.ram', 'vga.vram', 'pc.bios', 'pc.rom'],
    );
    t.equal(
      blocks.reduce((sum, block) => sum + block.size, 0),
      size,
    );
    for (const block of blocks) t.ok(block.size > 0 && block.size % 65536 === 0, `${block.name} of ${size}`);
    t.ok(blocks[0].size > size / 2, 'most of it is pc.ram');
  }
  t.equal(guestBlocks(MIN_SIZE + 4096)[0].size % 65536, 4096, 'what is left over is in pc.ram');
});

t.test(
  'the image is program, text, random and zero pages, in runs, and repeats but for the random bytes',
  async (t) => {
    const blocks = [{ name: 'pc.ram', size: 16 * MIB + 4096 }];
    const images: Buffer[] = [];
    for (const [backing, ram] of eachBacking(t, blocks)) {
      await fillGuestImage(ram, never);
      const image = bytesOf(ram, 0);
      images.push(image);
      const zeroPage = Buffer.alloc(4096);
      let zero = 0;
      let borders = 0;
      for (let at = 0; at < image.length; at += 4096) {
        const isZero = image.subarray(at, at + 4096).equals(zeroPage);
        if (isZero) zero += 4096;
        if (isZero !== image.subarray(at - 4096, at).equals(zeroPage)) borders++;
      }
      t.ok(zero > image.length / 8 && zero < image.length / 2, `${backing}: a good part is zero`);
      t.ok(borders < image.length / 4096 / 8, `${backing}: in runs`);
      t.ok(image.includes('ERR_MULTIFD_'), `${backing}: there is text`);
    }
    let same = 0;
    for (let at = 0; at < images[0].length; at += 4096) {
      if (images[0].subarray(at, at + 4096).equals(images[1].subarray(at, at + 4096))) same += 4096;
    }
    t.ok(same > images[0].length / 2 && same < images[0].length);
  },
);

t.test('prefault leaves zeroes, whatever was there', async (t) => {
  const blocks = [{ name: 'pc.ram', size: PIECE_BYTES + 4096 }];
  for (const [backing, ram] of eachBacking(t, blocks)) {
    ram.write(blocks[0], PIECE_BYTES - 4096, 8192, (bytes) => bytes.fill(0xff));
    await ram.prefault(never);
    t.ok(bytesOf(ram, 0).equals(Buffer.alloc(blocks[0].size)), backing);
  }
});

t.test('a digest is SHA-256 of all of the block and nothing else', async (t) => {
  const blocks = [
    { name: 'a', size: 4096 },
    { name: 'b', size: 2 * PIECE_BYTES + 4096 },
  ];
  for (const [backing, ram] of eachBacking(t, blocks)) {
    await fillGuestImage(ram, never);
    const digests = await digestBlocks(ram, never);
    for (const [index, { name }] of blocks.entries()) {
      const expected = createHash('sha256').update(bytesOf(ram, index)).digest('hex');
      t.equal(digests[name], expected, `${backing}, ${name}`);
    }
  }
});

t.test('the blocks of a file lie one after the other, as the engine is told', async (t) => {
  const blocks = [
    { name: 'a', size: 8192 },
    { name: 'b', size: 4096 },
  ];
  const [, [, ram]] = eachBacking(t, blocks);
  ram.write(blocks[1], 0, 4096, (bytes) => bytes.fill(7));
  const { file, offset, size } = ram.engineBlocks[1] as { file: string; offset: number; size: number };
  t.equal(offset, 8192);
  t.equal(size, 4096);
  t.ok(fs.readFileSync(file).subarray(offset).equals(Buffer.alloc(4096, 7)));
});

t.test(
  'a file that is opened for reading cannot be written, and one that is too short is refused',
  async (t) => {
    const file = path.join(t.testdir({ ram: 'x'.repeat(5000) }), 'ram');
    const block = { name: 'pc.ram', size: 8192 };
    const ram = new FileRam([block], file, 'r');
    t.teardown(() => ram.close());
    t.throws(() => ram.write(block, 0, 4096, (bytes) => bytes.fill(0)), { code: 'EBADF' });
    t.equal(fs.readFileSync(file, 'utf8'), 'x'.repeat(5000));
    t.throws(() => ram.read(block, 0, 8192), { code: 'ERR_CLI_RAM_FILE', message: /received 5000/ });
  },
);

t.test('a dirty round: the pages that it names changed, no other, in all three ways', async (t) => {
  const blocks = [
    { name: 'pc.ram', size: 8 * MIB },
    { name: 'pc.rom', size: 4096 * 3 },
  ];
  for (const [backing, ram] of eachBacking(t, blocks)) {
    await fillGuestImage(ram, never);
    const before = blocks.map((_, index) => bytesOf(ram, index));
    const counts: DirtyCounts = { rewritten: 0, becameZero: 0, stoppedBeingZero: 0 };
    const named = new Set<string>();
    for (const { block, offset } of dirtyPages(ram, 4096, seededRandom(1), counts)) {
      named.add(`${block.name}/${offset}`);
    }
    t.equal(named.size, dirtyPageCount(blocks, 4096), backing);
    t.equal(named.size, 8 * 16 + 1);
    const seen: DirtyCounts = { rewritten: 0, becameZero: 0, stoppedBeingZero: 0 };
    const zeroPage = Buffer.alloc(4096);
    for (const [index, { name, size }] of blocks.entries()) {
      const after = bytesOf(ram, index);
      for (let at = 0; at < size; at += 4096) {
        const old = before[index].subarray(at, at + 4096);
        const now = after.subarray(at, at + 4096);
        if (named.has(`${name}/${at}`) === now.equals(old)) t.fail(`${backing} ${name}/${at}`);
        if (now.equals(old)) continue;
        if (old.equals(zeroPage)) seen.stoppedBeingZero++;
        else if (now.equals(zeroPage)) seen.becameZero++;
        else seen.rewritten++;
      }
    }
    t.strictSame(counts, seen);
    t.ok(seen.rewritten > 0 && seen.becameZero > 0 && seen.stoppedBeingZero > 0);
  }
});

t.test('what takes long ends when it is cancelled', async (t) => {
  const ram = new SharedRam([{ name: 'pc.ram', size: 64 * MIB }]);
  const reason = new Error('enough');
  const cancelled = AbortSignal.abort(reason);
  await t.rejects(fillGuestImage(ram, cancelled), reason);
  await t.rejects(digestBlocks(ram, cancelled), reason);
  await t.rejects(ram.prefault(cancelled), reason);
});

t.test('seeded numbers repeat, differ from seed to seed, and keep below the limit', async (t) => {
  const draw = (seed: number): number[] => {
    const random = seededRandom(seed);
    return Array.from({ length: 1000 }, () => random(10));
  };
  t.strictSame(draw(1), draw(1));
  t.notSame(draw(1), draw(2));
  t.strictSame([...new Set(draw(3))].sort(), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
});
