/**
 * The options of a relay: what may be given, and what is checked of it before anything is opened. Both sides are checked
 * here, so that a source is not let in for a destination that could not be had with these options.
 *
 *     in  -> a receiver's options, without blocks: the source names them
 *     out -> a sender's, without blocks
 *     the rest is both sides', or the main stream's
 */
import { callback, checkKeys } from '../option-checks.js';
import {
  checkReceiverOptions,
  checkTls,
  type CheckedReceiverOptions,
  type Compression,
  type SenderOptions,
  type ZeroPageDetection,
} from '../options.js';
import type { Receiver as PublicReceiver, Sender as PublicSender } from '../public-session.js';
import type { ReceiverStats } from '../recv/receiver.js';
import type { Stats } from '../session-stats.js';
import { BOUND_KEYS, type BoundOptions, type Bounds, checkBounds } from '../stream/bounds.js';
import { checkAddress, type Address, type AddressText } from '../transport/address.js';
import type { CheckedTls } from '../transport/tls/check-options.js';
import type { TlsOptions } from '../transport/tls/options.js';
import { CONNECT_TIMEOUT_MS, checkOutgoing, requireOptions } from './options.js';
import { checkSwitchoverAck, type SwitchoverAck } from './switchover-ack.js';

/** One side of a relay. */
export interface RelaySide {
  /** Default 2. */
  channels?: number;
  /** Default `none`. */
  compression?: Compression;
  /** Credentials for TLS on this side: a server's on `in`, a client's on `out`. */
  tls?: TlsOptions;
}

export interface RelayMigrationOptions extends BoundOptions {
  /** Where the source connects. */
  listen: Address | AddressText;
  /** Where the destination waits. */
  to: Address | AddressText;
  in?: RelaySide;
  out?: RelaySide & {
    zlibLevel?: number;
    zstdLevel?: number;
    /** For pages that come with data; `multifd` only to a QEMU from 9.0 on. Default `none`: the source has looked. */
    zeroPageDetection?: Exclude<ZeroPageDetection, 'legacy'>;
    maxBandwidth?: number;
    /** As a sender's; one packet in a round trip and channel, since what comes in is kept until it is acknowledged. */
    zeroCopySend?: boolean;
  };
  /**
   * With the return path: the SWITCHOVER_ACK for which a source with capability switchover-ack waits. Default `auto`: the
   * destination's is passed on. `always`: one is sent in its place, at once; `never`: none is.
   */
  switchoverAck?: SwitchoverAck;
  pageSize?: number;
  /** The VM's uuid in text (default: what the source's first channel says). */
  uuid?: string;
  stallTimeoutMs?: number;
  /** Milliseconds for all connections to be there, once the first is (default 8000). */
  connectTimeoutMs?: number;
  acceptTimeoutMs?: number;
  /** Mode of the unix socket that is listened on (default 0o600). */
  listenMode?: number;
  /** Connections that have not said yet what they are (default 256); as a receiver's. */
  maxStrays?: number;
  signal?: AbortSignal;
  /** Called once the address is listened on. */
  onListening?: (address: Address) => void;
  /** Called when the source has told what it sends. */
  onStart?: (start: { machine: string; blocks: { name: string; size: number }[] }) => void;
  /** Called with both sessions, for progress() and stats(). */
  onSession?: (receiver: PublicReceiver, sender: PublicSender) => void;
}

const OPTIONS: Record<keyof RelayMigrationOptions, true> = {
  ...BOUND_KEYS,
  listen: true,
  to: true,
  in: true,
  out: true,
  switchoverAck: true,
  pageSize: true,
  uuid: true,
  stallTimeoutMs: true,
  connectTimeoutMs: true,
  acceptTimeoutMs: true,
  listenMode: true,
  maxStrays: true,
  signal: true,
  onListening: true,
  onStart: true,
  onSession: true,
};
const OPTIONS_IN: Record<keyof RelaySide, true> = { channels: true, compression: true, tls: true };
const OPTIONS_OUT: Record<keyof NonNullable<RelayMigrationOptions['out']>, true> = {
  ...OPTIONS_IN,
  zlibLevel: true,
  zstdLevel: true,
  zeroPageDetection: true,
  maxBandwidth: true,
  zeroCopySend: true,
};

export interface RelayedMigration {
  machine: string;
  blocks: { name: string; size: number }[];
  /** Target page size, in bytes. */
  pageSize: number;
  /** The VM's uuid in text, as its channels told it. */
  uuid: string | null;
  received: ReceiverStats;
  sent: Stats;
  /**
   * Has the source been told that the destination has loaded all? False without return path, and where its connection
   * broke in that moment: then it may take its migration as failed, and its guest must not run on.
   */
  sourceTold: boolean;
}

/** What the sender will be made with, once the source has named the blocks. */
export type Outgoing = Omit<SenderOptions, 'blocks' | 'address' | 'tls'> & {
  address: Address;
  tls: CheckedTls | undefined;
};

/** What checkRelay() gives. */
export interface CheckedRelay extends Pick<RelayMigrationOptions, 'uuid'> {
  /** The caller's own object, on which they are called. */
  hooks: Pick<RelayMigrationOptions, 'onListening' | 'onStart' | 'onSession'>;
  incoming: CheckedReceiverOptions;
  outgoing: Outgoing;
  switchoverAck: SwitchoverAck;
  connectTimeoutMs: number;
  bounds: Bounds;
}

/** @throws MultifdError ERR_MULTIFD_OPTION, ERR_MULTIFD_TLS */
export function checkRelay(options: RelayMigrationOptions): CheckedRelay {
  const { listen, to, in: input = {}, out = {}, pageSize, uuid, signal } = requireOptions(options);
  checkKeys(options, Object.keys(OPTIONS));
  checkKeys(input, Object.keys(OPTIONS_IN), 'in.');
  checkKeys(out, Object.keys(OPTIONS_OUT), 'out.');
  for (const hook of ['onListening', 'onStart', 'onSession'] as const) callback(hook, options[hook]);
  const {
    stallTimeoutMs,
    connectTimeoutMs = CONNECT_TIMEOUT_MS,
    acceptTimeoutMs,
    listenMode,
    maxStrays,
  } = options;
  const common = { pageSize, uuid, signal, stallTimeoutMs, connectTimeoutMs };
  const { tls: tlsIn, ...inOptions } = input;
  const { tls: tlsOut, ...outOptions } = out;
  const outgoing = {
    ...common,
    ...outOptions,
    zeroPageDetection: out.zeroPageDetection ?? 'none',
    address: checkAddress(to, 1, 'to'),
  };
  const address = checkAddress(listen, 0, 'listen');
  checkOutgoing(outgoing, tlsOut);
  const switchoverAck = checkSwitchoverAck(options.switchoverAck);
  const incoming = checkReceiverOptions(
    {
      ...common,
      ...inOptions,
      acceptTimeoutMs,
      listenMode,
      maxStrays,
      address,
    },
    true,
    [],
    checkTls(tlsIn, 'server', 'in.tls', address),
  );
  const tls = checkTls(tlsOut, 'client', 'out.tls', outgoing.address);
  return {
    hooks: options,
    incoming,
    outgoing: { ...outgoing, tls },
    switchoverAck,
    connectTimeoutMs,
    bounds: checkBounds(options),
    uuid,
  };
}
