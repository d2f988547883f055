/** Option directIo at the most channels, and with a file that is large. */
import fs from 'node:fs';
import path from 'node:path';
import t from 'tap';
import { sendMigration } from '../../src/index.js';
import { Random } from '../support/random.js';
import { ramOf } from './captures.js';
import { cached, folder, receive, refusedHere } from './direct.js';
import { migrateRounds } from './rounds.js';

const MIB = 2 ** 20;
/** Two times 255 threads on a few cores. */
const WAIT_MS = 180_000;
/** Their start on a machine that is at work. */
const CONNECT_MS = 60_000;

/** Seeded bytes, each page with a few of its own. */
function filled(bytes: number): SharedArrayBuffer {
  const memory = new SharedArrayBuffer(bytes);
  const all = Buffer.from(memory);
  new Random(9).bytes(all.subarray(0, MIB));
  for (let at = MIB; at < bytes; at += MIB) all.copy(all, at, 0, MIB);
  for (let at = 0; at < bytes; at += 4096) all.writeUInt32LE(at / 4096, at);
  return memory;
}

t.test('255 channels send and receive with directIo', async (t) => {
  if (await refusedHere(t)) return;
  const directory = folder(t);
  const memory = filled(64 * MIB);
  const out = path.join(directory, 'vm.mig');
  await receive(out, (address) => migrateRounds(address, memory, [{}]), { directIo: true });
  const again = path.join(directory, 'again.mig');
  const options = { channels: 255, directIo: true, connectTimeoutMs: CONNECT_MS };
  await receive(again, (to) => sendMigration({ file: out, to, ...options }), options, WAIT_MS);
  t.ok((await ramOf(again)).equals(Buffer.from(memory)));
});

t.test('1 GiB received and sent with directIo leaves under 16 MiB in the page cache', async (t) => {
  if (await refusedHere(t)) return;
  const directory = folder(t);
  const out = path.join(directory, 'vm.mig');
  const again = path.join(directory, 'again.mig');
  const memory = filled(1024 * MIB);
  await receive(out, (address) => migrateRounds(address, memory, [{}]), { directIo: true });
  await receive(again, (to) => sendMigration({ file: out, to, directIo: true }), { directIo: true });
  for (const file of [out, again]) {
    const bytes = cached(file);
    if (bytes === undefined) t.comment('there is no fincore, or no disk, here');
    else t.ok(bytes < 16 * MIB, `${path.basename(file)}: ${bytes} bytes`);
    t.ok(fs.statSync(file).size > 1024 * MIB);
    t.ok((await ramOf(file)).equals(Buffer.from(memory)));
  }
});
