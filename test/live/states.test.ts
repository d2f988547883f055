/** What a source tells while it migrates: its states in order, figures as query-migrate has them, pre-switchover. */
import t from 'tap';
import type { MigrationProgress } from '../../src/index.js';
import { eventually } from '../support/raw-channel.js';
import { within } from '../support/within.js';
import { PAGES, SIZE, WAIT_MS, Wire, failure, runsOnHere, runsThere, scene } from './scene.js';

t.test('states and hooks come in their order, each once', async (t) => {
  const it = await scene(t);
  t.equal(it.source.state, 'setup');
  t.equal(it.destination.state, 'setup');
  await within(it.source.done, WAIT_MS, 'done');
  await it.destination.done;
  const of = (end: string): string[] => it.notes.filter((note) => note.startsWith(end));
  t.same(of('source'), ['source active', 'source device', 'source completed']);
  t.same(of('destination'), ['destination active', 'destination completed']);
  const hooks = it.notes.filter((note) => !/^(source|destination) /.test(note));
  t.same(hooks, ['pause', 'load state', 'start']);
  t.ok(it.notes.indexOf('source device') < it.notes.indexOf('pause'));
  runsThere(t, it);
});

t.test('figures are whole: pages, zero pages, bytes, rounds, times', async (t) => {
  const seen: MigrationProgress[] = [];
  const it = await scene(t, {
    source: { dirty: () => (seen.length === 0 ? [{ block: 'ram', offset: 0, length: 8192 }] : []) },
  });
  for await (const item of it.source.progress({ intervalMs: 1 })) seen.push(item);
  const last = await it.source.done;
  t.same(seen.at(-1), it.source.stats());
  t.equal(last.status, 'completed');
  t.equal(seen[0].status, 'setup');
  t.equal(seen[0].ram.remaining, SIZE);
  t.equal(last.ram.total, SIZE);
  t.equal(last.ram.remaining, 0);
  t.ok(last.ram.normal >= 31, 'half of it has data');
  t.ok(last.ram.normal + last.ram.duplicate >= PAGES);
  t.equal(last.ram.normalBytes, last.ram.normal * 4096);
  t.equal(last.ram.pageSize, 4096);
  t.ok(last.ram.transferred > last.ram.normalBytes);
  t.ok(last.ram.dirtySyncCount >= 3);
  t.ok(last.setupTimeMs > 0 && last.setupTimeMs <= last.totalTimeMs);
  t.ok(last.downtimeMs > 0 && last.downtimeMs < last.totalTimeMs);
  t.type(last.expectedDowntimeMs, 'number');
  t.ok(seen.every(({ totalTimeMs }, i) => i === 0 || totalTimeMs >= seen[i - 1].totalTimeMs));
  await it.destination.done;
});

t.test(
  'pre-switchover: the guest runs, the destination does not give up, and switchover() goes on',
  async (t) => {
    const it = await scene(t, {
      source: { pauseBeforeSwitchover: true, stallTimeoutMs: 600 },
      destination: { stallTimeoutMs: 600 },
    });
    t.throws(() => it.source.switchover(), { code: 'ERR_MULTIFD_STATE', message: /received in state setup/ });
    await eventually(() => it.source.state === 'pre-switchover', 'pre-switchover');
    // Longer than nothing may stand still.
    await new Promise((resolve) => setTimeout(resolve, 1800));
    t.equal(it.source.state, 'pre-switchover');
    t.equal(it.destination.state, 'active');
    t.notOk(it.notes.includes('pause'));
    it.source.switchover();
    await within(it.source.done, WAIT_MS, 'done');
    await it.destination.done;
    t.throws(() => it.source.switchover(), { code: 'ERR_MULTIFD_STATE' });
    t.same(
      it.notes.filter((note) => note.startsWith('source')),
      ['source active', 'source pre-switchover', 'source device', 'source completed'],
    );
    runsThere(t, it);
  },
);

t.test('what the guest dirtied while it was waited for is sent before it is stopped', async (t) => {
  let waited = false;
  let rounds = 0;
  const it = await scene(t, {
    source: {
      pauseBeforeSwitchover: true,
      downtimeLimitMs: 0,
      dirty: () => {
        if (!waited || ++rounds > 3) return [];
        new Uint8Array(it.here).fill(rounds, SIZE - 4096);
        return [{ block: 'ram', offset: SIZE - 4096, length: 4096 }];
      },
    },
  });
  await eventually(() => it.source.state === 'pre-switchover', 'pre-switchover');
  waited = true;
  it.source.switchover();
  await within(it.source.done, WAIT_MS, 'done');
  await it.destination.done;
  t.same(
    it.notes.filter((note) => note.startsWith('source')),
    ['source active', 'source pre-switchover', 'source active', 'source device', 'source completed'],
  );
  t.equal(new Uint8Array(it.there)[SIZE - 1], 3);
  runsThere(t, it);
});

t.test('a slow pause() and a slow save() are no stall', async (t) => {
  // Of what a machine under load takes for anything else.
  const stallTimeoutMs = 600;
  const slowly = (): Promise<void> => new Promise((resolve) => setTimeout(resolve, 2 * stallTimeoutMs));
  const it = await scene(t, {
    source: {
      stallTimeoutMs,
      pause: slowly,
      devices: [{ idstr: 'cpu', save: () => slowly().then(() => Buffer.from('state')) }],
    },
    destination: { stallTimeoutMs },
  });
  await within(it.source.done, WAIT_MS, 'done');
  await it.destination.done;
  t.ok(it.notes.includes('load state'));
  runsThere(t, it);
});

t.test('pages that save() writes and tells are there', async (t) => {
  let saved = false;
  const it = await scene(t, {
    source: {
      dirty: () => (saved ? [{ block: 'ram', offset: 0, length: 4096 }] : []),
      devices: [
        {
          idstr: 'cpu',
          save: () => {
            new Uint8Array(it.here).fill(0xaa, 0, 4096);
            saved = true;
            return Buffer.from('state');
          },
        },
      ],
    },
  });
  await within(it.source.done, WAIT_MS, 'done');
  await it.destination.done;
  t.equal(new Uint8Array(it.there)[100], 0xaa);
  runsThere(t, it);
});

t.test('maxBandwidth may be set while it runs', async (t) => {
  const it = await scene(t, { source: { maxBandwidth: 1, zeroPageDetection: 'none' } });
  t.equal(it.source.maxBandwidth, 1);
  await eventually(() => it.source.state === 'active', 'active');
  t.throws(() => (it.source.maxBandwidth = -1), { code: 'ERR_MULTIFD_OPTION' });
  it.source.maxBandwidth = 0;
  await within(it.source.done, WAIT_MS, 'done');
  await it.destination.done;
  runsThere(t, it);
});

t.test('maxBandwidth is lifted while the guest stands still', async (t) => {
  // Some packets; the first goes in any case.
  const size = 2 ** 22;
  const [here, there] = [new SharedArrayBuffer(size), new SharedArrayBuffer(size)];
  new Uint8Array(here).fill(7);
  const it = await scene(t, {
    source: {
      blocks: [{ name: 'ram', memory: here }],
      downtimeLimitMs: 1_000_000,
      dirty: () => [{ block: 'ram', offset: 0, length: size }],
      onState: (state) => {
        // An hour for what is left.
        if (state === 'device') it.source.maxBandwidth = 1024;
      },
    },
    destination: { blocks: [{ name: 'ram', memory: there }] },
  });
  await within(it.source.done, WAIT_MS, 'done');
  await it.destination.done;
  runsThere(t, { ...it, here, there });
});

t.test('a round is over when the destination has said that it has all of it in place', async (t) => {
  let wire!: Wire;
  const it = await scene(t, {
    through: (address) => {
      wire = new Wire(t, address);
      return wire.listen();
    },
    source: {
      onState: (state) => {
        if (state === 'active') wire.hold();
      },
    },
  });
  await eventually(
    () => it.destination.stats().syncs >= 4,
    'the sync points of the first pass, on both channels',
  );
  // What the source has written is all there, and it is not told.
  await new Promise((resolve) => setTimeout(resolve, 100));
  t.equal(it.source.state, 'active');
  t.equal(it.source.stats().ram.dirtySyncCount, 1);
  wire.release();
  await within(it.source.done, WAIT_MS, 'done');
  await it.destination.done;
  runsThere(t, it);
});

t.test('await using ends it, as cancel() does', async (t) => {
  const it = await scene(t, { source: { pauseBeforeSwitchover: true } });
  await eventually(() => it.source.state === 'pre-switchover', 'pre-switchover');
  await it.source[Symbol.asyncDispose]();
  t.equal(it.source.state, 'cancelled');
  await failure(it.destination.done);
  await it.destination[Symbol.asyncDispose]();
  runsOnHere(t, it);
});
