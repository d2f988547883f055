/**
 * One end in a process of its own, for memory: forked by memory.ts. Its guest's RAM is written before the session is
 * opened; what the process grows by from there to its peak is the session's.
 */
import fs from 'node:fs';
import { createReceiver, createSender, type Address, type Compression } from '../../src/index.js';
import { fillImage, prefault } from './image.js';

interface Start {
  role: 'send' | 'receive';
  size: number;
  channels: number;
  compression: Compression;
  address?: Address;
  rounds: number;
}

function statusBytes(field: string): number {
  const match = new RegExp(`^${field}:\\s+(\\d+) kB`, 'm').exec(fs.readFileSync('/proc/self/status', 'utf8'));
  return Number(match?.[1]) * 1024;
}

process.once('message', (start: Start) => {
  // A listener keeps the channel to the parent referenced, and with it this process.
  process.on('message', () => {});
  void main(start);
});

async function main({ role, size, channels, compression, address, rounds }: Start): Promise<void> {
  const memory = new SharedArrayBuffer(size);
  if (role === 'send') fillImage(memory, 'mixed');
  else prefault(memory);
  // The peak so far is forgotten.
  fs.writeFileSync('/proc/self/clear_refs', '5');
  const before = statusBytes('VmRSS');
  const blocks = [{ name: 'pc.ram', memory }];
  if (role === 'receive') {
    const receiver = await createReceiver({ address: { port: 0 }, blocks, channels, compression });
    process.send?.({ address: receiver.address });
    for (let i = 0; i < rounds; i++) await receiver.sync();
    process.send?.({ above: statusBytes('VmHWM') - before });
    await receiver.end();
  } else {
    const sender = await createSender({ address: address as Address, blocks, channels, compression });
    for (let i = 0; i < rounds; i++) {
      await sender.queueRange('pc.ram', 0, size);
      await sender.sync();
    }
    process.send?.({ above: statusBytes('VmHWM') - before });
    await sender.end();
  }
  process.disconnect();
}
