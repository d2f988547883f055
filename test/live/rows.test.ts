/**
 * A guest that goes on writing arrives byte for byte: kinds of memory x forms of dirty pages x methods x channels, all in one
 * process, which has as many threads and descriptors afterwards as before. `npm test` takes some rows, drawn at random with a
 * seed that is always the same.
 */
import fs from 'node:fs';
import t from 'tap';
import { createMigrationDestination, createMigrationSource, type Compression } from '../../src/index.js';
import { Random } from '../support/random.js';
import { eventually } from '../support/raw-channel.js';
import { ALL } from '../support/some.js';
import { within } from '../support/within.js';
import { LiveGuest, type DirtyForm } from './guest.js';
import type { LiveKind } from './kinds.js';

const WAIT_MS = 60_000;

const KINDS = ['shared', 'private', 'wasm', 'file', 'dev-shm'] as const satisfies LiveKind[];
const FORMS = ['bitmap', 'own-bitmap', 'function'] as const satisfies DirtyForm[];
const METHODS = ['none', 'zlib', 'zstd'] as const satisfies Compression[];
const CHANNELS = [1, 2, 8];
const SOME_ROWS = 12;
const SEED = 15;
/** Threads and descriptors of the first ones are the process's for good. */
const WARM_UP_ROWS = 3;

const told = KINDS.flatMap((kind) =>
  FORMS.flatMap((form) =>
    METHODS.flatMap((compression) => CHANNELS.map((channels) => ({ kind, form, compression, channels }))),
  ),
);
const untold = KINDS.flatMap((kind) =>
  METHODS.map((compression) => ({ kind, form: 'none' as const, compression, channels: 2 })),
);
const rows: { kind: LiveKind; form: DirtyForm; compression: Compression; channels: number }[] = [
  ...told,
  ...untold,
];
t.ok(rows.length >= 100);

function shuffled<T>(values: readonly T[]): T[] {
  const random = new Random(SEED);
  const left = [...values];
  return values.map(() => left.splice(random.below(left.length), 1)[0]);
}

const tried = ALL ? rows : shuffled(rows).slice(0, SOME_ROWS);

function held(): { threads: number; descriptors: number } {
  return {
    threads: fs.readdirSync('/proc/self/task').length,
    descriptors: fs.readdirSync('/proc/self/fd').length,
  };
}
let before = { threads: Infinity, descriptors: Infinity };

for (const [index, { kind, form, compression, channels }] of tried.entries()) {
  t.test(
    `${kind} memory, dirty ${form}, ${compression}, ${channels} channels: the guest is there`,
    async (t) => {
      if (index === WARM_UP_ROWS && fs.existsSync('/proc/self/task')) before = held();
      const guest = new LiveGuest(t, kind, form, index + 1, 1024);
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
        ...(guest.dirty && { dirty: guest.dirty }),
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

t.test(`behind ${tried.length} migrations no thread and no descriptor is left`, async (t) => {
  if (before.threads === Infinity) {
    t.comment('needs /proc');
    return;
  }
  await eventually(
    () => {
      const after = held();
      return after.threads <= before.threads && after.descriptors <= before.descriptors;
    },
    `as few threads and descriptors as before, ${JSON.stringify(before)}`,
  );
});
