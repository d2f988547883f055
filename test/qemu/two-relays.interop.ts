/** What relays are for: one on each side of a slow link, so that only the link carries what is compressed. And `send` before one. */
import path from 'node:path';
import t, { type Test } from 'tap';
import { relayMigration, sendMigration } from '../../src/index.js';
import type { RelayMigrationOptions, RelayedMigration } from '../../src/migration/relay.js';
import { within } from '../support/within.js';
import { checkGuest, checkSource, migrate, park } from './park.js';
import { requirePrograms } from './programs.js';
import { Qemu, workFolder } from './qemu.js';

const RELAY_MS = 60_000;
const PLAIN = { channels: 2, compression: 'none' } as const;
const LINK = { channels: 4, compression: 'zstd' } as const;

const { qemu } = requirePrograms();
const folder = workFolder(t);

async function relay(options: RelayMigrationOptions): Promise<Promise<RelayedMigration>[]> {
  let listen!: () => void;
  const listening = new Promise<void>((resolve) => (listen = resolve));
  const result = relayMigration({ ...options, onListening: listen });
  result.catch(() => {});
  await Promise.race([listening, result]);
  // In an array, so that it is not awaited here.
  return [within(result, RELAY_MS, `relay at ${JSON.stringify(options.listen)}`)];
}

const address = (name: string): `unix:${string}` => `unix:${path.join(folder, `${name}.sock`)}`;

async function destinationAt(t: Test, name: string): Promise<Qemu> {
  const destination = await Qemu.start(t, qemu, folder, { incoming: true });
  await destination.setMultifd({ ...PLAIN, returnPath: true });
  await destination.execute('migrate-incoming', { uri: address(name) });
  return destination;
}

for (const returnPath of [false, true]) {
  const how = returnPath ? ', return path' : '';
  t.test(`${qemu.version}${how}: two relays in a row, the guest runs, RAM equal`, async (t) => {
    const name = (which: string): string => `${which}${returnPath ? 1 : 0}`;
    const source = await Qemu.start(t, qemu, folder);
    await source.waitUntilReady();
    const destination = await destinationAt(t, name('end'));
    const [far] = await relay({
      listen: address(name('far')),
      to: address(name('end')),
      in: LINK,
      out: PLAIN,
    });
    const [near] = await relay({
      listen: address(name('near')),
      to: address(name('far')),
      in: PLAIN,
      out: LINK,
    });
    far.catch(() => {});
    near.catch(() => {});
    const migrating = migrate(source, address(name('near')), { ...PLAIN, returnPath });
    const [first, second] = await Promise.all([near, far, migrating]);
    const { ram, counter } = await checkSource(t, source, false);
    t.equal(first.sent.normalPages, second.received.normalPages, 'every page goes on');
    t.equal(first.sourceTold, returnPath);
    t.equal(second.sourceTold, true, 'a relay asks for a return path in any case');
    await checkGuest(t, destination, { ram, counter });
    await source.kill();
  });
}

t.test(`${qemu.version}: a parked guest sent into a relay arrives`, async (t) => {
  const source = await Qemu.start(t, qemu, folder);
  await source.waitUntilReady();
  const parked = await park(t, source, PLAIN);
  await source.kill();
  const destination = await destinationAt(t, 'sent');
  const [relayed] = await relay({ listen: address('relay'), to: address('sent'), in: LINK, out: PLAIN });
  relayed.catch(() => {});
  const sent = await within(
    sendMigration({ file: parked.file, to: address('relay'), ...LINK }),
    RELAY_MS,
    'sendMigration()',
  );
  t.equal((await relayed).received.normalPages, sent.stats.normalPages);
  await checkGuest(t, destination, parked);
});
