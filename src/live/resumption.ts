/**
 * What a source that may be carried on (option resumable) knows of the pages beside which of them are dirty: when each was last
 * sent. It outlives its tries, each of which is a source of its own: createMigrationSource({ resumeFrom }).
 *
 *     round  1 (all) 2 3 4 x     5 6 7 ...        counted on through all tries; x: the connections break in round 4
 *                          |     |
 *                          |     +-- the destination says: completed 3, and of round 4 these have come
 *                          +-- last[page] = 4 for those that round 4 had queued; what it had not is pending still
 *
 *     sent in round 5: pages with last > 3, but for those of round 4 that have come
 *                      pages that are pending: taken from the guest's log (all of them, at first), and not sent yet
 *                      pages that the guest has dirtied since
 *
 * A page is pending from the moment that its bit is taken until the round that sends it has gone out, so that no bit is lost
 * with a round that breaks; and it is noted under a round before the first byte of it may go out. So for the destination that has
 * said so it holds: a page that is not pending, and was last queued in a round that is whole there, is there as it was when its
 * bit was taken. What it lacks is made pending when it says so, before it is sent START; from then on it may say that all
 * rounds up to then are whole. Each round is of one destination alone: it holds as well where tries go to several.
 *
 * That a page has come while its round was not whole yet makes it pending no longer, as long as what is pending is that very
 * round: behind it, bits were taken that are newer.
 *
 * Four bytes a page, on the calling thread.
 */
import { setImmediate as yieldToLoop } from 'node:timers/promises';
import { MultifdError, receivedExpected } from '../errors.js';
import { wrong } from '../option-checks.js';
import { quote, refusal } from '../stream/codes.js';
import {
  decodeResumePages,
  encodeResumeSection,
  randomKey,
  type ResumeAnswer,
} from '../stream/resume-section.js';
import type { Answer } from '../migration/answer.js';
import { withLimit } from '../migration/limits.js';
import type { DirtyPages, DirtyRange } from './dirty-pages.js';
import type { CheckedSource } from './source-options.js';

/** Pages between two turns of the event loop: about a millisecond. */
const TURN_PAGES = 2 ** 19;

/** Why it may not be carried on. */
export const WHY_NOT = {
  completed: 'the guest runs at the destination',
  asked: 'the destination had been sent all, and may have started the guest: only whoever sees it can tell',
  lost: 'dirty pages may have been lost: option dirty has failed',
} as const;

export class Resumption {
  readonly #token = randomKey();
  readonly #machine: string;
  readonly #pageSize: number;
  readonly #blocks: readonly { name: string; size: number }[];
  /** Of each block, by page: the last round that has queued it; 0: none. */
  readonly #last: readonly Uint32Array[];
  readonly #index: ReadonlyMap<string, number>;
  #tries = 0;
  /** Begun. */
  #rounds = 0;
  /** The round that is being sent, so that what is pending is what it sends; else 0. */
  #sending = 0;
  /** All pages have once been pending. */
  #hasAll = false;
  #isAnswered = false;
  /** Of the last try: with what it had taken and not sent. */
  #dirty: DirtyPages | undefined;
  /** Of each block: pages of the destination's unfinished round that have come, as it tells them. */
  #arrived: readonly Uint32Array[] = [];
  /** One after the other: one may go on when its try has failed already. */
  #reconciling: Promise<void> = Promise.resolve();

  constructor({ machine, pageSize, blocks }: CheckedSource) {
    this.#machine = machine;
    this.#pageSize = pageSize;
    this.#blocks = blocks.map(({ name, size }) => ({ name, size }));
    this.#index = new Map(blocks.map(({ name }, index) => [name, index]));
    this.#last = blocks.map(({ pageCount }) => new Uint32Array(pageCount));
  }

  /**
   * Is it the same VM?
   *
   * @throws MultifdError ERR_MULTIFD_OPTION
   */
  requireSame({ machine, pageSize, blocks }: CheckedSource): void {
    const bad = (what: string, given: unknown, before: unknown): MultifdError =>
      wrong(what, given, `${String(before)}, as in the source that is carried on (option resumeFrom)`);
    if (machine !== this.#machine) throw bad('machine', machine, this.#machine);
    if (pageSize !== this.#pageSize) throw bad('pageSize', pageSize, this.#pageSize);
    const [now, before] = [blocks, this.#blocks].map(describe);
    if (now !== before) throw bad('blocks', now, before);
  }

  // ---- with the destination ----

  /** A new try: what it asks the destination. */
  ask(): Buffer {
    this.#tries++;
    this.#isAnswered = false;
    this.#arrived = this.#last.map((last) => new Uint32Array(Math.ceil(last.length / 32)));
    return encodeResumeSection({ token: this.#token, attempt: this.#tries, rounds: this.#rounds });
  }

  /**
   * Before the answer: pages that have come.
   *
   * @throws MultifdError ERR_MULTIFD_PROTOCOL
   */
  takePages(data: Buffer): void {
    const { block, firstWord, words } = decodeResumePages(data);
    const arrived = this.#arrived[this.#index.get(block) ?? -1] as Uint32Array | undefined;
    const room = (arrived?.length ?? 0) - firstWord;
    if (arrived === undefined || words.length > room) {
      const what = `the destination's pages of RAM block ${quote(block)}: words from ${firstWord} on`;
      throw refusal(
        'returnPath',
        what,
        words.length,
        arrived === undefined ? 'no such block' : `at most ${room}`,
      );
    }
    arrived.set(words, firstWord);
  }

  /**
   * The destination's answer. @returns the key for the channels
   *
   * @throws MultifdError ERR_MULTIFD_TIMEOUT, ERR_MULTIFD_PROTOCOL, what `answer` broke with
   */
  async answered(answer: Answer, timeoutMs: number): Promise<Buffer> {
    const silent = answer.shut.then((status) => {
      throw new MultifdError(
        'ERR_MULTIFD_STREAM',
        receivedExpected("the destination's SHUT", status, 'none'),
      );
    });
    silent.catch(() => {});
    const first = Promise.race<ResumeAnswer>([answer.resumed, silent]);
    const late = `the destination has not said within ${timeoutMs} ms what it has`;
    const { completed, key } = await withLimit(first, timeoutMs, 'ERR_MULTIFD_TIMEOUT', late);
    if (completed > this.#rounds) {
      const what = "the destination's last round that is whole";
      throw refusal('returnPath', what, completed, `at most ${this.#rounds}`);
    }
    this.#isAnswered = true;
    const turn = this.#reconciling.then(() => this.#reconcile(completed));
    this.#reconciling = turn;
    await turn;
    return key;
  }

  /** Who does not know the option closes the connection, and says why, if at all, in its own log. */
  explain(error: MultifdError): MultifdError {
    if (this.#isAnswered || error.code === 'ERR_MULTIFD_CONNECT') return error;
    const who =
      'option resumable: only createMigrationDestination({ resumable: true }) can be carried on, no QEMU, no relay and no file, ' +
      'and none that waits for another source';
    return error.reworded(`${error.message}; ${who}`);
  }

  // ---- with the rounds ----

  /** Those of a new try, before it takes any of the guest's. */
  follow(dirty: DirtyPages): void {
    if (this.#dirty !== undefined) dirty.adopt(this.#dirty);
    this.#dirty = dirty;
  }

  /** What is to be sent at first, beside what is pending. */
  async begin(dirty: DirtyPages): Promise<void> {
    if (!this.#hasAll) dirty.setAll();
    this.#hasAll = true;
    await dirty.recount();
  }

  /** What the destination has not becomes pending, and what it has does not stay so. */
  async #reconcile(completed: number): Promise<void> {
    const sending = this.#sending;
    const arrived = this.#arrived;
    const dirty = this.#dirty;
    this.#sending = 0;
    if (dirty === undefined) return;
    for (const [index, last] of this.#last.entries()) {
      for (let page = 0; page < last.length; page++) {
        if ((page + 1) % TURN_PAGES === 0) await yieldToLoop();
        const round = last[page];
        if (round <= completed) continue;
        const isHere = round === completed + 1 && (arrived[index][page >>> 5] & (1 << (page & 31))) !== 0;
        if (!isHere) dirty.add(index, page);
        else if (round === sending) dirty.remove(index, page);
      }
    }
  }

  /** The next round begins, and will send all that is pending. */
  roundBegins(): void {
    this.#sending = ++this.#rounds;
  }

  /** It has gone out, and nothing is pending. */
  roundEnds(): void {
    this.#sending = 0;
  }

  /** Before any of it goes out. */
  queued({ block, offset, length }: DirtyRange): void {
    const first = offset / this.#pageSize;
    const last = this.#last[this.#index.get(block) as number];
    last.fill(this.#rounds, first, first + length / this.#pageSize);
  }

  /** Has option dirty failed, so that what it had to say may be lost? */
  get isWhole(): boolean {
    return this.#dirty?.isWhole !== false;
  }
}

function describe(blocks: readonly { name: string; size: number }[]): string {
  return blocks.map(({ name, size }) => `${name} of ${size}`).join(', ');
}
