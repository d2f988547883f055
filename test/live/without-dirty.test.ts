/** A guest that tells no dirty pages: what it has written to is found by hashing, and every byte arrives. */
import t from 'tap';
import { createMigrationDestination, createMigrationSource, type Compression } from '../../src/index.js';
import type { Sender } from '../../src/send/sender.js';
import { EveryPage } from '../../src/live/every-page.js';
import { makeBlocks } from '../../src/ram/block.js';
import { Random } from '../support/random.js';
import { some } from '../support/some.js';
import { STORE_KINDS } from '../support/store.js';
import { within } from '../support/within.js';
import { LiveGuest, PAGE_SIZE } from './guest.js';
import { MACHINE, PAGES, SIZE, WAIT_MS, deferred, failure, runsOnHere, runsThere, scene } from './scene.js';

const LONG_MS = 60_000;

const rows = STORE_KINDS.flatMap((kind) =>
  (['none', 'zlib', 'zstd'] as const satisfies Compression[]).flatMap((compression) =>
    [1, 2].map((channels) => ({ kind, compression, channels })),
  ),
);

for (const [index, { kind, compression, channels }] of some(rows, 3).entries()) {
  t.test(`${kind} memory, ${compression}, ${channels} channels: the guest is there`, async (t) => {
    const guest = new LiveGuest(t, kind, 'bitmap', index + 1);
    await within(guest.running, LONG_MS, 'the guest');
    const both = { machine: MACHINE, compression, channels };
    const destination = await createMigrationDestination({
      ...both,
      listen: { host: '127.0.0.1', port: 0 },
      blocks: [guest.there.options],
      start: () => {},
    });
    t.teardown(() => destination.cancel());
    const source = await createMigrationSource({
      ...both,
      to: destination.address,
      blocks: [guest.store.options],
      downtimeLimitMs: 0,
      maxRounds: 6,
      notConverging: 'switchover',
      pause: () => guest.pause(),
      resume: () => guest.resume(),
    });
    t.teardown(() => source.cancel());
    const totals = await within(source.done, LONG_MS, 'the source');
    await within(destination.done, LONG_MS, 'the destination');
    t.ok(guest.store.read().equals(guest.there.read()), 'every byte is the same');
    t.ok(guest.there.guardsIntact());
    t.same(guest.calls, ['pause']);
    const { ram } = totals;
    t.ok(ram.normal + ram.duplicate > guest.pageCount, 'pages were sent again');
    t.equal(ram.remaining, 0);
  });
}

t.test(
  'each block is a section of its own, and a large one several: what shows that the source is there',
  async (t) => {
    const GIB = 2 ** 30;
    const small = { name: 'rom', memory: new SharedArrayBuffer(4096) };
    const blocks = makeBlocks([small, { name: 'ram', file: '/dev/zero', size: 2.5 * GIB }], 4096);
    const sections: unknown[][] = [];
    for (const queue of new EveryPage(blocks).sections()) {
      const queued: unknown[] = [];
      await queue({
        queueRange: async (...range: unknown[]) => void queued.push(range),
      } as unknown as Sender);
      sections.push(queued);
    }
    t.same(sections, [
      [['rom', 0, 4096]],
      [['ram', 0, GIB]],
      [['ram', GIB, GIB]],
      [['ram', 2 * GIB, GIB / 2]],
    ]);
  },
);

t.test('several blocks, one of them zero, arrive whole', async (t) => {
  const random = new Random(8);
  const pair = (size: number): [SharedArrayBuffer, SharedArrayBuffer] => [
    new SharedArrayBuffer(size),
    new SharedArrayBuffer(size),
  ];
  const [ram, rom, empty] = [pair(SIZE), pair(4096), pair(SIZE)];
  random.bytes(new Uint8Array(ram[0]));
  random.bytes(new Uint8Array(rom[0]));
  const blocks = (end: 0 | 1): { name: string; memory: SharedArrayBuffer }[] => [
    { name: 'ram', memory: ram[end] },
    { name: 'rom', memory: rom[end] },
    { name: 'empty', memory: empty[end] },
  ];
  const held = await scene(t, {
    source: {
      blocks: blocks(0),
      dirty: undefined,
      downtimeLimitMs: 0,
      maxRounds: 3,
      notConverging: 'switchover',
      pause: () => random.bytes(new Uint8Array(rom[0])),
    },
    destination: { blocks: blocks(1), acceptBlocks: undefined },
  });
  const totals = await within(held.source.done, WAIT_MS, 'the source');
  await within(held.destination.done, WAIT_MS, 'the destination');
  for (const [here, there] of [ram, rom, empty]) t.ok(Buffer.from(here).equals(Buffer.from(there)));
  t.equal(totals.ram.normal + totals.ram.duplicate, 2 * PAGES + 2);
});

t.test('memory that moves, given by a function, arrives whole', async (t) => {
  const random = new Random(5);
  let now = new ArrayBuffer(SIZE);
  const moved = (): ArrayBuffer => {
    const next = now.slice(0);
    structuredClone(now, { transfer: [now] });
    now = next;
    return now;
  };
  random.bytes(new Uint8Array(now, 0, SIZE / 2));
  const there = new ArrayBuffer(SIZE);
  const timer = setInterval(() => random.bytes(new Uint8Array(now, random.below(PAGES) * 4096, 64)), 1);
  t.teardown(() => clearInterval(timer));
  const held = await scene(t, {
    source: {
      blocks: [{ name: 'ram', memory: moved, size: SIZE }],
      dirty: undefined,
      downtimeLimitMs: 0,
      maxRounds: 8,
      notConverging: 'switchover',
      pause: () => clearInterval(timer),
    },
    destination: { blocks: [{ name: 'ram', memory: there }], acceptBlocks: undefined },
  });
  await within(held.source.done, WAIT_MS, 'the source');
  await within(held.destination.done, WAIT_MS, 'the destination');
  t.ok(Buffer.from(now).equals(Buffer.from(there)));
});

t.test('a guest that writes nothing is switched over when a round fits the downtime', async (t) => {
  const held = await scene(t, { source: { dirty: undefined, downtimeLimitMs: 10_000 } });
  const { ram, expectedDowntimeMs } = await within(held.source.done, WAIT_MS, 'the source');
  runsThere(t, held);
  t.equal(ram.normal + ram.duplicate, PAGES, 'each page once');
  t.ok((expectedDowntimeMs ?? 0) > 0, 'reading all pages is part of the downtime');
});

t.test('it does not converge where reading all pages takes too long, and the error says so', async (t) => {
  const held = await scene(t, { source: { dirty: undefined, downtimeLimitMs: 0, maxRounds: 3 } });
  const error = await failure(held.source.done);
  t.equal(error.code, 'ERR_MULTIFD_CONVERGENCE');
  t.match(error.message, /after 3 rounds .*all pages are read without option dirty.*downtimeLimitMs/);
  runsOnHere(t, held);
});

t.test('what is written while pre-switchover waits is found', async (t) => {
  const waits = deferred();
  const held = await scene(t, {
    source: {
      dirty: undefined,
      downtimeLimitMs: 10_000,
      pauseBeforeSwitchover: true,
      onState: (state) => state === 'pre-switchover' && waits.resolve(),
    },
  });
  await within(waits.promise, WAIT_MS, 'pre-switchover');
  new Uint8Array(held.here).fill(9, 3 * PAGE_SIZE, 5 * PAGE_SIZE);
  held.source.switchover();
  const { ram } = await within(held.source.done, WAIT_MS, 'the source');
  runsThere(t, held);
  t.equal(ram.normal + ram.duplicate, PAGES + 2);
});

t.test('what pause() and a save() have written is found in the last round', async (t) => {
  const here = new SharedArrayBuffer(SIZE);
  const write = (page: number): void => void new Uint8Array(here).fill(6, page * 4096, (page + 1) * 4096);
  const held = await scene(t, {
    source: {
      blocks: [{ name: 'ram', memory: here }],
      dirty: undefined,
      downtimeLimitMs: 10_000,
      pause: () => write(10),
      devices: [
        {
          idstr: 'cpu',
          save: () => {
            write(11);
            return Buffer.from('state');
          },
        },
      ],
    },
  });
  await within(held.source.done, WAIT_MS, 'the source');
  t.ok(Buffer.from(here).equals(Buffer.from(held.there)));
});

t.test('a guest that dirties as much as is sent is slowed down', async (t) => {
  const percents: number[] = [];
  let value = 0;
  const here = new SharedArrayBuffer(SIZE);
  const timer = setInterval(() => new Uint8Array(here).fill(++value), 1);
  t.teardown(() => clearInterval(timer));
  const held = await scene(t, {
    source: {
      blocks: [{ name: 'ram', memory: here }],
      dirty: undefined,
      downtimeLimitMs: 0,
      maxRounds: 2000,
      maxBandwidth: 20_000_000,
      notConverging: (percent) => {
        percents.push(percent);
        if (percent >= 30) throw new Error('enough');
      },
    },
  });
  t.equal((await failure(held.source.done)).code, 'ERR_MULTIFD_HOOK');
  t.same(percents.slice(0, 2), [20, 30]);
  runsOnHere(t, held);
});
