/** What parkVm() is told, checked before anything is opened. */
import { abortSignal, callback, checkKeys, integer, oneOf } from '../option-checks.js';
import {
  COMPRESSIONS,
  MAX_CHANNELS,
  ZERO_PAGE_DETECTIONS,
  checkMaxBandwidth,
  type Compression,
  type ZeroPageDetection,
} from '../options.js';
import { requireOptions } from '../migration/options.js';
import type { ReceiveMigrationOptions, ReceivedMigration } from '../migration/receive-options.js';
import type { ReceiverStats } from '../recv/receiver.js';
import { BOUND_KEYS } from '../stream/bounds.js';
import { checkAddress, checkToldAddress, type Address, type AddressText } from '../transport/address.js';
import { checkQemuTls, type QemuTlsOptions } from './qemu-tls.js';
import type { MigrationStatus } from './machine.js';

export type ParkThen = 'quit' | 'stop' | 'leave';
export const PARK_THENS: readonly ParkThen[] = ['quit', 'stop', 'leave'];

export interface ParkVmOptions extends Omit<ReceiveMigrationOptions, 'address' | 'onListening' | 'discard'> {
  /** QEMU's control socket (-qmp), which no other client holds. */
  qmp: Address | AddressText;
  /**
   * Where QEMU connects to. Default: a unix socket of our own, mode 0600, in a folder that only this user may enter. A QEMU on
   * another host, or of another user, needs an address that it reaches.
   */
  listen?: Address | AddressText;
  /** Where QEMU looks for zero pages; default: as the VM has it. QEMU: zero-page-detection. */
  zeroPageDetection?: ZeroPageDetection;
  /** Bytes a second that QEMU may send; 0 (default) for no limit. QEMU: max-bandwidth. */
  maxBandwidth?: number;
  /** Milliseconds for which the guest may stand still at the end; default: as the VM has it. QEMU: downtime-limit. */
  downtimeLimitMs?: number;
  /** 0 to 9; default: as the VM has it. QEMU: multifd-zlib-level. */
  zlibLevel?: number;
  /** 1 to 20; default: as the VM has it. QEMU: multifd-zstd-level. */
  zstdLevel?: number;
  /** QEMU's side of TLS; goes with `tls`, which is ours. */
  qemuTls?: QemuTlsOptions;
  /**
   * What becomes of the VM when its guest is in the file. `stop` (default): it stands still, and QEMU waits; `quit`: QEMU
   * ends; `leave`: nothing more is said to it, so that it is as its migration has left it.
   */
  then?: ParkThen;
  /** Told a few times a second, from both sides. */
  onProgress?: (progress: ParkProgress) => void;
}

export interface ParkProgress {
  /** As QEMU tells it; with status `unknown` the last that it told: its monitor is lost, and looked for. */
  source: Pick<
    MigrationStatus,
    'status' | 'totalBytes' | 'remainingBytes' | 'transferredBytes' | 'dirtySyncCount'
  >;
  /** What has come in. */
  received: ReceiverStats | undefined;
}

export interface ParkedVm extends ReceivedMigration {
  /**
   * QEMU's RunState in the end: `postmigrate`, as a rule; `gone` if QEMU was told to end; `unknown` if its monitor was lost when
   * it had said that the migration is completed.
   */
  source: string;
  then: ParkThen;
  /**
   * Capabilities that the VM had on and that were off for the run: another stream, or one that waits. And `tls-creds`, if they were:
   * behind a private socket.
   */
  switchedOff: string[];
  /** What could not be put back of the VM's settings, and why. Undefined if all is as it was, or QEMU was ended. */
  problem: string | undefined;
}

/** Those that are not receiveMigration()'s. */
const OWN_OPTIONS: Record<Exclude<keyof ParkVmOptions, keyof ReceiveMigrationOptions>, true> = {
  qmp: true,
  listen: true,
  zeroPageDetection: true,
  maxBandwidth: true,
  downtimeLimitMs: true,
  zlibLevel: true,
  zstdLevel: true,
  qemuTls: true,
  then: true,
  onProgress: true,
};
const RECEIVE_OPTIONS: Record<
  Exclude<keyof ReceiveMigrationOptions, keyof typeof BOUND_KEYS | 'address' | 'onListening' | 'discard'>,
  true
> = {
  channels: true,
  compression: true,
  pageSize: true,
  uuid: true,
  stallTimeoutMs: true,
  connectTimeoutMs: true,
  deviceStateBytes: true,
  tls: true,
  signal: true,
  acceptTimeoutMs: true,
  listenMode: true,
  maxStrays: true,
  out: true,
  overwrite: true,
  packed: true,
  packLevel: true,
  onPacking: true,
  keepPartial: true,
  directIo: true,
  switchoverAck: true,
  onStart: true,
  onSession: true,
};

export interface CheckedPark {
  qmp: Address;
  listen: Address | undefined;
  channels: number;
  compression: Compression;
  zeroPageDetection: ZeroPageDetection | undefined;
  /** As migrate-set-parameters has them. */
  parameters: Record<string, unknown>;
  qemuTls: QemuTlsOptions | undefined;
  then: ParkThen;
  onProgress: ParkVmOptions['onProgress'];
  signal: AbortSignal | undefined;
  /** All the rest is receiveMigration()'s to check. */
  receive: Omit<ReceiveMigrationOptions, 'address'>;
}

/** QEMU has no word for "no limit"; it counts in doubles on the way. */
const NO_LIMIT = Number.MAX_SAFE_INTEGER;
/** As QEMU has it: 2000 s. */
const MAX_DOWNTIME_MS = 2_000_000;

/** @throws MultifdError ERR_MULTIFD_OPTION */
export function checkParkOptions(options: ParkVmOptions): CheckedPark {
  const {
    qmp,
    listen,
    zeroPageDetection,
    maxBandwidth = 0,
    downtimeLimitMs,
    zlibLevel,
    zstdLevel,
    qemuTls,
    then,
    onProgress,
    ...receive
  } = requireOptions(options);
  checkKeys(options, [
    ...Object.keys(OWN_OPTIONS),
    ...Object.keys(RECEIVE_OPTIONS),
    ...Object.keys(BOUND_KEYS),
  ]);
  abortSignal(receive.signal);
  // It is called by one of park's own.
  callback('onSession', receive.onSession);
  const bandwidth = checkMaxBandwidth(maxBandwidth);
  const parameters: Record<string, unknown> = { 'max-bandwidth': bandwidth === 0 ? NO_LIMIT : bandwidth };
  if (downtimeLimitMs !== undefined) {
    const limit = integer('downtimeLimitMs', downtimeLimitMs, undefined, 0, MAX_DOWNTIME_MS);
    parameters['downtime-limit'] = limit;
  }
  if (zlibLevel !== undefined)
    parameters['multifd-zlib-level'] = integer('zlibLevel', zlibLevel, undefined, 0, 9);
  if (zstdLevel !== undefined)
    parameters['multifd-zstd-level'] = integer('zstdLevel', zstdLevel, undefined, 1, 20);
  if (zeroPageDetection !== undefined)
    oneOf('zeroPageDetection', zeroPageDetection, 'multifd', ZERO_PAGE_DETECTIONS);
  return {
    qmp: checkAddress(qmp, 1, 'qmp'),
    listen: listen === undefined ? undefined : checkToldAddress(listen, 0, 'listen'),
    channels: integer('channels', receive.channels, 2, 1, MAX_CHANNELS),
    compression: oneOf('compression', receive.compression, 'none', COMPRESSIONS),
    zeroPageDetection,
    parameters,
    qemuTls: checkQemuTls(qemuTls, receive.tls),
    then: oneOf('then', then, 'stop', PARK_THENS),
    onProgress: callback('onProgress', onProgress),
    signal: receive.signal,
    receive,
  };
}
