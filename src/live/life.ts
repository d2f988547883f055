/**
 * The life of one end of a live migration, the same for both: its state, the first error, and the one moment that decides.
 *
 *     enter(state) ...     as it goes on; each is told to onState()
 *     decide()             the one moment: from here on nothing fails
 *     fail(error)          before it, from anywhere: the first one counts, and every orFailed() rejects with it
 *     end(state, ...)      nothing is left; `done` settles
 *
 * What breaks, or is cancelled, is told here at once and by whoever sees it; what follows from it (connections, threads, the
 * guest) is for whoever waits, as the rejection reaches him.
 */
import { MultifdError, describeThrown } from '../errors.js';
import { callHook } from '../migration/options.js';
import { inTime } from './late-hook.js';

export type OnState<S> = (state: S) => void;

export class Life<S extends string, R> {
  /** It may be left alone: it never causes an unhandled rejection. */
  readonly done: Promise<R>;
  /** Fires with the first error, for what takes a signal. */
  readonly stop = new AbortController();
  readonly #onState: OnState<S> | undefined;
  #state: S;
  #error: MultifdError | undefined;
  #isCancelled = false;
  #isDecided = false;
  #isOver = false;
  /** The hook that is under way, and its name. */
  #hook: Promise<unknown> = Promise.resolve();
  #hookName = '';
  #resolve!: (result: R) => void;
  #reject!: (error: MultifdError) => void;
  /** Of those who wait, and not longer: a promise of the whole life would keep a trace of every wait. */
  readonly #failing = new Set<() => void>();
  readonly #waiters = new Set<() => void>();

  constructor(first: S, onState: OnState<S> | undefined) {
    this.#state = first;
    this.#onState = onState;
    this.done = new Promise((resolve, reject) => {
      this.#resolve = resolve;
      this.#reject = reject;
    });
    this.done.catch(() => {});
  }

  get state(): S {
    return this.#state;
  }

  /** The first one. */
  get error(): MultifdError | undefined {
    return this.#error;
  }

  /** Was it ended by its owner, and not by what broke? */
  get isCancelled(): boolean {
    return this.#isCancelled;
  }

  get isDecided(): boolean {
    return this.#isDecided;
  }

  get isOver(): boolean {
    return this.#isOver;
  }

  /** @throws MultifdError ERR_MULTIFD_HOOK */
  enter(state: S): void {
    if (state === this.#state) return;
    this.#state = state;
    this.#wake();
    callHook('onState', () => this.#onState?.(state));
  }

  /** For a state that nothing can be done about any more: what onState() throws is kept with the error, if there is one. */
  enterAnyway(state: S): void {
    try {
      this.enter(state);
    } catch (error) {
      this.suppress(error);
    }
  }

  /** A hook that fails each time is told once. */
  suppress(thrown: unknown): void {
    const error = MultifdError.wrap(thrown, 'ERR_MULTIFD_HOOK', 'onState');
    const told = this.#error === undefined ? [] : [this.#error, ...this.#error.suppressed];
    if (told.some(({ code, message }) => code === error.code && message === error.message)) return;
    this.#error?.suppressed.push(error);
  }

  /** @returns whether it is the first, and nothing was decided */
  fail(error: MultifdError, isCancelled = false): boolean {
    if (this.#isDecided || this.#error !== undefined) return false;
    this.#error = error;
    this.#isCancelled = isCancelled;
    for (const wake of this.#failing) wake();
    this.stop.abort(error);
    return true;
  }

  /** By its owner. @returns as fail() */
  cancel(): boolean {
    const message = 'cancel() was called while the migration was under way';
    return this.fail(new MultifdError('ERR_MULTIFD_CLOSED', message), true);
  }

  /** @returns an AbortSignal's listener's remover */
  follow(signal: AbortSignal | undefined): () => void {
    const aborted = (): void => {
      const reason: unknown = signal?.reason;
      const message = `aborted: ${describeThrown(reason)}`;
      this.fail(new MultifdError('ERR_MULTIFD_ABORTED', message, { cause: reason }), true);
    };
    if (signal?.aborted === true) aborted();
    signal?.addEventListener('abort', aborted, { once: true });
    return () => signal?.removeEventListener('abort', aborted);
  }

  /** All is well, whatever is told later; an error that has come before is forgotten. */
  decide(): void {
    this.#isDecided = true;
    this.#error = undefined;
  }

  /** `wait`, but not beyond the first error: then throws that. */
  async orFailed<T>(wait: Promise<T>): Promise<T> {
    wait.catch(() => {});
    if (this.#error !== undefined) throw this.#error;
    let wake!: () => void;
    const failed = new Promise<undefined>((resolve) => (wake = () => resolve(undefined)));
    this.#failing.add(wake);
    try {
      const first = await Promise.race([wait.then((value) => ({ value })), failed]);
      if (first !== undefined && this.#error === undefined) return first.value;
    } catch (error) {
      // What breaks because all has failed is not the reason.
      if (this.#error === undefined) throw error;
    } finally {
      this.#failing.delete(wake);
    }
    throw this.#error ?? new MultifdError('ERR_MULTIFD_CLOSED', 'the migration has ended');
  }

  /** As orFailed(), of a hook: where that throws, the hook may be under way still. */
  async duringHook<T>(name: string, hook: Promise<T>): Promise<T> {
    this.#hook = hook.catch(() => {});
    this.#hookName = name;
    return this.orFailed(hook);
  }

  /**
   * Until no hook is under way, but not longer than `ms`: what ends a migration must not wait for ever for what may be the reason
   * that it is ended.
   *
   * @param late called when one that was not waited for comes to its end after all
   */
  async hookOver(ms: number, late: (name: string) => void = () => {}): Promise<void> {
    const hook = this.#hook;
    const name = this.#hookName;
    try {
      await inTime(name, hook, ms);
    } catch (error) {
      this.suppress(error);
      void hook.then(() => late(name));
    }
  }

  end(result: R): void {
    this.#isOver = true;
    this.#wake();
    this.#resolve(result);
  }

  endFailed(error: MultifdError): void {
    this.#isOver = true;
    this.#wake();
    this.#reject(error);
  }

  /** Until the state changes, or the end, or `ms` have passed. */
  async changed(ms: number): Promise<void> {
    if (this.#isOver) return;
    await new Promise<void>((resolve) => {
      const wake = (): void => {
        clearTimeout(timer);
        this.#waiters.delete(wake);
        resolve();
      };
      const timer = setTimeout(wake, ms);
      this.#waiters.add(wake);
    });
  }

  #wake(): void {
    for (const wake of [...this.#waiters]) wake();
  }
}
