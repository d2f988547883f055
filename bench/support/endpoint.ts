/**
 * One end of a migration in a process of its own; a child of migrate.ts. Its guest's RAM is written before the session is
 * opened; what the process grows by beside that RAM, at its peak while the session runs, is the session's.
 */
import fs from 'node:fs';
import { monitorEventLoopDelay } from 'node:perf_hooks';
import { createReceiver, createSender, type Address } from '../../src/index.js';
import { serve, type Peer } from './child.js';
import { collectGarbage, digestGuest, fillGuest, prefaultGuest } from './guest-ram.js';
import { monotonicMs } from './measure.js';
import type { Delay, EndReport, MigrationCase, Moved, Pass } from './migrate.js';

type Start = Required<MigrationCase> & { role: 'send' | 'receive' };

/** An open session: runs one pass over `bytes`. */
interface End {
  move(bytes: number): Promise<void>;
  end(): Promise<void>;
}

/** The histogram's timer fires so often. */
const RESOLUTION_MS = 1;

function statusBytes(field: string): number {
  const match = new RegExp(`^${field}:\\s+(\\d+) kB`, 'm').exec(fs.readFileSync('/proc/self/status', 'utf8'));
  return Number(match?.[1]) * 1024;
}

async function openSender(start: Start, memory: SharedArrayBuffer, parent: Peer): Promise<End> {
  const { channels, compression, pageSize } = start;
  const { address } = await parent.next<{ address: Address }>();
  const blocks = [{ name: 'pc.ram', memory }];
  const sender = await createSender({ address, blocks, channels, compression, pageSize });
  return {
    move: async (bytes) => {
      await sender.queueRange('pc.ram', 0, bytes);
      await sender.sync();
    },
    end: () => sender.end(),
  };
}

async function openReceiver(start: Start, memory: SharedArrayBuffer, parent: Peer): Promise<End> {
  const { channels, compression, pageSize } = start;
  const blocks = [{ name: 'pc.ram', memory }];
  const receiver = await createReceiver({ address: { port: 0 }, blocks, channels, compression, pageSize });
  parent.tell({ address: receiver.address });
  return { move: () => receiver.sync(), end: () => receiver.end() };
}

serve<Start>(async (start, parent) => {
  const base = statusBytes('VmRSS');
  const memory = new SharedArrayBuffer(start.size);
  if (start.role === 'send') fillGuest(memory, start.image);
  else prefaultGuest(memory);
  collectGarbage();
  // The peak so far is forgotten.
  fs.writeFileSync('/proc/self/clear_refs', '5');
  const open = start.role === 'send' ? openSender : openReceiver;
  const end = await open(start, memory, parent);

  const histogram = monitorEventLoopDelay({ resolution: RESOLUTION_MS });
  for (;;) {
    const { bytes, counts } = await parent.next<Pass>();
    if (bytes === 0) break;
    if (counts) histogram.enable();
    const begunMs = monotonicMs();
    await end.move(bytes);
    parent.tell({ begunMs, endedMs: monotonicMs() } satisfies Moved);
    histogram.disable();
  }
  const above = statusBytes('VmHWM') - base - memory.byteLength;
  // The histogram holds the times between two firings of a timer; what they are above its period is delay.
  const late = (ns: number): number => Math.max(0, ns / 1e6 - RESOLUTION_MS);
  const delay: Delay = {
    p50: late(histogram.percentile(50)),
    p99: late(histogram.percentile(99)),
    max: late(histogram.max),
  };
  parent.tell({ above, delay, digest: digestGuest(memory) } satisfies EndReport);
  await end.end();
});
