/**
 * Precopy: all pages, then again and again those that the guest has dirtied meanwhile, each round one PART section, until
 * what is left fits the downtime that is allowed (convergence.ts).
 *
 *     collect(); all pages count                                    the guest's log begins here
 *     PART, pages, SYNC, marker --> collect() --> does it fit? --> pre-switchover, where it is wanted --> collect() --> out
 *               ^                                    |  no                                                  | no more
 *               +------------------------------------+<-----------------------------------------------------+
 *
 * While pre-switchover waits the guest runs and dirties pages, and nothing is sent: what has grown beyond the limit meanwhile
 * is sent in further rounds, after which nothing is waited for.
 */
import { MultifdError, receivedExpected } from '../errors.js';
import { Convergence, type SentRound } from './convergence.js';
import { DirtyPages } from './dirty-pages.js';
import type { SourceSession } from './source-session.js';

export class Precopy {
  readonly #source: SourceSession;
  readonly #convergence: Convergence;
  readonly dirty: DirtyPages;

  constructor(source: SourceSession) {
    this.#source = source;
    const { blocks, pageSize, given, maxRounds } = source.options;
    this.#convergence = new Convergence(maxRounds);
    this.dirty = new DirtyPages(blocks, pageSize, given.dirty);
  }

  /** Until the guest may be stopped. */
  async run(): Promise<void> {
    const { life, figures, options, builder } = this.#source;
    let { waits } = options;
    await this.collect();
    this.dirty.setAll();
    for (;;) {
      life.enter('active');
      this.#convergence.sent(await this.send(builder.part()));
      let isEnough = await this.#isEnough();
      if (isEnough && waits) {
        waits = false;
        figures.remaining = this.dirty.count * options.pageSize;
        await this.#source.released();
        isEnough = await this.#isEnough(false);
      }
      if (isEnough) return;
    }
  }

  /** Takes the guest's dirty pages. @returns how many are new */
  async collect(): Promise<number> {
    const { figures } = this.#source;
    const before = this.dirty.count;
    await this.#source.during(this.dirty.collect());
    const dirtied = this.dirty.count - before;
    figures.synced(this.#convergence.rounds === 0 ? undefined : dirtied);
    return dirtied;
  }

  /**
   * All that is pending, as one section.
   *
   * @param head of the section
   * @returns what has been sent
   */
  async send(head: Buffer): Promise<SentRound> {
    const { figures, sender } = this.#source;
    figures.roundBegins(this.dirty.count);
    await this.#source.write(head);
    for (const { block, offset, length } of this.dirty.runs()) {
      // The session ends with the migration, so that this does.
      await sender.queueRange(block, offset, length);
    }
    await this.#source.endSection();
    this.dirty.clear();
    return figures.roundEnds();
  }

  /** @param isRound the guest has had no more time than a round takes, so that its rate tells something */
  async #isEnough(isRound = true): Promise<boolean> {
    const { figures, options } = this.#source;
    const convergence = this.#convergence;
    const dirtied = (await this.collect()) * options.pageSize;
    const remaining = this.dirty.count * options.pageSize;
    const expected = convergence.expectedDowntimeMs(remaining);
    figures.expectedDowntimeMs = expected;
    // As it is now: it may be set at any time.
    switch (convergence.judge(remaining, this.#source.downtimeLimitMs)) {
      case 'fits':
        return true;
      case 'exhausted':
        if (options.switchesAnyway) return true;
        throw this.#notConverging(expected);
      case 'another-round':
        if (isRound) await this.#slowDown(dirtied);
        return false;
    }
  }

  async #slowDown(dirtied: number): Promise<void> {
    const { options, figures } = this.#source;
    const { throttle } = options;
    if (throttle === undefined) return;
    const percent = this.#convergence.throttle(dirtied);
    if (percent === undefined) return;
    figures.throttlePercent = percent;
    await this.#source.hook('notConverging', () => throttle(percent));
  }

  #notConverging(expectedMs: number): MultifdError {
    const { rounds } = this.#convergence;
    const { downtimeLimitMs } = this.#source;
    const what = `after ${rounds} rounds (option maxRounds) the downtime would be, in milliseconds`;
    const allowed = `at most ${downtimeLimitMs} (option downtimeLimitMs; what else to do says option notConverging)`;
    return new MultifdError(
      'ERR_MULTIFD_CONVERGENCE',
      receivedExpected(what, Math.ceil(expectedMs), allowed),
    );
  }
}
