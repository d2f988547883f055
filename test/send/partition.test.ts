/** Normal and zero pages, packed and raw ones, against a plain twin. */
import t from 'tap';
import { isIncompressible } from '../../src/methods/incompressible.js';
import { runLength } from '../../src/ram/page-list.js';
import { Windows } from '../../src/ram/windows.js';
import { Partition, normalRun } from '../../src/send/partition.js';
import { Random } from '../support/random.js';

const KINDS = [
  'zero',
  'random',
  'text',
  'zero but its first byte',
  'zero but its last byte',
  'begins with zeroes',
] as const;

function fill(page: Buffer, kind: (typeof KINDS)[number], random: Random): void {
  page.fill(0);
  if (kind === 'random') random.bytes(page);
  if (kind === 'text') page.fill('multifd ');
  if (kind === 'zero but its first byte') page[0] = 1;
  if (kind === 'zero but its last byte') page[page.length - 1] = 1;
  if (kind === 'begins with zeroes') page.fill(7, 100, 200);
}

/** Pages that are queued: runs and single ones, none twice. */
function queue(random: Random, pageCount: number, limit: number): Uint32Array {
  const pages: number[] = [];
  const all = random.shuffle(Array.from({ length: pageCount }, (_, i) => i));
  for (const first of all) {
    const run = random.below(3) === 0 ? 1 + random.below(12) : 1;
    for (let page = first; page < Math.min(first + run, pageCount); page++) {
      if (pages.length < limit && !pages.includes(page)) pages.push(page);
    }
  }
  return Uint32Array.from(pages);
}

for (const pageSize of [4096, 65536]) {
  t.test(`${pageSize}: the same as page by page`, (t) => {
    const random = new Random(pageSize);
    const limit = 524288 / pageSize;
    const pageCount = 2 * limit;
    const partition = new Partition(pageSize);
    for (let round = 0; round < 60; round++) {
      const memory = new SharedArrayBuffer(pageCount * pageSize);
      const bytes = Buffer.from(memory);
      const kinds = round < 5 ? KINDS.slice(round, round + 1) : KINDS;
      for (let page = 0; page < pageCount; page++) {
        fill(
          bytes.subarray(page * pageSize, (page + 1) * pageSize),
          kinds[random.below(kinds.length)],
          random,
        );
      }
      const queued = queue(random, pageCount, 1 + random.below(limit));
      const num = queued.length;
      const isZero = (page: number): boolean =>
        bytes.subarray(page * pageSize, (page + 1) * pageSize).every((byte) => byte === 0);
      const normal = [...queued].filter((page) => !isZero(page));
      const zero = [...queued].filter(isZero);

      const windows = new Windows(memory, 0, memory.byteLength);
      partition.detect(queued, num, windows);
      t.same([...partition.pages.subarray(0, num)], [...normal, ...zero], 'in shared memory');
      t.equal(partition.normal, normal.length);
      t.equal(partition.num, num);

      partition.sortOut(windows, bytes);
      const raw = normal.filter((page) => isIncompressible(bytes, page * pageSize, pageSize));
      const packed = normal.filter((page) => !raw.includes(page));
      t.equal(partition.packed, packed.length);
      t.same([...partition.pages.subarray(0, num)], [...packed, ...raw, ...zero], 'sorted out');

      const staging = Buffer.alloc(num * pageSize);
      for (const [i, page] of queued.entries())
        bytes.copy(staging, i * pageSize, page * pageSize, (page + 1) * pageSize);
      partition.detectStaged(queued, num, staging);
      t.same([...partition.pages.subarray(0, num)], [...normal, ...zero], 'staged');
      partition.sortOut(undefined, staging);
      t.same([...partition.pages.subarray(0, num)], [...packed, ...raw, ...zero], 'staged, sorted out');
      t.same(
        [...partition.positions.subarray(0, normal.length)].map((i) => queued[i]),
        [...packed, ...raw],
        'positions',
      );
    }
    t.end();
  });
}

t.test('all of one kind', (t) => {
  const partition = new Partition(4096);
  partition.all(Uint32Array.of(5, 3, 9), 3, 'normal');
  t.same([partition.normal, partition.num, ...partition.pages.subarray(0, 3)], [3, 3, 5, 3, 9]);
  t.same([...partition.positions.subarray(0, 3)], [0, 1, 2]);
  partition.all(Uint32Array.of(5, 3, 9), 2, 'zero');
  t.same([partition.normal, partition.num, ...partition.pages.subarray(0, 2)], [0, 2, 5, 3]);
  partition.all(Uint32Array.of(2 ** 32 - 2, 2 ** 32 - 1), 2, 'zero');
  t.same(
    [partition.normal, partition.num, ...partition.pages.subarray(0, 2)],
    [0, 2, 2 ** 32 - 2, 2 ** 32 - 1],
  );
  t.end();
});

t.test('copies of a random page are left to the codec', (t) => {
  const memory = new SharedArrayBuffer(8 * 4096);
  const bytes = Buffer.from(memory);
  new Random(1).bytes(bytes.subarray(0, 4096));
  for (const page of [2, 5]) bytes.copy(bytes, page * 4096, 0, 4096);
  new Random(2).bytes(bytes.subarray(7 * 4096));
  const partition = new Partition(4096);
  const windows = new Windows(memory, 0, memory.byteLength);
  partition.detect(Uint32Array.of(0, 2, 5, 7), 4, windows);
  partition.sortOut(windows, bytes);
  t.same([...partition.pages.subarray(0, 4)], [0, 2, 5, 7]);
  t.equal(partition.packed, 3);
  t.end();
});

t.test('a run ends where pages do not follow, and at the limit', (t) => {
  t.equal(runLength(Uint32Array.of(4, 5, 6, 8), 0, 4), 3);
  t.equal(runLength(Uint32Array.of(4, 5, 6, 8), 0, 2), 2);
  t.equal(runLength(Uint32Array.of(4, 5, 6, 8), 3, 1), 1);
  // Of whatever lies in the list behind its end nothing is looked at.
  t.equal(runLength(Uint32Array.of(2 ** 32 - 1, 0), 0, 2), 1);
  t.end();
});

t.test('pages that are certainly not zero, up to the first that may be', async (t) => {
  for (const size of [4096, 65536]) {
    // Where the first byte that is not zero lies: the places that are looked at, and beside them.
    const seen = [0, size / 2, size - 1];
    const unseen = [1, size / 2 - 1, size / 2 + 1, size - 2, undefined];
    for (const at of unseen) {
      const bytes = Buffer.alloc(64 + 5 * size);
      for (const [page, place] of [...seen, at, seen[0]].entries())
        if (place !== undefined) bytes[64 + page * size + place] = 1 + page;
      t.equal(normalRun(bytes, 64, size, 5), 3, `byte ${at} of ${size}`);
      t.equal(normalRun(bytes, 64, size, 2), 2);
      t.equal(normalRun(bytes, 64 + 3 * size, size, 2), 0);
      t.equal(normalRun(bytes, 64 + 4 * size, size, 1), 1);
      t.equal(normalRun(bytes, 64, size, 0), 0);
    }
  }
});
