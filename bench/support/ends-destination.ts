/** The destination of ends.ts, in a process of its own: it takes the guest's RAM in and compares it with the image. */
import fs from 'node:fs';
import { createReceiver } from '../../src/index.js';
import type { Compared, Listening, Plan, Synced } from './ends.js';
import { prefault, windows } from './image.js';

const PIECE_BYTES = 2 ** 22;

async function receive(plan: Plan): Promise<void> {
  const memory = new SharedArrayBuffer(plan.bytes);
  if (plan.prefault) prefault(memory);
  const { channels, compression } = plan;
  const receiver = await createReceiver({
    address: { host: '127.0.0.1', port: 0 },
    // All of it is zero, written or not: what a QEMU takes for granted of its destination as well.
    blocks: [{ name: 'pc.ram', memory, fresh: true }],
    channels,
    compression,
  });
  reply<Listening>({ address: receiver.address });
  await asked('ready');
  await receiver.ready;
  const sync = asked('sync');
  reply<Synced>({ synced: true });
  await sync;
  await receiver.sync();
  const compare = asked('compare');
  reply<Synced>({ synced: true });
  await compare;
  await receiver.end();
  reply<Compared>({ equal: equals(memory, plan.image) });
}

function equals(memory: SharedArrayBuffer, file: string): boolean {
  const piece = Buffer.alloc(PIECE_BYTES);
  const handle = fs.openSync(file, 'r');
  try {
    for (const window of windows(memory)) {
      for (let at = 0; at < window.length;) {
        const count = fs.readSync(handle, piece, 0, Math.min(piece.length, window.length - at), null);
        if (count === 0 || piece.compare(window, at, at + count, 0, count) !== 0) return false;
        at += count;
      }
    }
    return true;
  } finally {
    fs.closeSync(handle);
  }
}

function reply<T extends object>(message: T): void {
  process.send?.(message);
}

/** The next message, which must be this one. */
async function asked(what: string): Promise<void> {
  const message = await new Promise((resolve) => process.once('message', resolve));
  if (message !== what) throw new Error(`asked ${String(message)}, expected ${what}`);
}

process.on('disconnect', () => process.exit());
process.once('message', (plan: Plan) => {
  // A listener keeps the channel to the parent referenced, and with it this process.
  process.on('message', () => {});
  receive(plan).catch((error) => {
    console.error(error);
    process.exit(1);
  });
});
