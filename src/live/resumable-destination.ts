/**
 * The destination of a live migration that may be carried on after a break (option resumable): it outlives its tries, and
 * keeps what they have brought.
 *
 *     setup --- a source with a token ---> a try (incoming.ts) ---> completed
 *                                            |         ^
 *       the connections break, before all    |         |   the same token, and a try above the last one
 *       has come                             v         |
 *                                        precopy-paused ----- resumeTimeoutMs, cancel() ---> failed, cancelled
 *
 * What is kept: the pages, which of them have come (kept-pages.ts), the files' descriptors, the listening address. The source
 * is told which round is whole and what has come of the next, and sends all else that it has ever queued later: what an
 * unfinished round has half written is among them. It counts its rounds through all tries, so that a number means the same to
 * both whatever has been lost in between.
 *
 * A page that has come is never taken for fresh again, since a try may have written to pages that do not count as come.
 *
 * Who connects while it waits may be anybody. A main stream is looked at, not taken, until it has shown the token
 * (resume-request.ts); whoever cannot is dropped, as is a channel without the try's key (stream/resume-section.ts). Before there
 * is a token nothing is kept, and who speaks the protocol without asking to be carried on is refused, as by any destination.
 *
 * A source may know of the break long before this side does. So the token of a new try ends the one before: its threads are
 * gone, and what it has written is counted, before the new one is answered.
 */
import { MultifdError } from '../errors.js';
import type { RAMBlock } from '../ram/block.js';
import { BlockFiles } from '../ram/file-block.js';
import type { CarriedPages, ReceiverStats } from '../recv/receiver.js';
import { addStats, noStats, type Stats } from '../session-stats.js';
import { randomKey, type ResumeRequest } from '../stream/resume-section.js';
import { encodeShut } from '../stream/return-path.js';
import type { Address } from '../transport/address.js';
import { Admission } from '../transport/admission.js';
import { HELLO_MS, Listener } from '../transport/listener.js';
import { MainConnection } from '../transport/main-connection.js';
import { isOfCredentials } from '../transport/tls/explain.js';
import { settles } from '../migration/limits.js';
import type { CheckedDestination } from './destination-options.js';
import { IncomingVm, type ArrivedMigration } from './incoming.js';
import { KeptPages } from './kept-pages.js';
import { Life } from './life.js';
import { noResumeRequest, readResumeRequest } from './resume-request.js';
import type { DestinationState } from './states.js';

/** Main streams that are looked at, by choice; beyond it the oldest is dropped. */
const MAX_CANDIDATES = 16;
const REFUSED_GRACE_MS = 5000;

export class ResumableVm {
  readonly life: Life<DestinationState, ArrivedMigration>;
  readonly #options: CheckedDestination;
  readonly #listener: Listener;
  #address: Address;
  #files = new BlockFiles();
  readonly #candidates = new Set<MainConnection>();
  /** One after the other. */
  #admitting: Promise<void> = Promise.resolve();
  #try: IncomingVm | undefined;
  /** Until nothing is left of it. */
  #tried: Promise<void> = Promise.resolve();
  #timer: NodeJS.Timeout | undefined;
  #grace: NodeJS.Timeout | undefined;
  /** Of the tries that are over. */
  #past: Stats;
  // ---- what is kept ----
  #token: Buffer | undefined;
  #lastTry = 0;
  readonly #kept = new KeptPages();

  constructor(options: CheckedDestination) {
    const { receiver, given } = options;
    this.#options = options;
    this.#address = receiver.address;
    this.#past = noStats(receiver.channels, receiver.pageSize);
    this.life = new Life<DestinationState, ArrivedMigration>('setup', given.onState);
    this.life.stop.signal.addEventListener('abort', () => this.#stopped(), { once: true });
    this.#listener = new Listener(
      {
        // Of nobody: each try has its own.
        admission: new Admission(0, undefined, randomKey()),
        maxStrays: receiver.maxStrays,
        tls: receiver.tls,
        keeps: true,
      },
      {
        main: (connection, begun) => void this.#judge(new MainConnection(connection, begun)),
        channel: () => {},
        candidate: ({ husk }) => husk.socket.destroy(),
        refused: (error) => {
          this.#listener.strays++;
          this.#refuse(error);
        },
        notSecured: (error) => this.#notSecured(error),
        stranger: () => this.#refuse(noResumeRequest('a channel')),
      },
    );
  }

  async begin(): Promise<void> {
    const { receiver, blocks } = this.#options;
    if (blocks !== undefined) this.#files = BlockFiles.open(blocks, 'r+');
    try {
      receiver.signal?.throwIfAborted();
      this.#address = await this.#listener.listen(receiver.address, receiver.listenMode);
    } catch (error) {
      this.#listener.close();
      await this.#files.close();
      throw MultifdError.wrap(error, 'ERR_MULTIFD_ABORTED', 'aborted');
    }
    const unfollow = this.life.follow(receiver.signal);
    void this.life.done.catch(() => {}).finally(unfollow);
    const { acceptTimeoutMs } = receiver;
    if (acceptTimeoutMs > 0) this.#expect(acceptTimeoutMs, `no source within ${acceptTimeoutMs} ms`);
  }

  // ---- for embedders ----

  get address(): Address {
    return this.#address;
  }

  get state(): DestinationState {
    return this.life.state;
  }

  /** Of all tries together. */
  stats(): ReceiverStats {
    const now = this.#try?.receiver.stats();
    const all = now === undefined ? this.#past : addStats(this.#past, now);
    return { ...all, strays: this.#listener.strays };
  }

  async cancel(): Promise<void> {
    if (this.#try?.life.isDecided !== true) this.life.cancel();
    await this.life.done.catch(() => {});
  }

  // ---- who comes ----

  async #judge(main: MainConnection): Promise<void> {
    if (this.#candidates.size >= MAX_CANDIDATES) this.#drop([...this.#candidates][0]);
    this.#candidates.add(main);
    const late = setTimeout(() => this.#drop(main), HELLO_MS);
    try {
      const request = await readResumeRequest(main);
      if (!this.#candidates.delete(main)) return;
      this.#admitting = this.#admitting.then(() => this.#admit(main, request));
    } catch (thrown) {
      if (this.#candidates.has(main)) {
        this.#drop(main);
        const error = MultifdError.wrap(thrown, 'ERR_MULTIFD_CONNECTION', 'main stream');
        if (!isBreak(error)) this.#refuse(error);
      }
    } finally {
      clearTimeout(late);
    }
  }

  #drop(main: MainConnection): void {
    if (this.#candidates.delete(main)) this.#listener.strays++;
    main.breakOff();
  }

  /** Somebody who is no source of ours. As long as nothing is kept, that is what the operator waits for. */
  #refuse(error: MultifdError): void {
    if (this.#token === undefined) this.life.fail(error);
  }

  /** As arrivals.ts does it: it may be anybody's, so that a source has a while to come all the same. */
  #notSecured(error: MultifdError): void {
    if (this.#token !== undefined || this.#grace !== undefined || !isOfCredentials(error)) return;
    const ms = Math.min(REFUSED_GRACE_MS, this.#options.receiver.connectTimeoutMs);
    this.#grace = setTimeout(() => {
      this.#grace = undefined;
      // Somebody is at it just now, and may be the good one; if not, that is told again.
      if (this.#candidates.size === 0 && this.#listener.handshakes === 0) this.#refuse(error);
    }, ms);
  }

  /** Never rejects. */
  async #admit(main: MainConnection, request: ResumeRequest): Promise<void> {
    const before = this.#try;
    const isOurs = this.#token === undefined || this.#token.equals(request.token);
    const isNew = request.attempt > this.#lastTry && request.rounds >= this.#kept.completed;
    // One that is loading, or has loaded, cannot be broken off in favour of another.
    if (!isOurs || !isNew || before?.isWhole === true || this.life.error !== undefined) {
      this.#listener.strays++;
      void turnAway(main);
      return;
    }
    const message = 'the source has come again: its last try is given up';
    before?.life.fail(new MultifdError('ERR_MULTIFD_CONNECTION', message));
    await this.#tried;
    if (this.life.error !== undefined || this.life.isOver) {
      main.breakOff();
      return;
    }
    this.#token = request.token;
    this.#lastTry = request.attempt;
    clearTimeout(this.#timer);
    this.#tried = this.#run(main, request.rounds);
  }

  // ---- a try ----

  async #run(main: MainConnection, rounds: number): Promise<void> {
    const { receiver } = this.#options;
    const key = randomKey();
    let vm: IncomingVm | undefined;
    try {
      vm = new IncomingVm(
        // Its signal is this one's.
        { ...this.#options, receiver: { ...receiver, signal: undefined } },
        {
          main,
          kept: { listener: this.#listener, address: this.#address, key },
          answer: this.#kept.answer(key),
          blocks: this.#kept.blocks,
          onState: (state) => this.#tell(state),
          accept: (blocks) => this.#accept(blocks, rounds),
          // Not one that was given up meanwhile: another may have been told already what is here.
          roundIsWhole: () => {
            if (this.#try === vm && vm?.life.error === undefined) this.#kept.roundIsWhole();
          },
        },
      );
      this.#try = vm;
      await vm.begin();
      const arrived = await vm.life.done;
      await this.#over(() => this.life.end({ ...arrived, stats: this.stats() }));
    } catch (thrown) {
      main.breakOff();
      if (vm !== undefined) this.#past = addStats(this.#past, vm.receiver.stats());
      this.#try = undefined;
      this.#kept.touched();
      const error = MultifdError.wrap(thrown, 'ERR_MULTIFD_WORKER', 'migration');
      if (vm?.life.isDecided === true) await this.#over(() => this.life.endFailed(error));
      else if (this.life.error !== undefined) await this.#failed(this.life.error);
      else if (vm !== undefined && this.#mayGoOn(vm, error)) this.#pause(error);
      else this.life.fail(error);
    }
  }

  /** States of a try that are the migration's as well. */
  #tell(state: DestinationState): void {
    if (state !== 'active' && state !== 'completed') return;
    try {
      this.life.enter(state);
    } catch (error) {
      // The try says once more whose fault it is.
      throw (error as MultifdError).cause;
    }
  }

  #accept(blocks: readonly RAMBlock[], rounds: number): CarriedPages {
    const isFirst = this.#kept.blocks === undefined;
    if (isFirst && this.#options.blocks === undefined) this.#files = BlockFiles.open(blocks, 'r+');
    return this.#kept.start(blocks, rounds);
  }

  /** Not where this side is at fault, nor where the source sends what it must not: that it would do again. */
  #mayGoOn(vm: IncomingVm, error: MultifdError): boolean {
    if (vm.isWhole) return false;
    if (isBreak(error)) return true;
    // A later try that was set up wrongly does not cost what is here.
    const isRefused = !vm.hasBegun && error.code !== 'ERR_MULTIFD_HOOK';
    return this.#lastTry > 1 && this.#kept.blocks !== undefined && (isRefused || isOfSetUp(error));
  }

  #pause(error: MultifdError): void {
    const { resumeTimeoutMs } = this.#options;
    try {
      this.life.enter('precopy-paused');
    } catch (thrown) {
      this.life.fail(thrown as MultifdError);
      return;
    }
    const late = `the source has not carried on within ${resumeTimeoutMs} ms (option resumeTimeoutMs) after: ${error.message}`;
    this.#expect(resumeTimeoutMs, late, error);
  }

  #expect(ms: number, message: string, cause?: MultifdError): void {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(
      () => this.life.fail(new MultifdError('ERR_MULTIFD_TIMEOUT', message, { cause })),
      ms,
    );
  }

  // ---- ends ----

  /** By its owner, by its time, by what cannot be carried on. */
  #stopped(): void {
    const error = this.life.error as MultifdError;
    if (this.#try === undefined) void this.#failed(error);
    else this.#try.life.fail(error, this.life.isCancelled);
  }

  async #failed(error: MultifdError): Promise<void> {
    await this.#close();
    this.life.enterAnyway(this.life.isCancelled ? 'cancelled' : 'failed');
    this.life.endFailed(error);
  }

  /** @param end whether start() has failed or not, the guest is here */
  async #over(end: () => void): Promise<void> {
    this.life.decide();
    await this.#close();
    end();
  }

  async #close(): Promise<void> {
    clearTimeout(this.#timer);
    clearTimeout(this.#grace);
    this.#listener.close();
    for (const main of this.#candidates) this.#drop(main);
    await this.#files.close();
  }
}

/** As in incoming.ts: its source is told, and does not have to guess. */
async function turnAway(main: MainConnection): Promise<void> {
  await settles(main.write(encodeShut(1)).then(() => main.end()));
  main.breakOff();
}

/** What its channels say, before they bring anything. */
function isOfSetUp({ code }: MultifdError): boolean {
  return /^ERR_MULTIFD_(UUID|CHANNEL_ID|CHANNEL_DUPLICATE|VERSION|METHOD)$/.test(code);
}

/** Of connections, and what may be better the next time. */
function isBreak({ code }: MultifdError): boolean {
  return [
    'ERR_MULTIFD_CONNECTION',
    'ERR_MULTIFD_EOF',
    'ERR_MULTIFD_STALL',
    'ERR_MULTIFD_TIMEOUT',
    'ERR_MULTIFD_TLS',
  ].includes(code);
}
