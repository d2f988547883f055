/** Threads that pack or unpack: as many as there are processors, a task each at a time, ended with the work. */
import { availableParallelism } from 'node:os';
import { Piscina } from 'piscina';
import { MultifdError } from '../errors.js';
import { makeAddonGate, shutAddonGate } from '../native/addon-gate.js';
import { koffiThreads } from '../native/koffi-threads.js';
import { threadOptions } from '../runtime.js';
import type { PackJob, PackOutcome, PackTask, UnpackTask } from './pack-thread.js';

/** Tasks a thread: those under way, and as many that wait while a slow one holds up the order. */
const AHEAD = 4;

export class PackPool implements AsyncDisposable {
  /** Worth to have under way: the next tasks wait when a thread has done one. */
  readonly tasks: number;
  readonly #pool: Piscina;
  readonly #gate = makeAddonGate();
  #broke: unknown;

  /** @throws MultifdError ERR_MULTIFD_RUNTIME */
  constructor(job: PackJob) {
    const threads = availableParallelism();
    this.tasks = AHEAD * threads;
    this.#pool = new Piscina({
      ...threadOptions('pack', job.kind === 'pack' ? 'zstd' : 'none'),
      name: 'default',
      // All at once: a thread takes as long to start as 20 frames to pack.
      minThreads: threads,
      maxThreads: threads,
      concurrentTasksPerWorker: 1,
      idleTimeout: Infinity,
      workerData: { ...job, ...this.#gate, ...koffiThreads() },
    });
    this.#pool.on('error', (error) => void (this.#broke ??= error));
  }

  /**
   * @returns PackOutcome's bytes
   * @throws MultifdError what the thread says
   */
  async run(task: PackTask | UnpackTask): Promise<number> {
    let outcome: PackOutcome;
    try {
      outcome = (await this.#pool.run(task)) as PackOutcome;
    } catch (error) {
      throw MultifdError.wrap(this.#broke ?? error, 'ERR_MULTIFD_WORKER', 'thread that packs');
    }
    if ('error' in outcome) throw MultifdError.fromPlain(outcome.error);
    return outcome.bytes;
  }

  /** When it resolves no thread uses a descriptor any more. */
  async [Symbol.asyncDispose](): Promise<void> {
    await shutAddonGate(this.#gate);
    await this.#pool.destroy();
  }
}
