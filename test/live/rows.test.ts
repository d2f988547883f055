/** A guest that goes on writing arrives byte for byte: kinds of memory x forms of dirty pages x methods x channels. */
import t from 'tap';
import { createMigrationDestination, createMigrationSource, type Compression } from '../../src/index.js';
import { Random } from '../support/random.js';
import { some } from '../support/some.js';
import { within } from '../support/within.js';
import { LiveGuest } from './guest.js';

const WAIT_MS = 60_000;

const rows = (['shared', 'private', 'file'] as const).flatMap((kind) =>
  (['bitmap', 'function'] as const).flatMap((form) =>
    (['none', 'zstd'] as const satisfies Compression[]).flatMap((compression) =>
      [1, 2].map((channels) => ({ kind, form, compression, channels })),
    ),
  ),
);

// Each second one by turns, so that every value meets every other.
const tried = some(rows, 1).filter(({ kind, form, compression, channels }) => {
  if (process.env.MULTIFD_TEST_ROWS === 'all') return true;
  return (
    (Number(form === 'bitmap') + Number(compression === 'none') + channels + Number(kind === 'file')) % 2 ===
    0
  );
});

for (const [index, { kind, form, compression, channels }] of tried.entries()) {
  t.test(
    `${kind} memory, dirty ${form}, ${compression}, ${channels} channels: the guest is there`,
    async (t) => {
      const guest = new LiveGuest(t, kind, form, index + 1);
      await within(guest.running, WAIT_MS, 'the guest');
      const state = Buffer.alloc(2 ** 20);
      new Random(index).bytes(state);
      const loaded: Buffer[] = [];
      let started = 0;
      const both = { machine: 'model-1.0', compression, channels };
      const destination = await createMigrationDestination({
        ...both,
        listen: { host: '127.0.0.1', port: 0 },
        blocks: [guest.there.options],
        devices: [
          { idstr: 'disk', version: 3, load: (data) => void loaded.push(data) },
          { idstr: 'serial', instanceId: 2, load: (data) => void loaded.push(data) },
        ],
        start: () => void started++,
      });
      t.teardown(() => destination.cancel());
      const source = await createMigrationSource({
        ...both,
        to: destination.address,
        blocks: [guest.store.options],
        dirty: guest.dirty,
        devices: [
          { idstr: 'serial', instanceId: 2, save: () => new Uint8Array(0) },
          { idstr: 'disk', version: 2, save: async () => state },
        ],
        downtimeLimitMs: 1,
        maxRounds: 6,
        notConverging: 'switchover',
        pause: () => guest.pause(),
        resume: () => guest.resume(),
      });
      t.teardown(() => source.cancel());
      const totals = await within(source.done, WAIT_MS, 'the source');
      await within(destination.done, WAIT_MS, 'the destination');
      t.ok(guest.store.read().equals(guest.there.read()), 'every byte is the same');
      t.ok(guest.there.guardsIntact());
      t.same(guest.calls, ['pause']);
      t.equal(started, 1);
      t.equal(source.state, 'completed');
      t.equal(destination.state, 'completed');
      t.ok(loaded[0].equals(state), 'in the order of the destination');
      t.equal(loaded[1].length, 0);
      t.ok(totals.ram.dirtySyncCount >= 3, 'the guest wrote meanwhile');
      t.ok(totals.ram.normal + totals.ram.duplicate > guest.pageCount, 'pages were sent again');
      t.equal(totals.ram.remaining, 0);
    },
  );
}
