/**
 * Does a side's memory grow from run to run? Both are looked at after a collection, when all of a run is over; the first runs of a
 * process are not held against it: code is compiled, pools are made. So growth belongs to all runs of a process, and is seen again
 * only by playing them all again. Whoever has grown is ended with its run's evidence, and said once: the next process begins anew.
 */
import type { RunReport } from './engine-run.js';
import type { SideName } from './engine-plan.js';
import type { SideProcess } from './side-process.js';

const FIRST_RUNS = 5;
const MIB = 2 ** 20;
/** Heap and buffers: less than any guest that was kept would be with time. */
const HEAP_MARGIN = 48 * MIB;
/** The allocator keeps what threads have freed for the next ones. */
const RESIDENT_MARGIN = 400 * MIB;

export type Sides = Record<SideName, Pick<SideProcess, 'pid' | 'runs'>>;

export class MemoryWatch {
  readonly #least = new Map<number, { heap: number; resident: number }>();

  /** @returns what has grown, and how many runs the process has had that has; 0 if none has */
  look(report: Pick<RunReport, 'sides'>, sides: Sides): { wrong: string[]; runs: number } {
    const wrong: string[] = [];
    let most = 0;
    for (const name of ['source', 'destination'] as const) {
      const { pid, runs } = sides[name];
      const { left } = report.sides[name];
      if (left === undefined || pid === undefined || runs < FIRST_RUNS) continue;
      const { heapBytes: heap, residentBytes: resident } = left;
      const first = this.#least.get(pid);
      if (first === undefined) {
        this.#least.set(pid, { heap, resident });
        continue;
      }
      const before = wrong.length;
      if (heap > first.heap + HEAP_MARGIN) wrong.push(grown(name, 'heap and buffers', heap, first.heap));
      if (resident > first.resident + RESIDENT_MARGIN)
        wrong.push(grown(name, 'resident memory', resident, first.resident));
      if (wrong.length > before) {
        most = Math.max(most, runs);
        this.#least.delete(pid);
      }
    }
    return { wrong, runs: most };
  }
}

function grown(side: SideName, what: string, now: number, first: number): string {
  return `the ${side}'s ${what} has grown: received ${now} bytes, expected about ${first} as after its first ${FIRST_RUNS} runs`;
}
