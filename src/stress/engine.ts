/** Runs one after the other, until the time is up, and what they came to. */
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { MultifdError } from '../errors.js';
import { enginePlan, type FaultKind, type SideName } from './engine-plan.js';
import { EngineRun, type RunReport } from './engine-run.js';
import { MemoryWatch } from './memory-watch.js';
import { SideProcess } from './side-process.js';
import { MAX_UNIX_PATH_BYTES } from '../transport/address.js';
import { makeStressTls } from './throw-away-tls.js';

/** Of runs whose processes do not start: whatever it is, it is not by chance. */
const MOST_IDLE = 5;

export interface EngineStressOptions {
  seed: number;
  /** The first; others follow unless `count` says otherwise. */
  firstRun: number;
  /** Runs at the most. */
  count: number;
  minutes: number;
  /** This kind alone. */
  only?: FaultKind | 'no-fault' | undefined;
  /** The sides' program, instead of this package's own: for tests, of an engine that is broken. */
  program?: string | undefined;
}

export interface EngineStressEvents {
  run(report: RunReport, totals: EngineTotals): void;
  begins?(run: number): void;
}

export interface FaultTotals {
  runs: number;
  /** In which it struck before all was over. */
  struck: number;
  leftOut: number;
  /** From the fault to an end's error. */
  worstMs: number;
}

export class EngineTotals {
  runs = 0;
  bytes = 0;
  /** Both completed, and all was equal. */
  equal = 0;
  /** Failed as they should. */
  errors = 0;
  /** The destination alone has completed, or the source: the other was struck when it had happened. */
  gap = 0;
  failed: { run: number; wrong: string[]; folder: string }[] = [];
  worstMs = 0;
  readonly faults: Record<string, FaultTotals> = {};
  readonly codes: Record<string, number> = {};

  add(report: RunReport): void {
    const { plan, struck, sides, wrong, leftOut } = report;
    this.runs++;
    this.bytes += report.bytes;
    const kind = plan.fault?.kind ?? 'none';
    const fault = (this.faults[kind] ??= { runs: 0, struck: 0, leftOut: 0, worstMs: 0 });
    fault.runs++;
    if (struck !== undefined) fault.struck++;
    if (leftOut !== undefined) fault.leftOut++;
    for (const { outcome, tookMs = 0 } of Object.values(sides)) {
      fault.worstMs = Math.max(fault.worstMs, tookMs);
      this.worstMs = Math.max(this.worstMs, tookMs);
      const code = outcome?.completed === false ? outcome.code : undefined;
      if (code !== undefined) this.codes[code] = (this.codes[code] ?? 0) + 1;
    }
    const completed = Object.values(sides).filter(({ outcome }) => outcome?.completed === true).length;
    if (wrong.length > 0) this.failed.push({ run: plan.run, wrong, folder: report.folder });
    else if (completed === 2) this.equal++;
    else if (completed === 1) this.gap++;
    else this.errors++;
  }
}

/** @throws MultifdError ERR_MULTIFD_IO: a socket in it would have too long a path, and its run would come to nothing */
function checkTmp(folder: string): void {
  const most = MAX_UNIX_PATH_BYTES - Buffer.byteLength('/multifd-stress-XXXXXX/2147483647/out.sock');
  const bytes = Buffer.byteLength(folder);
  if (bytes <= most) return;
  const message = `TMPDIR ${folder}: received a path of ${bytes} bytes, expected at most ${most}: sockets lie in it, whose paths may have ${MAX_UNIX_PATH_BYTES}`;
  throw new MultifdError('ERR_MULTIFD_IO', message);
}

/** @throws ERR_MULTIFD_IO if the folder for temporary files is of no use, ERR_MULTIFD_WORKER if no process starts any more, and the reason of `cancelled`; nothing is left then but the evidence of runs that have failed */
export async function stressEngine(
  options: EngineStressOptions,
  events: EngineStressEvents,
  totals: EngineTotals,
  cancelled: AbortSignal,
): Promise<void> {
  try {
    await stressAll(options, events, totals, cancelled);
  } catch (thrown) {
    // Of the files of the stress itself: those of a run are the sides' to tell.
    if (typeof (thrown as NodeJS.ErrnoException | null)?.errno !== 'number') throw thrown;
    const what = `files of the stress in ${os.tmpdir()} (TMPDIR names another folder)`;
    throw MultifdError.wrap(thrown, 'ERR_MULTIFD_IO', what);
  }
}

async function stressAll(
  options: EngineStressOptions,
  events: EngineStressEvents,
  totals: EngineTotals,
  cancelled: AbortSignal,
): Promise<void> {
  const { seed, firstRun, count, minutes, only, program } = options;
  checkTmp(os.tmpdir());
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'multifd-stress-'));
  const removeAll = (): void => fs.rmSync(folder, { recursive: true, force: true });
  process.on('exit', removeAll);
  const side = (name: SideName): SideProcess => {
    const tmp = path.join(folder, `tmp-${name}`);
    fs.mkdirSync(tmp, { mode: 0o700 });
    return new SideProcess(name, tmp, program);
  };
  const sides = { source: side('source'), destination: side('destination') };
  const memory = new MemoryWatch();
  const until = performance.now() + minutes * 60_000;
  let idle = 0;
  try {
    const tls = await makeStressTls(path.join(folder, 'tls'));
    for (let run = firstRun; run < firstRun + count && performance.now() < until; run++) {
      cancelled.throwIfAborted();
      const plan = enginePlan(seed, run, only);
      events.begins?.(run);
      const runFolder = path.join(folder, `${run}`);
      fs.mkdirSync(runFolder, { mode: 0o700 });
      const report = await new EngineRun(plan, runFolder, sides, memory).run(
        plan.tls === 'none' ? undefined : tls[plan.tls],
        cancelled,
      );
      if (report.wrong.length > 0) report.folder = keep(runFolder, seed, run);
      else fs.rmSync(runFolder, { recursive: true, force: true });
      totals.add(report);
      events.run(report, totals);
      idle = report.hasBegun ? 0 : idle + 1;
      if (idle === MOST_IDLE) {
        const message = `${MOST_IDLE} runs, one after the other, did not begin; the last: ${report.wrong.join('; ')}`;
        throw new MultifdError('ERR_MULTIFD_WORKER', message);
      }
    }
  } finally {
    await Promise.all([sides.source.end(), sides.destination.end()]);
    removeAll();
    process.off('exit', removeAll);
  }
}

/** Out of the folder that is removed in the end. */
function keep(folder: string, seed: number, run: number): string {
  const kept = fs.mkdtempSync(path.join(os.tmpdir(), `multifd-stress-seed-${seed}-run-${run}-`));
  fs.cpSync(folder, kept, { recursive: true, filter: (file) => !fs.lstatSync(file).isSocket() });
  return kept;
}
