import t from 'tap';
import {
  PageBitmap,
  ReceivedBitmap,
  countWordsInTurns,
  sharedBitmaps,
  viewBitmaps,
} from '../../src/ram/bitmap.js';

/** Numbers of 0 to below 1, the same in every run: an LCG with the constants of Numerical Recipes. */
function seeded(seed: number): () => number {
  let x = seed >>> 0;
  return () => {
    x = (Math.imul(x, 1664525) + 1013904223) >>> 0;
    return x / 2 ** 32;
  };
}

/** Around the borders of words, and larger than a few of them. */
const PAGE_COUNTS = [1, 2, 31, 32, 33, 63, 64, 65, 96, 100, 1000];

/** The plain version of runs(): page by page. */
function plainRuns(set: boolean[]): { page: number; count: number }[] {
  const runs: { page: number; count: number }[] = [];
  for (const [page, isSet] of set.entries()) {
    if (!isSet) continue;
    if (page > 0 && set[page - 1]) runs[runs.length - 1].count++;
    else runs.push({ page, count: 1 });
  }
  return runs;
}

/** Pages that are set: none, all, each alone, all but each, then random ones, by page and by word. */
function* patterns(pageCount: number): Generator<boolean[]> {
  const none: boolean[] = Array<boolean>(pageCount).fill(false);
  yield none;
  yield none.map(() => true);
  for (let page = 0; page < pageCount; page++) {
    yield none.map((_, i) => i === page);
    yield none.map((_, i) => i !== page);
  }
  const random = seeded(pageCount);
  for (const density of [0.02, 0.1, 0.5, 0.9, 0.98]) yield none.map(() => random() < density);
  // Whole words, so that runs begin and end at their borders and empty words follow.
  const words = [0, 0, -1, 1, 0x80000000, 0x80000001];
  for (let round = 0; round < 20; round++) {
    const picked = Array.from(
      { length: Math.ceil(pageCount / 32) },
      () => words[Math.floor(random() * words.length)],
    );
    yield none.map((_, page) => ((picked[page >>> 5] >>> (page & 31)) & 1) === 1);
  }
}

function bitmapOf(set: boolean[]): PageBitmap {
  const bitmap = new PageBitmap(set.length);
  for (const [page, isSet] of set.entries()) if (isSet) bitmap.testAndSet(page);
  return bitmap;
}

t.test('a new bitmap is empty and has a bit for each page', async (t) => {
  for (const pageCount of PAGE_COUNTS) {
    const bitmap = new PageBitmap(pageCount);
    t.equal(bitmap.pageCount, pageCount);
    t.equal(bitmap.words.length, Math.ceil(pageCount / 32));
    t.same([...bitmap.runs()], []);
    for (let page = 0; page < pageCount; page++) if (bitmap.has(page)) t.fail(`page ${page} is set`);
  }
});

t.test('setting a page says whether it was set, and sets no other', async (t) => {
  for (const pageCount of PAGE_COUNTS) {
    const bitmap = new PageBitmap(pageCount);
    const set: boolean[] = Array<boolean>(pageCount).fill(false);
    const random = seeded(7);
    for (let i = 0; i < 3 * pageCount; i++) {
      const page = Math.floor(random() * pageCount);
      if (random() < 0.3) {
        bitmap.delete(page);
        set[page] = false;
      } else {
        t.equal(bitmap.testAndSet(page), set[page]);
        set[page] = true;
      }
      const wrong = set.findIndex((isSet, other) => bitmap.has(other) !== isSet);
      if (wrong >= 0) t.fail(`page ${wrong} of ${pageCount} after step ${i}`);
    }
    bitmap.clear();
    t.same([...bitmap.runs()], []);
    t.notOk(set.some((_, page) => bitmap.has(page)));
    t.equal(bitmap.testAndSet(pageCount - 1), false);
    t.equal(bitmap.testAndSet(pageCount - 1), true);
  }
});

t.test('page i is bit i % 32 of word i / 32', async (t) => {
  const bitmap = new PageBitmap(96);
  for (const page of [0, 31, 32, 95]) bitmap.testAndSet(page);
  t.same([...bitmap.words], [0x80000001 | 0, 1, 0x80000000 | 0]);
});

t.test('runs are those of the plain version', async (t) => {
  for (const pageCount of PAGE_COUNTS) {
    let count = 0;
    for (const set of patterns(pageCount)) {
      count++;
      const runs = [...bitmapOf(set).runs()];
      if (JSON.stringify(runs) !== JSON.stringify(plainRuns(set)))
        t.same(runs, plainRuns(set), `${pageCount} pages`);
    }
    t.equal(count, 2 + 2 * pageCount + 5 + 20);
  }
});

t.test('runs go on over borders of words, and empty words are passed by', async (t) => {
  const bitmap = new PageBitmap(1000);
  for (let page = 30; page < 130; page++) bitmap.testAndSet(page);
  for (const page of [500, 991, 992, 999]) bitmap.testAndSet(page);
  t.same(
    [...bitmap.runs()],
    [
      { page: 30, count: 100 },
      { page: 500, count: 1 },
      { page: 991, count: 2 },
      { page: 999, count: 1 },
    ],
  );
});

t.test('next() and runLength() find the same runs, from any page on and up to any limit', async (t) => {
  const random = seeded(11);
  for (const pageCount of [...PAGE_COUNTS, 2 ** 17 + 2 ** 18 + 5]) {
    for (const set of pageCount > 1000 ? [sparse(pageCount, random)] : patterns(pageCount)) {
      const bitmap = new PageBitmap(pageCount);
      for (const [page, isSet] of set.entries()) if (isSet) bitmap.testAndSet(page);
      const runs: { page: number; count: number }[] = [];
      for (let page = bitmap.next(0); page >= 0;) {
        const count = bitmap.runLength(page, pageCount);
        runs.push({ page, count });
        const limit = 1 + Math.floor(random() * count);
        if (bitmap.runLength(page, limit) !== limit) t.fail(`not ${limit} from page ${page} on`);
        if (bitmap.next(page + limit - 1) !== page + limit - 1) t.fail(`not page ${page + limit - 1}`);
        page = bitmap.next(page + count);
      }
      t.same(runs, plainRuns(set));
      t.equal(bitmap.next(pageCount), -1);
    }
  }
});

/** Few pages, some of them in parts that have no other, and a last one in the last word. */
function sparse(pageCount: number, random: () => number): boolean[] {
  const set = Array<boolean>(pageCount).fill(false);
  for (let i = 0; i < 20; i++) set[Math.floor(random() * pageCount)] = true;
  set[pageCount - 1] = true;
  return set;
}

t.test('a received-bitmap reads what others set: has, count and ranges', async (t) => {
  for (const pageSize of [4096, 65536]) {
    for (const pageCount of PAGE_COUNTS) {
      for (const set of patterns(pageCount)) {
        const received = new ReceivedBitmap(bitmapOf(set).words, pageSize, pageCount);
        const ranges = plainRuns(set).map(({ page, count }) => ({
          offset: page * pageSize,
          length: count * pageSize,
        }));
        const same =
          received.count() === set.filter(Boolean).length &&
          set.every((isSet, page) => received.has(page * pageSize) === isSet) &&
          JSON.stringify([...received.ranges()]) === JSON.stringify(ranges);
        if (!same) t.fail(`${pageCount} pages of ${pageSize}: ${set.map(Number).join('')}`);
      }
      t.pass(`${pageCount} pages of ${pageSize}`);
    }
  }
});

t.test('a received-bitmap sees bits that are set later', async (t) => {
  const words = new Int32Array(new SharedArrayBuffer(8));
  const received = new ReceivedBitmap(words, 4096, 64);
  t.equal(received.has(63 * 4096), false);
  words[1] = 0x80000000 | 0;
  t.equal(received.has(63 * 4096), true);
  t.equal(received.count(), 1);
  t.same([...received.ranges()], [{ offset: 63 * 4096, length: 4096 }]);
});

t.test('has() takes any byte of a page, and no byte of the outside', async (t) => {
  const received = new ReceivedBitmap(Int32Array.of(-1, -1), 4096, 33);
  for (const offset of [0, 1, 4095, 4096, 33 * 4096 - 1]) t.equal(received.has(offset), true, String(offset));
  for (const offset of [-1, -4096, 33 * 4096, 64 * 4096, 2 ** 32 * 4096, NaN, Infinity, -Infinity]) {
    t.equal(received.has(offset), false, String(offset));
  }
  const one = new ReceivedBitmap(Int32Array.of(2), 4096, 2);
  t.same(
    [0, 4095, 4096, 8191].map((offset) => one.has(offset)),
    [false, false, true, true],
  );
});

t.test('offsets above 4 GiB are not cut to 32 bits', async (t) => {
  // 16 GiB and one page of 4 KiB pages: 512 KiB of words.
  const pageCount = 2 ** 22 + 1;
  const bitmap = new PageBitmap(pageCount);
  bitmap.testAndSet(2 ** 22);
  bitmap.testAndSet(2 ** 20);
  const received = new ReceivedBitmap(bitmap.words, 4096, pageCount);
  t.equal(received.has(2 ** 34), true);
  t.equal(received.has(2 ** 32), true);
  t.equal(received.has(0), false);
  t.equal(received.count(), 2);
  t.same(
    [...received.ranges()],
    [
      { offset: 2 ** 32, length: 4096 },
      { offset: 2 ** 34, length: 4096 },
    ],
  );
});

t.test(
  'large bitmaps, whose parts are empty, full and mixed, have the same runs, counts and bits',
  async (t) => {
    const part = 2 ** 17;
    const pageCount = 6 * part + 77;
    const ranges: [page: number, count: number][][] = [
      [],
      [[0, pageCount]],
      [[part - 1, 2]],
      [[part, part]],
      [[part - 5, part + 10]],
      [
        [3, 1],
        [2 * part, 3 * part],
        [5 * part + 1, 40],
        [6 * part, 77],
      ],
      [[pageCount - 1, 1]],
    ];
    for (const set of ranges) {
      const bitmap = new PageBitmap(pageCount);
      for (const [page, count] of set) bitmap.setRange(page, count);
      const runs = set.map(([page, count]) => ({ page, count }));
      t.same([...bitmap.runs()], runs);
      const received = new ReceivedBitmap(bitmap.words, 4096, pageCount);
      t.same(
        [...received.ranges()],
        runs.map(({ page, count }) => ({ offset: 4096 * page, length: 4096 * count })),
      );
      const sum = runs.reduce((all, { count }) => all + count, 0);
      t.equal(received.count(), sum);
      t.equal(await countWordsInTurns(bitmap.words), sum);
      bitmap.clear();
      t.same([...bitmap.runs()], []);
      t.equal(received.count(), 0, 'all words');
      bitmap.testAndSet(part + 9);
      t.same([...bitmap.runs()], [{ page: part + 9, count: 1 }], 'and it can be used again');
    }
  },
);

t.test('clearing goes on in as many steps as there are parts that had a bit', async (t) => {
  // 4 TiB: 8192 parts.
  const bitmap = new PageBitmap(2 ** 30);
  t.same([...bitmap.clearing()], []);
  for (const page of [0, 1, 2 ** 17, 2 ** 30 - 1]) bitmap.testAndSet(page);
  t.equal([...bitmap.clearing()].length, 3);
  t.equal([...bitmap.clearing()].length, 0);
  t.equal(bitmap.has(2 ** 30 - 1), false);
});

t.test('counting a large bitmap lets the event loop turn', async (t) => {
  let turns = 0;
  let timer = setImmediate(function next() {
    turns++;
    timer = setImmediate(next);
  });
  t.teardown(() => clearImmediate(timer));
  // 512 GiB: 16 MiB of bits.
  t.equal(await countWordsInTurns(new Int32Array(2 ** 22).fill(1)), 2 ** 22);
  t.ok(turns >= 15, `${turns} turns`);
});

t.test(
  'the bitmaps of several blocks lie beside each other in one memory, each in lines of its own',
  async (t) => {
    const pageCounts = [1, 512, 513, 33];
    const shared = sharedBitmaps(pageCounts);
    const views = viewBitmaps(shared, pageCounts);
    t.same(
      views.map((view) => [view.byteOffset, view.length]),
      [
        [0, 1],
        [64, 16],
        [128, 17],
        [256, 2],
      ],
    );
    t.equal(shared.byteLength, 320);
    t.equal(sharedBitmaps([]).byteLength, 0);
  },
);
