/**
 * One run: both processes are told what to do, a pass-on with its faults lies between them, and what they come to is written down.
 *
 *     source process --> pass-on (here) --> destination process
 *           \__________ IPC ____/ \____ IPC ______/
 */
import fs from 'node:fs';
import path from 'node:path';
import { PassOn } from '../transport/pass-on.js';
import { Dice } from './dice.js';
import { EngineFault } from './engine-fault.js';
import { isMild, type EnginePlan, type FaultKind, type SideName } from './engine-plan.js';
import { judge, type RunFacts, type SideReport } from './judge.js';
import { OUT_FILE } from './live-way.js';
import type { Digests, FromSide, LeftBehind, Outcome } from './messages.js';
import type { MemoryWatch } from './memory-watch.js';
import { SideNotStarted, type SideProcess } from './side-process.js';
import type { StressTls } from './throw-away-tls.js';

/** Without a fault: threads of eight channels start on a slow machine, and 12 MiB go through a slow codec. */
const WHOLE_RUN_MS = 60_000;
/** Above the time-outs that are due: threads end, the error travels, a busy machine. */
const SLACK_MS = 5000;
/** A session's end that hears nothing of the other's failure from its connections is told by the main stream. */
const TELL_MS = 300;
const LEFT_MS = 10_000;
/** Of the limit: one that is late is told from one that never comes. */
const LATE = 1.5;

export interface RunReport extends RunFacts {
  wrong: string[];
  /** Why the fault could not be. */
  leftOut: string | undefined;
  /** Bytes that the source has sent. */
  bytes: number;
  seconds: number;
  folder: string;
  /** Have both processes started? */
  hasBegun: boolean;
  /** Which runs have to be played again to see it: the first, and how many. */
  repeat: { run: number; runs: number };
}

interface Ended {
  outcome: Outcome | undefined;
  at: number;
}

export class EngineRun {
  readonly #plan: EnginePlan;
  readonly #folder: string;
  readonly #memory: MemoryWatch;
  readonly #sides: Record<SideName, SideProcess>;
  readonly #ended: Record<SideName, Deferred<Ended>> = { source: deferred(), destination: deferred() };
  readonly #left: Record<SideName, Deferred<LeftBehind | undefined>> = {
    source: deferred(),
    destination: deferred(),
  };
  readonly #died: Partial<Record<SideName, string>> = {};
  readonly #listening = deferred<PassOn['address'] | undefined>();
  readonly #fault: EngineFault;
  readonly #answers = new Map<number, (hit: boolean) => void>();
  #nextStrike = 0;
  #reached: Digests | undefined;
  #resumedAt: number | undefined;
  #tell: NodeJS.Timeout | undefined;

  /** @param memory of all runs */
  constructor(plan: EnginePlan, folder: string, sides: Record<SideName, SideProcess>, memory: MemoryWatch) {
    this.#memory = memory;
    this.#plan = plan;
    this.#folder = folder;
    this.#sides = sides;
    const dice = new Dice(plan.seed ^ 0xfa17, plan.run);
    const ask = (side: SideName, what: 'thread' | 'abort' | 'cancel'): Promise<boolean> =>
      this.#ask(side, what);
    this.#fault = new EngineFault(plan.fault, dice, { ...sides, ask }, (text) => this.#log(text));
  }

  async run(tls: StressTls | undefined, cancelled: AbortSignal): Promise<RunReport> {
    const { source, destination } = this.#sides;
    const started = performance.now();
    fs.writeFileSync(path.join(this.#folder, 'plan.json'), `${JSON.stringify(this.#plan, undefined, 2)}\n`);
    let passOn: PassOn | undefined;
    const stop = (): void => {
      for (const side of ['source', 'destination'] as const)
        this.#ended[side].resolve({ outcome: undefined, at: 0 });
      this.#listening.resolve(undefined);
    };
    cancelled.addEventListener('abort', stop, { once: true });
    try {
      // Before they start: one that dies meanwhile is one that has died.
      for (const side of [source, destination]) {
        side.events = {
          said: (message) => this.#onSaid(side.name, message),
          died: (how) => this.#onDied(side.name, how),
        };
      }
      const notStarted = await this.#start();
      if (notStarted.length > 0) {
        cancelled.throwIfAborted();
        const facts = await this.#facts({}, this.#limitMs);
        return await this.#reported(facts, notStarted, { bytes: 0, started, hasBegun: false });
      }
      for (const side of [source, destination]) {
        side.runs++;
        const [plan, folder] = [this.#plan, this.#folder];
        side.send({ type: 'begin', side: side.name, plan, folder, tls: tls?.[side.name] });
      }
      const to = await within(this.#listening.promise, WHOLE_RUN_MS);
      let connectedAt: number | undefined;
      if (to !== undefined) {
        passOn = await this.#passOn(to);
        this.#fault.begin(passOn);
        connectedAt = performance.now();
        source.send({ type: 'connect', to: passOn.address });
      }
      const limitMs = this.#limitMs;
      const ended = await this.#bothEnded(limitMs);
      this.#fault.end();
      cancelled.throwIfAborted();
      const { source: first } = ended;
      const movedMs = first && connectedAt !== undefined ? first.at - connectedAt : undefined;
      const facts = { ...(await this.#facts(ended, limitMs)), movedMs };
      const bytes = ended.source?.outcome?.bytes ?? passOn?.bytes ?? 0;
      return await this.#reported(facts, judge(facts), { bytes, started, hasBegun: true });
    } finally {
      cancelled.removeEventListener('abort', stop);
      this.#fault.end();
      await passOn?.close();
      source.events = destination.events = undefined;
    }
  }

  /** @returns what is wrong with those that did not */
  async #start(): Promise<string[]> {
    const wrong: string[] = [];
    const start = async (side: SideProcess): Promise<void> => {
      try {
        await side.ready();
      } catch (thrown) {
        if (!(thrown instanceof SideNotStarted)) throw thrown;
        wrong.push(`the ${side.name}'s process did not start: ${thrown.message}`);
      }
    };
    await Promise.all(Object.values(this.#sides).map(start));
    return wrong;
  }

  async #reported(
    facts: RunFacts,
    wrong: string[],
    { bytes, started, hasBegun }: { bytes: number; started: number; hasBegun: boolean },
  ): Promise<RunReport> {
    const report: RunReport = {
      ...facts,
      wrong,
      leftOut: this.#fault.leftOut,
      bytes,
      seconds: (performance.now() - started) / 1000,
      folder: this.#folder,
      hasBegun,
      repeat: { run: this.#plan.run, runs: 1 },
    };
    const grown = this.#memory.look(report, this.#sides);
    wrong.push(...grown.wrong);
    // Of a process's last run alone nothing would be seen.
    if (grown.runs > 1) report.repeat = { run: this.#plan.run - grown.runs + 1, runs: grown.runs };
    if (wrong.length > 0) await this.#keepEvidence(report);
    return report;
  }

  /** From the fault on: what is due by the options, and what a machine may take. */
  get #limitMs(): number {
    return this.#plan.stallTimeoutMs + this.#plan.connectTimeoutMs + SLACK_MS;
  }

  async #passOn(to: PassOn['address']): Promise<PassOn> {
    const listen = this.#plan.unix
      ? { path: path.join(this.#folder, 'out.sock') }
      : { host: '127.0.0.1', port: 0 };
    return PassOn.listen(listen, to, {
      connection: (connection) => this.#fault.connection(connection),
      bytes: () => this.#fault.look(),
    });
  }

  /** Both, or what has come when their time is up; one that is stopped goes on when the other has said its last. */
  async #bothEnded(limitMs: number): Promise<Partial<Record<SideName, Ended>>> {
    const ended: Partial<Record<SideName, Ended>> = {};
    const one = async (side: SideName, other: SideName): Promise<void> => {
      const result = await this.#inTime(this.#ended[side].promise, limitMs);
      if (result === undefined) return;
      ended[side] = result;
      if (this.#plan.fault?.kind === 'stop') {
        this.#resumedAt = performance.now();
        this.#fault.sideEnded();
      }
      if (this.#plan.way === 'session' && result.outcome?.completed !== true)
        this.#tell ??= setTimeout(() => this.#sides[other].send({ type: 'peer-gone' }), TELL_MS);
    };
    await Promise.all([one('source', 'destination'), one('destination', 'source')]);
    // Not in the next run.
    clearTimeout(this.#tell);
    return ended;
  }

  /** Counted from the fault, or the stopped side's going on; without one, for a whole run. */
  async #inTime<T>(promise: Promise<T>, limitMs: number): Promise<T | undefined> {
    const began = performance.now();
    for (;;) {
      const since = Math.max(this.#fault.struckAt ?? 0, this.#resumedAt ?? 0);
      const isFatal = this.#fault.struckAt !== undefined && !isMild(this.#plan.fault?.kind);
      const until = isFatal ? since + limitMs * LATE : began + WHOLE_RUN_MS;
      const left = until - performance.now();
      if (left <= 0) return undefined;
      const result = await within(promise, Math.min(left, 200));
      if (result !== undefined) return result;
    }
  }

  async #facts(ended: Partial<Record<SideName, Ended>>, limitMs: number): Promise<RunFacts> {
    const sides = {} as Record<SideName, SideReport>;
    const { struckAt } = this.#fault;
    for (const side of ['source', 'destination'] as const) {
      const { outcome, at } = ended[side] ?? { outcome: undefined, at: 0 };
      const wasStopped = this.#plan.fault?.kind === 'stop' && this.#plan.fault.side === side;
      const from = wasStopped ? (this.#resumedAt ?? struckAt) : struckAt;
      const counts = outcome?.completed === false && from !== undefined && at > from;
      const left = outcome === undefined ? undefined : await within(this.#left[side].promise, LEFT_MS);
      sides[side] = { outcome, died: this.#died[side], tookMs: counts ? at - from : undefined, left };
    }
    const struck: FaultKind | undefined = struckAt === undefined ? undefined : this.#plan.fault?.kind;
    return {
      plan: this.#plan,
      struck,
      sides,
      reached: this.#reached,
      files: this.#strayFiles(sides),
      waitedMs: struck === undefined || isMild(struck) ? WHOLE_RUN_MS : limitMs * LATE,
      limitMs,
    };
  }

  /** What the two have left in the folder: a killed one cannot have tidied up. */
  #strayFiles(sides: Record<SideName, SideReport>): string[] {
    const temporary = Object.values(this.#sides).flatMap((side) => side.takeTemporary());
    if (this.#plan.fault?.kind === 'kill' && Object.values(this.#died).length > 0) return [];
    const expected = ['plan.json', 'source.log', 'destination.log', 'out.sock', 'run.log'];
    if (sides.destination.outcome?.completed === true && this.#plan.way === 'file') expected.push(OUT_FILE);
    const files = fs.readdirSync(this.#folder).filter((name) => !expected.includes(name));
    return [...files, ...temporary];
  }

  async #keepEvidence({ wrong, sides, struck }: RunReport): Promise<void> {
    this.#log(`struck: ${struck ?? 'nothing'}`);
    for (const text of wrong) this.#log(`wrong: ${text}`);
    fs.writeFileSync(path.join(this.#folder, 'sides.json'), `${JSON.stringify(sides, undefined, 2)}\n`);
    for (const side of Object.values(this.#sides)) {
      fs.writeFileSync(path.join(this.#folder, `${side.name}.stderr`), side.stderr);
      // What it is in now is not to spoil the next run.
      side.signal('SIGKILL');
      await side.end();
    }
  }

  #onSaid(side: SideName, message: FromSide): void {
    switch (message.type) {
      case 'listening':
        this.#listening.resolve(message.address);
        return;
      case 'reached':
        this.#reached = message.digests;
        return;
      case 'peer':
        this.#sides[side === 'source' ? 'destination' : 'source'].send({ type: 'peer', said: message.said });
        return;
      case 'struck':
        this.#answers.get(message.id)?.(message.hit);
        return;
      case 'outcome':
        this.#log(
          `${side}: ${message.outcome.completed ? 'completed' : `${message.outcome.code}: ${message.outcome.message}`}`,
        );
        this.#ended[side].resolve({ outcome: message.outcome, at: performance.now() });
        // One that fails before it listens.
        if (side === 'destination') this.#listening.resolve(undefined);
        return;
      case 'left':
        this.#left[side].resolve(message.left);
    }
  }

  #onDied(side: SideName, how: string): void {
    this.#died[side] = how;
    this.#log(`${side}: ${how}`);
    this.#ended[side].resolve({ outcome: undefined, at: performance.now() });
    this.#left[side].resolve(undefined);
    if (side === 'destination') this.#listening.resolve(undefined);
    for (const answer of this.#answers.values()) answer(false);
  }

  #ask(side: SideName, what: 'thread' | 'abort' | 'cancel'): Promise<boolean> {
    const id = this.#nextStrike++;
    return new Promise((resolve) => {
      this.#answers.set(id, resolve);
      this.#sides[side].send({ type: 'strike', id, what });
    });
  }

  #log(text: string): void {
    try {
      fs.appendFileSync(path.join(this.#folder, 'run.log'), `${performance.now().toFixed(1)} ${text}\n`);
    } catch {
      // A disk that is full is told by what has to be written, and not out of a callback.
    }
  }
}

interface Deferred<T> {
  promise: Promise<T>;
  resolve: (value: T) => void;
}

function deferred<T>(): Deferred<T> {
  let resolve!: (value: T) => void;
  const promise = new Promise<T>((done) => (resolve = done));
  return { promise, resolve };
}

/** Undefined if it takes longer. */
async function within<T>(promise: Promise<T>, ms: number): Promise<T | undefined> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<undefined>((resolve) => (timer = setTimeout(() => resolve(undefined), ms)));
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}
