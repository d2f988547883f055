/**
 * Every option with its default, unit and range, checked in this one place. QEMU's names, in camel case.
 *
 * A wrong option gives ERR_MULTIFD_OPTION with what was given and what is allowed; an unknown one likewise, since a
 * misspelt `maxBandwith` would otherwise be lost in silence.
 */
import { similarTo } from './did-you-mean.js';
import { requireKoffi } from './native/koffi.js';
import { abortSignal, callback, checkKeys, flag, integer, oneOf, wrong } from './option-checks.js';
import {
  MAX_PAGE_SIZE,
  MIN_PAGE_SIZE,
  makeBlocks,
  type DirectBlockOptions,
  type MigrationBlockOptions,
  type RAMBlock,
  type RAMBlockOptions,
  type SessionBlock,
  type StreamBlockOptions,
} from './ram/block.js';
import { checkAddress, type Address, type AddressText } from './transport/address.js';
import type { CheckedTls } from './transport/tls/check-options.js';
import { loadedTls } from './transport/tls/loaded.js';
import type { TlsOptions, TlsRole } from './transport/tls/options.js';
import { parseUuid } from './wire/hello.js';

export type Compression = 'none' | 'zlib' | 'zstd';
export type ZeroPageDetection = 'none' | 'legacy' | 'multifd';

export const COMPRESSIONS: readonly Compression[] = ['none', 'zlib', 'zstd'];
export const ZERO_PAGE_DETECTIONS: readonly ZeroPageDetection[] = ['none', 'legacy', 'multifd'];
export const MAX_CHANNELS = 255;

/** VFIO of QEMU sends its state in pieces of 1 MiB with a small header before each. */
const DEVICE_STATE_BYTES = 2 ** 20 + 4096;
const MAX_DEVICE_STATE_BYTES = 2 ** 26;
const MAX_TIMEOUT_MS = 2 ** 31 - 1;
const MAX_STRAYS = 256;

/** Options of both ends. `A` is the form of the address. */
export interface CommonOptions {
  /** Where the receiver listens: an object, or `tcp:HOST:PORT`, `tcp:[V6]:PORT`, `unix:PATH`. */
  address: Address | AddressText;
  /** The guest's RAM; the same names and sizes at both ends. */
  blocks: readonly RAMBlockOptions[];
  /** Number of channels, 1 to 255 (default 2); the same at both ends. QEMU: multifd-channels. */
  channels?: number;
  /** `none` (default), `zlib` or `zstd`; the same at both ends. QEMU: multifd-compression. */
  compression?: Compression;
  /** Target page size in bytes, 4096 (default) to 65536, a power of two; the same at both ends. */
  pageSize?: number;
  /**
   * The VM's uuid in text; a VM without one (default) matches only another without. QEMU: -uuid. receiveMigration() and
   * relayMigration() take the source's, unless one is given.
   */
  uuid?: string;
  /** Milliseconds without any progress of a transfer that is due before it counts as stalled (default 30000). */
  stallTimeoutMs?: number;
  /** Milliseconds for all channels to connect, or to come in after the first one did (default 30000). */
  connectTimeoutMs?: number;
  /** Largest device-state payload in bytes, 0 to 64 MiB (default 1 MiB + 4 KiB). */
  deviceStateBytes?: number;
  /** Credentials for TLS on every connection; without them all travels as plain text. QEMU: tls-creds. */
  tls?: TlsOptions;
  /** Ends the session with ERR_MULTIFD_ABORTED, in whatever state it is. */
  signal?: AbortSignal;
}

export interface SenderOptions extends CommonOptions {
  /** 0 to 9, default 1. QEMU: multifd-zlib-level. */
  zlibLevel?: number;
  /** 1 to 20, default 1. QEMU: multifd-zstd-level. */
  zstdLevel?: number;
  /** Where zero pages are looked for: `multifd` (default), `legacy`, `none`. QEMU: zero-page-detection. */
  zeroPageDetection?: ZeroPageDetection;
  /** Bytes a second on the wire, all channels together; 0 (default) for no limit. QEMU: max-bandwidth. */
  maxBandwidth?: number;
  /**
   * Pages are not copied into the kernel's memory: it sends them from where they lie (default false). Over TCP, with method
   * none and without TLS; needs the package koffi, and memory that may be locked. QEMU: zero-copy-send.
   */
  zeroCopySend?: boolean;
  /**
   * Takes the zero pages of mode `legacy`, which do not go over the channels but as ZERO records over the main
   * stream. Called within sync(), ascending in each block, before the sync point; offset and length in bytes.
   */
  onZeroPages?: (block: SessionBlock, offset: number, length: number) => void | Promise<void>;
}

/** With the blocks of a relay, which are in no memory, and of a migration's file, past the page cache or packed. */
export type AnySenderOptions = Omit<SenderOptions, 'blocks'> & {
  blocks: readonly (RAMBlockOptions | StreamBlockOptions | DirectBlockOptions | MigrationBlockOptions)[];
};

/** A device that takes DEVICE_STATE packets. */
export interface Device {
  /** QEMU's idstr, at most 255 ASCII characters. */
  idstr: string;
  instanceId: number;
  /**
   * Called with each payload, a copy that is the device's to keep, change or transfer. Its channel waits until the
   * returned promise settles, and so does the receiver's sync() that ends the phase. Packets take any channel: calls
   * come in any order, and several at a time.
   */
  load: (data: Buffer) => void | Promise<void>;
}

export interface ReceiverOptions extends CommonOptions {
  /** Milliseconds to wait for the first channel; 0 (default) waits until abort or close. */
  acceptTimeoutMs?: number;
  /** Devices whose state may come; any other is refused. */
  devices?: Device[];
  /** Mode of the unix socket that is listened on: who may write to it may connect (default 0o600). */
  listenMode?: number;
  /**
   * Connections that have not said yet what they are, each of them a descriptor: beyond so many the oldest is dropped
   * (1 to 65536, default 256).
   */
  maxStrays?: number;
}

interface CheckedCommon {
  address: Address;
  blocks: RAMBlock[];
  channels: number;
  compression: Compression;
  pageSize: number;
  uuid: Buffer;
  stallTimeoutMs: number;
  connectTimeoutMs: number;
  deviceStateBytes: number;
  tls: CheckedTls | undefined;
  signal: AbortSignal | undefined;
}
export interface CheckedSenderOptions extends CheckedCommon {
  zlibLevel: number;
  zstdLevel: number;
  zeroPageDetection: ZeroPageDetection;
  maxBandwidth: number;
  zeroCopySend: boolean;
  onZeroPages: SenderOptions['onZeroPages'];
}
export interface CheckedReceiverOptions extends CheckedCommon {
  acceptTimeoutMs: number;
  devices: Device[];
  listenMode: number;
  maxStrays: number;
}

const COMMON_KEYS = [
  'address',
  'blocks',
  'channels',
  'compression',
  'pageSize',
  'uuid',
  'stallTimeoutMs',
  'connectTimeoutMs',
  'deviceStateBytes',
  'tls',
  'signal',
];
export const SENDER_KEYS = [
  ...COMMON_KEYS,
  'zlibLevel',
  'zstdLevel',
  'zeroPageDetection',
  'maxBandwidth',
  'zeroCopySend',
  'onZeroPages',
];
const DEVICE_KEYS = ['idstr', 'instanceId', 'load'];
export const RECEIVER_KEYS = [...COMMON_KEYS, 'acceptTimeoutMs', 'devices', 'listenMode', 'maxStrays'];

/**
 * @param tls what has been checked already takes the place of the option
 * @throws MultifdError ERR_MULTIFD_OPTION, ERR_MULTIFD_BLOCK, ERR_MULTIFD_TLS
 */
export function checkSenderOptions(options: AnySenderOptions, tls?: CheckedTls): CheckedSenderOptions {
  checkKeys(options, SENDER_KEYS);
  const checked: CheckedSenderOptions = {
    ...checkCommon(options, 'client', tls),
    zlibLevel: integer('zlibLevel', options.zlibLevel, 1, 0, 9),
    zstdLevel: integer('zstdLevel', options.zstdLevel, 1, 1, 20),
    zeroPageDetection: oneOf('zeroPageDetection', options.zeroPageDetection, 'multifd', ZERO_PAGE_DETECTIONS),
    maxBandwidth: options.maxBandwidth === undefined ? 0 : checkMaxBandwidth(options.maxBandwidth),
    zeroCopySend: flag('zeroCopySend', options.zeroCopySend),
    onZeroPages: callback('onZeroPages', options.onZeroPages),
  };
  if (checked.zeroCopySend) checkZeroCopySend(checked);
  if (checked.zeroPageDetection === 'legacy' && checked.onZeroPages === undefined) {
    throw wrong('onZeroPages', undefined, "a function, since zeroPageDetection is 'legacy'");
  }
  return checked;
}

/**
 * @param tls as in checkSenderOptions()
 * @throws MultifdError ERR_MULTIFD_OPTION, ERR_MULTIFD_BLOCK, ERR_MULTIFD_TLS
 */
export function checkReceiverOptions(
  options: ReceiverOptions | Omit<ReceiverOptions, 'blocks' | 'devices'>,
  blocksLater = false,
  beside: readonly string[] = [],
  tls?: CheckedTls,
): CheckedReceiverOptions {
  const keys = RECEIVER_KEYS.filter((key) => !blocksLater || (key !== 'blocks' && key !== 'devices'));
  checkKeys(options, keys, '', beside);
  const { devices } = options as ReceiverOptions;
  return {
    ...checkCommon(options as ReceiverOptions, 'server', tls, blocksLater),
    acceptTimeoutMs: integer('acceptTimeoutMs', options.acceptTimeoutMs, 0, 0, MAX_TIMEOUT_MS),
    devices: devices === undefined ? [] : checkDevices(devices),
    listenMode: integer('listenMode', options.listenMode, 0o600, 0, 0o777),
    maxStrays: integer('maxStrays', options.maxStrays, MAX_STRAYS, 1, 65536),
  };
}

/**
 * Why pages cannot be sent without a copy, as QEMU refuses its zero-copy-send; undefined if they can, as far as options go.
 *
 * @param how as they are given, or checked
 */
export function refusedZeroCopySend(how: {
  compression?: Compression | undefined;
  address: Address;
  tls?: unknown;
}): string | undefined {
  const { compression = 'none', address, tls } = how;
  if (compression !== 'none') return `with compression none, not ${compression}: a codec makes new bytes`;
  if (tls !== undefined) return 'without TLS: it makes new bytes';
  return address.path === undefined ? undefined : 'over TCP: a unix socket cannot';
}

/** @throws MultifdError ERR_MULTIFD_OPTION, ERR_MULTIFD_RUNTIME without koffi */
export function checkZeroCopySend(how: Parameters<typeof refusedZeroCopySend>[0]): void {
  const refused = refusedZeroCopySend(how);
  if (refused !== undefined) throw wrong('zeroCopySend', true, refused);
  requireKoffi('option zeroCopySend');
}

/** Bytes a second: an integer of 0 (no limit) or more. */
export function checkMaxBandwidth(value: unknown): number {
  return integer('maxBandwidth', value as number, undefined, 0, Number.MAX_SAFE_INTEGER);
}

function checkCommon(
  options: Omit<CommonOptions, 'blocks'> & Pick<AnySenderOptions, 'blocks'>,
  role: TlsRole,
  tls: CheckedTls | undefined,
  blocksLater = false,
): CheckedCommon {
  const pageSize = integer('pageSize', options.pageSize, MIN_PAGE_SIZE, MIN_PAGE_SIZE, MAX_PAGE_SIZE);
  if ((pageSize & (pageSize - 1)) !== 0)
    throw wrong('pageSize', pageSize, 'a power of two from 4096 to 65536');
  const { signal } = options;
  abortSignal(signal);
  // Port 0 is one that the system chooses, for who listens.
  const address = checkAddress(options.address, role === 'server' ? 0 : 1);
  return {
    address,
    tls: tls ?? checkTls(options.tls, role, 'tls', address),
    channels: integer('channels', options.channels, 2, 1, MAX_CHANNELS),
    compression: oneOf('compression', options.compression, 'none', COMPRESSIONS),
    pageSize,
    uuid: checkUuid(options.uuid),
    stallTimeoutMs: integer('stallTimeoutMs', options.stallTimeoutMs, 30_000, 1, MAX_TIMEOUT_MS),
    connectTimeoutMs: integer('connectTimeoutMs', options.connectTimeoutMs, 30_000, 1, MAX_TIMEOUT_MS),
    deviceStateBytes: integer(
      'deviceStateBytes',
      options.deviceStateBytes,
      DEVICE_STATE_BYTES,
      0,
      MAX_DEVICE_STATE_BYTES,
    ),
    signal,
    blocks: blocksLater ? [] : makeBlocks(options.blocks, pageSize),
  };
}

/**
 * To be called when loadTls() is done.
 *
 * @param option its name, for messages
 * @param address what a client connects to
 * @throws MultifdError ERR_MULTIFD_OPTION, ERR_MULTIFD_TLS
 */
export function checkTls(
  options: unknown,
  role: TlsRole,
  option: string,
  address: Address,
): CheckedTls | undefined {
  return options === undefined ? undefined : loadedTls().checkTlsOptions(options, role, option, address);
}

function checkUuid(uuid: unknown): Buffer {
  if (uuid === undefined) return Buffer.alloc(16);
  const bytes = typeof uuid === 'string' ? parseUuid(uuid) : undefined;
  if (bytes === undefined) throw wrong('uuid', uuid, 'text of the form xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx');
  return bytes;
}

function checkDevices(devices: unknown): Device[] {
  if (!Array.isArray(devices)) throw wrong('devices', devices, 'an array of { idstr, instanceId, load }');
  const seen = new Set<string>();
  for (const [index, device] of (devices as Partial<Device>[]).entries()) {
    const { idstr, instanceId, load } = device ?? {};
    // One that is missing may be misspelt; what else a device has is its own.
    const meant = (name: keyof Device): string => {
      const others = Object.keys(device ?? {}).filter((key) => !DEVICE_KEYS.includes(key));
      const near = device?.[name] === undefined ? similarTo(name, others) : [];
      return near.length === 0 ? '' : `; did you mean ${name} by ${near.join(' or ')}?`;
    };
    if (typeof idstr !== 'string' || !isIdstr(idstr)) {
      throw wrong(`devices[${index}].idstr`, idstr, `1 to 255 printable ASCII characters${meant('idstr')}`);
    }
    integer(`devices[${index}].instanceId`, instanceId, undefined, 0, 0xffffffff, meant('instanceId'));
    if (typeof load !== 'function') throw wrong(`devices[${index}].load`, load, `a function${meant('load')}`);
    const key = `${idstr}/${instanceId}`;
    if (seen.has(key)) throw wrong('devices', key, 'each idstr and instanceId once');
    seen.add(key);
  }
  return devices as Device[];
}

/** QEMU's idstr: 1 to 255 printable ASCII characters. */
export function isIdstr(text: string): boolean {
  return /^[\x20-\x7e]{1,255}$/.test(text);
}
