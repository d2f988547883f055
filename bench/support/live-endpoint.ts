/** One end of a live migration in a process of its own, for the bench `live`; the source's has the guest. */
import { createMigrationDestination, createMigrationSource, type Address } from '../../src/index.js';
import { serve, type Peer } from './child.js';
import { digest, prefault } from './image.js';
import { LiveGuest } from './live-guest.js';
import { RAM_BYTES } from './qemu.js';

export interface LiveStart {
  role: 'source' | 'destination';
  channels: number;
  downtimeLimitMs: number;
}

/** What the source tells at the end. */
export interface LiveFigures {
  downtimeMs: number;
  expectedMs: number;
  /** Of the last round. */
  dirtyPagesRate: number;
  digest: number;
}

const MACHINE = 'bench-1.0';
const BLOCK = 'pc.ram';
/** As small as a virtual PC's without its disk. */
const DEVICE_BYTES = 2 ** 16;
/** The guest is let run for so long before it is moved. */
const RUNS_MS = 500;

serve<LiveStart>(async (start, parent) => {
  await (start.role === 'source' ? beSource(start, parent) : beDestination(start, parent));
});

async function beSource({ channels, downtimeLimitMs }: LiveStart, parent: Peer): Promise<void> {
  const guest = new LiveGuest(RAM_BYTES);
  parent.tell({ filled: true });
  const { address } = await parent.next<{ address: Address }>();
  await guest.run();
  await new Promise((resolve) => setTimeout(resolve, RUNS_MS));
  const source = await createMigrationSource({
    to: address,
    machine: MACHINE,
    channels,
    downtimeLimitMs,
    blocks: [{ name: BLOCK, memory: guest.memory }],
    dirty: { [BLOCK]: guest.bitmap },
    devices: [{ idstr: 'pc', save: () => Buffer.alloc(DEVICE_BYTES, 1) }],
    pause: () => guest.pause(),
    resume: () => {
      throw new Error('the bench has no guest that runs on');
    },
  });
  const { downtimeMs, expectedDowntimeMs, ram } = await source.done;
  parent.tell({
    downtimeMs,
    expectedMs: expectedDowntimeMs ?? 0,
    dirtyPagesRate: ram.dirtyPagesRate,
    digest: digest(guest.memory),
  } satisfies LiveFigures);
}

async function beDestination({ channels }: LiveStart, parent: Peer): Promise<void> {
  const memory = new SharedArrayBuffer(RAM_BYTES);
  prefault(memory);
  const destination = await createMigrationDestination({
    listen: { host: '127.0.0.1', port: 0 },
    machine: MACHINE,
    channels,
    blocks: [{ name: BLOCK, memory }],
    devices: [{ idstr: 'pc', load: () => {} }],
    start: () => {},
  });
  parent.tell({ address: destination.address });
  await destination.done;
  parent.tell({ digest: digest(memory) });
}
