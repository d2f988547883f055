/** One end of a start-up, a child of startup.ts: everything is loaded and waits, then a session up to its first packet. */
import { setImmediate as turnEventLoop } from 'node:timers/promises';
import type { Address } from '../../src/index.js';
import { serve, type Peer } from './child.js';
import { monotonicMs } from './measure.js';

export interface StartupStart {
  role: 'send' | 'receive';
  channels: number;
}

// What an embedder loads, which is no module of src.
const library = new URL('../../lib/index.js', import.meta.url).href;
const { createReceiver, createSender } = (await import(library)) as typeof import('../../src/index.js');

const PAGE = 4096;
const FILLER = 0x5a;

/** Of the process, all its threads, since `before`. */
function cpuMs(before: NodeJS.CpuUsage): number {
  const { user, system } = process.cpuUsage(before);
  return (user + system) / 1000;
}

async function send(channels: number, memory: SharedArrayBuffer, parent: Peer): Promise<void> {
  const { address } = await parent.next<{ address: Address }>();
  const cpu = process.cpuUsage();
  const sender = await createSender({ address, channels, blocks: [{ name: 'pc.ram', memory }] });
  const openMs = monotonicMs();
  await sender.queuePage('pc.ram', 0);
  await sender.flush();
  parent.tell({ openMs, cpuMs: cpuMs(cpu) });
  await sender.sync();
  await sender.end();
}

async function receive(channels: number, memory: SharedArrayBuffer, parent: Peer): Promise<void> {
  await parent.next();
  const begunMs = monotonicMs();
  const cpu = process.cpuUsage();
  const blocks = [{ name: 'pc.ram', memory }];
  const receiver = await createReceiver({ address: { port: 0 }, channels, blocks });
  parent.tell({ address: receiver.address });
  // Only then is there something to look for: looking takes a whole core from the threads that start.
  await receiver.ready;
  const usedMs = cpuMs(cpu);
  const received = receiver.received('pc.ram');
  while (!received.has(0)) {
    await turnEventLoop();
    if (receiver.error !== undefined) throw receiver.error;
  }
  const firstMs = monotonicMs();
  await receiver.sync();
  const page = Buffer.from(memory);
  if (!page.equals(Buffer.alloc(PAGE, FILLER))) throw new Error('the first packet brought something else');
  const syncedMs = monotonicMs();
  await receiver.end();
  parent.tell({ begunMs, firstMs, cpuMs: usedMs, endMs: monotonicMs() - syncedMs });
}

serve<StartupStart>(async ({ role, channels }, parent) => {
  const memory = new SharedArrayBuffer(PAGE);
  if (role === 'send') Buffer.from(memory).fill(FILLER);
  parent.tell({ readyMs: monotonicMs() });
  await (role === 'send' ? send : receive)(channels, memory, parent);
});
