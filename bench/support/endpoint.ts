/**
 * One end of a migration in a process of its own; a child of migrate.ts. Its guest's RAM is written before the session is
 * opened; what the process grows by beside that RAM, at its peak while the session runs, is the session's.
 */
import fs from 'node:fs';
import { monitorEventLoopDelay } from 'node:perf_hooks';
import v8 from 'node:v8';
import vm from 'node:vm';
import { allocateRam, createReceiver, createSender, type Address, type TlsOptions } from '../../src/index.js';
import { serve, type Peer } from './child.js';
import { digest, fillImage, prefault, windows } from './image.js';
import { monotonicMs } from './measure.js';
import type { Delay, EndReport, MigrationStart, Moved, Pass } from './migrate.js';

type Start = MigrationStart & { role: 'send' | 'receive' };

/** An open session: runs one pass over `bytes`. */
interface End {
  /** All its channels are connected. */
  ready: Promise<void>;
  move(bytes: number): Promise<void>;
  end(): Promise<void>;
  wireBytes(): number;
}

/** The histogram's timer fires so often. */
const RESOLUTION_MS = 1;

function statusBytes(field: string): number {
  const match = new RegExp(`^${field}:\\s+(\\d+) kB`, 'm').exec(fs.readFileSync('/proc/self/status', 'utf8'));
  return Number(match?.[1]) * 1024;
}

function readImage(memory: SharedArrayBuffer, file: string): void {
  const handle = fs.openSync(file, 'r');
  try {
    for (const window of windows(memory)) {
      for (let at = 0; at < window.length;) {
        const count = fs.readSync(handle, window, at, window.length - at, null);
        if (count === 0) throw new Error(`${file} ends before the guest's RAM`);
        at += count;
      }
    }
  } finally {
    fs.closeSync(handle);
  }
}

function tlsOf({ tlsFolder }: Start): { tls?: TlsOptions } {
  return tlsFolder === undefined ? {} : { tls: { dir: tlsFolder } };
}

async function openSender(start: Start, memory: SharedArrayBuffer, parent: Peer): Promise<End> {
  const { channels, compression, pageSize, zeroCopySend } = start;
  const { address } = await parent.next<{ address: Address }>();
  const blocks = [{ name: 'pc.ram', memory }];
  const sender = await createSender({
    address,
    blocks,
    channels,
    compression,
    pageSize,
    zeroCopySend,
    ...tlsOf(start),
  });
  return {
    ready: Promise.resolve(),
    move: async (bytes) => {
      await sender.queueRange('pc.ram', 0, bytes);
      await sender.sync();
    },
    end: () => sender.end(),
    wireBytes: () => sender.stats().bytes,
  };
}

async function openReceiver(start: Start, memory: SharedArrayBuffer, parent: Peer): Promise<End> {
  const { channels, compression, pageSize } = start;
  // All of it is zero, written or not: what a QEMU takes for granted of its destination as well.
  const blocks = [{ name: 'pc.ram', memory, fresh: true }];
  const receiver = await createReceiver({
    address: { port: 0 },
    blocks,
    channels,
    compression,
    pageSize,
    ...tlsOf(start),
  });
  parent.tell({ address: receiver.address });
  return {
    ready: receiver.ready,
    move: () => receiver.sync(),
    end: () => receiver.end(),
    wireBytes: () => receiver.stats().bytes,
  };
}

serve<Start>(async (start, parent) => {
  const memory = start.hugePages ? allocateRam(start.size) : new SharedArrayBuffer(start.size);
  if (start.role === 'receive') {
    if (start.prefault) prefault(memory);
  } else if (start.file !== undefined) readImage(memory, start.file);
  else fillImage(memory, start.image);
  collectGarbage();
  // Memory that is not touched yet is not in the process's, and will be.
  const untouched = start.role === 'receive' && !start.prefault ? memory.byteLength : 0;
  const base = statusBytes('VmRSS') + untouched;
  // The peak so far is forgotten.
  fs.writeFileSync('/proc/self/clear_refs', '5');
  const open = start.role === 'send' ? openSender : openReceiver;
  const end = await open(start, memory, parent);
  await end.ready;
  parent.tell({ open: true });

  let cpuSeconds = 0;
  const histogram = monitorEventLoopDelay({ resolution: RESOLUTION_MS });
  for (;;) {
    const { bytes, counts } = await parent.next<Pass>();
    if (bytes === 0) break;
    if (counts && start.watchLoop) histogram.enable();
    const cpu = process.cpuUsage();
    const begunMs = monotonicMs();
    await end.move(bytes);
    parent.tell({ begunMs, endedMs: monotonicMs() } satisfies Moved);
    const { user, system } = process.cpuUsage(cpu);
    if (counts) cpuSeconds += (user + system) / 1e6;
    histogram.disable();
  }
  const above = statusBytes('VmHWM') - base;
  // The histogram holds the times between two firings of a timer; what they are above its period is delay.
  const late = (ns: number): number => Math.max(0, ns / 1e6 - RESOLUTION_MS);
  const delay: Delay = {
    p50: late(histogram.percentile(50)),
    p99: late(histogram.percentile(99)),
    max: late(histogram.max),
  };
  const wireBytes = end.wireBytes();
  parent.tell({ above, delay, cpuSeconds, digest: digest(memory), wireBytes } satisfies EndReport);
  await end.end();
});

/** Frees what is not used any more, such as the piece that an image was made in; for who measures memory next. */
function collectGarbage(): void {
  v8.setFlagsFromString('--expose-gc');
  const collect = vm.runInNewContext('globalThis.gc') as () => void;
  // The first finds it, the second waits for the thread that frees it.
  collect();
  collect();
}
