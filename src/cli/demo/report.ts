/** What the demo tells of itself. All figures are in bytes, pages and seconds. */
import type { Compression, ZeroPageDetection } from '../../index.js';
import { paintFor } from '../terminal/colour.js';
import { columnsOf } from '../terminal/columns.js';
import type { DirtyCounts } from './dirty-pages.js';
import type { BlockPlan } from './guest-ram.js';
import type { Output } from '../terminal/output.js';
import { progressText, type Progress } from '../terminal/progress-line.js';
import { formatResult } from './report-table.js';

/** What was asked for, in both the first and the last record. */
export interface DemoSettings {
  channels: number;
  compression: Compression;
  /** null with compression none. */
  level: number | null;
  zeroPageDetection: ZeroPageDetection;
  pageSize: number;
  maxBandwidth: number;
  backing: Backing;
  prefault: boolean;
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
  /** Pages dirtied between syncs, by what became of them. */
  dirtyPages: DirtyCounts;
  blocks: BlockResult[];
}

export interface Reporter {
  /** What is under way before and after the clock. */
  note(text: string): void;
  start(start: DemoStart): void;
  progress(progress: DemoProgress): void;
  /** The end; `error` if the blocks are not equal. */
  result(result: DemoResult, error?: Error): void;
  /** The end of a run that has no result. */
  failed(error: unknown): void;
}

/** A run that fails before the channels are up has no `start`. */
export function reportTo(output: Output): Reporter {
  return {
    note: (text) => output.note(text),
    start: (start) => output.said('start', start),
    progress: (progress) => output.progress(progress, (columns) => progressText(progress, columns)),
    result: (result, error) => {
      const paint = paintFor(process.stdout, process.env);
      output.result(result, () => formatResult(result, paint, columnsOf(process.stdout)), error);
    },
    failed: (error) => output.failed(error),
  };
}
