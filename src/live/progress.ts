/**
 * What a source tells while it migrates: QEMU's query-migrate, its names in camel case and with their units. Counted on the
 * calling thread from what the session counts anyway; nobody who does not ask pays for it.
 */
import { performance } from 'node:perf_hooks';
import type { Stats } from '../session-stats.js';
import type { SentRound } from './convergence.js';
import type { SourceState } from './states.js';

export interface MigrationProgress {
  status: SourceState;
  /** Milliseconds since the begin, and up to the first page. */
  totalTimeMs: number;
  setupTimeMs: number;
  /** Milliseconds that the guest stood still, so far: from before pause() to the destination's answer, or to resume(). */
  downtimeMs: number;
  /** What the downtime would be now, by the rate of the last round; undefined before the first one is over. */
  expectedDowntimeMs?: number;
  /** By how many percent the guest has been asked to slow down. */
  throttlePercent: number;
  ram: MigrationRamProgress;
}

export interface MigrationRamProgress {
  /** Bytes of guest RAM, all blocks together. */
  total: number;
  /** Bytes on the wire, all connections together. */
  transferred: number;
  /** Bytes of the pages that are to be sent yet, as far as is known. */
  remaining: number;
  /** Pages that were sent with their data, and those that were zero. */
  normal: number;
  duplicate: number;
  normalBytes: number;
  /** Pages a second that the guest has dirtied in the last round. */
  dirtyPagesRate: number;
  /** Megabits a second on the wire, in this round or, at its begin, in the last one. */
  mbps: number;
  /** How often the guest's dirty pages were taken. */
  dirtySyncCount: number;
  /** In bytes. */
  pageSize: number;
}

/** Shorter than that a rate is of no use. */
const RATE_MS = 20;

/** What Figures looks at. */
export interface FiguresOf {
  pageSize: number;
  totalBytes: number;
  /** Of the session; undefined before there is one. */
  stats: () => Stats | undefined;
  /** Bytes of the main stream. */
  mainBytes: () => number;
}

export class Figures {
  readonly #of: FiguresOf;
  readonly #began = performance.now();
  #setUp: number | undefined;
  #stopped: number | undefined;
  #ran: number | undefined;
  #over: number | undefined;
  #round = { at: 0, pages: 0, pageBytes: 0, bytes: 0 };
  #remaining: number;
  #mbps = 0;
  #dirtySyncs = 0;
  #lastSync: number | undefined;
  dirtyPagesRate = 0;
  expectedDowntimeMs: number | undefined;
  throttlePercent = 0;

  constructor(of: FiguresOf) {
    this.#of = of;
    this.#remaining = of.totalBytes;
  }

  setUp(): void {
    this.#setUp ??= performance.now();
  }

  guestStopped(): void {
    this.#stopped ??= performance.now();
  }

  /** Here again, or at the destination. */
  guestRuns(): void {
    if (this.#stopped !== undefined) this.#ran ??= performance.now();
  }

  over(): void {
    this.#over ??= performance.now();
  }

  /** The dirty pages were taken. @param dirtied undefined where they do not count, since all are sent anyway */
  synced(dirtied: number | undefined): void {
    const now = performance.now();
    // A guest that stands still has no rate: that of the last round it ran in stays.
    if (dirtied !== undefined && this.#lastSync !== undefined && this.#stopped === undefined)
      this.dirtyPagesRate = Math.round((1000 * dirtied) / Math.max(now - this.#lastSync, 1));
    this.#lastSync = now;
    this.#dirtySyncs++;
  }

  /** @param pages that it will send */
  roundBegins(pages: number): void {
    const stats = this.#of.stats();
    this.#remaining = pages * this.#of.pageSize;
    this.#round = {
      at: performance.now(),
      pages: stats === undefined ? 0 : stats.normalPages,
      pageBytes: stats?.pageBytes ?? 0,
      bytes: stats?.bytes ?? 0,
    };
  }

  /** @returns what it has sent */
  roundEnds(): SentRound {
    const stats = this.#of.stats();
    const { at, pages, pageBytes } = this.#round;
    this.#mbps = this.#rate(stats) ?? this.#mbps;
    return {
      pageBytes: (stats?.pageBytes ?? 0) - pageBytes,
      normalBytes: ((stats?.normalPages ?? 0) - pages) * this.#of.pageSize,
      ms: performance.now() - at,
    };
  }

  /** Between two rounds. */
  set remaining(bytes: number) {
    this.roundBegins(0);
    this.#remaining = bytes;
  }

  snapshot(status: SourceState): MigrationProgress {
    const { pageSize, totalBytes } = this.#of;
    const now = this.#over ?? performance.now();
    const stats = this.#of.stats();
    const normal = stats?.normalPages ?? 0;
    const sent = (stats?.pageBytes ?? 0) - this.#round.pageBytes;
    return {
      status,
      totalTimeMs: now - this.#began,
      setupTimeMs: (this.#setUp ?? now) - this.#began,
      downtimeMs: this.#stopped === undefined ? 0 : (this.#ran ?? now) - this.#stopped,
      ...(this.expectedDowntimeMs !== undefined && { expectedDowntimeMs: this.expectedDowntimeMs }),
      throttlePercent: this.throttlePercent,
      ram: {
        total: totalBytes,
        transferred: (stats?.bytes ?? 0) + this.#of.mainBytes(),
        remaining: Math.max(0, this.#remaining - sent),
        normal,
        duplicate: stats?.zeroPages ?? 0,
        normalBytes: normal * pageSize,
        dirtyPagesRate: this.dirtyPagesRate,
        mbps: (this.#over === undefined ? this.#rate(stats) : undefined) ?? this.#mbps,
        dirtySyncCount: this.#dirtySyncs,
        pageSize,
      },
    };
  }

  #rate(stats: Stats | undefined): number | undefined {
    const ms = performance.now() - this.#round.at;
    if (stats === undefined || ms < RATE_MS || this.#round.at === 0) return undefined;
    return ((stats.bytes - this.#round.bytes) * 8) / 1000 / ms;
  }
}
