/**
 * Parks a VM of QEMU in a file: its monitor is told to migrate it to us.
 *
 *     here                                        QEMU, by QMP
 *     OUT.part, a socket of our own               greeting, what it knows, how its guest and its migration are
 *                                                 remember its capabilities and parameters, set ours
 *     receiveMigration()  <-- main, channels ---  migrate
 *                                                 query-migrate, again and again
 *     OUT has its name, SHUT 0  --------------->  completed; the guest is `postmigrate`
 *                                                 put back its settings; quit, or stop
 *
 * What is left behind, by what comes first:
 *
 *     fails or is aborted ...           the guest               its settings     OUT
 *     before migrate                    untouched               put back         not there
 *     while it migrates                 migrate_cancel, runs on put back         not there
 *     when OUT has its name             stands still: parked    put back         there; the error says so
 *     QEMU ends or is killed            gone                    gone             not there; there, or whole as OUT.part, if all had come
 *     we are killed                     QEMU fails, runs on     stay ours        not there
 *
 * The monitor may be lost while QEMU lives (regain.ts). What had been told to QEMU goes on, and it is looked for again; so long
 * as it is not found, that is said of the VM which is known, and a call succeeds only if QEMU itself has said `completed`:
 *
 *     before migrate                    untouched               told             not there
 *     while it migrates                 goes on; if that fails, runs on: told    not there
 *     when OUT has its name             told to stand still     told             there; the error says what to look at first
 *     when QEMU has said `completed`    stands still: parked    told             there; an error only if it was to `quit`
 *
 * From `completed` on it is looked for for one time, however often it is lost, and an abort ends that: of a call that had an answer
 * to come the settings may be back, and who was told to quit may have ended.
 *
 * A guest that was paused stays so. The return path is always on: without it a source would give its guest up before the
 * file is on disk.
 */
import { rm } from 'node:fs/promises';
import { setTimeout as sleep } from 'node:timers/promises';
import { MultifdError, describeThrown, type ErrorCode } from '../errors.js';
import { withLimit } from '../migration/limits.js';
import { callHook } from '../migration/options.js';
import type { ReceivedMigration } from '../migration/receive-options.js';
import { receiveMigration } from '../migration/receive.js';
import { keptWords } from '../migration/whole-file.js';
import type { Receiver as PublicReceiver } from '../public-session.js';
import { formatAddress, type Address } from '../transport/address.js';
import {
  endWords,
  isOver,
  migrationOver,
  queryGuest,
  queryMigration,
  runOn,
  type MigrationStatus,
} from './machine.js';
import { checkParkOptions, type CheckedPark, type ParkVmOptions, type ParkedVm } from './park-options.js';
import { requireGoing, withWords } from './incoming.js';
import { PrivateFolder } from './private-folder.js';
import { qemuTlsParameters } from './qemu-tls.js';
import { Qmp } from './qmp.js';
import { QmpSchema } from './schema.js';
import { REGAIN_MS, Regaining, lostWords, regain } from './regain.js';
import { MigrationSettings, requireMultifd } from './settings.js';

/** A QEMU that cannot reach us stays in state `setup` for long. */
const ACCEPT_MS = 30_000;
/** For QEMU to end a migration that is cancelled, or one whose last word has been said. */
const END_MS = 30_000;
/** For it to say that it does, before its connections are broken; and to have done it. */
const CANCEL_MS = 1_000;
const OVER_MS = 2_000;
const PROGRESS_MS = 200;
const NOT_FROM_HERE = ', not from here: another of its monitors has said migrate_cancel';
const CAPABILITIES = ['multifd', 'return-path'];
const NO_ANSWER = 'quit was not answered';
/** Of a receiver: what it sees of a source that has failed or goes. */
const CONSEQUENCES: ReadonlySet<ErrorCode> = new Set<ErrorCode>([
  'ERR_MULTIFD_CLOSED',
  'ERR_MULTIFD_CONNECT',
  'ERR_MULTIFD_CONNECTION',
  'ERR_MULTIFD_EOF',
  'ERR_MULTIFD_STALL',
  'ERR_MULTIFD_TIMEOUT',
]);

/**
 * Resolves when the guest is in the file, on disk, and the VM's settings are as they were.
 *
 * @throws MultifdError ERR_MULTIFD_QMP and with all codes of receiveMigration(); then the guest runs on, unless the message says
 *   something else
 */
export async function parkVm(options: ParkVmOptions): Promise<ParkedVm> {
  const checked = checkParkOptions(options);
  using folder = checked.listen === undefined ? new PrivateFolder() : undefined;
  return await new Park(checked, folder).run();
}

class Park {
  readonly #options: CheckedPark;
  readonly #folder: PrivateFolder | undefined;
  readonly #receiving = new AbortController();
  #session: PublicReceiver | undefined;
  #qmp: Qmp | undefined;
  #regaining: Regaining | undefined;
  #settings: MigrationSettings | undefined;
  #wasRunning = false;
  /** Has QEMU been told to migrate? And has it said yes? */
  #migrating = false;
  #migrates = false;
  /** Has it been told here to cancel? */
  #cancels = false;
  /** QEMU's word that its guest has been given up. */
  #completed = false;
  /** Is the guest in the file? */
  #received: ReceivedMigration | undefined;
  /** Is its monitor lost for good, or another one's? */
  #isLost = false;
  #told = 0;
  #lastTold: MigrationStatus | undefined;

  constructor(options: CheckedPark, folder: PrivateFolder | undefined) {
    this.#options = options;
    this.#folder = folder;
  }

  async run(): Promise<ParkedVm> {
    const { signal } = this.#options;
    const abort = (): void => void this.#abort(signal?.reason);
    if (signal?.aborted === true) abort();
    signal?.addEventListener('abort', abort, { once: true });
    let result: Promise<ReceivedMigration> | undefined;
    try {
      const { listening, ...receiver } = this.#receive();
      result = receiver.result;
      const address = await listening;
      const settings = await this.#prepare();
      await this.#migrate(address, result);
      return { ...(await this.#finish()), switchedOff: settings.switchedOff(CAPABILITIES) };
    } catch (error) {
      throw await this.#undo(error, result);
    } finally {
      signal?.removeEventListener('abort', abort);
      this.#qmp?.close();
    }
  }

  /** Listens before QEMU hears of anything: a file that cannot be made is nobody's migration. */
  #receive(): { listening: Promise<Address>; result: Promise<ReceivedMigration> } {
    const { receive, listen } = this.#options;
    let listens!: (address: Address) => void;
    const listening = new Promise<Address>((resolve) => (listens = resolve));
    const result = receiveMigration({
      acceptTimeoutMs: ACCEPT_MS,
      // Whether the source is owed one is no guess here: the capability is off.
      switchoverAck: 'never',
      ...receive,
      signal: this.#receiving.signal,
      address: listen ?? { path: `${this.#folder?.path}/park.sock` },
      onListening: listens,
      onSession: (session) => {
        this.#session = session;
        receive.onSession?.(session);
      },
    });
    result.catch(() => {});
    const failed = result.then(() => {
      throw new MultifdError('ERR_MULTIFD_STATE', 'received before it listened');
    });
    return { listening: Promise.race([listening, failed]), result };
  }

  async #prepare(): Promise<MigrationSettings> {
    const { qmp: where, signal } = this.#options;
    const qmp = (this.#qmp = await Qmp.connect(where, {}, signal));
    const parameters = await qmp.abortable(signal, async () => this.#ask(qmp));
    const settings = this.#settings as MigrationSettings;
    requireGoing(this.#receiving.signal);
    await settings.set(CAPABILITIES, parameters);
    return settings;
  }

  /** Can this VM be parked? @returns the parameters for that */
  async #ask(qmp: Qmp): Promise<Record<string, unknown>> {
    const { channels, compression, zeroPageDetection, receive, qemuTls, listen } = this.#options;
    const schema = await QmpSchema.query(qmp);
    requireMultifd(qmp, schema, compression);
    const guest = await queryGuest(qmp);
    if (guest.status === 'inmigrate') {
      throw this.#error(
        'QEMU is in state inmigrate, expected a VM that is there: it waits for a guest itself',
      );
    }
    this.#wasRunning = guest.running;
    const { status, blockedReasons, ...migration } = await queryMigration(qmp);
    if (!isOver({ status, blockedReasons, ...migration })) {
      throw this.#error(`a migration is under way already, in state ${status}`);
    }
    if (blockedReasons.length > 0) {
      throw this.#error(`this VM cannot be migrated, QEMU says: ${blockedReasons.join('; ')}`);
    }
    const settings = (this.#settings = await MigrationSettings.remember(qmp));
    const tls = await qemuTlsParameters(qmp, {
      qemuTls,
      ours: receive.tls !== undefined,
      endpoint: 'client',
      present: settings.tlsCreds,
      address: listen,
    });
    const parameters: Record<string, unknown> = {
      'multifd-channels': channels,
      'multifd-compression': compression,
      ...this.#options.parameters,
      ...tls,
    };
    if (schema.parameters.has('mode')) parameters.mode = 'normal';
    if (schema.parameters.has('zero-page-detection')) {
      if (zeroPageDetection !== undefined) parameters['zero-page-detection'] = zeroPageDetection;
    } else if (zeroPageDetection !== undefined && zeroPageDetection !== 'legacy') {
      throw this.#error(
        `this QEMU has no zero-page-detection: given ${zeroPageDetection}, allowed legacy, its only way`,
      );
    }
    return parameters;
  }

  /** Until both sides say that it is done. */
  async #migrate(address: Address, result: Promise<ReceivedMigration>): Promise<void> {
    const qmp = this.#qmp as Qmp;
    const received = result.then((value) => (this.#received = value));
    received.catch(() => {});
    requireGoing(this.#receiving.signal);
    // Whatever comes of the call itself.
    this.#migrating = true;
    const migrate = qmp.execute('migrate', { uri: formatAddress(qmp.reachable(address)) }).then(
      () => (this.#migrates = true),
      (error: unknown) => {
        // Whether it has heard it is found out below.
        if (qmp.isOpen) throw error;
      },
    );
    // An answer that is held back is no reason to wait longer than for the guest.
    await Promise.race([migrate, received]);
    const source = this.#follow(received, address);
    source.catch(() => {});
    await Promise.race([received, source.then(() => received)]);
    // All has come, and QEMU has been told so.
    const late = `${qmp.address}: received nothing, expected migration status completed within ${END_MS} ms`;
    await withLimit(source, END_MS, 'ERR_MULTIFD_TIMEOUT', late);
  }

  /** Until QEMU says how its migration has ended. Without a monitor it goes on as well. */
  async #follow(received: Promise<unknown>, address: Address): Promise<void> {
    const qmp = this.#qmp as Qmp;
    let until = Infinity;
    received.then(
      () => (until = performance.now() + REGAIN_MS),
      () => (until = 0),
    );
    for (;;) {
      try {
        const over = await migrationOver(qmp, undefined, (status) => this.#progress(status));
        if (over.status === 'none' && this.#migrates) throw this.#another();
        if (over.status !== 'completed') throw this.#failed(over, address);
        this.#completed = true;
        return;
      } catch (error) {
        if (qmp.isOpen) throw error;
        const goesOn = (): boolean => {
          if (this.#lastTold !== undefined) this.#progress({ ...this.#lastTold, status: 'unknown' });
          return performance.now() < until;
        };
        if (!(await regain(qmp, goesOn))) {
          this.#isLost = true;
          throw error;
        }
        await this.#requireSame();
      }
    }
  }

  /**
   * Is the monitor there, or there again, and the same QEMU's? Another one is left alone.
   *
   * @throws MultifdError ERR_MULTIFD_ABORTED
   */
  async #regainSame(signal?: AbortSignal): Promise<boolean> {
    const qmp = this.#qmp as Qmp;
    requireGoing(signal);
    if (qmp.isOpen) return true;
    // Once is enough: each time takes a while.
    if (this.#isLost) return false;
    this.#regaining ??= new Regaining(qmp);
    const isThere = await this.#regaining.isThere(signal);
    requireGoing(signal);
    const isSame =
      isThere &&
      (await this.#requireSame().then(
        () => true,
        () => false,
      ));
    this.#isLost = !isSame;
    return isSame;
  }

  /** @throws MultifdError ERR_MULTIFD_QMP if it is another one that answers again */
  async #requireSame(): Promise<void> {
    if ((await this.#settings?.areSet(CAPABILITIES)) !== true) throw this.#another();
  }

  #another(): MultifdError {
    this.#qmp?.close();
    return this.#error('another QEMU answers there now, that knows nothing of this migration');
  }

  async #finish(): Promise<Omit<ParkedVm, 'switchedOff'>> {
    const qmp = this.#qmp as Qmp;
    const { then, signal } = this.#options;
    const received = this.#received as ReceivedMigration;
    if (then === 'quit') {
      if (!(await this.#regainSame(signal))) throw this.#error('QEMU was not told to quit');
      do {
        if (await qmp.quit()) return { ...received, source: 'gone', then, problem: undefined };
        // Without an answer it may have been the monitor alone that ended.
      } while (await this.#regainSame(signal).catch(unanswered));
      return { ...received, source: 'unknown', then, problem: `${NO_ANSWER}: ${this.#lost()}` };
    }
    while (await this.#regainSame(signal)) {
      try {
        const problem = await this.#settings?.putBackOrSay();
        if (then === 'stop' && (await queryGuest(qmp)).running) await qmp.execute('stop');
        return { ...received, source: (await queryGuest(qmp)).status, then, problem };
      } catch (error) {
        if (qmp.isOpen) throw error;
      }
    }
    return { ...received, source: 'unknown', then, problem: this.#lost() };
  }

  /**
   * QEMU breaks off first, and ends its connections itself: one whose connections break while it is told to cancel has been seen
   * to end, and one before 9.0 to hang.
   */
  async #abort(reason: unknown): Promise<void> {
    const qmp = this.#qmp;
    if (this.#migrating && qmp?.isOpen === true) {
      this.#cancels = true;
      // One that does not answer waits for us, in 11.1 with its guest standing still.
      const cancelled = qmp.execute('migrate_cancel', {}, CANCEL_MS);
      const over = cancelled.then(async () => migrationOver(qmp, OVER_MS));
      await Promise.race([over, sleep(OVER_MS, undefined, { ref: false })]).catch(() => {});
      over.catch(() => {});
    }
    this.#receiving.abort(reason);
  }

  /**
   * Everything as it was, as far as it can be.
   *
   * @returns the error to throw: the first one, with QEMU's words and with what could not be undone
   */
  async #undo(thrown: unknown, result: Promise<ReceivedMigration> | undefined): Promise<MultifdError> {
    const { signal } = this.#options;
    const reason: unknown = signal?.aborted === true ? signal.reason : undefined;
    // First, so that a file that is whole already is not kept for a source that has gone.
    this.#receiving.abort(thrown);
    const qmp = this.#qmp;
    const problems: string[] = [];
    let isSilent = false;
    const attempt = async (what: () => Promise<unknown>): Promise<void> => {
      if (qmp?.isOpen !== true || isSilent) return;
      await what().catch((error: unknown) => {
        // A QEMU that hangs is not asked again and again.
        isSilent = error instanceof MultifdError && error.code === 'ERR_MULTIFD_TIMEOUT';
        problems.push(describeThrown(error));
      });
    };
    const isTouched = this.#settings?.describe(CAPABILITIES) !== undefined;
    if (isTouched) await this.#regainSame();
    let end: MigrationStatus | undefined;
    if (this.#migrating) {
      await attempt(async () => {
        const now = await queryMigration(qmp as Qmp);
        if (isOver(now)) return;
        if (now.status !== 'cancelling') this.#cancels = true;
        await (qmp as Qmp).execute('migrate_cancel');
      });
      await attempt(async () => (end = await migrationOver(qmp as Qmp, END_MS)));
    }
    let error = await this.#dropKept(MultifdError.wrap(thrown, 'ERR_MULTIFD_QMP', 'park'), end);
    const ended = await result?.then(
      (received) => void (this.#received = received),
      (reasonToo: unknown) => (reasonToo === thrown ? undefined : reasonToo),
    );
    const refused = ended === undefined || reason !== undefined ? ended : reasonOf(ended);
    if (refused instanceof MultifdError && refused.code !== 'ERR_MULTIFD_ABORTED') {
      const here = await this.#dropKept(refused, end);
      // QEMU's words for a connection that was broken here say nothing of why.
      if (CONSEQUENCES.has(refused.code) || error.code !== 'ERR_MULTIFD_QMP') error.suppressed.push(here);
      else {
        here.suppressed.push(error);
        error = here;
      }
    }
    if (this.#received !== undefined) {
      error = await this.#undoReceived(error, this.#received, end);
    } else if (end?.error !== undefined && !error.message.includes(end.error) && reason === undefined) {
      problems.unshift(`QEMU says: ${end.error}`);
    }
    if (end?.status === 'cancelled' && !this.#cancels && !error.message.includes(NOT_FROM_HERE)) {
      problems.unshift(`QEMU's migration ${this.#endWords(end)}`);
    }
    const isParked = this.#received !== undefined && end?.status === 'completed';
    if (this.#migrating && this.#wasRunning && !isParked) {
      await attempt(async () => {
        const { running, status } = await runOn(qmp as Qmp);
        if (!running) problems.push(`the guest does not run on: QEMU is in state ${status}`);
      });
    }
    await attempt(async () => this.#settings?.putBack());
    if (isTouched && (isSilent || qmp?.isOpen !== true)) problems.push(this.#lost());
    if (reason !== undefined && error.code !== 'ERR_MULTIFD_ABORTED') {
      error = new MultifdError('ERR_MULTIFD_ABORTED', `aborted: ${error.message}`, { cause: reason });
    }
    return problems.length === 0 ? error : withWords(error, problems);
  }

  /**
   * What is received whole is kept where its source goes without a word: it may be all that there is. Here it is known that the
   * guest goes on.
   */
  async #dropKept(error: MultifdError, end: MigrationStatus | undefined): Promise<MultifdError> {
    const { kept } = error;
    if (kept === undefined || (end?.status !== 'failed' && end?.status !== 'cancelled')) return error;
    if (this.#options.receive.keepPartial === true) return error;
    await rm(kept, { force: true });
    const what = error.message.replace(keptWords(kept), '');
    return error.reworded(`${what}; QEMU's migration is ${end.status}, so its guest goes on there`, {
      kept: undefined,
    });
  }

  /** The file has its name, but something went wrong behind it. */
  async #undoReceived(
    error: MultifdError,
    { out }: ReceivedMigration,
    end: MigrationStatus | undefined,
  ): Promise<MultifdError> {
    let fate: string;
    if (this.#completed || end?.status === 'completed') {
      fate = `too late: the guest is whole in ${out}, and stands still in its QEMU (postmigrate), where cont lets it run on`;
    } else if (end === undefined) {
      fate =
        `the guest is whole in ${out}, and QEMU was told so, which has not said that it gave it up: see to it that it does not ` +
        `run there (query-status, expected postmigrate; quit ends it) before it is resumed from the file`;
    } else {
      // A guest that runs on has no twin.
      await rm(out, { force: true });
      fate = `${out} is removed: QEMU's migration is ${end.status}, so its guest goes on there`;
    }
    return withWords(error, [fate]);
  }

  #lost(): string {
    const isIn = this.#received !== undefined;
    const state = this.#completed ? 'parked' : isIn ? 'told' : this.#migrating ? 'migrating' : 'untouched';
    return lostWords(state, this.#settings?.describe(CAPABILITIES) ?? '');
  }

  #progress(source: MigrationStatus): void {
    const { onProgress } = this.#options;
    // That it is over is told once.
    const isRepeated = isOver(source) && this.#lastTold?.status === source.status;
    this.#lastTold = source;
    if (isRepeated) return;
    if (onProgress === undefined || (performance.now() - this.#told < PROGRESS_MS && !isOver(source))) return;
    this.#told = performance.now();
    const { status, totalBytes, remainingBytes, transferredBytes, dirtySyncCount } = source;
    callHook('onProgress', () =>
      onProgress({
        source: { status, totalBytes, remainingBytes, transferredBytes, dirtySyncCount },
        received: this.#session?.stats(),
      }),
    );
  }

  #failed({ status, error }: MigrationStatus, address: Address): MultifdError {
    const words = error === undefined ? '' : `: ${error}`;
    const isOurs = this.#options.listen === undefined && address.path !== undefined;
    const hint =
      isOurs && /failed to connect|permission denied|no such file/i.test(words)
        ? '. It runs as another user, or elsewhere: give an address that it reaches (listen, --listen)'
        : '';
    return this.#error(`QEMU's migration ${this.#endWords({ status })}${words}${hint}`);
  }

  #endWords({ status }: Pick<MigrationStatus, 'status'>): string {
    return `${endWords(status)}${status === 'cancelled' && !this.#cancels ? NOT_FROM_HERE : ''}`;
  }

  #error(what: string): MultifdError {
    return new MultifdError('ERR_MULTIFD_QMP', `${formatAddress(this.#options.qmp)}: ${what}`);
  }
}

/** QEMU says that it has failed before the receiver gives up to wait for another source: why it has refused that one, it knows. */
function reasonOf(ended: unknown): unknown {
  if (!(ended instanceof MultifdError) || ended.code !== 'ERR_MULTIFD_ABORTED') return ended;
  return ended.suppressed.find(({ code }) => code === 'ERR_MULTIFD_TLS') ?? ended;
}

/** An abort behind a `quit` that may have been heard. */
function unanswered(error: MultifdError): never {
  throw withWords(error, [NO_ANSWER]);
}
