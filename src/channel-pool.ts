/**
 * The threads of a session's channels, on the calling thread: made one after the other, one task each, ended with it.
 *
 *     new ChannelThreads()   the first of them start, before there is a session where it has to read something first
 *     new ChannelPool()      they are the session's, which ends them
 *
 * A thread's start is 30 ms and more of its own, so that it is worth to be beside what else there is to do.
 */
import diagnostics from 'node:diagnostics_channel';
import type { MessagePort } from 'node:worker_threads';
import { Piscina } from 'piscina';
import type { ChannelOutcome, ChannelThread } from './channel-thread.js';
import { MultifdError } from './errors.js';
import { makeAddonGate, shutAddonGate } from './native/addon-gate.js';
import { koffiThreads } from './native/koffi-threads.js';
import type { Compression } from './options.js';
import { threadOptions } from './runtime.js';
import { STOP_RUN, makeBooted, type Control } from './shared/control.js';
import { isTraceMessage } from './trace.js';

/**
 * Threads that load their modules at the same time. All at once, 255 of them would keep the calling thread from its
 * event loop for seconds.
 */
const MAX_BOOTING = 4;

export interface ChannelPoolEvents {
  /** A channel's own error; `first` if it claimed to be the session's first. */
  failed(error: MultifdError, first: boolean): void;
  /** A thread died, or the pool failed. */
  broke(error: MultifdError): void;
}

export class ChannelThreads {
  /** @internal */
  readonly pool: Piscina;
  /** For Control.create(). */
  readonly booted: SharedArrayBuffer;
  readonly #gate = makeAddonGate();

  /**
   * @param booted of a Control that there is already
   * @throws MultifdError ERR_MULTIFD_RUNTIME
   */
  constructor(
    thread: 'send-channel' | 'recv-channel',
    channels: number,
    compression: Compression,
    booted = makeBooted(),
  ) {
    this.booted = booted;
    this.pool = new Piscina({
      ...threadOptions(thread, compression),
      name: 'default',
      // The first ones at once, for who has something to wait for; see ChannelPool's #mayStart() for the others.
      minThreads: Math.min(channels, MAX_BOOTING),
      maxThreads: channels,
      // The workers' event loops must turn between tasks: they own sockets.
      atomics: 'disabled',
      concurrentTasksPerWorker: 1,
      // Workers are the session's and end with it.
      idleTimeout: Infinity,
      // Little lives long in a channel's thread; without this its young generation grows by 15 MiB over many GiB.
      resourceLimits: { maxYoungGenerationSizeMb: 3 },
      workerData: { booted, compression, ...this.#gate, ...koffiThreads() } satisfies ChannelThread,
    });
    // Until a session listens.
    this.pool.on('error', () => {});
  }

  /** Ends them, whatever they do but the start of an addon. Once they are a session's that is the session's to do. */
  async destroy(): Promise<void> {
    await shutAddonGate(this.#gate);
    await this.pool.destroy();
  }
}

export class ChannelPool {
  readonly #control: Control;
  readonly #events: ChannelPoolEvents;
  readonly #threads: ChannelThreads;
  readonly #pool: Piscina;
  readonly #tasks: Promise<void>[] = [];
  /** Channels get their threads one after the other. */
  #starting: Promise<void> = Promise.resolve();
  #started = 0;
  #gone = false;

  constructor(control: Control, threads: ChannelThreads, events: ChannelPoolEvents) {
    this.#control = control;
    this.#events = events;
    this.#threads = threads;
    this.#pool = threads.pool;
    this.#pool.on('message', (message: unknown) => {
      if (isTraceMessage(message)) diagnostics.channel(message.multifd).publish(message.data);
    });
    this.#pool.on('error', (error) =>
      events.broke(MultifdError.wrap(error, 'ERR_MULTIFD_WORKER', 'channel thread')),
    );
  }

  /**
   * Starts a channel's task. The outcome comes back when the channel has ended.
   *
   * @param transfer what of it goes to the thread for good
   */
  start(id: number, task: object, transfer: readonly MessagePort[]): void {
    const turn = this.#starting.then(() => this.#mayStart());
    this.#starting = turn.then(() => {});
    this.#tasks.push(turn.then((may) => (may ? this.#run(id, task, transfer) : undefined)));
  }

  /** Settles when every task that was started has ended. */
  async ended(): Promise<void> {
    await Promise.allSettled(this.#tasks);
  }

  /** Ends the threads, whatever they do. */
  async destroy(): Promise<void> {
    this.#gone = true;
    await this.#threads.destroy();
  }

  /** Is there a thread, or may one be made? False if the session stops before that. */
  async #mayStart(): Promise<boolean> {
    const control = this.#control;
    for (;;) {
      const booted = control.bootedCount;
      if (control.stopped !== STOP_RUN) return false;
      const threads = this.#pool.threads.length;
      if (this.#started < threads || threads - booted < MAX_BOOTING) {
        this.#started++;
        return true;
      }
      await control.waitBooted(booted);
    }
  }

  async #run(id: number, task: object, transfer: readonly MessagePort[]): Promise<void> {
    try {
      const result = (await this.#pool.run(task, { transferList: [...transfer] })) as
        ChannelOutcome | ChannelOutcome[];
      for (const { error: plain, first } of Array.isArray(result) ? result : [result]) {
        if (plain === undefined) continue;
        const error = MultifdError.fromPlain(plain);
        this.#events.failed(error, first === true);
      }
    } catch (thrown) {
      // The pool rejects every task that is left when it goes.
      if (this.#gone) return;
      this.#events.broke(MultifdError.wrap(thrown, 'ERR_MULTIFD_WORKER', `the thread of channel ${id} died`));
    }
  }
}
