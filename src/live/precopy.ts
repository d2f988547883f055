/**
 * Precopy: all pages, then again and again those that the guest has dirtied meanwhile, each round one PART section, until
 * what is left fits the downtime that is allowed (convergence.ts).
 *
 *     collect(); all pages count                                    the guest's log begins here
 *     PART, pages, SYNC, marker --> collect() --> does it fit? --> pre-switchover, where it is wanted --> collect() --> out
 *               ^                                    |  no                                                  | no more
 *               +------------------------------------+<-----------------------------------------------------+
 *
 * A round is over when the destination says that it has all of it in place: a PING behind the marker, and its PONG.
 *
 * A guest without dirty tracking has all its pages queued in each round, and what was dirtied is what a round has sent: it is
 * known when the round is over, so that none is ever known to be the last but by how long it took.
 *
 * With option resumable what counts at first is what the destination has not (resumption.ts).
 *
 * While pre-switchover waits the guest runs and dirties pages, and nothing is sent: what has grown beyond the limit meanwhile
 * is sent in further rounds, after which nothing is waited for. Without dirty tracking that takes one at least.
 */
import { MultifdError, receivedExpected } from '../errors.js';
import { Convergence, type SentRound } from './convergence.js';
import { DirtyPages, type PendingPages } from './dirty-pages.js';
import { EveryPage } from './every-page.js';
import type { SourceSession } from './source-session.js';

export class Precopy {
  readonly #source: SourceSession;
  readonly #convergence: Convergence;
  readonly dirty: PendingPages;
  /** The same, where they are known. */
  readonly #tracked: DirtyPages | undefined;
  /** What the last round has sent, and the one before it. */
  #last: SentRound = { pageBytes: 0, normalBytes: 0, ms: Infinity };
  #before = this.#last;

  constructor(source: SourceSession) {
    this.#source = source;
    const { blocks, pageSize, given, maxRounds } = source.options;
    this.#convergence = new Convergence(maxRounds);
    const tracked = given.dirty === undefined ? undefined : new DirtyPages(blocks, pageSize, given.dirty);
    if (tracked !== undefined) source.resumption?.follow(tracked);
    this.#tracked = tracked;
    this.dirty = tracked ?? new EveryPage(blocks);
  }

  /** Until the guest may be stopped. */
  async run(): Promise<void> {
    const { life, figures, options, builder } = this.#source;
    let { waits } = options;
    await this.collect();
    const { resumption } = this.#source;
    if (resumption === undefined || this.#tracked === undefined) this.dirty.setAll();
    else await resumption.begin(this.#tracked);
    for (;;) {
      life.enter('active');
      this.#before = this.#last;
      this.#last = await this.send(() => builder.part(), true);
      this.#convergence.sent(this.#last);
      let isEnough = await this.#isEnough();
      if (isEnough && waits) {
        waits = false;
        figures.remaining = this.#remaining;
        await this.#source.released();
        isEnough = await this.#isEnough(false);
      }
      if (isEnough) return;
    }
  }

  /** Takes the guest's dirty pages. @returns how many are new, in bytes, as far as that is known */
  async collect(): Promise<number> {
    const { figures, options } = this.#source;
    const before = this.dirty.count;
    await this.#source.during('dirty', this.dirty.collect());
    const dirtied = this.dirty.count - before;
    // Of a guest that stands still there is no rate, nor of what it did in the moment before.
    const isTold = this.#convergence.rounds > 0 && !this.#source.paused && this.dirty.areKnown;
    figures.synced(isTold ? dirtied : undefined);
    return dirtied * options.pageSize;
  }

  /** Bytes of the pages that are dirty; where nobody knows, as many as there were when it was found out last. */
  get #remaining(): number {
    const { options } = this.#source;
    if (this.dirty.areKnown || this.#convergence.rounds === 0) return this.dirty.count * options.pageSize;
    return this.#last.pageBytes;
  }

  /**
   * All that is pending.
   *
   * @param head makes that of its last section, which mostly is the only one
   * @param isRound the guest runs
   * @returns what has been sent
   */
  async send(head: () => Buffer, isRound: boolean): Promise<SentRound> {
    const { figures, sender, builder, resumption } = this.#source;
    resumption?.roundBegins();
    // Noted before the first byte of it goes out.
    if (resumption !== undefined) for (const run of this.#tracked?.runs() ?? []) resumption.queued(run);
    figures.roundBegins(this.#remaining / this.#source.options.pageSize);
    const sections = [...this.dirty.sections()];
    for (const [index, queue] of sections.entries()) {
      const isLast = index === sections.length - 1;
      await this.#source.write(isLast ? head() : builder.part());
      await queue(sender);
      await (isLast && isRound ? this.#source.endRound() : this.#source.endSection());
    }
    this.dirty.clear();
    resumption?.roundEnds();
    const sent = figures.roundEnds();
    if (!this.dirty.areKnown) figures.remaining = 0;
    return sent;
  }

  /** @param isRound the guest has had no more time than a round takes, so that its rate tells something */
  async #isEnough(isRound = true): Promise<boolean> {
    const { figures, options } = this.#source;
    const convergence = this.#convergence;
    const { areKnown } = this.dirty;
    const collected = await this.collect();
    // What has been dirtied meanwhile takes a round to be known.
    if (!areKnown && !isRound) return false;
    const dirtied = areKnown ? collected : this.#last.pageBytes;
    if (!areKnown && convergence.rounds > 1)
      figures.dirtyPagesRate = Math.round((1000 * dirtied) / options.pageSize / Math.max(this.#before.ms, 1));
    const remaining = this.#remaining;
    const expected = areKnown ? convergence.expectedDowntimeMs(remaining) : this.#last.ms;
    figures.expectedDowntimeMs = expected;
    // As it is now: it may be set at any time.
    const limit = this.#source.downtimeLimitMs;
    switch (areKnown ? convergence.judge(remaining, limit) : convergence.judgeBy(expected, limit)) {
      case 'fits':
        return true;
      case 'exhausted':
        if (options.switchesAnyway) return true;
        throw this.#notConverging(expected);
      case 'another-round':
        // Of a guest that would fit only rounds are wanted.
        if (isRound && expected > this.#source.downtimeLimitMs) await this.#slowDown(dirtied);
        return false;
    }
  }

  async #slowDown(dirtied: number): Promise<void> {
    const { options, figures } = this.#source;
    const { throttle } = options;
    if (throttle === undefined) return;
    const { areKnown } = this.dirty;
    // What the last round has found was dirtied during the one before it.
    if (!areKnown && this.#convergence.rounds === 1) return;
    const percent = this.#convergence.throttle(dirtied, areKnown ? undefined : this.#before.pageBytes);
    if (percent === undefined) return;
    figures.throttlePercent = percent;
    await this.#source.hook('notConverging', () => throttle(percent));
  }

  #notConverging(expectedMs: number): MultifdError {
    const { rounds } = this.#convergence;
    const { downtimeLimitMs } = this.#source;
    const reads = this.dirty.areKnown ? '' : ', since all pages are read without option dirty';
    const what = `after ${rounds} rounds (option maxRounds) the downtime would be, in milliseconds${reads}`;
    const allowed = `at most ${downtimeLimitMs} (option downtimeLimitMs; what else to do says option notConverging)`;
    return new MultifdError(
      'ERR_MULTIFD_CONVERGENCE',
      receivedExpected(what, Math.ceil(expectedMs), allowed),
    );
  }
}
