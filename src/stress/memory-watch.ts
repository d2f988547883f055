/**
 * Does a side's memory grow from run to run? Both are looked at after a collection, when all of a run is over; the first runs of a
 * process are not held against it: code is compiled, pools are made.
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

export class MemoryWatch {
  readonly #least = new Map<number, { heap: number; resident: number }>();

  look(report: RunReport, sides: Record<SideName, SideProcess>): string[] {
    const wrong: string[] = [];
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
      if (heap > first.heap + HEAP_MARGIN) wrong.push(grown(name, 'heap and buffers', heap, first.heap));
      if (resident > first.resident + RESIDENT_MARGIN)
        wrong.push(grown(name, 'resident memory', resident, first.resident));
    }
    return wrong;
  }
}

function grown(side: SideName, what: string, now: number, first: number): string {
  return `the ${side}'s ${what} has grown: received ${now} bytes, ${first} after its first runs`;
}
