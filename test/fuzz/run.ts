/**
 * Runs a fuzzer: first what its corpus holds, then inputs that are made of its seeds, batch by batch. A fault is
 *
 *     thrown    anything but a MultifdError, also in an event's handler where nobody can catch it
 *     late      a promise that does not settle
 *     buffers   more bytes of Buffers than the fuzzer's `most`
 *     found     a Fault: what the fuzzer looks for itself (a write outside of a block, a file under its final name)
 *     time      above limits.cpuMs of processor time      npm run fuzz alone: clocks differ from day to day
 *     memory    the process has grown by more than limits.growthBytes     likewise
 *
 * It comes back as small as it gets: fast-check leaves out edits, minimise.ts bytes.
 */
import { existsSync, readFileSync, readdirSync } from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import fc from 'fast-check';
import { MultifdError } from '../../src/index.js';
import { within } from '../support/within.js';
import { Fault, type Fuzzer, type Target } from './contract.js';
import { EDITS, applyEdits, type Edits, type Stock } from './edits.js';
import { BufferMeter, cpuMs, peakBytes } from './measure.js';
import { minimise } from './minimise.js';

export const CORPUS = fileURLToPath(new URL('../../../test/fuzz/corpus/', import.meta.url));
const MAX_BYTES = 2 ** 17;
const SETTLES_MS = 20_000;

export interface Limits {
  cpuMs?: number;
  growthBytes?: number;
}

export interface Failure {
  input: Buffer;
  why: string;
  /** Of the corpus. */
  file?: string;
}

export class FuzzRun {
  /** Inputs so far, and those of them that were refused. */
  inputs = 0;
  refused = 0;
  /** Is told of each input before it is run. */
  onInput: ((input: Buffer) => void) | undefined;
  readonly #fuzzer: Fuzzer;
  readonly #limits: Limits;
  readonly #stock: Stock;
  readonly #target: Target;
  readonly #meter = new BufferMeter();
  /** What was thrown where nobody could catch it. */
  #stray: ((thrown: unknown) => void) | undefined;

  private constructor(fuzzer: Fuzzer, limits: Limits, stock: Stock, target: Target) {
    this.#fuzzer = fuzzer;
    this.#limits = limits;
    this.#stock = stock;
    this.#target = target;
  }

  static async open(fuzzer: Fuzzer, limits: Limits = {}): Promise<FuzzRun> {
    const { words = [], maxBytes = MAX_BYTES } = fuzzer;
    const stock = { seeds: await fuzzer.seeds(), words, maxBytes };
    return new FuzzRun(fuzzer, limits, stock, await fuzzer.open());
  }

  async close(): Promise<void> {
    await this.#target.close?.();
  }

  /** The seeds themselves, most of which are sound: a fuzzer none of whose seeds is taken gets nowhere. */
  async seeds(): Promise<Failure | undefined> {
    const before = this.refused;
    let input = Buffer.alloc(0);
    for (const seed of this.#stock.seeds) {
      input = Buffer.concat(seed.map(({ bytes }) => bytes));
      const why = await this.try(input);
      if (why !== undefined) return { input, why };
    }
    return this.refused - before < this.#stock.seeds.length
      ? undefined
      : { input, why: 'found: no seed is taken' };
  }

  async corpus(folder = CORPUS): Promise<Failure | undefined> {
    const own = path.join(folder, this.#fuzzer.name);
    if (!existsSync(own)) return undefined;
    for (const name of readdirSync(own).sort()) {
      const file = path.join(own, name);
      const input = readFileSync(file);
      const why = await this.try(input);
      if (why !== undefined) return { input, why, file };
    }
    return undefined;
  }

  /** So many inputs, which follow from the seed; `until` may end it sooner. */
  async batch(seed: number, runs: number, until?: number): Promise<Failure | undefined> {
    let last: { input: Buffer; why: string } | undefined;
    let pending: Promise<string | undefined> | undefined;
    const property = fc.asyncProperty(EDITS, async (edits: Edits) => {
      const input = applyEdits(edits, this.#stock);
      pending = this.try(input);
      const why = await pending;
      if (why === undefined) return;
      last = { input, why };
      throw new Error(why);
    });
    const end = until === undefined ? {} : { interruptAfterTimeLimit: Math.max(1, until - Date.now()) };
    await fc.check(property, { seed, numRuns: runs, ...end });
    // One that was under way when the time was over is left behind by check().
    await pending;
    if (last === undefined) return undefined;
    const { input, why } = last;
    const [kind] = why.split(':');
    const small = await minimise(
      input,
      async (candidate) => (await this.try(candidate))?.startsWith(kind) === true,
    );
    return { input: small, why: (await this.try(small)) ?? why };
  }

  /** @returns what is wrong with it; undefined if it was taken or refused */
  async try(input: Buffer): Promise<string | undefined> {
    const { most } = this.#fuzzer;
    this.inputs++;
    this.onInput?.(input);
    // What a parser does to its input is nobody else's.
    const own = Buffer.from(input);
    const cpu = this.#limits.cpuMs === undefined ? 0 : cpuMs();
    const peak = this.#limits.growthBytes === undefined ? 0 : peakBytes();
    let why: string | undefined;
    this.#meter.begin();
    try {
      const running = this.#target.run(own);
      if (running !== undefined) await this.#settled(running);
    } catch (thrown) {
      if (thrown instanceof MultifdError) this.refused++;
      else if (thrown instanceof Fault) why = `found: ${thrown.message}`;
      else why = `thrown: ${thrown instanceof Error ? (thrown.stack ?? thrown.message) : String(thrown)}`;
    } finally {
      this.#meter.end();
    }
    const allowed = most.bytes + most.perByte * input.length;
    if (this.#meter.bytes > allowed) {
      why ??= `buffers: received ${input.length} bytes, made Buffers of ${this.#meter.bytes}, expected at most ${allowed}`;
    }
    const { cpuMs: mostCpu, growthBytes } = this.#limits;
    if (mostCpu !== undefined && cpuMs() - cpu > mostCpu) {
      why ??= `time: ${Math.round(cpuMs() - cpu)} ms of processor time, expected at most ${mostCpu}`;
    }
    if (growthBytes !== undefined && peakBytes() - peak > growthBytes) {
      why ??= `memory: ${peakBytes() - peak} bytes more, expected at most ${growthBytes}`;
    }
    return why;
  }

  /** For who catches what nobody catches. @returns whether a run was under way, whose fault it is then */
  takeStray(thrown: unknown): boolean {
    this.#stray?.(thrown);
    return this.#stray !== undefined;
  }

  async #settled(running: Promise<void>): Promise<void> {
    const stray = new Promise<never>((_, reject) => {
      this.#stray = (thrown) => {
        reject(
          thrown instanceof Error
            ? new Error(`nobody caught it: ${thrown.stack}`)
            : new Error(String(thrown)),
        );
      };
    });
    try {
      await within(Promise.race([running, stray]), SETTLES_MS, 'a run');
    } finally {
      this.#stray = undefined;
    }
  }
}
