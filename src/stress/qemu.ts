/** Runs against a QEMU, one after the other; see qemu-destination.ts and qemu-source.ts. */
import { qemuPlan, type QemuFaultKind } from './qemu-plan.js';
import { stressDestination, type QemuDestinationOptions } from './qemu-destination.js';
import { addReport, type QemuRunReport, type QemuTotals } from './qemu-report.js';
import { StressedSource, type QemuSourceOptions } from './qemu-source.js';

export interface QemuStressOptions {
  seed: number;
  firstRun: number;
  /** Runs at the most. */
  count: number;
  minutes: number;
  only?: QemuFaultKind | undefined;
  /** Which of QEMU's two roles. */
  qemu: ({ role: 'destination' } & QemuDestinationOptions) | ({ role: 'source' } & QemuSourceOptions);
}

/** QEMU does not answer any more, or its migration cannot be ended: what was asked of it next would say nothing. */
const LAST = ['monitor dead', 'monitor lost', 'gone', 'hung'];

/**
 * @param told each report
 * @param totals added to, whatever the end
 * @throws MultifdError, or the reason of `cancelled`
 */
export async function stressQemu(
  options: QemuStressOptions,
  totals: QemuTotals,
  told: (report: QemuRunReport) => void,
  cancelled: AbortSignal,
): Promise<void> {
  const { seed, firstRun, count, minutes, only, qemu } = options;
  const until = performance.now() + minutes * 60_000;
  const source = qemu.role === 'source' ? await StressedSource.open(qemu, cancelled) : undefined;
  try {
    for (let run = firstRun; run < firstRun + count && performance.now() < until; run++) {
      cancelled.throwIfAborted();
      const plan = qemuPlan(seed, run, qemu.channels, only);
      const report =
        source === undefined
          ? await stressDestination(plan, qemu as QemuDestinationOptions, cancelled)
          : await source.run(plan, cancelled);
      addReport(totals, report);
      told(report);
      totals.problem = report.problem;
      if (report.problem !== undefined) return;
      if (source !== undefined && LAST.includes(report.verdict)) break;
    }
  } catch (thrown) {
    // What was under way says ERR_MULTIFD_ABORTED; why is who asked's to say, with its exit code.
    cancelled.throwIfAborted();
    throw thrown;
  } finally {
    await source?.[Symbol.asyncDispose]();
    totals.problem ??= source?.problem;
  }
}
