/**
 * Pages sent without a copy, over TCP: from a QEMU into a file, from the file into a QEMU, and by a relay between two. RAM is
 * equal each time, and the guest runs on.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import t from 'tap';
import { relayMigration, sendMigration, type MultifdError } from '../../src/index.js';
import { findKoffi } from '../../src/native/koffi.js';
import { formatAddress, type Address } from '../../src/transport/address.js';
import { within } from '../support/within.js';
import { checkGuest, checkSource, load, migrate, park, resume, send, type Parked } from './park.js';
import { requirePrograms } from './programs.js';
import { Qemu, workFolder } from './qemu.js';
import { Resources } from './resources.js';

const LIMIT_MS = 60_000;
/** So that the destination is killed in the middle. */
const SLOW_BYTES = 4 * 2 ** 20;

const { qemu: program } = requirePrograms();
const folder = workFolder(t);
const how = { channels: 2, compression: 'none', tcp: true } as const;

// Of the whole file: several tests go on with it.
const source: Qemu = await Qemu.start(t, program, folder);
let parked: Parked;

t.test('from a QEMU with zero-copy-send into a file, which a QEMU loads', async (t) => {
  await source.waitUntilReady();
  await source.setMultifd(how);
  await source.setCapabilities({ 'zero-copy-send': true });
  parked = await park(t, source, { ...how, returnPath: true });
  await load(t, program, parked, folder, { channels: 2 });
});

if (findKoffi() === undefined) {
  t.test('without koffi there is no other way round', async (t) => {
    const sending = sendMigration({ file: parked.file, to: 'tcp:127.0.0.1:1', zeroCopySend: true });
    const error = (await sending.catch((error: unknown) => error)) as MultifdError;
    t.match(error, {
      code: 'ERR_MULTIFD_RUNTIME',
      message: /^option zeroCopySend: it needs the package koffi/,
    });
  });
} else {
  for (const channels of [1, 4]) {
    t.test(`from the file into a QEMU with zeroCopySend, ${channels} channels`, async (t) => {
      const { stats } = await send(t, program, parked, folder, { ...how, channels, zeroCopySend: true });
      t.ok(stats.zeroCopyPackets > 0, `${stats.zeroCopyPackets} of ${stats.packets} packets without a copy`);
      t.ok(stats.zeroCopyCopied <= stats.zeroCopyPackets, `${stats.zeroCopyCopied} copied all the same`);
    });
  }

  t.test('by a relay with out.zeroCopySend, while the guest runs', async (t) => {
    await resume(source);
    const destination = await Qemu.start(t, program, folder, { incoming: true });
    await destination.setMultifd({ ...how, channels: 3, returnPath: true });
    await destination.execute('migrate-incoming', { uri: 'tcp:127.0.0.1:0' });
    const to = `tcp:127.0.0.1:${await destination.incomingPort()}` as const;
    let listen!: (address: Address) => void;
    const listening = new Promise<Address>((resolve) => (listen = resolve));
    const result = relayMigration({
      listen: 'tcp:127.0.0.1:0',
      to,
      out: { channels: 3, zeroCopySend: true },
      onListening: listen,
    });
    result.catch(() => {});
    await Promise.race([listening, result]);
    const migrating = migrate(source, formatAddress(await listening), { ...how, returnPath: true });
    const [{ sent, sourceTold }] = await Promise.all([
      within(result, LIMIT_MS, 'relayMigration()'),
      migrating,
    ]);
    t.ok(sourceTold);
    t.ok(sent.zeroCopyPackets > 0, `${sent.zeroCopyPackets} of ${sent.packets} packets without a copy`);
    await checkGuest(t, destination, await checkSource(t, source, false));
  });

  t.test('a destination that is killed meanwhile is an error, and leaves nothing', async (t) => {
    const destination = await Qemu.start(t, program, folder, { incoming: true, machine: parked.machine });
    await destination.setMultifd(how);
    await destination.execute('migrate-incoming', { uri: 'tcp:127.0.0.1:0' });
    const to = `tcp:127.0.0.1:${await destination.incomingPort()}` as const;
    const resources = new Resources();
    let begun = (): void => {};
    const sending = new Promise<void>((resolve) => (begun = resolve));
    const result = sendMigration({
      file: parked.file,
      to,
      zeroCopySend: true,
      maxBandwidth: SLOW_BYTES,
      onSession: begun,
    });
    result.catch(() => {});
    await Promise.race([sending, result]);
    await sleep(500);
    await destination.kill();
    const ended = result.then(
      () => undefined,
      (error: unknown) => error as MultifdError,
    );
    const error = await within(ended, LIMIT_MS, 'sendMigration()');
    t.match(error, { code: 'ERR_MULTIFD_CONNECTION' });
    t.same(await resources.left(LIMIT_MS / 6), []);
  });
}
