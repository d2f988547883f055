/**
 * The records that the demo tells of itself, as --json prints them: made by demo-source.ts, told by report.ts, laid out
 * for people by report-table.ts. All figures are in bytes, pages and seconds.
 */
import type { Compression, ZeroPageDetection } from '../../index.js';
import type { ZeroCopyRecord } from '../terminal/migration-progress.js';
import type { Progress } from '../terminal/progress-line.js';
import type { TlsReport } from './demo-tls.js';
import type { DirtyCounts } from './dirty-pages.js';
import type { BlockPlan } from './guest-ram.js';

/** What was asked for, in both the first and the last record. */
export interface DemoSettings {
  channels: number;
  compression: Compression;
  /** null with compression none. */
  level: number | null;
  zeroPageDetection: ZeroPageDetection;
  pageSize: number;
  maxBandwidth: number;
  zeroCopySend: boolean;
  backing: Backing;
  prefault: boolean;
  hugePages: boolean;
  dirtyRounds: number;
  /** The file of --ram, or null for the generated guest image. */
  ram: string | null;
}

export type Backing = 'shared' | 'file';

export interface DemoStart extends DemoSettings {
  pid: number;
  destinationPid: number | undefined;
  /** Backing file: where each side's RAM is while it runs. */
  sourceFile: string | null;
  destinationFile: string | null;
  startupSeconds: number;
  /** What will be moved: the guest's size, and the pages of all dirty rounds. */
  totalBytes: number;
  blocks: readonly BlockPlan[];
}

export interface DemoProgress extends Progress {
  totalBytes: number;
}

export interface BlockResult extends BlockPlan {
  sha256Source: string;
  sha256Destination: string;
  equal: boolean;
}

export interface DemoResult extends DemoSettings {
  bytes: number;
  seconds: number;
  startupSeconds: number;
  bytesPerSecond: number;
  wireBytes: number;
  normalPages: number;
  zeroPages: number;
  /** null without the option. */
  zeroCopy: ZeroCopyRecord | null;
  /** Pages dirtied between syncs, by what became of them. */
  dirtyPages: DirtyCounts;
  blocks: BlockResult[];
  /** null without. */
  tls: TlsReport | null;
}
