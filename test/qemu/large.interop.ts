/** A guest of 4 GiB is parked and resumed, and our process needs at most 300 MiB for it. */
import { type ChildProcess, fork } from 'node:child_process';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import t, { type Test } from 'tap';
import { within } from '../support/within.js';
import type { Call, Message } from './measured-call.js';
import { differingPages, pagesWithData } from './ram.js';
import { requirePrograms } from './programs.js';
import { Qemu, workFolder } from './qemu.js';

const MiB = 2 ** 20;
const GiB = 2 ** 30;
const SIZE = 4 * GiB;
/** Of these bytes three quarters are data. */
const FILL_END = 514 * MiB;
const LIMIT_BYTES = 300 * MiB;
const PIECE_BYTES = 256 * MiB;
/** The i440fx has 3 GiB below 4 GiB and the rest above. */
const RANGES = [
  [0, 3 * GiB],
  [4 * GiB, SIZE - 3 * GiB],
] as const;
const CALL_MS = 150_000;
const BOOT_MS = 120_000;

const { qemu: program } = requirePrograms();
const folder = workFolder(t, FILL_END);

/** A call in another process. */
class Measured {
  readonly listening: Promise<void>;
  readonly peakBytes: Promise<number>;

  constructor(t: Test, call: Call) {
    // Without what tap preloads into every process, and every thread.
    const child: ChildProcess = fork(fileURLToPath(new URL('measured-call.js', import.meta.url)), {
      execArgv: [],
      env: { ...process.env, NODE_OPTIONS: '' },
    });
    t.teardown(() => child.kill('SIGKILL'));
    let listen!: () => void;
    this.listening = new Promise((resolve) => (listen = resolve));
    this.peakBytes = new Promise((resolve, reject) => {
      child.on('message', (message: Message) => {
        if ('listening' in message) listen();
        else if ('error' in message) reject(new Error(message.error));
        else resolve(message.peakBytes);
      });
      child.once('exit', (code) => reject(new Error(`the process ended with ${code}`)));
    });
    this.peakBytes.catch(() => {});
    child.send(call);
  }
}

/** Piece by piece: one buffer would be too large. */
async function compareRam(t: Test, a: Qemu, b: Qemu): Promise<void> {
  let data = 0;
  for (const [from, length] of RANGES) {
    for (let at = from; at < from + length; at += PIECE_BYTES) {
      const pieces = [await a.memory(at, PIECE_BYTES), await b.memory(at, PIECE_BYTES)];
      // Only the first piece has the hole.
      t.same(differingPages(pieces[0], pieces[1], at), [], `RAM from ${at / MiB} MiB on is equal`);
      data += pagesWithData(pieces[0]);
    }
  }
  t.ok(data * 4096 > (FILL_END * 3) / 4 - 4 * MiB, `${data} pages have data`);
}

t.test('a guest of 4 GiB: parked and resumed in 300 MiB', async (t) => {
  const options = { memoryBytes: SIZE };
  const source = await Qemu.start(t, program, folder, options);
  await source.waitUntilReady(BOOT_MS);
  const [near, far] = [path.join(folder, 'near.sock'), path.join(folder, 'far.sock')];
  const file = path.join(folder, 'vm.mig');
  const migration = { channels: 4, compression: 'zstd' } as const;
  await source.setMultifd(migration);
  const receiving = new Measured(t, { receive: { ...migration, address: { path: near }, out: file } });
  await within(receiving.listening, CALL_MS, 'listening');
  await source.setParameters({ 'max-bandwidth': 2 ** 40, 'downtime-limit': 2000 });
  await source.execute('migrate', { uri: `unix:${near}` });
  const receiverBytes = await within(receiving.peakBytes, CALL_MS, 'receiveMigration()');
  t.ok(receiverBytes <= LIMIT_BYTES, `the receiver had ${Math.round(receiverBytes / MiB)} MiB at most`);
  t.equal((await source.migrationEnd()).status, 'completed');

  const destination = await Qemu.start(t, program, folder, { ...options, incoming: true });
  await destination.setMultifd(migration);
  await destination.execute('migrate-incoming', { uri: `unix:${far}` });
  const sending = new Measured(t, { send: { ...migration, file, to: { path: far } } });
  const senderBytes = await within(sending.peakBytes, CALL_MS, 'sendMigration()');
  t.ok(senderBytes <= LIMIT_BYTES, `the sender had ${Math.round(senderBytes / MiB)} MiB at most`);
  t.equal((await destination.migrationEnd()).status, 'completed');
  await compareRam(t, source, destination);
  await destination.execute('cont');
  await destination.waitForSerial(/\.{2}/);
  t.equal(await destination.status(), 'running', 'the guest runs on');
});
