/**
 * Runs three threads one step at a time, in an order drawn from a seed: the calling thread (0) and two channels (1, 2). It is
 * `Atomics` in the code under test (bundle.ts), and nothing else of that code is changed.
 *
 *     thread 0   op | op            | op ...          a step: one operation on a word of the session's control memory,
 *     thread 1          op | op op  |                 or one event (a wake-up, an immediate, a write that the kernel took)
 *     thread 2                 ...
 *
 * The threads are real ones; the one that has the turn runs, the others are asleep in Atomics.wait(). Before each step it draws
 * who has the turn next. No timer ever fires, so that what only a time limit would end is a sleep for ever, and told as one.
 *
 * Plain accesses to the shared memory are not steps: between two operations of one thread nobody else runs. JavaScript gives
 * Atomics one order for all, and what the code writes plainly is published by them, so that nothing is lost by that as long as
 * each side's plain accesses are to what it owns; that they are is what canaries and the slots' owners are for.
 *
 * `steps` is where the threads meet; whoever has the turn alone writes to it.
 */
import { parentPort, receiveMessageOnPort, type MessagePort } from 'node:worker_threads';
import {
  CHANNEL_PENDING_JOB,
  CHANNEL_PENDING_SYNC,
  CHANNEL_SEM,
  CHANNEL_SLOT,
  CHANNEL_STATE,
  CHANNEL_SYNC_DONE,
  CHANNEL_SYNC_RELEASED,
  Layout,
  SLOT_LENGTH,
  SLOT_NUM,
  WORD_READY,
  WORD_STOP,
  type Shape,
} from '../../../src/shared/layout.js';

export const CHANNELS = 2;
const THREADS = CHANNELS + 1;

// ---- where the threads meet ----

const RANDOM = 0;
const STEPS = 1;
/** Of 256: how often the turn is given up. */
const RESTLESS = 2;
const TRACED = 3;
const SEED = 4;
const WAITER_IDS = 5;
/** RUNNABLE or IDLE, a word a thread. */
const STATUS = 16;
/** Mails that wait, a word a thread. */
const MAILS = 32;
/** Who has the turn sleeps on a word of its own, a line a thread. */
const GO = 64;
const WAITERS = GO + THREADS * 16;
const WAITER_WORDS = 4;
const MAX_WAITERS = 32;
/** Of the run in hand, by whoever checks it. */
export const NOTES = WAITERS + MAX_WAITERS * WAITER_WORDS;
export const NOTE_COUNT = 256;
const TRACE = NOTES + NOTE_COUNT;
const TRACE_EVENTS = 2 ** 15;
export const STEP_WORDS = TRACE + TRACE_EVENTS;

const RUNNABLE = 0;
const IDLE = 1;

/** More than any run that ends has; a loop that does not sleep comes to it. */
const MAX_STEPS = 20_000;

// ---- notes ----

/** The slot that each channel holds; who holds each slot (0: the calling thread). */
const NOTE_HELD = NOTES;
const NOTE_OWNER = NOTES + 8;
/** Jobs that were published to each channel; those before its last sync; those that are written. */
const NOTE_PUBLISHED = NOTES + 16;
const NOTE_NEEDED = NOTES + 20;
export const NOTE_WRITTEN = NOTES + 24;
/** Which write breaks its channel, or gets stuck; 0 none. Writes so far. */
export const NOTE_BREAKS = NOTES + 28;
export const NOTE_STUCK = NOTES + 29;
export const NOTE_WRITES = NOTES + 30;
/** 0 sending, 1 receiving */
export const NOTE_SIDE = NOTES + 31;
/** What each channel has written: a count, and numbers of jobs, those of syncs below 0. */
export const NOTE_LOG = NOTES + 32;
export const LOG_LENGTH = 100;

// ---- a trace: one word an event, as in words.pml ----

export const OPS = ['load', 'store', 'add', 'swap', 'notify', 'wait'] as const;
type Op = 0 | 1 | 2 | 3 | 4 | 5;
const LOAD = 0;
const STORE = 1;
const ADD = 2;
const SWAP = 3;
const NOTIFY = 4;
const WAIT = 5;
/** Index in an event; a channel's word is followed by the other's. */
export const TRACED_WORDS = [
  '',
  'READY',
  'STOP',
  'SEM[0]',
  'SEM[1]',
  'PENDING_JOB[0]',
  'PENDING_JOB[1]',
  'PENDING_SYNC[0]',
  'PENDING_SYNC[1]',
  'SYNC_DONE[0]',
  'SYNC_DONE[1]',
  'SYNC_RELEASED[0]',
  'SYNC_RELEASED[1]',
  'STATE[0]',
  'STATE[1]',
];
/** Counters are compared modulo 16. */
const COUNT_MASK = 15;

export function describeEvent(event: number): string {
  const who = ['calling thread', 'channel 0', 'channel 1'][event & 3];
  const op = OPS[(event >> 2) & 7];
  const value = event >> 10;
  const said =
    op === 'notify' ? '' : op === 'wait' ? (value === 1 ? ': asleep' : ': changed already') : ` ${value}`;
  return `${who}: ${op} ${TRACED_WORDS[(event >> 5) & 31]}${said}`;
}

function xorshift(seed: number): number {
  let x = seed;
  x ^= x << 13;
  x ^= x >>> 17;
  x ^= x << 5;
  return x;
}

export interface StepperFailure {
  seed: number;
  message: string;
  /** What led to it, the last at the end. */
  events: number[];
}

export class Stepper {
  /** The code under test's. */
  readonly Atomics: Pick<
    typeof Atomics,
    'load' | 'store' | 'add' | 'or' | 'and' | 'exchange' | 'compareExchange' | 'notify'
  > & { waitAsync: (words: Int32Array, index: number, value: number) => unknown };
  readonly notes: Int32Array;
  readonly thread: number;
  /** In place of the code's own timers: none fires. */
  readonly timers = {
    never: (): unknown => ({ refresh() {}, unref() {} }),
    clear: (): void => {},
    later: (event: () => void): void => this.later(event),
  };
  /** What a receive channel reads; of the run in hand. */
  stream: Uint8Array | undefined;
  /** On thread 0: of all channels. */
  streams: Uint8Array[] = [];
  /** What comes from other threads. */
  onMail: (mail: unknown) => void = () => {};
  readonly #words: Int32Array;
  /** To the other threads, by their numbers. */
  readonly #ports: readonly (MessagePort | undefined)[];
  readonly #later: (() => void)[] = [];
  readonly #waiters = new Map<number, () => void>();
  #control: ArrayBufferLike | undefined;
  #layout: Layout | undefined;
  /** Of each word of the control memory its number in a trace. */
  #traced = new Uint8Array();
  #jobWord = [0, 0];
  #syncWord = [0, 0];

  constructor(words: SharedArrayBuffer, thread: number, ports: readonly (MessagePort | undefined)[]) {
    this.#words = this.notes = new Int32Array(words);
    this.thread = thread;
    this.#ports = ports;
    this.Atomics = this.#makeAtomics();
  }

  /** The run's control memory: what is done to it, and to nothing else, is a step. */
  watch(control: SharedArrayBuffer, shape: Shape): void {
    this.#control = control;
    if (this.#layout !== undefined) return;
    const layout = (this.#layout = new Layout(shape));
    this.#traced = new Uint8Array(control.byteLength / 4);
    this.#traced[WORD_READY] = 1;
    this.#traced[WORD_STOP] = 2;
    const words = [
      CHANNEL_SEM,
      CHANNEL_PENDING_JOB,
      CHANNEL_PENDING_SYNC,
      CHANNEL_SYNC_DONE,
      CHANNEL_SYNC_RELEASED,
      CHANNEL_STATE,
    ];
    for (const [i, word] of words.entries()) {
      for (let id = 0; id < CHANNELS; id++) this.#traced[layout.channel(id) + word] = 3 + CHANNELS * i + id;
    }
    for (let id = 0; id < CHANNELS; id++) {
      this.#jobWord[id] = layout.channel(id) + CHANNEL_PENDING_JOB;
      this.#syncWord[id] = layout.channel(id) + CHANNEL_PENDING_SYNC;
    }
  }

  // ---- runs, on thread 0 ----

  begin(seed: number): void {
    const words = this.#words;
    words[SEED] = seed;
    // Neighbours among the seeds must not begin alike.
    let random = (Math.imul(seed + 1, 0x9e3779b1) | 1) >>> 0;
    for (let i = 0; i < 4; i++) random = xorshift(random);
    words[RANDOM] = random;
    words[RESTLESS] = [20, 60, 120, 250][this.#draw(4)];
    words[STEPS] = 0;
    words[TRACED] = 0;
    words.fill(0, NOTES, NOTES + NOTE_COUNT);
    for (let id = 0; id < CHANNELS; id++) {
      words[NOTE_HELD + id] = id;
      words[NOTE_OWNER + id] = id + 1;
    }
  }

  /** Until the other threads have nothing to do any more; then nobody of the run may be asleep. */
  async finish(): Promise<void> {
    while (this.#hasEvent() || this.#othersRun()) await this.turn();
    const words = this.#words;
    for (let i = 0; i < MAX_WAITERS; i++) {
      const at = WAITERS + i * WAITER_WORDS;
      if (words[at] !== 0)
        this.fail(`thread ${words[at + 1]} is asleep at the end, on ${this.#name(words[at] - 1)}`);
    }
  }

  #othersRun(): boolean {
    for (let other = 1; other < THREADS; other++) {
      if (this.#words[STATUS + other] === RUNNABLE || this.#words[MAILS + other] > 0) return true;
    }
    return false;
  }

  get steps(): number {
    return this.#words[STEPS];
  }

  /** The run's, a copy. */
  trace(): Int32Array {
    return this.#words.slice(TRACE, TRACE + this.#words[TRACED]);
  }

  /** Ends the runs: this thread goes on no more, and so nobody does. */
  fail(message: string): never {
    const failure: StepperFailure = {
      seed: this.#words[SEED],
      message,
      events: [...this.trace()],
    };
    parentPort?.postMessage({ failure });
    for (;;) Atomics.wait(this.#words, GO + this.thread * 16 + 1, 0);
  }

  // ---- events ----

  /** 0 to `limit - 1`, from the run's seed. */
  draw(limit: number): number {
    return this.#draw(limit);
  }

  /** Milliseconds that grow with the steps. */
  now(): number {
    return this.#words[STEPS] / 16;
  }

  /** `event` is a step of its own, at any time. */
  later(event: () => void): void {
    this.#later.push(event);
  }

  /** Any other event may come before. */
  turn(): Promise<void> {
    return new Promise((resolve) => this.later(resolve));
  }

  mail(to: number, mail: unknown): void {
    this.#ports[to]?.postMessage(mail);
    this.#words[MAILS + to]++;
    this.#words[STATUS + to] = RUNNABLE;
  }

  /** Until this thread has the turn for the first time. */
  enter(): void {
    this.#sleep();
  }

  /** Runs the thread's events, one after the other and each to its end, for good. */
  async run(): Promise<never> {
    for (;;) {
      // Behind all that can go on without an event.
      await new Promise((resolve) => setImmediate(resolve));
      this.#nextEvent()();
    }
  }

  #nextEvent(): () => void {
    const words = this.#words;
    for (;;) {
      if (this.#hasEvent()) {
        // Another thread's step may come first.
        this.#step();
        const woken: number[] = [];
        for (let i = 0; i < MAX_WAITERS; i++) {
          const at = WAITERS + i * WAITER_WORDS;
          if (words[at] !== 0 && words[at + 1] === this.thread && words[at + 3] === 1) woken.push(at);
        }
        const mails = words[MAILS + this.thread] > 0 ? 1 : 0;
        const chosen = this.#draw(woken.length + this.#later.length + mails);
        if (chosen < woken.length) return this.#wake(woken[chosen]);
        if (chosen < woken.length + this.#later.length)
          return this.#later.splice(chosen - woken.length, 1)[0];
        return this.#open();
      }
      words[STATUS + this.thread] = IDLE;
      const next = this.#choose();
      if (next < 0) this.fail(`asleep for ever: ${this.#sleepers()}`);
      this.#give(next);
    }
  }

  #hasEvent(): boolean {
    const words = this.#words;
    if (this.#later.length > 0 || words[MAILS + this.thread] > 0) return true;
    for (let i = 0; i < MAX_WAITERS; i++) {
      const at = WAITERS + i * WAITER_WORDS;
      if (words[at] !== 0 && words[at + 1] === this.thread && words[at + 3] === 1) return true;
    }
    return false;
  }

  #wake(at: number): () => void {
    const words = this.#words;
    const id = words[at + 2];
    words[at] = 0;
    const wake = this.#waiters.get(id) as () => void;
    this.#waiters.delete(id);
    return wake;
  }

  #open(): () => void {
    this.#words[MAILS + this.thread]--;
    for (const port of this.#ports) {
      const received = port && receiveMessageOnPort(port);
      if (received !== undefined) return () => this.onMail(received.message);
    }
    return this.fail('a mail that is not there');
  }

  #sleepers(): string {
    const words = this.#words;
    const said: string[] = [];
    for (let i = 0; i < MAX_WAITERS; i++) {
      const at = WAITERS + i * WAITER_WORDS;
      if (words[at] !== 0) said.push(`thread ${words[at + 1]} on ${this.#name(words[at] - 1)}`);
    }
    return said.length === 0 ? 'nobody on a word' : said.join(', ');
  }

  #name(index: number): string {
    return TRACED_WORDS[this.#traced[index]] || `word ${index}`;
  }

  // ---- steps ----

  #draw(limit: number): number {
    const words = this.#words;
    words[RANDOM] = xorshift(words[RANDOM]);
    return Math.floor(((words[RANDOM] >>> 0) / 2 ** 32) * limit);
  }

  /** Who has the turn now; -1 if nobody can go on. */
  #choose(): number {
    const words = this.#words;
    const runs = words[STATUS + this.thread] === RUNNABLE;
    if (runs && this.#draw(256) >= words[RESTLESS]) return this.thread;
    const able: number[] = [];
    for (let thread = 0; thread < THREADS; thread++)
      if (words[STATUS + thread] === RUNNABLE) able.push(thread);
    return able.length === 0 ? -1 : able[this.#draw(able.length)];
  }

  #step(): void {
    if (++this.#words[STEPS] > MAX_STEPS) this.fail(`no end after ${MAX_STEPS} steps`);
    const next = this.#choose();
    if (next !== this.thread) this.#give(next);
  }

  /** Gives the turn away, and waits for it. */
  #give(to: number): void {
    if (to === this.thread) return;
    const go = GO + to * 16;
    Atomics.store(this.#words, go, 1);
    Atomics.notify(this.#words, go);
    this.#sleep();
  }

  #sleep(): void {
    const go = GO + this.thread * 16;
    while (Atomics.exchange(this.#words, go, 0) === 0) Atomics.wait(this.#words, go, 0);
  }

  #note(op: Op, index: number, value: number): void {
    const words = this.#words;
    const word = this.#traced[index];
    if (word === 0 || words[TRACED] >= TRACE_EVENTS) return;
    words[TRACE + words[TRACED]++] = this.thread | (op << 2) | (word << 5) | ((value & COUNT_MASK) << 10);
  }

  /** Is it a step to touch it? */
  #isWatched(words: { buffer: ArrayBufferLike }): boolean {
    return words.buffer === this.#control;
  }

  #makeAtomics(): Stepper['Atomics'] {
    const real = globalThis.Atomics;
    type Words = Int32Array;
    const exchange =
      (op: Op, name: 'store' | 'exchange' | 'or' | 'and') =>
      (words: Words, index: number, value: number): number => {
        if (!this.#isWatched(words)) return real[name](words, index, value);
        this.#step();
        this.#note(op, index, value);
        if (op === STORE) this.#stored(words, index, value);
        return real[name](words, index, value);
      };
    const atomics = {
      load: (words: Words, index: number): number => {
        if (!this.#isWatched(words)) return real.load(words, index);
        this.#step();
        const value = real.load(words, index);
        this.#note(LOAD, index, value);
        return value;
      },
      store: exchange(STORE, 'store'),
      exchange: exchange(SWAP, 'exchange'),
      or: exchange(SWAP, 'or'),
      and: exchange(SWAP, 'and'),
      add: (words: Words, index: number, value: number): number => {
        if (!this.#isWatched(words)) return real.add(words, index, value);
        this.#step();
        const before = real.add(words, index, value);
        this.#note(ADD, index, before);
        this.#added(words, index);
        return before;
      },
      compareExchange: (words: Words, index: number, expected: number, value: number): number => {
        if (!this.#isWatched(words)) return real.compareExchange(words, index, expected, value);
        this.#step();
        const before = real.compareExchange(words, index, expected, value);
        this.#note(SWAP, index, real.load(words, index));
        return before;
      },
      notify: (words: Words, index: number): number => {
        if (!this.#isWatched(words)) return 0;
        this.#step();
        this.#note(NOTIFY, index, 0);
        return this.#notify(index);
      },
      waitAsync: (words: Words, index: number, value: number): unknown => {
        if (!this.#isWatched(words)) return this.fail('a wait on a word that nobody watches');
        this.#step();
        const asleep = real.load(words, index) === value;
        this.#note(WAIT, index, asleep ? 1 : 0);
        if (!asleep) return { async: false, value: 'not-equal' };
        return { async: true, value: this.#wait(index) };
      },
    };
    return atomics as unknown as Stepper['Atomics'];
  }

  #wait(index: number): Promise<string> {
    const words = this.#words;
    for (let i = 0; i < MAX_WAITERS; i++) {
      const at = WAITERS + i * WAITER_WORDS;
      if (words[at] !== 0) continue;
      const id = ++words[WAITER_IDS];
      words.set([index + 1, this.thread, id, 0], at);
      return new Promise((resolve) => this.#waiters.set(id, () => resolve('ok')));
    }
    return this.fail('too many waits');
  }

  #notify(index: number): number {
    const words = this.#words;
    let woken = 0;
    for (let i = 0; i < MAX_WAITERS; i++) {
      const at = WAITERS + i * WAITER_WORDS;
      if (words[at] !== index + 1 || words[at + 3] === 1) continue;
      words[at + 3] = 1;
      words[STATUS + words[at + 1]] = RUNNABLE;
      woken++;
    }
    return woken;
  }

  // ---- properties that hold at each step ----

  #stored(words: Int32Array, index: number, value: number): void {
    const id = this.#jobWord.indexOf(index);
    if (this.notes[NOTE_SIDE] === 1) {
      if (id >= 0 && value === 1) this.#offered(words, id);
      return;
    }
    if (id >= 0 && value === 1) this.#published(words, id);
    const syncId = this.#syncWord.indexOf(index);
    if (syncId >= 0 && value === 1) this.notes[NOTE_NEEDED + syncId] = this.notes[NOTE_PUBLISHED + syncId];
  }

  /** The slots of the channel and of the client have been swapped: each has one owner, before and after. */
  #published(words: Int32Array, id: number): void {
    const layout = this.#layout as Layout;
    const { notes } = this;
    const slot = words[layout.channel(id) + CHANNEL_SLOT];
    const before = notes[NOTE_HELD + id];
    if (words[this.#jobWord[id]] !== 0) this.fail(`a job for channel ${id}, which has one`);
    if (notes[NOTE_OWNER + slot] !== 0) {
      this.fail(`slot ${slot} given to channel ${id}, and owned by channel ${notes[NOTE_OWNER + slot] - 1}`);
    }
    notes[NOTE_OWNER + slot] = id + 1;
    notes[NOTE_OWNER + before] = 0;
    notes[NOTE_HELD + id] = slot;
    const at = layout.slot(slot);
    const count = words[at + SLOT_NUM] + (words[at + SLOT_LENGTH] > 0 ? 1 : 0);
    if (count === 0) this.fail(`slot ${slot} given to channel ${id} with nothing in it`);
    notes[NOTE_PUBLISHED + id] += count;
  }

  #offered(words: Int32Array, id: number): void {
    const at = (this.#layout as Layout).channel(id);
    if (words[at + CHANNEL_PENDING_JOB] !== 0) this.fail(`channel ${id} filled a slot that it had offered`);
    if (words[at + CHANNEL_SYNC_DONE] !== words[at + CHANNEL_SYNC_RELEASED])
      this.fail(`channel ${id} went on behind a SYNC before it was released`);
  }

  #added(words: Int32Array, index: number): void {
    const layout = this.#layout as Layout;
    for (let id = 0; id < CHANNELS; id++) {
      const at = layout.channel(id);
      if (index === at + CHANNEL_SYNC_DONE && this.notes[NOTE_SIDE] === 0) {
        const written = this.notes[NOTE_WRITTEN + id];
        const needed = this.notes[NOTE_NEEDED + id];
        if (written < needed) this.fail(`a sync of channel ${id} overtook ${needed - written} jobs`);
      }
      if (index === at + CHANNEL_SYNC_RELEASED) {
        for (let other = 0; other < CHANNELS; other++) {
          const base = layout.channel(other);
          if (words[base + CHANNEL_SYNC_DONE] < words[index])
            this.fail(`channel ${id} was released before channel ${other} had its SYNC`);
        }
      }
    }
  }
}
