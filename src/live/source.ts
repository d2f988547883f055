/** The source of a live migration as embedders see it; what it does is in outgoing.ts. */
import { MultifdError, receivedExpected } from '../errors.js';
import { wrong } from '../option-checks.js';
import { OutgoingVm } from './outgoing.js';
import type { MigrationProgress } from './progress.js';
import { WHY_NOT, type Resumption } from './resumption.js';
import {
  checkDowntimeLimit,
  checkSource,
  type CheckedSource,
  type MigrationSourceOptions,
} from './source-options.js';
import type { SourceState } from './states.js';

export interface MigrationSource extends AsyncDisposable {
  readonly state: SourceState;
  /** Settles when nothing is left: with the last figures when the destination has loaded all, else with the first error. */
  readonly done: Promise<MigrationProgress>;
  /** Figures so far; also after the end. */
  stats(): MigrationProgress;
  /** The same at each change of the state, and every `intervalMs` (default 200); one last item at the end. */
  progress(options?: { intervalMs?: number } | null): AsyncGenerator<MigrationProgress, void, undefined>;
  /**
   * Leaves state `pre-switchover`. QEMU: migrate-continue.
   *
   * @throws MultifdError ERR_MULTIFD_STATE in any other state
   */
  switchover(): void;
  /**
   * Breaks the migration off; the guest runs on. Resolves when nothing is left, and never rejects. It may come too late: then the
   * state is `completed`.
   */
  cancel(): Promise<void>;
  /** May be set at any time, as a sender's; while the guest stands still there is no limit. */
  maxBandwidth: number;
  /** May be set at any time. */
  downtimeLimitMs: number;
}

/**
 * Begins to migrate. Resolves as soon as the options are checked; all that follows is told by `done`.
 *
 * @throws MultifdError ERR_MULTIFD_OPTION, ERR_MULTIFD_BLOCK, ERR_MULTIFD_HOOK, ERR_MULTIFD_TLS
 */
export async function createMigrationSource(options: MigrationSourceOptions): Promise<MigrationSource> {
  const checked = await checkSource(options);
  const source = new OutgoingVm(checked, resumptionOf(options.resumeFrom, checked));
  source.begin();
  const face = faceOf(source);
  sources.set(face, source);
  return face;
}

/** Of those that may be carried on, until they are. */
const sources = new WeakMap<object, OutgoingVm>();

/**
 * What the source that is to be carried on knows: from here on this one's.
 *
 * @throws MultifdError ERR_MULTIFD_OPTION, ERR_MULTIFD_STATE
 */
function resumptionOf(before: unknown, checked: CheckedSource): Resumption | undefined {
  if (before === undefined) return undefined;
  const source = before !== null && typeof before === 'object' ? sources.get(before) : undefined;
  const { resumption, life, asked } = source ?? {};
  if (source === undefined || life === undefined || resumption === undefined)
    throw wrong('resumeFrom', before, 'a source with option resumable, that nobody has carried on yet');
  resumption.requireSame(checked);
  const bad = (received: string): MultifdError => {
    const expected = 'a source that has failed or was cancelled before its last bytes went out';
    return new MultifdError('ERR_MULTIFD_STATE', receivedExpected('option resumeFrom', received, expected));
  };
  if (!life.isOver) throw bad(`one in state ${life.state}, whose done has not settled`);
  if (life.isDecided) throw bad(`one in state ${life.state}: ${WHY_NOT.completed}`);
  if (asked === true) throw bad(`one in state ${life.state}: ${WHY_NOT.asked}`);
  if (!resumption.isWhole) throw bad(`one in state ${life.state}: ${WHY_NOT.lost}`);
  sources.delete(before as object);
  return resumption;
}

/** What an embedder holds: nothing of what is internal. */
function faceOf(source: OutgoingVm): MigrationSource {
  return {
    get state() {
      return source.life.state;
    },
    done: source.life.done,
    stats: () => source.stats(),
    progress: (options) => source.progress(options),
    switchover: () => source.switchover(),
    cancel: () => source.cancel(),
    get maxBandwidth() {
      return source.maxBandwidth;
    },
    set maxBandwidth(bytesPerSecond) {
      source.maxBandwidth = bytesPerSecond;
    },
    get downtimeLimitMs() {
      return source.downtimeLimitMs;
    },
    set downtimeLimitMs(ms) {
      source.downtimeLimitMs = checkDowntimeLimit(ms);
    },
    [Symbol.asyncDispose]: () => source.cancel(),
  };
}
