/** The options of createMigrationSource(), checked before anything is opened. */
import { types } from 'node:util';
import { callback, checkKeys, flag, integer, oneOf, wrong } from '../option-checks.js';
import { SENDER_KEYS, checkSenderOptions, checkTls, type SenderOptions } from '../options.js';
import type { RAMBlock } from '../ram/block.js';
import { checkAddress, type Address, type AddressText } from '../transport/address.js';
import type { CheckedTls } from '../transport/tls/check-options.js';
import { loadTls } from '../transport/tls/loaded.js';
import { CONNECT_TIMEOUT_MS, requireOptions } from '../migration/options.js';
import { STALL_TIMEOUT_MS } from '../migration/watch.js';
import type { DeviceId } from './device-sections.js';
import type { SavedState } from './device-sender.js';
import { checkBitmap, type DirtyOption } from './dirty-pages.js';
import { checkDevices, checkMachine, checkVerify, requireHook, unknownName } from './options.js';
import type { SourceState } from './states.js';

/** By choice, as Xen has it. */
const MAX_ROUNDS = 30;
/** QEMU's downtime-limit. */
const DOWNTIME_LIMIT_MS = 300;
/** QEMU's upper bound: 2000 seconds. */
const MAX_DOWNTIME_LIMIT_MS = 2_000_000;
const ZERO_PAGES = ['multifd', 'none'] as const;
/** Without dirty tracking: a table of digests is one typed array, of up to 4 GiB in Node 20. */
const MAX_HASHED_PAGES = 2 ** 29;

/** A device whose state goes with the VM. */
export interface SourceDevice {
  /** Its name, at most 255 ASCII characters; with `instanceId` unique in the VM. */
  idstr: string;
  /** Default 0. */
  instanceId?: number;
  /** Of the form of its state (default 1): a destination takes it from devices of this version or a later one. */
  version?: number;
  /**
   * Its state; called once, when the guest has been stopped by pause(). The bytes are the migration's, to read, until it is over.
   * One that is too large for memory comes in parts, from an iterable: each is the migration's until the next one is asked for.
   */
  save: () => SavedState | Promise<SavedState>;
}

/** Slows the guest down by so many percent; 0: not any more. */
export type Throttle = (percent: number) => void | Promise<void>;

export interface MigrationSourceOptions extends Omit<
  SenderOptions,
  'address' | 'onZeroPages' | 'deviceStateBytes' | 'zeroPageDetection'
> {
  /** Where the destination waits: an object, `tcp:HOST:PORT`, `unix:PATH`. */
  to: Address | AddressText;
  /** The machine type's full name, such as `v86-1.0`: the destination's must be the same. */
  machine: string;
  /**
   * Which pages the guest has written to. Bitmaps by block name: bit `page & 31` of word `page >> 5`, set atomically by whatever
   * thread writes to the page, after it has written; the migration clears them. Or a function, called at the begin of each
   * round, that gives what was written to since its last call.
   *
   * Left out: the migration finds out by itself, by hashing all pages in each round, in the channels' threads. That is slower,
   * also while the guest stands still, and takes 8 bytes of memory a page.
   */
  dirty?: DirtyOption;
  /** Default none. Their states travel in this order. */
  devices?: readonly SourceDevice[];
  /** Stops the guest. When it has, nothing may write to its memory any more, and all dirty pages are told. */
  pause: () => void | Promise<void>;
  /** Lets the guest run on: the migration has failed or was cancelled after pause() was called. */
  resume: () => void | Promise<void>;
  /** Milliseconds that the guest may stand still (default 300). QEMU: downtime-limit. */
  downtimeLimitMs?: number;
  /** Rounds after which `notConverging` decides, the first pass included (default 30). */
  maxRounds?: number;
  /**
   * Where the guest dirties its memory faster than it can be sent: after `maxRounds` `fail` (default), or `switchover` all the
   * same; or a function that slows the guest down, called as QEMU's auto-converge does it, and after `maxRounds` it fails.
   */
  notConverging?: 'switchover' | 'fail' | Throttle;
  /** Wait for switchover() before the guest is stopped (default false). QEMU: pause-before-switchover. */
  pauseBeforeSwitchover?: boolean;
  /**
   * Compare digests of all of the guest's memory before it is started (default false): SHA-256, made at both ends while it stands
   * still. The destination must have it set as well.
   */
  verify?: boolean;
  /** Where zero pages are looked for: `multifd` (default), `none`. */
  zeroPageDetection?: (typeof ZERO_PAGES)[number];
  /**
   * Should the connections break, another source may carry on, and send only what the destination has not (default false). Needs
   * a destination with the same option.
   */
  resumable?: boolean;
  /**
   * A source with option resumable that has failed, or was cancelled: this one carries on. Machine and blocks are the same, and
   * `dirty` goes on where it was.
   */
  resumeFrom?: { readonly state: SourceState; readonly done: Promise<unknown> };
  /** Called with each state but the first. */
  onState?: (state: SourceState) => void;
}

/** Those that are not a sender's. */
const OWN_OPTIONS: Record<Exclude<keyof MigrationSourceOptions, keyof SenderOptions>, true> = {
  to: true,
  machine: true,
  dirty: true,
  devices: true,
  pause: true,
  resume: true,
  downtimeLimitMs: true,
  maxRounds: true,
  notConverging: true,
  pauseBeforeSwitchover: true,
  verify: true,
  resumable: true,
  resumeFrom: true,
  onState: true,
};
export const SOURCE_KEYS = [
  ...Object.keys(OWN_OPTIONS),
  ...SENDER_KEYS.filter((key) => !['address', 'onZeroPages', 'deviceStateBytes'].includes(key)),
];

export type CheckedSourceDevice = DeviceId & { given: SourceDevice };

export interface CheckedSource {
  /** As they were given, for the hooks, which are called on it, and for the sender. */
  given: MigrationSourceOptions;
  address: Address;
  tls: CheckedTls | undefined;
  machine: string;
  blocks: readonly RAMBlock[];
  pageSize: number;
  devices: CheckedSourceDevice[];
  downtimeLimitMs: number;
  maxRounds: number;
  throttle: Throttle | undefined;
  switchesAnyway: boolean;
  waits: boolean;
  verify: boolean;
  resumable: boolean;
  maxBandwidth: number;
  connectTimeoutMs: number;
  stallTimeoutMs: number;
  signal: AbortSignal | undefined;
}

/** @throws MultifdError ERR_MULTIFD_OPTION, ERR_MULTIFD_BLOCK, ERR_MULTIFD_HOOK, ERR_MULTIFD_TLS */
export async function checkSource(options: MigrationSourceOptions): Promise<CheckedSource> {
  requireOptions(options);
  checkKeys(options, SOURCE_KEYS);
  const { to, notConverging = 'fail', pauseBeforeSwitchover = false } = options;
  const address = checkAddress(to, 1, 'to');
  await loadTls(options.tls);
  const tls = checkTls(options.tls, 'client', 'tls', address);
  oneOf('zeroPageDetection', options.zeroPageDetection, 'multifd', ZERO_PAGES);
  const { connectTimeoutMs = CONNECT_TIMEOUT_MS } = options;
  const { blocks, pageSize, maxBandwidth, signal } = checkSenderOptions(
    senderOptions(options, address, connectTimeoutMs),
    tls,
  );
  if (typeof notConverging !== 'function' && notConverging !== 'fail' && notConverging !== 'switchover')
    throw wrong('notConverging', notConverging, "'switchover', 'fail' or a function");
  if (typeof pauseBeforeSwitchover !== 'boolean')
    throw wrong('pauseBeforeSwitchover', pauseBeforeSwitchover, 'true or false');
  requireHook('pause', options.pause);
  requireHook('resume', options.resume);
  callback('onState', options.onState);
  checkDirty(options.dirty, blocks);
  const carriesOn = options.resumable === true || options.resumeFrom !== undefined;
  if (carriesOn && options.dirty === undefined) {
    // What a broken round has sent is known by what was noted of it, and nobody notes pages that are found by their digests.
    throw wrong(
      'dirty',
      options.dirty,
      'dirty pages of its own, for a source with option resumable or resumeFrom',
    );
  }
  return {
    given: options,
    address,
    tls,
    machine: checkMachine(options.machine),
    blocks,
    pageSize,
    devices: checkDevices(options.devices, 'save'),
    downtimeLimitMs: checkDowntimeLimit(options.downtimeLimitMs, DOWNTIME_LIMIT_MS),
    maxRounds: integer('maxRounds', options.maxRounds, MAX_ROUNDS, 1, 1_000_000),
    throttle: typeof notConverging === 'function' ? notConverging : undefined,
    switchesAnyway: notConverging === 'switchover',
    waits: pauseBeforeSwitchover,
    verify: checkVerify(options.verify),
    resumable: flag('resumable', options.resumable),
    maxBandwidth,
    connectTimeoutMs,
    stallTimeoutMs: options.stallTimeoutMs ?? STALL_TIMEOUT_MS,
    signal,
  };
}

/** Of a source's options those that its sender takes. */
export function senderOptions(
  options: MigrationSourceOptions,
  address: Address,
  connectTimeoutMs: number,
): SenderOptions {
  const given = options as unknown as Record<string, unknown>;
  const ofSender = SENDER_KEYS.filter((key) => key !== 'tls' && given[key] !== undefined);
  const taken = Object.fromEntries(ofSender.map((key) => [key, given[key]]));
  return { blocks: options.blocks, ...taken, address, connectTimeoutMs };
}

/** @throws MultifdError ERR_MULTIFD_OPTION */
export function checkDowntimeLimit(value: number | undefined, byDefault?: number): number {
  return integer('downtimeLimitMs', value, byDefault, 0, MAX_DOWNTIME_LIMIT_MS);
}

function checkDirty(dirty: unknown, blocks: readonly RAMBlock[]): void {
  if (typeof dirty === 'function') return;
  if (dirty === undefined) {
    for (const { name, pageCount } of blocks) {
      if (pageCount > MAX_HASHED_PAGES)
        throw wrong('dirty', `none, with ${pageCount} pages of ${name}`, `at most ${MAX_HASHED_PAGES} then`);
    }
    return;
  }
  if (dirty === null || typeof dirty !== 'object')
    throw wrong('dirty', dirty, 'bitmaps by the names of the blocks, or a function that gives dirty ranges');
  const names = blocks.map((block) => block.name);
  for (const name of Object.keys(dirty)) {
    if (!names.includes(name)) throw wrong(`dirty.${name}`, 'an unknown block', unknownName(name, names));
  }
  for (const block of blocks) {
    const bitmap = (dirty as Record<string, unknown>)[block.name];
    if (!types.isUint32Array(bitmap) && !types.isInt32Array(bitmap))
      throw wrong(`dirty.${block.name}`, bitmap, 'a Uint32Array or an Int32Array with a bit for each page');
    checkBitmap(block, bitmap);
  }
}
