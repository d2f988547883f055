/** A VM that has a uuid, as each of libvirt's: parked, relayed and sent back without a word about it but where none tells. */
import path from 'node:path';
import t from 'tap';
import { relayMigration, sendMigration } from '../../src/index.js';
import { within } from '../support/within.js';
import { checkGuest, checkSource, migrate, park } from './park.js';
import { requirePrograms } from './programs.js';
import { Qemu, workFolder } from './qemu.js';

const UUID = '00112233-4455-6677-8899-aabbccddeeff';
const WAIT_MS = 60_000;
const side = { channels: 2, compression: 'none' } as const;

const program = requirePrograms().qemu;
const folder = workFolder(t);
const extra = ['-uuid', UUID];

t.test("relayed: the destination's channels say what the source's have said", async (t) => {
  const source = await Qemu.start(t, program, folder, { extra });
  const destination = await Qemu.start(t, program, folder, { extra, incoming: true });
  await source.waitUntilReady();
  const [near, far] = ['near', 'far'].map((name) => `unix:${path.join(folder, `${name}.sock`)}` as const);
  await destination.setMultifd({ ...side, returnPath: true });
  await destination.execute('migrate-incoming', { uri: far });
  let listen!: () => void;
  const listening = new Promise<void>((resolve) => (listen = resolve));
  const result = relayMigration({ listen: near, to: far, in: side, out: side, onListening: listen });
  result.catch(() => {});
  await Promise.race([listening, result]);
  const migrating = migrate(source, near, { ...side, returnPath: true, paused: true });
  const [relayed] = await Promise.all([within(result, WAIT_MS, 'relayMigration()'), migrating]);
  t.equal(relayed.uuid, UUID);
  await checkGuest(t, destination, await checkSource(t, source, true));
});

t.test(
  'parked without the option, which the report has; sent back with it, and refused by name without',
  async (t) => {
    const source = await Qemu.start(t, program, folder, { extra });
    await source.waitUntilReady();
    const parked = await park(t, source, { ...side, returnPath: true, paused: true });
    t.equal(parked.received.uuid, UUID);
    await source.kill();
    for (const uuid of [undefined, UUID]) {
      const destination = await Qemu.start(t, program, folder, { extra, incoming: true });
      await destination.setMultifd({ ...side, returnPath: true });
      const to = `unix:${path.join(folder, `back-${uuid ?? 'none'}.sock`)}` as const;
      await destination.execute('migrate-incoming', { uri: to });
      const sent = within(
        sendMigration({ file: parked.file, to, ...side, uuid }),
        WAIT_MS,
        'sendMigration()',
      );
      if (uuid === undefined)
        await t.rejects(sent, { message: /uuid none \(option uuid, --uuid, QEMU's -uuid\)/ });
      else {
        await sent;
        await checkGuest(t, destination, parked);
      }
    }
  },
);
