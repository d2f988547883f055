/** A guest that goes on writing arrives byte for byte over several breaks: kinds of memory x methods x channels, and TLS. */
import t from 'tap';
import {
  createMigrationDestination,
  createMigrationSource,
  type Compression,
  type MigrationSource,
} from '../../src/index.js';
import { Random } from '../support/random.js';
import { Leftovers, eventually } from '../support/raw-channel.js';
import { some } from '../support/some.js';
import { CREDENTIALS } from '../support/tls-peers.js';
import { within } from '../support/within.js';
import { Cutter } from './cutter.js';
import { LiveGuest } from './guest.js';
import { failure } from './scene.js';

const WAIT_MS = 60_000;
const TRIES = 5;

const rows = (['shared', 'private', 'file'] as const).flatMap((kind) =>
  (['none', 'zlib', 'zstd'] as const satisfies Compression[]).flatMap((compression) =>
    [1, 3].flatMap((channels) =>
      (compression === 'none' ? [false, true] : [false]).map((secure) => ({
        kind,
        compression,
        channels,
        secure,
      })),
    ),
  ),
);

const tried = some(rows, 1).filter(
  ({ kind, compression, channels }) =>
    process.env.MULTIFD_TEST_ROWS === 'all' ||
    (Number(kind === 'file') + Number(compression === 'none') + (channels >> 1)) % 2 === 0,
);

for (const [index, { kind, compression, channels, secure }] of tried.entries()) {
  const how = `${kind} memory, ${compression}, ${channels} channels${secure ? ', TLS' : ''}`;
  t.test(`${how}: broken ${TRIES - 1} times at any byte, the guest is there`, async (t) => {
    const guest = new LiveGuest(t, kind, index % 2 === 0 ? 'bitmap' : 'function', index + 1);
    await within(guest.running, WAIT_MS, 'the guest');
    const random = new Random(index + 100);
    const before = new Leftovers();
    let started = 0;
    const both = {
      machine: 'model-1.0',
      compression,
      channels,
      resumable: true,
      ...(secure && { tls: CREDENTIALS }),
    };
    const destination = await createMigrationDestination({
      ...both,
      listen: { host: '127.0.0.1', port: 0 },
      blocks: [{ ...guest.there.options, fresh: true }],
      devices: [{ idstr: 'cpu', load: () => {} }],
      start: () => void started++,
    });
    t.teardown(() => destination.cancel());
    const cutter = await Cutter.listen(t, destination.address);
    let source: MigrationSource | undefined;
    for (let i = 1; i <= TRIES; i++) {
      cutter.next(i < TRIES ? { bytes: 300 + random.below(2 ** 22) } : {});
      source = await createMigrationSource({
        ...both,
        to: cutter.address,
        blocks: [guest.store.options],
        dirty: guest.dirty,
        devices: [{ idstr: 'cpu', save: () => Buffer.from('state') }],
        downtimeLimitMs: 1,
        maxRounds: i < TRIES ? 1_000_000 : 4,
        notConverging: 'switchover',
        // One that would have been through before its byte is cut there.
        pauseBeforeSwitchover: i < TRIES,
        onState: (state) => void (state === 'pre-switchover' && cutter.cut()),
        pause: () => guest.pause(),
        resume: () => guest.resume(),
        ...(source && { resumeFrom: source }),
      });
      const now = source;
      t.teardown(() => now.cancel());
      if (i === TRIES) break;
      await failure(source.done);
      await eventually(
        () => ['setup', 'precopy-paused'].includes(destination.state),
        'the destination waits',
      );
    }
    await within((source as MigrationSource).done, WAIT_MS, 'the source');
    await within(destination.done, WAIT_MS, 'the destination');
    t.ok(guest.store.read().equals(guest.there.read()), 'every byte is the same');
    t.ok(guest.there.guardsIntact());
    t.equal(started, 1);
    t.equal(destination.state, 'completed');
    cutter.close();
    t.same(await before.found(), [], 'nothing is left of any try');
  });
}
