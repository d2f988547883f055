/** What a QEMU made of a fault, and how often. */
import { describeThrown } from '../errors.js';
import type { QemuPlan } from './qemu-plan.js';

/** As its destination, and as its source. */
export type Verdict =
  /**
   * None of the three is looked at in its memory. It has said that it has loaded all, or it is alive and all that it needs has gone
   * out to it, and the fault has touched nothing of the RAM.
   */
  | 'loaded'
  /** The same, and the fault has hit a page, or kept it back: it is wrong there, or missing. */
  | 'loaded wrong RAM'
  /** The same, and whether the RAM is right does not follow from the fault. */
  | 'loaded, RAM not known'
  /** It said no, or ended with an error. */
  | 'refused'
  /** It was ended by a signal that was not ours: SIGSEGV, SIGABRT. */
  | 'crashed'
  /** It closed its connections, and nothing more is known. */
  | 'closed'
  /** It is there still, though it has not answered within the limit, nor ended when its connections did: it cannot have loaded. */
  | 'hung'
  /** The same, but it may have loaded: what was hit, or what it was told, does not say. */
  | 'not known: it is alive; ask its monitor'
  | 'completed'
  | 'failed'
  /** All had come, and it was told to keep its guest: nothing was wrong. */
  | 'failed as told'
  /** Still under way at the limit; a cancel by its monitor ended it, or only the end of its connections. */
  | 'hung until cancelled'
  | 'hung until cut off'
  /** Its monitor does not answer any more. */
  | 'monitor dead'
  /** Its monitor has closed, and is not there again some seconds later: it has crashed, as far as can be seen from here. */
  | 'gone'
  /** It is there again, and the same QEMU's: what became of the migration nobody has seen. */
  | 'monitor lost';

export interface QemuRunReport {
  plan: QemuPlan;
  struck: boolean;
  /** Where it struck. */
  what: string;
  verdict: Verdict;
  /** QEMU's own words, where it has any. */
  words: string;
  /** What our side came to: `completed`, or the error's code and message. */
  ours: string;
  /** From the fault to what QEMU did; undefined where it did nothing, or nothing struck. */
  tookMs: number | undefined;
  /** Of our side; empty if nothing is. */
  wrong: string[];
  /** Why no other run can follow. */
  problem?: string;
}

export interface QemuTotals {
  runs: number;
  faults: Record<string, { runs: number; struck: number; verdicts: Record<string, number>; worstMs: number }>;
  failed: { run: number; wrong: string[] }[];
  /** What could not be put back of a source's settings, or of a destination's process. */
  problem?: string | undefined;
}

export function addReport(
  totals: QemuTotals,
  { plan, struck, verdict, tookMs = 0, wrong }: QemuRunReport,
): void {
  totals.runs++;
  const fault = (totals.faults[plan.kind] ??= { runs: 0, struck: 0, verdicts: {}, worstMs: 0 });
  fault.runs++;
  if (struck) fault.struck++;
  fault.verdicts[verdict] = (fault.verdicts[verdict] ?? 0) + 1;
  fault.worstMs = Math.max(fault.worstMs, tookMs);
  if (wrong.length > 0) totals.failed.push({ run: plan.run, wrong });
}

/** Our own side: whatever a QEMU does, it ends, and with a typed error if it fails. */
export function oursOf(result: PromiseSettledResult<unknown> | undefined): { ours: string; wrong: string[] } {
  if (result === undefined) return { ours: 'nothing', wrong: ['our side has not ended in time'] };
  if (result.status === 'fulfilled') return { ours: 'completed', wrong: [] };
  const { code } = (result.reason ?? {}) as { code?: unknown };
  const message = describeThrown(result.reason);
  if (typeof code === 'string' && code.startsWith('ERR_MULTIFD_'))
    return { ours: `${code}: ${message}`, wrong: [] };
  return { ours: message, wrong: [`our side failed without a code: ${message}`] };
}

export function settled(promise: Promise<unknown>): Promise<PromiseSettledResult<unknown>> {
  return promise.then(
    (value) => ({ status: 'fulfilled', value }),
    (reason: unknown) => ({ status: 'rejected', reason }),
  );
}
