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
 * A guest that was paused stays so. The return path is always on: without it a source would give its guest up before the
 * file is on disk.
 */
import { rm } from 'node:fs/promises';
import { MultifdError, describeThrown } from '../errors.js';
import { withLimit } from '../migration/limits.js';
import { callHook } from '../migration/options.js';
import { receiveMigration, type ReceivedMigration } from '../migration/receive.js';
import type { Receiver as PublicReceiver } from '../public-session.js';
import { formatAddress, type Address } from '../transport/address.js';
import { isOver, migrationOver, queryGuest, queryMigration, runOn, type MigrationStatus } from './machine.js';
import { checkParkOptions, type CheckedPark, type ParkThen, type ParkVmOptions } from './park-options.js';
import { requireGoing } from './incoming.js';
import { PrivateFolder } from './private-folder.js';
import { qemuTlsParameters } from './qemu-tls.js';
import { Qmp } from './qmp.js';
import { QmpSchema } from './schema.js';
import { MigrationSettings, requireMultifd } from './settings.js';

/** A QEMU that cannot reach us stays in state `setup` for long. */
const ACCEPT_MS = 30_000;
/** For QEMU to end a migration that is cancelled, or one whose last word has been said. */
const END_MS = 30_000;
/** For it to say that it does. */
const CANCEL_MS = 3_000;
const PROGRESS_MS = 200;
const CAPABILITIES = ['multifd', 'return-path'];

export interface ParkedVm extends ReceivedMigration {
  /** QEMU's RunState in the end: `postmigrate`, as a rule; `gone` if QEMU has ended. */
  source: string;
  then: ParkThen;
  /** Capabilities that the VM had on and that were off for the run: another stream, or one that waits. */
  switchedOff: string[];
  /** What could not be put back of the VM's settings, and why. Undefined if all is as it was, or QEMU was ended. */
  problem: string | undefined;
}

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
  #settings: MigrationSettings | undefined;
  #wasRunning = false;
  /** Has QEMU been told to migrate? */
  #migrating = false;
  /** Is the guest in the file? */
  #received: ReceivedMigration | undefined;
  #told = 0;

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
      const switchedOff = await this.#prepare(address);
      await this.#migrate(address, result);
      return { ...(await this.#finish()), switchedOff };
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

  /** @returns capabilities that are off for the run */
  async #prepare(address: Address): Promise<string[]> {
    const { qmp: where, signal, channels, compression, zeroPageDetection, receive, qemuTls } = this.#options;
    const qmp = (this.#qmp = await Qmp.connect(where, {}, signal));
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
    const parameters: Record<string, unknown> = {
      'multifd-channels': channels,
      'multifd-compression': compression,
      ...this.#options.parameters,
      ...(await qemuTlsParameters(qmp, qemuTls, receive.tls !== undefined)),
    };
    if (schema.parameters.has('mode')) parameters.mode = 'normal';
    if (schema.parameters.has('zero-page-detection')) {
      if (zeroPageDetection !== undefined) parameters['zero-page-detection'] = zeroPageDetection;
    } else if (zeroPageDetection !== undefined && zeroPageDetection !== 'legacy') {
      throw this.#error(
        `this QEMU has no zero-page-detection: given ${zeroPageDetection}, allowed legacy, its only way`,
      );
    }
    this.#settings = await MigrationSettings.remember(qmp);
    requireGoing(this.#receiving.signal);
    await this.#settings.set(CAPABILITIES, parameters);
    requireGoing(this.#receiving.signal);
    // Whatever comes of the call itself.
    this.#migrating = true;
    await qmp.execute('migrate', { uri: formatAddress(reachable(address, qmp)) });
    return this.#settings.switchedOff(CAPABILITIES);
  }

  /** Until both sides say that it is done. */
  async #migrate(address: Address, result: Promise<ReceivedMigration>): Promise<void> {
    const qmp = this.#qmp as Qmp;
    const received = result.then((value) => (this.#received = value));
    received.catch(() => {});
    const source = (async () => {
      try {
        const over = await migrationOver(qmp, undefined, (status) => this.#progress(status));
        if (over.status !== 'completed') throw this.#failed(over, address);
      } catch (error) {
        // It has ended, or nobody can ask it any more: what has come decides.
        if (qmp.isOpen || !(await settled(received))) throw error;
      }
    })();
    source.catch(() => {});
    await Promise.race([received, source.then(() => received)]);
    await this.#end(source);
  }

  /** All has come, and QEMU has been told so. */
  async #end(source: Promise<void>): Promise<void> {
    const qmp = this.#qmp as Qmp;
    const late = `${qmp.address}: received nothing, expected migration status completed within ${END_MS} ms`;
    await withLimit(source, END_MS, 'ERR_MULTIFD_TIMEOUT', late);
  }

  async #finish(): Promise<Omit<ParkedVm, 'switchedOff'>> {
    const qmp = this.#qmp as Qmp;
    const { then, signal } = this.#options;
    const received = this.#received as ReceivedMigration;
    let source = 'gone';
    let problem: string | undefined;
    if (!qmp.isOpen) {
      problem =
        'QEMU has closed QMP before its settings were put back: if it is still there, they are those of the run';
    } else {
      if (signal?.aborted === true)
        throw new MultifdError('ERR_MULTIFD_ABORTED', 'aborted', { cause: signal.reason });
      if (then === 'quit') await qmp.quit();
      else {
        problem = await this.#settings?.putBackOrSay();
        if (then === 'stop' && (await queryGuest(qmp)).running) await qmp.execute('stop');
        source = (await queryGuest(qmp)).status;
      }
    }
    return { ...received, source, then, problem };
  }

  /** QEMU breaks off first: one whose connections break while it is told to cancel has been seen to end. */
  async #abort(reason: unknown): Promise<void> {
    if (this.#migrating && this.#qmp?.isOpen === true) {
      await this.#qmp.execute('migrate_cancel', {}, CANCEL_MS).catch(() => {});
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
    const attempt = async (what: () => Promise<unknown>): Promise<void> => {
      if (qmp?.isOpen !== true) return;
      await what().catch((error: unknown) => problems.push(describeThrown(error)));
    };
    let end: MigrationStatus | undefined;
    if (this.#migrating) {
      await attempt(async () => {
        if (!isOver(await queryMigration(qmp as Qmp))) await (qmp as Qmp).execute('migrate_cancel');
      });
      await attempt(async () => (end = await migrationOver(qmp as Qmp, END_MS)));
    }
    let error = MultifdError.wrap(thrown, 'ERR_MULTIFD_QMP', 'park');
    await result?.then(
      (received) => (this.#received = received),
      (refused: unknown) => {
        // QEMU's words for a connection that was broken here say nothing.
        if (refused instanceof MultifdError && refused !== error && refused.code !== 'ERR_MULTIFD_ABORTED') {
          error.suppressed.push(refused);
        }
      },
    );
    if (this.#received !== undefined) {
      error = await this.#undoReceived(error, this.#received, end);
    } else if (end?.error !== undefined && !error.message.includes(end.error) && reason === undefined) {
      problems.unshift(`QEMU says: ${end.error}`);
    }
    const isParked = this.#received !== undefined && end?.status === 'completed';
    if (this.#migrating && this.#wasRunning && !isParked) {
      await attempt(async () => {
        const { running, status } = await runOn(qmp as Qmp);
        if (!running) problems.push(`the guest does not run on: QEMU is in state ${status}`);
      });
    }
    await attempt(async () => this.#settings?.putBack());
    if (reason !== undefined && error.code !== 'ERR_MULTIFD_ABORTED') {
      error = new MultifdError('ERR_MULTIFD_ABORTED', `aborted: ${error.message}`, { cause: reason });
    }
    if (problems.length === 0) return error;
    const message = `${error.message}; ${problems.join('; ')}`;
    const whole = new MultifdError(error.code, message, { cause: error.cause ?? error });
    whole.suppressed.push(...error.suppressed);
    return whole;
  }

  /** The file has its name, but something went wrong behind it. */
  async #undoReceived(
    error: MultifdError,
    { out }: ReceivedMigration,
    end: MigrationStatus | undefined,
  ): Promise<MultifdError> {
    let fate: string;
    if (end === undefined) fate = `the guest is whole in ${out}, and of its source nothing is known`;
    else if (end.status === 'completed') {
      fate = `too late: the guest is whole in ${out}, and stands still in its QEMU (postmigrate), where cont lets it run on`;
    } else {
      // A guest that runs on has no twin.
      await rm(out, { force: true });
      fate = `${out} is removed: QEMU's migration is ${end.status}, so its guest goes on there`;
    }
    return new MultifdError(error.code, `${error.message}; ${fate}`, { cause: error.cause ?? error });
  }

  #progress(source: MigrationStatus): void {
    const { onProgress } = this.#options;
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
    return this.#error(`QEMU's migration has ${status === 'none' ? 'ended' : status}${words}${hint}`);
  }

  #error(what: string): MultifdError {
    return new MultifdError('ERR_MULTIFD_QMP', `${formatAddress(this.#options.qmp)}: ${what}`);
  }
}

/** Waits for its end. @returns whether it is a good one */
function settled(promise: Promise<unknown>): Promise<boolean> {
  return promise.then(
    () => true,
    () => false,
  );
}

/** An address that means all of ours is none to connect to: a QEMU elsewhere reaches us where we have reached it. */
function reachable(address: Address, qmp: Qmp): Address {
  if (address.path !== undefined) return address;
  if (address.host !== '0.0.0.0' && address.host !== '::') return address;
  return { host: qmp.localHost?.replace(/^::ffff:/, '') ?? '127.0.0.1', port: address.port };
}
