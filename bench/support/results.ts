/** All that came out of one run: what `--json` keeps and `--html` shows. */
import type { Machine } from './machine.js';
import type { Row } from './measure.js';
import type { Remark } from './remark.js';

export interface Results {
  machine: Machine;
  seconds: number;
  /** All that were asked for. */
  benches: string[];
  /** Benches that failed or had no time; the rows that they gave before are there. */
  failed: string[];
  /** What was left out, why, and how a bench failed. */
  remarks: Remark[];
  rows: Row[];
}

/** The bound as a reader wants it, or undefined for a row without one. */
export function boundOf(row: Row): string | undefined {
  if (row.floor !== undefined) return `at least ${row.floor}`;
  return row.ceiling === undefined ? undefined : `at most ${row.ceiling}`;
}

export function isMissed(row: Row): boolean {
  const { median, floor = -Infinity, ceiling = Infinity } = row;
  return median < floor || median > ceiling;
}

/** 0.5 is 0.500, 1234.5 is 1235: three digits where they say something. */
export function figure(value: number): string {
  const digits = Math.abs(value) >= 100 ? 0 : Math.abs(value) >= 10 ? 1 : Math.abs(value) >= 1 ? 2 : 3;
  return value.toFixed(digits);
}
