/**
 * The source of a live migration: a VM of any monitor, moved while its guest runs, over QEMU's own main stream.
 *
 *     main stream                                     channels                    the guest
 *     connect; header, configuration, PING            connect, hello              runs
 *     START, block list          <- PONG
 *     marker, EOS                                     SYNC
 *     PART; marker, EOS, PING    <- PONG              all pages; SYNC             runs, dirties pages
 *     PART; marker, EOS, PING    <- PONG   ...        dirty pages; SYNC           runs          (precopy.ts)
 *                                                                                 pause()
 *     SWITCHOVER_START, END; marker, EOS              the last pages; SYNC        nowhere       (switch-over.ts)
 *     devices' state, EOF, VM description
 *                                <- SHUT 0                                        at the destination
 *
 * One moment decides: the destination's SHUT 0 is read. Whatever fails before it, and a cancel, breaks all connections off
 * and then calls resume(), if pause() was called; what fails after it changes nothing.
 *
 * With option resumable the destination is asked behind the commands what it has, and the channels connect when it has answered
 * (stream/resume-section.ts, resumption.ts).
 *
 * Once the last byte is out the destination may load and answer at any moment, so that breaking off could leave two guests
 * running, or the answer unread. From there on a failure or a cancel ends only this side's half of the main stream and listens
 * for a while: a destination that has not answered sees the end and does not answer any more, and one that has is heard.
 * What is left is a connection that breaks in that moment. As with QEMU this side's guest runs on then, and the destination's
 * runs if its answer was on its way: only whoever sees both can tell.
 */
import { MultifdError } from '../errors.js';
import { checkMaxBandwidth } from '../options.js';
import { proofTableOf } from '../proof.js';
import { digestTables } from '../ram/page-digest.js';
import { createSender, type Sender } from '../send/sender.js';
import { type Configuration, encodeU32 } from '../stream/configuration.js';
import { machineRules } from '../stream/machine.js';
import { MainStreamBuilder, encodeCommand } from '../stream/main-writer.js';
import { COMMAND_OPEN_RETURN_PATH, COMMAND_PING } from '../stream/records.js';
import type { MainConnection } from '../transport/main-connection.js';
import { Answer, refusedBy } from '../migration/answer.js';
import { PING_VALUE, allChannelsIn, connectMain, explain, sentOf } from '../migration/destination.js';
import { settles } from '../migration/limits.js';
import { awaitHook } from '../migration/options.js';
import { watchMigration } from '../migration/watch.js';
import { inTime, lateHookMs } from './late-hook.js';
import { Life } from './life.js';
import { Precopy } from './precopy.js';
import { Figures, type MigrationProgress } from './progress.js';
import { rehearseSaving } from './rehearsal.js';
import { Resumption } from './resumption.js';
import { senderOptions, type CheckedSource } from './source-options.js';
import type { SourceSession } from './source-session.js';
import type { SourceState } from './states.js';
import { SwitchOver } from './switch-over.js';
import { checkInterval } from './interval.js';

/** A new machine's, as nothing of an old QEMU is to be minded: its own name's version has nothing to do with QEMU's. */
const RULES = machineRules(undefined, { major: 10, minor: 0 });
/** Not 0: a loader that has no id yet for its handlers takes that of all of them for it. */
const RAM_SECTION_ID = 1;
/** So that a destination sees that the source is there while a hook takes its time. */
const KEEP_ALIVE_MS = 1000;

export class OutgoingVm implements SourceSession {
  readonly options: CheckedSource;
  readonly life: Life<SourceState, MigrationProgress>;
  readonly figures: Figures;
  readonly builder: MainStreamBuilder;
  readonly configuration: Configuration;
  downtimeLimitMs: number;
  paused = false;
  asked = false;
  readonly resumption: Resumption | undefined;
  #maxBandwidth: number;
  /** The value of the last PING behind a round; the first of all, and those that keep alive, have 1. */
  #pings = 1;
  #main: MainConnection | undefined;
  #sender: Sender | undefined;
  #answer: Answer | undefined;
  /** What is being opened, when all breaks, has to be closed as well. */
  #connecting: Promise<MainConnection> | undefined;
  #creating: Promise<Sender> | undefined;
  #released: (() => void) | undefined;
  /** The block list is written. */
  #laidOut: Promise<void> | undefined;

  /** @param resumption of the source that it carries on */
  constructor(options: CheckedSource, resumption?: Resumption) {
    this.options = options;
    this.resumption = resumption ?? (options.resumable ? new Resumption(options) : undefined);
    const { blocks, pageSize, machine } = options;
    this.life = new Life<SourceState, MigrationProgress>('setup', options.given.onState);
    this.downtimeLimitMs = options.downtimeLimitMs;
    this.#maxBandwidth = options.maxBandwidth;
    this.figures = new Figures({
      pageSize,
      totalBytes: blocks.reduce((sum, block) => sum + block.size, 0),
      stats: () => this.#sender?.stats(),
      mainBytes: () => this.#main?.moved ?? 0,
    });
    this.configuration = { machine, targetPageBits: Math.log2(pageSize) };
    this.builder = new MainStreamBuilder(
      {
        configuration: this.configuration,
        blocks: blocks.map(({ name, size }) => ({ name, usedLength: size })),
        sectionId: RAM_SECTION_ID,
        footers: true,
      },
      RULES,
    );
  }

  // ---- for embedders ----

  begin(): void {
    const unfollow = this.life.follow(this.options.signal);
    void this.#run()
      .then(
        () => this.#completed(),
        (thrown: unknown) => this.#failed(thrown),
      )
      .finally(unfollow);
  }

  stats(): MigrationProgress {
    return this.figures.snapshot(this.life.state);
  }

  async *progress(
    options?: { intervalMs?: number } | null,
  ): AsyncGenerator<MigrationProgress, void, undefined> {
    const intervalMs = checkInterval(options);
    for (;;) {
      const { isOver } = this.life;
      yield this.stats();
      if (isOver) return;
      await this.life.changed(intervalMs);
    }
  }

  switchover(): void {
    if (this.#released === undefined) {
      const message = `switchover(): received in state ${this.life.state}, expected in pre-switchover`;
      throw new MultifdError('ERR_MULTIFD_STATE', message);
    }
    this.#released();
  }

  async cancel(): Promise<void> {
    if (this.life.cancel()) this.life.enterAnyway('cancelling');
    await this.life.done.catch(() => {});
  }

  get maxBandwidth(): number {
    return this.#maxBandwidth;
  }
  set maxBandwidth(bytesPerSecond: number) {
    this.#maxBandwidth = checkMaxBandwidth(bytesPerSecond);
    if (this.#sender !== undefined && !this.paused) this.#sender.maxBandwidth = this.#maxBandwidth;
  }

  // ---- SourceSession ----

  get sender(): Sender {
    return this.#sender as Sender;
  }

  get main(): MainConnection {
    return this.#main as MainConnection;
  }

  get answer(): Answer {
    return this.#answer as Answer;
  }

  async write(bytes: Buffer): Promise<void> {
    await this.life.orFailed(this.main.write(bytes));
  }

  async endSection(): Promise<void> {
    await this.life.orFailed(this.sender.sync());
    await this.write(this.builder.endSection());
  }

  async endRound(): Promise<void> {
    await this.life.orFailed(this.sender.sync());
    const inPlace = this.answer.ponged(++this.#pings);
    const ping = encodeCommand(COMMAND_PING, encodeU32(this.#pings));
    await this.write(Buffer.concat([this.builder.endSection(), ping]));
    await this.life.orFailed(inPlace);
  }

  async hook<T>(name: string, call: () => T | PromiseLike<T>): Promise<T> {
    return this.during(name, awaitHook(name, call));
  }

  async during<T>(name: string, hook: Promise<T>): Promise<T> {
    return this.#keepAlive(this.life.duringHook(name, hook));
  }

  async #keepAlive<T>(wait: Promise<T>): Promise<T> {
    const everyMs = Math.max(1, Math.min(KEEP_ALIVE_MS, this.options.stallTimeoutMs / 4));
    const timer = setInterval(() => {
      this.main.write(encodeCommand(COMMAND_PING, PING_VALUE)).catch((error: unknown) => this.#broke(error));
    }, everyMs);
    try {
      return await wait;
    } finally {
      clearInterval(timer);
    }
  }

  async released(): Promise<void> {
    const wait = new Promise<void>((resolve) => (this.#released = resolve));
    try {
      this.life.enter('pre-switchover');
      await this.#keepAlive(this.life.orFailed(wait));
    } finally {
      this.#released = undefined;
    }
  }

  // ---- from the first connection to the answer ----

  async #run(): Promise<void> {
    const { life, options } = this;
    await this.#connect();
    const unwatch = watchMigration(
      options.stallTimeoutMs,
      () => this.sender.stats().bytes + this.main.moved,
      (error) => life.fail(error),
    );
    try {
      await this.#laidOut;
      await this.endSection();
      this.figures.setUp();
      life.enter('active');
      const precopy = new Precopy(this);
      await precopy.run();
      const switchOver = new SwitchOver(this, precopy);
      await switchOver.run();
      unwatch();
      await switchOver.verdict();
    } finally {
      unwatch();
    }
  }

  async #connect(): Promise<void> {
    const { life, options } = this;
    const { address, connectTimeoutMs, tls, given, blocks, verify } = options;
    const { signal } = life.stop;
    this.#connecting = connectMain(address, connectTimeoutMs, signal, tls);
    const main = (this.#main = await life.orFailed(this.#connecting));
    // A destination that is gone, or that has refused, is noticed here first.
    const answer = (this.#answer = new Answer(main.reader, (data) => this.resumption?.takePages(data)));
    answer.shut.then(
      (status) => {
        if (status !== 0) this.#refused(status);
      },
      (error: unknown) => this.#broke(error),
    );
    const asks = [encodeCommand(COMMAND_OPEN_RETURN_PATH), encodeCommand(COMMAND_PING, PING_VALUE)];
    const key = await this.#setUp(asks, answer);
    const forSender = senderOptions(given, address, connectTimeoutMs);
    const parts = {
      digests: given.dirty === undefined ? digestTables(blocks.map(({ pageCount }) => pageCount)) : undefined,
      proof: verify ? proofTableOf(blocks) : undefined,
      key,
    };
    this.#creating = createSender({ ...forSender, signal }, true, tls, undefined, parts);
    rehearseSaving(this.configuration, options.pageSize);
    const sender = (this.#sender = await life.orFailed(this.#creating));
    sender.maxBandwidth = this.#maxBandwidth;
    sender.orStopped(new Promise<never>(() => {})).catch((error: unknown) => this.#channelsBroke(error));
    await life.orFailed(allChannelsIn(answer.pong, connectTimeoutMs));
  }

  /** @returns what the channels have to know, if they may be carried on */
  async #setUp(asks: Buffer[], answer: Answer): Promise<Buffer | undefined> {
    const { builder, resumption, life, options } = this;
    await this.write(Buffer.concat([builder.begin(asks), resumption?.ask() ?? Buffer.alloc(0)]));
    const key = resumption && (await life.orFailed(resumption.answered(answer, options.connectTimeoutMs)));
    // Beside the channels: a QEMU reads its main stream when they are there, and this may be more than a socket holds.
    this.#laidOut = this.write(builder.start());
    this.#laidOut.catch(() => {});
    return key;
  }

  #refused(status: number): void {
    if (!this.asked) this.life.fail(refusedBy(status));
  }

  #broke(error: unknown): void {
    this.life.fail(MultifdError.wrap(error, 'ERR_MULTIFD_CONNECTION', 'main stream'));
  }

  /** When all has been asked for, nothing is left to do for them. */
  #channelsBroke(error: unknown): void {
    if (!this.asked) this.life.fail(MultifdError.wrap(error, 'ERR_MULTIFD_CONNECTION', 'channels'));
  }

  // ---- ends ----

  async #completed(): Promise<void> {
    const { life, figures, sender, main } = this;
    figures.guestRuns();
    figures.over();
    life.enterAnyway('completed');
    await Promise.all([sender.end().catch(() => sender.close()), settles(main.end())]);
    main.destroy();
    life.end(this.stats());
  }

  async #failed(thrown: unknown): Promise<void> {
    const { life, figures } = this;
    const error = life.error ?? MultifdError.wrap(thrown, 'ERR_MULTIFD_CONNECTION', 'migration');
    life.fail(error);
    if (life.isCancelled) life.enterAnyway('cancelling');
    // The destination first: from here on it cannot come to have all.
    this.#answer?.ignore();
    this.#main?.breakOff();
    const closing = this.#close(error);
    await this.#runOn();
    figures.guestRuns();
    figures.over();
    await closing;
    error.suppress(this.#sender?.error);
    const explained = this.#explained(error);
    life.enterAnyway(life.isCancelled ? 'cancelled' : 'failed');
    life.endFailed(explained);
  }

  /** The guest runs on here, as it did before. */
  async #runOn(): Promise<void> {
    const { given, throttle, stallTimeoutMs } = this.options;
    const limitMs = lateHookMs(stallTimeoutMs);
    // One hook at a time: what is being stopped cannot be let run. A pause() that hangs may stop the guest behind resume().
    await this.life.hookOver(limitMs, (name) => {
      if (name === 'pause') void awaitHook('resume', () => given.resume()).catch(() => {});
    });
    const calls: [string, () => void | Promise<void>][] = [];
    if (throttle !== undefined && this.figures.throttlePercent > 0)
      calls.push(['notConverging', () => throttle(0)]);
    if (this.paused) calls.push(['resume', () => given.resume()]);
    for (const [name, call] of calls) {
      await inTime(name, awaitHook(name, call), limitMs).catch((error: unknown) => this.life.suppress(error));
    }
  }

  async #close(error: MultifdError): Promise<void> {
    await this.#connecting?.then(
      (main) => main.destroy(),
      () => {},
    );
    await this.#creating?.then(
      (sender) => sender.abandon(error),
      () => {},
    );
  }

  #explained(error: MultifdError): MultifdError {
    const { machine, given, tls } = this.options;
    const sent = sentOf(machine, { ...given, tls }, given.uuid);
    const told = explain(error, sent, this.#main?.earlyEnd);
    const explained = this.life.isCancelled ? error : (this.resumption?.explain(told) ?? told);
    if (explained !== error)
      explained.suppressed.push(...error.suppressed.filter((one) => !explained.suppressed.includes(one)));
    return explained;
  }
}
