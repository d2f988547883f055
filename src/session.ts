/**
 * What a sender and a receiver have in common, on the calling thread: the first error, the ends, waits and progress. The
 * channels' threads are in channel-pool.ts, what is counted in session-stats.ts.
 *
 *     opening --> running --> ending --> closed          end(): orderly, everything delivered first
 *         \          \           \          ^
 *          +----------+-----------+-- stop -+            fail(), abort, close(): within a second
 *
 * Order of an end: the STOP word, which frees every wait here and in the workers and makes each worker drop its own
 * socket; then the tasks are joined; a worker that has not come back after JOIN_MS is terminated, and so is one that
 * is loading its modules (workers/bundle.js); then the pool goes.
 *
 * First error wins: whoever takes the FIRST_ERROR word owns the session's error; later ones are attached to it as
 * `suppressed`. A channel's claim and its message are two things: until the message is here the session is stopped
 * without its reason, so everything that wants to throw waits for `#settled`.
 */
import { performance } from 'node:perf_hooks';
import type { MessagePort } from 'node:worker_threads';
import { ChannelPool, type ChannelThreads } from './channel-pool.js';
import { MultifdError, describeThrown, type ErrorCode } from './errors.js';
import { checkKeys } from './option-checks.js';
import { BlockFiles } from './ram/file-block.js';
import { STOP_END, STOP_FAIL, STOP_RUN, type Control } from './shared/control.js';
import { STAT_BYTES } from './shared/layout.js';
import { sumStats, type Stats } from './session-stats.js';
import { trace, wantsThreadTrace, type TracePoint } from './trace.js';

/** How long the channels may take to come back after STOP before their threads are terminated. */
const JOIN_MS = 600;
const WATCH_MS = 250;

export abstract class Session implements AsyncDisposable {
  /**
   * Settles when nothing of the session is left: fulfilled after end() or close(), rejected with the first error.
   * It may be left alone: it never causes an unhandled rejection.
   */
  readonly done: Promise<void>;
  protected readonly control: Control;
  /** Of the target; a receiver's main stream may tell another one before the channels start. */
  protected pageSize: number;
  #error: MultifdError | undefined;
  readonly #later: MultifdError[] = [];
  #stopping: Promise<void> | undefined;
  #ended = false;
  #closed = false;
  #ending: Promise<void> | undefined;
  readonly #pool: ChannelPool;
  #tracedStop = STOP_RUN;
  #resolveDone!: () => void;
  #rejectDone!: (error: MultifdError) => void;
  /** Waiters for the reason of a stop, and sleepers. */
  readonly #reasonWaiters = new Set<() => void>();
  readonly #sleepers = new Set<() => void>();
  readonly #stopWaiters = new Set<() => void>();
  readonly #counters: Float64Array[];
  readonly #keepAlive: NodeJS.Timeout;
  readonly #signal: AbortSignal | undefined;
  readonly #opened = performance.now();
  #elapsed: number | undefined;
  #watchers = 0;

  protected constructor(
    threads: ChannelThreads,
    control: Control,
    pageSize: number,
    signal: AbortSignal | undefined,
  ) {
    this.control = control;
    this.pageSize = pageSize;
    this.#counters = Array.from({ length: control.channels }, (_, id) => control.stats(id));
    this.done = new Promise<void>((resolve, reject) => {
      this.#resolveDone = resolve;
      this.#rejectDone = reject;
    });
    this.done.catch(() => {});
    this.#pool = new ChannelPool(control, threads, {
      failed: (error, first) => (first ? this.#settle(error) : void this.#later.push(error)),
      broke: (error) => this.fail(error),
    });
    control.trace = wantsThreadTrace();
    // Keeps the process alive while something is waited for (Atomics.waitAsync does not), and follows subscriptions.
    this.#keepAlive = setInterval(() => {
      control.trace = wantsThreadTrace();
    }, WATCH_MS);
    this.#signal = signal;
    signal?.addEventListener('abort', this.#onAbort, { once: true });
  }

  /** The first error, once it is known. */
  get error(): MultifdError | undefined {
    return this.#error;
  }

  /** @internal Those of RAM blocks that are in files. */
  files = new BlockFiles();

  // ---- for the two ends ----

  /** Trace points of this side. */
  protected abstract readonly terminatePoint: TracePoint;
  protected readonly errorPoint: TracePoint | undefined = undefined;
  /** Frees what the side itself holds (listener, descriptors), after the workers are gone. */
  protected abstract release(): Promise<void> | void;

  /**
   * Starts a channel's task. The outcome comes back when the channel has ended.
   *
   * @param transfer what of it goes to the thread for good
   */
  protected runChannel(id: number, task: object, transfer: readonly MessagePort[] = []): void {
    this.#pool.start(id, task, transfer);
  }

  /** Ends the session with an error, if it is the first. */
  protected fail(error: MultifdError): void {
    if (this.#elapsed !== undefined) return;
    if (!this.control.claimFirstError(-1)) {
      this.#later.push(error);
      // Whoever was first may have died before it could say so.
      void this.#stop(STOP_FAIL);
      return;
    }
    this.#settle(error);
  }

  #settle(error: MultifdError): void {
    if (this.#error === undefined) {
      this.#error = error;
      if (this.errorPoint !== undefined) {
        trace(this.errorPoint, () => ({ id: error.channel, code: error.code, message: error.message }));
      }
      this.#wakeAll();
    }
    void this.#stop(STOP_FAIL);
  }

  /**
   * For what was thrown inside a call that had begun. What it leaves behind is half done (pages that count as queued, a
   * slot half filled), so that the session ends with it: its first error, or else a consequence of that.
   */
  protected async broken(thrown: unknown, code: ErrorCode, what: string): Promise<never> {
    if (this.control.stopped === STOP_RUN) this.fail(MultifdError.wrap(thrown, code, what));
    // An end lets nothing begin any more: what it refuses is a call that came late.
    else if (this.control.stopped === STOP_END && thrown instanceof MultifdError) throw thrown;
    await this.#reason();
    if (this.#error !== undefined) throw this.#error;
    if (thrown instanceof MultifdError && thrown.code === 'ERR_MULTIFD_CLOSED') throw thrown;
    throw new MultifdError('ERR_MULTIFD_CLOSED', 'the session was closed', { cause: thrown });
  }

  /** @internal What happened beside the channels ends the session; resolves when nothing is left of it. */
  async abandon(error: MultifdError): Promise<void> {
    this.fail(error);
    await this.close();
  }

  /** @internal Waits for something beside the channels, but not beyond the session's stop: then throws. */
  async orStopped<T>(wait: Promise<T>): Promise<T> {
    wait.catch(() => {});
    if (this.control.stopped === STOP_RUN) {
      let wake!: () => void;
      const stopped = new Promise<undefined>((resolve) => {
        wake = (): void => resolve(undefined);
        this.#stopWaiters.add(wake);
      });
      try {
        const first = await Promise.race([wait.then((value) => ({ value })), stopped]);
        if (first !== undefined && this.control.stopped === STOP_RUN) return first.value;
      } catch (error) {
        // What breaks because the session has failed is not the reason.
        if (this.control.stopped === STOP_RUN) throw error;
      } finally {
        this.#stopWaiters.delete(wake);
      }
    }
    await this.check();
    throw new MultifdError('ERR_MULTIFD_CLOSED', 'the session was closed');
  }

  /** @internal */
  get pageBytes(): number {
    return this.pageSize;
  }

  /**
   * At the beginning of every call: is the session still there for it? What was called in time and is overtaken by
   * close() gets ERR_MULTIFD_CLOSED from check() instead.
   */
  protected requireOpen(): void {
    if (this.#error !== undefined) throw this.#error;
    if (this.#ended || this.#elapsed !== undefined) {
      throw new MultifdError('ERR_MULTIFD_STATE', 'the session has ended: received a call, expected none');
    }
  }

  /** Throws if the session has failed or is closed; waits for the reason if it is still on its way. */
  protected async check(): Promise<void> {
    if (this.control.stopped === STOP_RUN) return;
    if (this.control.stopped === STOP_END && this.#error === undefined) {
      throw new MultifdError('ERR_MULTIFD_STATE', 'the session is ending: received a call, expected none');
    }
    await this.#reason();
    throw this.#error ?? new MultifdError('ERR_MULTIFD_CLOSED', 'the session was closed');
  }

  /** Until the reason of the stop is known: a channel's message, or the end of all channels. */
  async #reason(): Promise<void> {
    if (this.#error !== undefined || this.#elapsed !== undefined) return;
    await new Promise<void>((resolve) => {
      this.#reasonWaiters.add(resolve);
      void this.#stopping?.then(resolve);
    });
  }

  #wakeAll(): void {
    for (const wake of this.#stopWaiters) wake();
    for (const wake of this.#reasonWaiters) wake();
    this.#reasonWaiters.clear();
    this.wakeSleepers();
  }

  /**
   * Until `condition` holds, looking again whenever a channel posts READY; throws when the session stops.
   *
   * @param spin looks before sleeping
   * @returns whether it slept, so that the event loop has turned
   */
  protected async until(condition: () => boolean, spin = 0): Promise<boolean> {
    for (let slept = false; ;) {
      const seen = this.control.readyCount;
      // STOP first: what a condition looks at may be true because all has ended.
      if (this.control.stopped !== STOP_RUN) await this.check();
      if (condition()) return slept;
      const wait = this.control.waitReady(seen, spin);
      if (wait === undefined) continue;
      await wait;
      slept = true;
    }
  }

  /** Sleeps, but not beyond the session's stop. */
  protected async sleep(ms: number): Promise<void> {
    await new Promise<void>((resolve) => {
      const wake = (): void => {
        clearTimeout(timer);
        this.#sleepers.delete(wake);
        resolve();
      };
      const timer = setTimeout(wake, ms);
      this.#sleepers.add(wake);
    });
  }

  /** Ends what sleep() waits for; for a bandwidth that was raised. */
  protected wakeSleepers(): void {
    for (const wake of [...this.#sleepers]) wake();
  }

  /** Bytes on the wire so far, all channels together. */
  protected wireBytes(): number {
    let bytes = 0;
    for (const counters of this.#counters) bytes += counters[STAT_BYTES];
    return bytes;
  }

  /** Orderly: every channel ends by itself, then nothing is left. Throws the first error if there is one. */
  protected async endOrderly(): Promise<void> {
    await this.check();
    this.#ended = true;
    await this.#stop(STOP_END);
    if (this.#error !== undefined) throw this.#error;
    if (this.#closed) throw new MultifdError('ERR_MULTIFD_CLOSED', 'the session was closed before its end');
  }

  #stop(level: number): Promise<void> {
    this.control.stop(level);
    const traced = this.#tracedStop;
    // The word itself may have been raised by a channel.
    this.#tracedStop = Math.max(traced, level);
    if (traced < level) trace(this.terminatePoint, () => ({ level, error: this.#error?.message }));
    this.#stopping ??= this.#teardown();
    return this.#stopping;
  }

  async #teardown(): Promise<void> {
    const all = this.#pool.ended();
    await this.joined(all);
    await this.#pool.destroy();
    await all;
    this.control.stop(STOP_FAIL);
    await this.release();
    await this.files.close();
    this.#signal?.removeEventListener('abort', this.#onAbort);
    clearInterval(this.#keepAlive);
    this.#elapsed = performance.now() - this.#opened;
    // A channel that claimed the first error and died before it could say so leaves the later ones.
    this.#error ??= this.#later.shift();
    this.#error?.suppressed.push(...this.#later);
    this.#wakeAll();
    this.control.postProgress();
    if (this.#error === undefined) this.#resolveDone();
    else this.#rejectDone(this.#error);
  }

  /** Waits for the tasks: as long as they need at an orderly end, else at most JOIN_MS. */
  private async joined(all: Promise<unknown>): Promise<void> {
    let timer: NodeJS.Timeout | undefined;
    let over = false;
    void all.then(() => {
      over = true;
      this.#wakeAll();
    });
    while (!over && this.control.stopped < STOP_FAIL) await this.sleep(WATCH_MS);
    if (over) return;
    const late = new Promise<void>((resolve) => {
      timer = setTimeout(resolve, JOIN_MS);
    });
    await Promise.race([all, late]);
    clearTimeout(timer);
  }

  readonly #onAbort = (): void => {
    const reason: unknown = this.#signal?.reason;
    this.fail(
      new MultifdError('ERR_MULTIFD_ABORTED', `aborted: ${describeThrown(reason)}`, { cause: reason }),
    );
  };

  /** An AbortSignal that has fired already. */
  protected checkAborted(): void {
    if (this.#signal?.aborted === true) this.#onAbort();
  }

  // ---- for embedders ----

  /**
   * Ends the session at once, whatever is under way: pending calls reject with ERR_MULTIFD_CLOSED. Resolves when no
   * thread, socket, timer or descriptor is left; never rejects. After end() it does nothing.
   */
  async close(): Promise<void> {
    if (this.#elapsed === undefined && this.#error === undefined) this.#closed = true;
    const stopped = this.#stop(STOP_FAIL);
    this.#wakeAll();
    await stopped;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  /** Counters so far, in total and for each channel; also after the end. */
  stats(): Stats {
    return sumStats(this.#counters, this.pageSize, this.#elapsed ?? performance.now() - this.#opened);
  }

  /**
   * Stats as the channels push them: at most one item each `intervalMs` (default 200), none while nothing moves, one
   * last item at the end, whatever the end was (`done` has the error). Costs nothing before it is iterated.
   */
  async *progress(options?: { intervalMs?: number } | null): AsyncGenerator<Stats, void, undefined> {
    checkKeys(options ?? {}, ['intervalMs']);
    const intervalMs = options?.intervalMs ?? 200;
    if (!Number.isInteger(intervalMs) || intervalMs < 1 || intervalMs > 2 ** 31 - 1) {
      throw new MultifdError(
        'ERR_MULTIFD_OPTION',
        `option intervalMs: given ${intervalMs}, allowed an integer from 1 to ${2 ** 31 - 1}`,
      );
    }
    const { control } = this;
    let last = -Infinity;
    this.#watchers++;
    control.progressMs = control.progressMs === 0 ? intervalMs : Math.min(control.progressMs, intervalMs);
    try {
      let seen = control.progressCount - 1;
      while (this.#elapsed === undefined) {
        const count = control.progressCount;
        if (count === seen) {
          const wait = control.waitProgress(count);
          if (wait !== undefined) await wait;
          continue;
        }
        const early = last + intervalMs - performance.now();
        if (early > 0) {
          await this.sleep(early);
          continue;
        }
        seen = count;
        last = performance.now();
        yield this.stats();
      }
      yield this.stats();
    } finally {
      if (--this.#watchers === 0) control.progressMs = 0;
    }
  }

  /** end(), however often it is called: after a failure or close() it gives that, or nothing. */
  protected endOnce(how: () => Promise<void>): Promise<void> {
    if (this.#ending === undefined) {
      this.#ending = this.#elapsed === undefined ? how() : this.done;
      this.#ending.catch(() => {});
    }
    return this.#ending;
  }
}
