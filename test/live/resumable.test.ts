/** Option resumable: a migration that broke is carried on at each step, and what the destination has is not sent again. */
import t from 'tap';
import type { MigrationSourceOptions } from '../../src/index.js';
import { Leftovers, eventually } from '../support/raw-channel.js';
import { within } from '../support/within.js';
import { PAGE, PAGES, ResumeScene, pagesOf } from './resume-scene.js';
import { WAIT_MS, failure } from './scene.js';

interface Break {
  /** Of the first try. */
  source?: Partial<MigrationSourceOptions>;
  /** Of the second. */
  again?: Partial<MigrationSourceOptions>;
  /** Before the first try: when it is to break. */
  arm: (it: ResumeScene) => void;
  /** The destination has not been told of the migration yet: there is nothing to pause. */
  untold?: boolean;
  /** Pages that the second try sends; all of them where this is left out. */
  pages?: [min: number, max: number];
}

/** Bytes a second: little is on its way when it breaks, and what is lost is a packet or two. */
const SLOW = 2 ** 23;

/** Of several devices. */
const IDS = [0, 1, 2, 3, 4, 5, 6, 7];

const later = (): Promise<void> => new Promise((resolve) => setTimeout(resolve, 30));

const BREAKS: Record<string, (it: ResumeScene) => Break> = {
  'before the first byte': () => ({ arm: (it) => it.cutter.next({ bytes: 0 }), untold: true }),
  'inside the section that asks': () => ({ arm: (it) => it.cutter.next({ mainBytes: 60 }), untold: true }),
  'inside the block list': () => ({ arm: (it) => it.cutter.next({ mainChunk: 2 }) }),
  'in the first pass': () => ({
    source: { maxBandwidth: SLOW },
    arm: (it) => it.cutter.next({ bytes: (PAGES / 2) * PAGE }),
    pages: [PAGES / 2 - 10, PAGES - 128],
  }),
  'at the sync point of the first pass': () => ({
    arm: (it) => (it.onRound = (round) => void (round === 2 && it.cutter.cut())),
    pages: [0, 0],
  }),
  'in the third round': () => ({
    source: { maxBandwidth: SLOW },
    arm: (it) =>
      (it.onRound = (round) => {
        if (round === 2) it.write(10, 20);
        if (round !== 3) return;
        it.write(100, 800);
        it.cutter.cutAfter(600 * PAGE);
      }),
    pages: [200, 700],
  }),
  'in state pre-switchover': (it) => ({
    source: {
      pauseBeforeSwitchover: true,
      onState: (state) => void (state === 'pre-switchover' && it.cutter.cut()),
    },
    arm: () => {},
    pages: [0, 0],
  }),
  'in pause()': (it) => ({
    source: { pause: () => (it.write(7, 3), it.cutter.cut(), later()) },
    arm: () => {},
    pages: [3, 3],
  }),
  'in save()': (it) => ({
    source: {
      devices: [
        {
          idstr: 'cpu',
          save: async () => {
            it.cutter.cut();
            await later();
            return Buffer.from('state');
          },
        },
      ],
    },
    arm: () => {},
    pages: [0, 0],
  }),
  'in the last round': (it) => ({
    // By the page, for the kernel may hold all of a round before the first byte of it is looked at.
    source: {
      pause: () => {
        it.write(0, 300);
        it.onPage = (page) => void (page === 100 && it.cutter.cut());
      },
    },
    arm: () => {},
    pages: [300, 300],
  }),
  "behind ram's END, in the devices' state": () => ({
    // More than the kernel holds, and none of them so large that it goes over the channels.
    source: {
      devices: IDS.map((instanceId) => ({ idstr: 'cpu', instanceId, save: () => Buffer.alloc(2 ** 20, 1) })),
    },
    again: {
      devices: IDS.map((instanceId) => ({ idstr: 'cpu', instanceId, save: () => Buffer.from('state') })),
    },
    arm: (it) => it.cutter.next({ mainBytes: 2 ** 19 }),
    pages: [0, 0],
  }),
};

for (const [when, make] of Object.entries(BREAKS)) {
  t.test(`broken ${when}: it is carried on`, async (t) => {
    const loads = IDS.map((instanceId) => ({ idstr: 'cpu', instanceId, load: () => {} }));
    const behindEnd = when.startsWith('behind');
    const it = await ResumeScene.open(t, behindEnd ? { destination: { devices: loads } } : {});
    const { source, again, arm, untold = false, pages: [min, max] = [PAGES, PAGES] } = make(it);
    arm(it);
    const first = await it.next(source);
    const error = await failure(first.done);
    t.equal(first.state, 'failed', error.message);
    t.ok(['', 'pause,resume'].includes(it.notes.filter((note) => /^(pause|resume)$/.test(note)).join()));
    if (!untold) await it.paused();
    it.onRound = it.onPage = () => {};
    it.cutter.next();
    it.write(900, 2);
    const second = await it.next(again);
    t.equal(second.state, 'setup');
    const figures = await it.arrives();
    const sent = pagesOf(figures);
    t.ok(sent >= Math.min(PAGES, min + 2) && sent <= Math.min(PAGES, max + 2) + 2, `${sent} pages`);
    t.equal(figures.ram.remaining, 0);
    t.equal(figures.ram.total, PAGES * PAGE);
    t.ok(figures.ram.transferred < (sent + 20) * (PAGE + 64) + 10_000, 'no more than these on the wire');
    const states = it.notes.filter((note) => note.startsWith('destination'));
    const expected = ['active', 'precopy-paused', 'active', 'completed'].map(
      (state) => `destination ${state}`,
    );
    const isEarly = untold || when === 'inside the block list';
    t.same(
      states.filter((state) => !isEarly || !/paused/.test(state)),
      isEarly ? expected.slice(2) : expected,
    );
    const { normalPages, channels, strays } = it.destination.stats();
    t.ok(normalPages >= figures.ram.normal, 'those of both tries are counted');
    t.equal(channels.length, 2);
    t.equal(strays, untold && when !== 'before the first byte' ? 1 : strays);
  });
}

t.test('five breaks in a row, in the middle of a round each: the last try sends the rest', async (t) => {
  const before = new Leftovers();
  const it = await ResumeScene.open(t);
  let sent = 0;
  it.cutter.next();
  it.onRound = (round) => {
    if (round !== 2) return;
    it.write(0, 100);
    it.cutter.cutAfter(30 * PAGE);
  };
  for (let i = 0; i < 5; i++) {
    const source = await it.next();
    await it.broken();
    sent += pagesOf(source.stats());
    it.cutter.next();
  }
  it.onRound = () => {};
  const figures = await it.arrives(await it.next());
  t.ok(pagesOf(figures) >= 100 && pagesOf(figures) <= 102, `${pagesOf(figures)} pages`);
  t.ok(sent < PAGES + 5 * 202, `${sent} pages before`);
  t.equal(it.notes.filter((note) => note === 'destination precopy-paused').length, 5);
  it.cutter.close();
  t.same(await before.found(), []);
});

t.test('a source that sees the break long before the destination does', async (t) => {
  const it = await ResumeScene.open(t);
  it.onRound = (round) => {
    if (round === 2) it.write(3, 40);
    if (round === 3) it.cutter.cutSilently();
  };
  const first = await it.next();
  await failure(first.done);
  t.equal(it.destination.state, 'active');
  it.onRound = () => {};
  it.cutter.next();
  const figures = await it.arrives(await it.next());
  t.ok(pagesOf(figures) <= 40, `${pagesOf(figures)} pages`);
});

t.test('cancel() of the source is a break like any other', async (t) => {
  const it = await ResumeScene.open(t);
  const first = await it.next({ pauseBeforeSwitchover: true });
  await eventually(() => first.state === 'pre-switchover', 'it waits');
  await first.cancel();
  t.equal(first.state, 'cancelled');
  await it.paused();
  it.cutter.next();
  it.write(1);
  const figures = await it.arrives(await it.next());
  t.ok(pagesOf(figures) === 1, `${pagesOf(figures)} pages`);
});

t.test('what the guest dirties between two tries, and what a try has taken of it, is not lost', async (t) => {
  const it = await ResumeScene.open(t);
  // The bits of these are taken by a round that never gets to send them.
  it.onRound = (round) => {
    if (round !== 2) return;
    it.write(40, 50);
    it.cutter.cut();
  };
  await it.next();
  await it.broken();
  for (let i = 0; i < 3; i++) {
    it.write(200 + i, 1);
    it.cutter.next({ bytes: 2000 });
    it.onRound = (round) => void (round === 1 && it.write(300 + i, 1));
    await it.next();
    await failure((it.source as NonNullable<typeof it.source>).done);
    await it.paused();
  }
  it.onRound = () => {};
  it.cutter.next();
  const figures = await it.arrives(await it.next());
  t.ok(pagesOf(figures) >= 53, `${pagesOf(figures)} pages`);
});

t.test('fresh memory that a broken try has written to is not taken for zero', async (t) => {
  const there = new SharedArrayBuffer(PAGES * PAGE);
  const it = await ResumeScene.open(t, {
    destination: { blocks: [{ name: 'ram', memory: there, fresh: true }] } as never,
  });
  for (const bytes of [100 * PAGE + 1000, 300 * PAGE + 7]) {
    it.cutter.next({ bytes });
    await it.next();
    await it.broken();
  }
  it.zero(0, PAGES);
  it.cutter.next();
  await it.next();
  await within((it.source as NonNullable<typeof it.source>).done, WAIT_MS, 'the source');
  await within(it.destination.done, WAIT_MS, 'the destination');
  t.equal(
    Buffer.from(there).findIndex((byte) => byte !== 0),
    -1,
    'all is zero',
  );
});
