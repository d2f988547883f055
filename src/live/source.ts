/** The source of a live migration as embedders see it; what it does is in outgoing.ts. */
import { OutgoingVm } from './outgoing.js';
import type { MigrationProgress } from './progress.js';
import { checkDowntimeLimit, checkSource, type MigrationSourceOptions } from './source-options.js';
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
  const source = new OutgoingVm(await checkSource(options));
  source.begin();
  return faceOf(source);
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
