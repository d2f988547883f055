/** Ways `live` and `file`: a guest that writes while it is moved, to a destination or into a file. */
import { createHash } from 'node:crypto';
import path from 'node:path';
import { MultifdError } from '../errors.js';
import { createMigrationDestination } from '../live/destination.js';
import { createMigrationSource } from '../live/source.js';
import { readMappedRam } from '../mapped-ram/read.js';
import { verifyMappedRam } from '../mapped-ram/verify.js';
import { receiveMigration } from '../migration/receive.js';
import type { CommonOptions } from '../options.js';
import type { Address } from '../transport/address.js';
import { Dice } from './dice.js';
import type { EnginePlan } from './engine-plan.js';
import { GuestMemory } from './guest-memory.js';
import type { Digests, Outcome } from './messages.js';
import type { Side } from './side.js';
import { WritingGuest } from './writing-guest.js';

const MACHINE = 'stress-1.0';
export const DEVICE = 'device';
export const OUT_FILE = 'out.mig';

/** Options that are the same at both ends. */
export function common(side: Side): Omit<CommonOptions, 'address' | 'blocks'> {
  const { plan, tls } = side.begin;
  return {
    channels: plan.channels,
    compression: plan.compression,
    pageSize: plan.pageSize,
    stallTimeoutMs: plan.stallTimeoutMs,
    connectTimeoutMs: plan.connectTimeoutMs,
    signal: side.abort.signal,
    ...(tls && { tls }),
  };
}

export function levels({ compression, level }: EnginePlan): { zlibLevel?: number; zstdLevel?: number } {
  if (compression === 'none') return {};
  return compression === 'zlib' ? { zlibLevel: level } : { zstdLevel: level };
}

export function listenAt(side: Side): Address {
  const { plan, folder } = side.begin;
  return plan.unix ? { path: path.join(folder, 'in.sock') } : { host: '127.0.0.1', port: 0 };
}

export async function liveSource(side: Side): Promise<Outcome> {
  const { plan, folder } = side.begin;
  const dice = new Dice(plan.seed ^ 0x5eed, plan.run);
  const memory = new GuestMemory(plan.memory.source, plan.blocks, folder, 'source');
  let guest: WritingGuest | undefined;
  try {
    memory.fillImage(dice, plan.pageSize, plan.zeroShare);
    const state = Buffer.alloc(plan.deviceBytes);
    dice.fill(state);
    const writing = new WritingGuest(memory, plan.pageSize, plan.dirty, plan.dirtyRate, dice);
    guest = writing;
    guest.run();
    const source = await createMigrationSource({
      ...common(side),
      ...levels(plan),
      to: await side.connect,
      machine: MACHINE,
      blocks: memory.options,
      ...(guest.dirty && { dirty: guest.dirty }),
      zeroPageDetection: plan.zeroPageDetection === 'none' ? 'none' : 'multifd',
      maxBandwidth: plan.maxBandwidth,
      maxRounds: plan.maxRounds,
      notConverging: 'switchover',
      verify: plan.verify,
      devices: [{ idstr: DEVICE, save: () => state }],
      pause: () => {
        side.hook('pause');
        writing.stop();
        side.send({ type: 'reached', digests: { ...memory.digests(), [DEVICE]: sha256(state) } });
      },
      resume: () => {
        side.hook('resume');
        writing.run();
      },
      onState: (name) => side.log(`state ${name}`),
    });
    side.cancel = () => source.cancel();
    side.bytes = () => source.stats().ram.transferred;
    await source.done;
    return { completed: true, hooks: side.hooks, bytes: side.bytes() };
  } finally {
    guest?.stop();
    memory.close();
  }
}

export async function liveDestination(side: Side, spoil?: (memory: GuestMemory) => void): Promise<Outcome> {
  const { plan, folder } = side.begin;
  const memory = new GuestMemory(plan.memory.destination, plan.blocks, folder, 'destination');
  try {
    const fresh = plan.run % 2 === 0;
    if (!fresh) memory.fillPattern();
    const digests: Digests = {};
    const destination = await createMigrationDestination({
      ...common(side),
      listen: listenAt(side),
      // A source whose first connection breaks before it has said anything was nobody.
      acceptTimeoutMs: plan.connectTimeoutMs,
      machine: MACHINE,
      blocks: memory.options.map((block) => ({ ...block, fresh })),
      verify: plan.verify,
      devices: [
        {
          idstr: DEVICE,
          load: (data) => {
            side.hook('load');
            digests[DEVICE] = sha256(data);
          },
        },
      ],
      start: () => side.hook('start'),
      onState: (name) => side.log(`state ${name}`),
    });
    side.cancel = () => destination.cancel();
    side.bytes = () => destination.stats().bytes;
    side.send({ type: 'listening', address: destination.address });
    await destination.done;
    spoil?.(memory);
    Object.assign(digests, memory.digests());
    return { completed: true, digests, hooks: side.hooks, bytes: side.bytes() };
  } finally {
    memory.close();
  }
}

export async function fileDestination(side: Side): Promise<Outcome> {
  const { plan, folder } = side.begin;
  const out = path.join(folder, OUT_FILE);
  try {
    await receiveMigration({
      ...common(side),
      address: listenAt(side),
      acceptTimeoutMs: plan.connectTimeoutMs,
      out,
      onListening: (address) => side.send({ type: 'listening', address }),
      onSession: (session) => {
        side.cancel = () => session.close();
        side.bytes = () => session.stats().bytes;
      },
    });
  } catch (error) {
    if (!(error instanceof MultifdError) || error.kept === undefined) throw error;
    return { ...side.failed(error), kept: path.basename(error.kept), digests: await digestsOf(error.kept) };
  }
  side.log(`${plan.blocks.length} blocks in ${OUT_FILE}`);
  return { completed: true, digests: await digestsOf(out), hooks: side.hooks, bytes: side.bytes() };
}

async function digestsOf(file: string): Promise<Digests> {
  const digests: Digests = {};
  for (const { name, sha256 } of await verifyMappedRam(file, await readMappedRam(file)))
    digests[name] = sha256;
  return digests;
}

export function sha256(bytes: Uint8Array | string): string {
  return createHash('sha256').update(bytes).digest('hex');
}
