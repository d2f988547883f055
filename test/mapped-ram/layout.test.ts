import t from 'tap';
import { PageBitmap } from '../../src/ram/bitmap.js';
import { bitmapBytes, countBits, encodeBitmap, layOut } from '../../src/mapped-ram/layout.js';
import { Random } from '../support/random.js';

const MIB = 2 ** 20;

t.test("the layout is the specification's example", async (t) => {
  t.same(layOut(0x72, 128 * MIB, 4096), {
    header: { version: 1, pageSize: 4096, bitmapOffset: 0x8e, pagesOffset: 0x100000 },
    next: 0x8100000,
  });
});

t.test('pages begin at the next MiB, or where the bitmap ends if that is one', async (t) => {
  // One page has a bitmap of 8 bytes: header 28, bitmap 8.
  for (const [at, pagesOffset] of [
    [0, MIB],
    [MIB - 36, MIB],
    [MIB - 35, 2 * MIB],
    [MIB, 2 * MIB],
    [2 ** 45, 2 ** 45 + MIB],
  ]) {
    const { header, next } = layOut(at, 4096, 4096);
    t.equal(header.bitmapOffset, at + 28);
    t.equal(header.pagesOffset, pagesOffset);
    t.equal(next, pagesOffset + 4096);
  }
  // 1 TiB of pages has a bitmap of 32 MiB.
  t.equal(layOut(0, 2 ** 40, 4096).header.pagesOffset, 33 * MIB);
  t.equal(layOut(0, 2 ** 40, 65536).header.pagesOffset, 3 * MIB);
});

t.test("a bitmap's words have 64 bits", async (t) => {
  t.same([1, 63, 64, 65, 128, 129, 2 ** 32].map(bitmapBytes), [8, 8, 8, 16, 16, 24, 2 ** 29]);
});

t.test('page i is bit i & 7 of byte i >> 3, and nothing is set behind the last page', async (t) => {
  const random = new Random(1);
  for (const pageCount of [1, 7, 8, 31, 32, 33, 63, 64, 65, 100, 1000]) {
    const bitmap = new PageBitmap(pageCount);
    const expected = Buffer.alloc(bitmapBytes(pageCount));
    let count = 0;
    for (let page = 0; page < pageCount; page++) {
      if (random.below(3) === 0) continue;
      bitmap.testAndSet(page);
      expected[page >>> 3] |= 1 << (page & 7);
      count++;
    }
    t.equal(encodeBitmap(bitmap.words, pageCount).toString('hex'), expected.toString('hex'));
    t.equal(countBits(expected, pageCount), count);
    bitmap.words.fill(-1);
    const full = encodeBitmap(bitmap.words, pageCount);
    t.equal(full.length, expected.length);
    t.equal(countBits(full, 8 * full.length), pageCount, `${pageCount} pages, all words full`);
  }
});

t.test('bits behind the last page are not counted', async (t) => {
  for (let pageCount = 1; pageCount <= 64; pageCount++) {
    t.equal(countBits(Buffer.alloc(8, 0xff), pageCount), pageCount);
    t.equal(countBits(Buffer.alloc(8), pageCount), 0);
  }
});
