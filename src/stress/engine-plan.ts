/**
 * What run N of seed S does: everything that is left to chance is drawn here, before anything begins, from these two numbers
 * alone, so that a run can be played again. What of it the processor and the kernel do with time is theirs.
 *
 *     live     createMigrationSource() -> createMigrationDestination(), a guest that writes meanwhile
 *     file     createMigrationSource() -> receiveMigration(), into a file
 *     session  createSender() -> createReceiver(), rounds and zero pages by hand, the stressing process for a main stream
 */
import type { Compression, ZeroPageDetection } from '../options.js';
import { Dice } from './dice.js';

export const WAYS = ['live', 'file', 'session'] as const;
export type Way = (typeof WAYS)[number];

export const MEMORIES = ['shared', 'huge', 'private', 'function', 'wasm', 'file'] as const;
export type MemoryKind = (typeof MEMORIES)[number];

export const DIRTY_FORMS = ['bitmap', 'function', 'none'] as const;
export type DirtyForm = (typeof DIRTY_FORMS)[number];

export const SIDES = ['source', 'destination'] as const;
export type SideName = (typeof SIDES)[number];

/** With none of them, or one of the mild ones, both ends have to complete. */
const MILD = ['delay', 'throttle', 'trickle', 'reorder', 'pause'] as const;
const FATAL = [
  'reset',
  'cut',
  'half-close',
  'stall',
  'kill',
  'stop',
  'thread',
  'disk-full',
  'abort',
  'cancel',
] as const;
export const FAULT_KINDS = [...MILD, ...FATAL] as const;
export type FaultKind = (typeof FAULT_KINDS)[number];

export const isMild = (kind: FaultKind | undefined): boolean =>
  kind === undefined || (MILD as readonly string[]).includes(kind);

/** What the fault waits for: connections, then bytes of the source's, then time, all counted from the source's begin. */
export interface Moment {
  connections: number;
  bytes: number;
  ms: number;
}

export interface FaultPlan {
  kind: FaultKind;
  /** Of process, thread, abort and cancel; of half-close and the like: whose bytes it hits. */
  side: SideName;
  /** Modulo as many as there are then; all of them where it is undefined. */
  connection: number | undefined;
  at: Moment;
  /** How long it lasts: of the mild ones, and of `stop` in any case until the other side has said something. */
  ms: number;
  /** Of throttle: bytes a second; of trickle: bytes at once; of disk-full: bytes that a file may have. */
  amount: number;
}

export interface BlockPlan {
  name: string;
  size: number;
}

export interface EnginePlan {
  seed: number;
  run: number;
  way: Way;
  blocks: BlockPlan[];
  pageSize: number;
  memory: Record<SideName, MemoryKind>;
  channels: number;
  compression: Compression;
  level: number;
  zeroPageDetection: ZeroPageDetection;
  /** Percent of the pages. */
  zeroShare: number;
  dirty: DirtyForm;
  /** Pages that the guest writes to in a millisecond; of a session: in a round. */
  dirtyRate: number;
  /** Of a session. */
  rounds: number;
  maxRounds: number;
  deviceBytes: number;
  maxBandwidth: number;
  tls: 'none' | 'psk' | 'x509';
  unix: boolean;
  verify: boolean;
  stallTimeoutMs: number;
  connectTimeoutMs: number;
  fault: FaultPlan | undefined;
}

const MIB = 2 ** 20;
const MAX_BLOCK = 6 * MIB;
/** Of all blocks together, about. */
const MAX_GUEST = 12 * MIB;

/** @param only the kind of fault, instead of one by chance: for tests */
export function enginePlan(seed: number, run: number, only?: FaultKind | 'no-fault'): EnginePlan {
  const dice = new Dice(seed, run);
  const pageSize = dice.percent(60) ? 4096 : dice.pick([8192, 16384, 32768, 65536]);
  const compression = dice.pick<Compression>(['none', 'none', 'zlib', 'zstd']);
  const chosen = dice.percent(15) ? undefined : dice.pick(FAULT_KINDS);
  const kind = only === undefined ? chosen : only === 'no-fault' ? undefined : only;
  const anyWay = dice.pick<Way>(['live', 'live', 'live', 'file', 'session', 'session']);
  const way = kind === 'disk-full' ? 'file' : anyWay;
  const blocks = drawBlocks(dice, pageSize);
  const size = blocks.reduce((sum, block) => sum + block.size, 0);
  const zeros: ZeroPageDetection[] =
    way === 'session' ? ['multifd', 'none', 'legacy'] : ['multifd', 'multifd', 'none'];
  const stallTimeoutMs = dice.between(1500, 3000);
  const plan: EnginePlan = {
    seed,
    run,
    way,
    blocks,
    pageSize,
    memory: { source: dice.pick(MEMORIES), destination: dice.pick(MEMORIES) },
    channels: dice.doubling(1, 8),
    compression,
    level: compression === 'zlib' ? dice.between(0, 6) : dice.between(1, 6),
    zeroPageDetection: dice.pick(zeros),
    zeroShare: dice.pick([0, 10, 40, 90, 100]),
    dirty: dice.pick(DIRTY_FORMS),
    dirtyRate: dice.percent(25) ? 0 : dice.doubling(1, 64),
    rounds: dice.between(0, 6),
    maxRounds: dice.between(1, 8),
    deviceBytes: dice.pick([0, 1, 5000, dice.doubling(1000, 3 * MIB)]),
    // A session is held to it (judge.ts): slow enough for some guests to take longer than it lets go at once.
    maxBandwidth: dice.percent(70) ? 0 : dice.doubling((way === 'session' ? 4 : 8) * MIB, 200 * MIB),
    tls: dice.pick(['none', 'none', 'none', 'psk', 'x509'] as const),
    unix: dice.percent(30),
    verify: way === 'live' && dice.percent(30),
    stallTimeoutMs,
    connectTimeoutMs: 6000,
    fault: undefined,
  };
  plan.fault = kind === undefined ? undefined : drawFault(dice, kind, size, stallTimeoutMs);
  return plan;
}

function drawBlocks(dice: Dice, pageSize: number): BlockPlan[] {
  const blocks: BlockPlan[] = [];
  let left = MAX_GUEST;
  for (let i = dice.doubling(1, 4); i > 0 && left >= pageSize; i--) {
    const most = Math.min(left, MAX_BLOCK);
    const pages = dice.percent(15) ? 1 : Math.max(1, Math.floor(dice.doubling(pageSize, most) / pageSize));
    blocks.push({ name: `ram${blocks.length}`, size: pages * pageSize });
    left -= pages * pageSize;
  }
  return blocks;
}

function drawFault(dice: Dice, kind: FaultKind, size: number, stallTimeoutMs: number): FaultPlan {
  const when = dice.below(10);
  return {
    kind,
    side: dice.pick(SIDES),
    connection: dice.percent(25) ? undefined : dice.below(16),
    // While connections come in; in the middle of the guest's RAM; at any time.
    at: {
      connections: when < 2 ? dice.between(1, 4) : 1,
      bytes: when >= 2 && when < 8 ? dice.below(Math.ceil(size * 0.9)) : 0,
      ms: when >= 8 ? dice.below(700) : 0,
    },
    ms: dice.between(20, Math.floor(stallTimeoutMs * 0.35)),
    amount: amountOf(dice, kind),
  };
}

function amountOf(dice: Dice, kind: FaultKind): number {
  if (kind === 'throttle') return dice.doubling(256 * 1024, 16 * MIB);
  if (kind === 'trickle') return dice.doubling(1, 2000);
  if (kind === 'disk-full') return dice.doubling(1, 4 * MIB);
  return 0;
}
