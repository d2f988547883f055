/** The dirty pages of a guest in both forms: taken once, checked, and none lost to a thread that sets bits meanwhile. */
import { once } from 'node:events';
import { Worker } from 'node:worker_threads';
import t from 'tap';
import { DirtyPages, type DirtyOption, type DirtyRange } from '../../src/live/dirty-pages.js';
import { makeBlocks } from '../../src/ram/block.js';

const PAGE = 4096;

function pagesOf(sizes: Record<string, number>, dirty: DirtyOption): DirtyPages {
  const blocks = Object.entries(sizes).map(([name, pages]) => ({
    name,
    memory: new ArrayBuffer(pages * PAGE),
  }));
  return new DirtyPages(makeBlocks(blocks, PAGE), PAGE, dirty);
}

function runsOf(pages: DirtyPages): DirtyRange[] {
  return pages.pending().flatMap(({ block, pending, count }) => {
    const runs = [...pending.runs()];
    t.equal(
      runs.reduce((sum, run) => sum + run.count, 0),
      count,
      'as many as are told',
    );
    return runs.map((run) => ({ block: block.name, offset: run.page * PAGE, length: run.count * PAGE }));
  });
}

for (const Words of [Uint32Array, Int32Array]) {
  for (const Memory of [SharedArrayBuffer, ArrayBuffer]) {
    t.test(`a ${Words.name} over a ${Memory.name}: bits become runs of pages, and are cleared`, async (t) => {
      const [a, b] = [new Memory(8), new Memory(12)] as [ArrayBuffer, ArrayBuffer];
      const words = { a: new Words(a), b: new Words(b, 4) };
      const pages = pagesOf({ a: 40, b: 33 }, words);
      words.a[0] = 0x8000_0001;
      words.a[1] = 0xff;
      words.b[1] = 0xffff_ffff;
      await pages.collect();
      t.same(
        runsOf(pages),
        [
          { block: 'a', offset: 0, length: PAGE },
          { block: 'a', offset: 31 * PAGE, length: 9 * PAGE },
          { block: 'b', offset: 32 * PAGE, length: PAGE },
        ],
        'bits behind the last page mean nothing',
      );
      t.equal(pages.count, 11);
      t.ok([...words.a, ...words.b].every((word) => word === 0));
      words.a[0] = 1;
      await pages.collect();
      t.equal(pages.count, 11, 'what is pending already counts once');
      pages.clear();
      await pages.collect();
      t.equal(pages.count, 0);
    });
  }
}

t.test(
  'a function may give an array, a generator or an asynchronous one, or a promise of them',
  async (t) => {
    const range = { block: 'a', offset: PAGE, length: 2 * PAGE };
    const forms: DirtyOption[] = [
      () => [range],
      async () => [range],
      function* () {
        yield range;
      },
      async function* () {
        yield range;
      },
    ];
    for (const form of forms) {
      const pages = pagesOf({ a: 4 }, form);
      await pages.collect();
      t.same(runsOf(pages), [range]);
    }
  },
);

t.test('ranges are checked, and what a function throws is its error', async (t) => {
  const refused: [unknown, string][] = [
    [[{ block: 'b', offset: 0, length: PAGE }], 'ERR_MULTIFD_BLOCK'],
    [[{ block: 'a', offset: 1, length: PAGE }], 'ERR_MULTIFD_RANGE'],
    [[{ block: 'a', offset: 0, length: 100 }], 'ERR_MULTIFD_RANGE'],
    [[{ block: 'a', offset: 3 * PAGE, length: 2 * PAGE }], 'ERR_MULTIFD_RANGE'],
    [[{ block: 'a' }], 'ERR_MULTIFD_RANGE'],
    [[undefined], 'ERR_MULTIFD_BLOCK'],
    [7, 'ERR_MULTIFD_HOOK'],
    [undefined, 'ERR_MULTIFD_HOOK'],
  ];
  for (const [given, code] of refused) {
    await t.rejects(
      pagesOf({ a: 4 }, (() => given) as DirtyOption).collect(),
      { code },
      JSON.stringify(given),
    );
  }
  let returned = false;
  const throwing: DirtyOption[] = [
    () => {
      throw new Error('no log');
    },
    function* () {
      yield { block: 'a', offset: 0, length: PAGE };
      throw new Error('no log');
    },
  ];
  for (const dirty of throwing) {
    await t.rejects(pagesOf({ a: 4 }, dirty).collect(), {
      code: 'ERR_MULTIFD_HOOK',
      message: 'dirty() failed: no log',
    });
  }
  const refusedHalfWay = function* (): Generator<{ block: string; offset: number; length: number }> {
    try {
      yield { block: 'a', offset: 1, length: PAGE };
    } finally {
      returned = true;
    }
  };
  await t.rejects(pagesOf({ a: 4 }, refusedHalfWay).collect(), { code: 'ERR_MULTIFD_RANGE' });
  t.ok(returned, 'an iterator that is left is told so');
});

t.test('a bitmap that was taken away is an error', async (t) => {
  const words = new Uint32Array(2);
  const pages = pagesOf({ a: 40 }, { a: words });
  structuredClone(words.buffer, { transfer: [words.buffer] });
  const message = /dirty bitmap of RAM block "a": words of 32 bits: received 0, expected at least 2/;
  await t.rejects(pages.collect(), { code: 'ERR_MULTIFD_BLOCK', message });
});

t.test('of the bits that a thread sets meanwhile none is lost and none is taken twice', async (t) => {
  const laps = 3000;
  const words = new Int32Array(new SharedArrayBuffer(64));
  const pages = pagesOf({ a: 512 }, { a: words });
  // Sets each bit only when it has been taken, and counts.
  const worker = new Worker(
    `const { workerData: words } = require('node:worker_threads');
     let set = 0;
     while (set < ${laps}) for (let page = 0; page < 512; page++) {
       const bit = 1 << (page & 31);
       if ((Atomics.or(words, page >> 5, bit) & bit) === 0) set++;
       if (set === ${laps}) break;
     }`,
    { eval: true, workerData: words },
  );
  let over = false;
  const exit = once(worker, 'exit').then(() => (over = true));
  let taken = 0;
  for (let last = false; ;) {
    last = over;
    await pages.collect();
    taken += pages.count;
    pages.clear();
    if (last) break;
    await new Promise(setImmediate);
  }
  await exit;
  t.equal(taken, laps);
});
