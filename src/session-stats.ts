/** What a session counts: each channel in its own words of shared memory (shared/layout.ts), summed up when asked for. */
import { readClock } from './shared/clock.js';
import {
  STAT_BYTES,
  STAT_COUNT,
  STAT_DEVICE_STATES,
  STAT_NORMAL_PAGES,
  STAT_PACKETS,
  STAT_SYNCS,
  STAT_ZERO_COPY_COPIED,
  STAT_ZERO_COPY_PACKETS,
  STAT_ZERO_PAGES,
} from './shared/layout.js';

/** Counters of one channel, or the sum of all. */
export interface ChannelStats {
  /** Bytes on the wire of the channels: hello, headers and payloads. */
  bytes: number;
  packets: number;
  /** Pages that travelled with their data. */
  normalPages: number;
  /** Pages that travelled as an offset only. */
  zeroPages: number;
  /** SYNC packets. */
  syncs: number;
  /** DEVICE_STATE packets. */
  deviceStates: number;
  /** With zeroCopySend: packets whose pages were given to the kernel without a copy. */
  zeroCopyPackets: number;
  /** Those of them that it copied all the same, as far as it has said so; compare QEMU's dirty-sync-missed-zero-copy. */
  zeroCopyCopied: number;
  /** Milliseconds the channel's thread waited for work, and worked (socket included). */
  idleMs: number;
  busyMs: number;
}

export interface Stats extends ChannelStats {
  /** Page bytes that travelled, zero pages included: (normalPages + zeroPages) * pageSize. */
  pageBytes: number;
  /** Milliseconds since the session was opened. */
  elapsedMs: number;
  channels: ChannelStats[];
}

/**
 * @param counters of each channel
 * @param pageSize in bytes
 */
export function sumStats(counters: readonly Float64Array[], pageSize: number, elapsedMs: number): Stats {
  const channels = counters.map((counts): ChannelStats => ({
    bytes: counts[STAT_BYTES],
    packets: counts[STAT_PACKETS],
    normalPages: counts[STAT_NORMAL_PAGES],
    zeroPages: counts[STAT_ZERO_PAGES],
    syncs: counts[STAT_SYNCS],
    deviceStates: counts[STAT_DEVICE_STATES],
    zeroCopyPackets: counts[STAT_ZERO_COPY_PACKETS],
    zeroCopyCopied: counts[STAT_ZERO_COPY_COPIED],
    ...readClock(counts),
  }));
  const sum = (key: keyof ChannelStats): number =>
    channels.reduce((total, channel) => total + channel[key], 0);
  const normalPages = sum('normalPages');
  const zeroPages = sum('zeroPages');
  return {
    bytes: sum('bytes'),
    packets: sum('packets'),
    normalPages,
    zeroPages,
    syncs: sum('syncs'),
    deviceStates: sum('deviceStates'),
    zeroCopyPackets: sum('zeroCopyPackets'),
    zeroCopyCopied: sum('zeroCopyCopied'),
    idleMs: sum('idleMs'),
    busyMs: sum('busyMs'),
    pageBytes: (normalPages + zeroPages) * pageSize,
    elapsedMs,
    channels,
  };
}

/** Before anything has been counted. */
export function noStats(channels: number, pageSize: number): Stats {
  const counters = Array.from({ length: channels }, () => new Float64Array(STAT_COUNT));
  return sumStats(counters, pageSize, 0);
}

/** Of two sessions with equally many channels, one after the other. */
export function addStats(one: Stats, other: Stats): Stats {
  const channels = one.channels.map((channel, id) => addCounters(channel, other.channels[id]));
  return { ...addCounters(one, other), channels };
}

function addCounters<T extends object>(one: T, other: T): T {
  const sum = Object.entries(one).map(([key, value]: [string, unknown]) => {
    const more = other[key as keyof T];
    return [key, typeof value === 'number' && typeof more === 'number' ? value + more : value];
  });
  return Object.fromEntries(sum) as T;
}
