/** Progress of a migration: what its sessions push, told as records and on the progress line. */
import { performance } from 'node:perf_hooks';
import type { Receiver, Sender, SentMigration, Stats } from '../../index.js';
import { formatRatio, formatSize } from './format.js';
import type { Output } from './output.js';
import { progressText } from './progress-line.js';

/** Follows a session until it ends; never rejects. `more` goes into each record: what will be moved, where that is known. */
export async function followProgress(
  session: Sender | Receiver,
  output: Output,
  more: { totalBytes?: number; phase?: string } = {},
): Promise<void> {
  const started = performance.now();
  let before = { seconds: 0, bytes: 0 };
  for await (const stats of session.progress()) {
    const seconds = (performance.now() - started) / 1000;
    const bytes = stats.pageBytes;
    const elapsed = seconds - before.seconds;
    const bytesPerSecond = elapsed > 0 ? (bytes - before.bytes) / elapsed : 0;
    before = { seconds, bytes };
    const record = { ...more, seconds, ...countsOf(stats), bytesPerSecond };
    output.progress(record, (columns) => progressText(record, columns));
  }
}

/** What became of zeroCopySend, as the records of its commands have it: null without the option. */
export interface ZeroCopyRecord {
  packets: number;
  copied: number;
}

export function zeroCopyOf(stats: Stats, wanted: boolean): ZeroCopyRecord | null {
  return wanted ? { packets: stats.zeroCopyPackets, copied: stats.zeroCopyCopied } : null;
}

/** The same as a row of a summary; none without the option. */
export function zeroCopyRows(record: ZeroCopyRecord | null): [string, string][] {
  if (record === null) return [];
  const { packets, copied } = record;
  return [['zero-copy', `${packets} packets, ${copied} of them copied by the kernel all the same`]];
}

/** Bytes and pages of a session, as the records have them. */
export function countsOf(stats: Stats): {
  bytes: number;
  wireBytes: number;
  normalPages: number;
  zeroPages: number;
  syncs: number;
} {
  const { pageBytes: bytes, bytes: wireBytes, normalPages, zeroPages, syncs, channels } = stats;
  return { bytes, wireBytes, normalPages, zeroPages, syncs: syncs / channels.length };
}

type Sent = Pick<SentMigration, 'stats' | 'records'>;

/** The same of what was sent: a file that is a stream goes on the main stream, whose bytes no session counts. */
export function countsOfSent({ stats, records }: Sent): ReturnType<typeof countsOf> {
  const counts = countsOf(stats);
  return { ...counts, wireBytes: counts.wireBytes + (records?.bytes ?? 0) };
}

/** As rows of a summary. */
export function wireRows({ stats, records }: Sent): [string, string][] {
  const { bytes, wireBytes } = countsOfSent({ stats, records });
  if (records === undefined)
    return [['on the wire', `${formatSize(wireBytes)}, ratio ${formatRatio(bytes, wireBytes)}`]];
  return [
    ['main stream', `${records.pages} pages, ${records.zeroPages} zero pages`],
    ['on the wire', formatSize(wireBytes)],
  ];
}
