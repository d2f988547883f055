/**
 * A QEMU as source, told by its QMP socket: it migrates to us, with a fault on the way, and is watched until its migration is over.
 * Nothing of the guest is kept, and the source is told in the end that it has failed: its guest runs on, for the next run. A QEMU
 * that goes in a run is what that run has come to, and the last one; what it had for settings is told, for it may live.
 *
 *     QEMU --> pass-on, fault --> receiveMigration({ discard: 'refuse' })
 */
import { formatAddress } from '../transport/address.js';
import type { Address } from '../transport/address.js';
import { PassOn } from '../transport/pass-on.js';
import { MultifdError, describeThrown } from '../errors.js';
import { withLimit } from '../migration/limits.js';
import { receiveMigration } from '../migration/receive.js';
import type { Compression } from '../options.js';
import {
  isOver,
  migrationOver,
  notOver,
  queryGuest,
  queryMigration,
  runOn,
  type MigrationStatus,
} from '../qmp/machine.js';
import { withWords } from '../qmp/incoming.js';
import { PrivateFolder } from '../qmp/private-folder.js';
import { Qmp } from '../qmp/qmp.js';
import { Regaining, lostWords } from '../qmp/regain.js';
import { QmpSchema } from '../qmp/schema.js';
import { MigrationSettings, requireMultifd } from '../qmp/settings.js';
import { QemuFault } from './qemu-fault.js';
import type { QemuPlan } from './qemu-plan.js';
import { oursOf, settled, type QemuRunReport, type Verdict } from './qemu-report.js';

const CAPABILITIES = ['multifd', 'return-path'];
const CANCEL_MS = 10_000;
/** So long a cancel may take before the connections are cut: they may be what holds it up. */
const CUT_MS = 500;
/** A guest that goes on writing is not waited for for ever. */
const MOST_LIMITS = 6;

/** Then there is nobody to say more to. */
const WITHOUT_MONITOR: readonly Verdict[] = ['monitor dead', 'gone', 'hung'];

interface Found {
  verdict: Verdict;
  words: string;
}

export interface QemuSourceOptions {
  qmp: Address;
  channels: number;
  compression: Compression;
  pageSize: number;
  limitMs: number;
}

/** A QEMU whose settings are ours for the time of the stress. */
export class StressedSource implements AsyncDisposable {
  readonly #options: QemuSourceOptions;
  readonly #qmp: Qmp;
  readonly #settings: MigrationSettings;
  readonly #wasRunning: boolean;
  /** What could not be put back. */
  problem: string | undefined;

  private constructor(
    options: QemuSourceOptions,
    qmp: Qmp,
    settings: MigrationSettings,
    wasRunning: boolean,
  ) {
    this.#options = options;
    this.#qmp = qmp;
    this.#settings = settings;
    this.#wasRunning = wasRunning;
  }

  /** @throws MultifdError ERR_MULTIFD_QMP, ERR_MULTIFD_CONNECT, ERR_MULTIFD_TIMEOUT */
  static async open(options: QemuSourceOptions, cancelled: AbortSignal): Promise<StressedSource> {
    const { channels, compression } = options;
    const qmp = await Qmp.connect(options.qmp, { commandMs: options.limitMs }, cancelled);
    let settings: MigrationSettings | undefined;
    try {
      requireMultifd(qmp, await QmpSchema.query(qmp), compression);
      const { status, running } = await queryGuest(qmp);
      if (status === 'inmigrate') {
        const message = `${qmp.address}: QEMU is in state inmigrate, expected a VM that is there; a destination is stressed with --incoming`;
        throw new MultifdError('ERR_MULTIFD_QMP', message);
      }
      settings = await MigrationSettings.remember(qmp);
      const parameters = { 'multifd-channels': channels, 'multifd-compression': compression };
      await settings.set(CAPABILITIES, parameters);
      return new StressedSource(options, qmp, settings, running);
    } catch (error) {
      const problem = await leftBehind(qmp, settings, 'untouched');
      qmp.close();
      throw problem === undefined || !(error instanceof MultifdError) ? error : withWords(error, [problem]);
    }
  }

  async run(plan: QemuPlan, cancelled: AbortSignal): Promise<QemuRunReport> {
    const { channels, compression, limitMs, pageSize } = this.#options;
    const fault = new QemuFault(plan, compression === 'none', pageSize);
    using folder = new PrivateFolder();
    const ended = new AbortController();
    let passOn: PassOn | undefined;
    let isOursOver = false;
    let closing: Promise<void> | undefined;
    const cut = (): Promise<void> | undefined => (closing ??= passOn?.close());
    let cutting: NodeJS.Timeout | undefined;
    const cutSoon = (): void => void (cutting = setTimeout(() => void cut(), CUT_MS));
    cancelled.addEventListener('abort', cutSoon, { once: true });
    let receiving: Promise<PromiseSettledResult<unknown>> | undefined;
    try {
      const inner = await new Promise<Address>((resolve, reject) => {
        receiving = settled(
          receiveMigration({
            address: { path: `${folder.path}/in.sock` },
            channels,
            compression,
            pageSize,
            discard: 'refuse',
            switchoverAck: 'never',
            acceptTimeoutMs: limitMs,
            stallTimeoutMs: limitMs,
            signal: AbortSignal.any([cancelled, ended.signal]),
            onListening: resolve,
          }),
        );
        void receiving.then(() => (isOursOver = true));
        void receiving.then((result) => reject((result as PromiseRejectedResult).reason as Error));
      });
      passOn = await PassOn.listen(this.#listenAt(folder), inner, {
        connection: (connection) => fault.connection(connection),
      });
      fault.begin(passOn);
      const through = passOn;
      let { verdict, words } = await this.#orLost(cancelled, async () => {
        await this.#qmp.execute('migrate', { uri: formatAddress(through.address) });
        return this.#watch(fault, through, () => isOursOver, cancelled);
      });
      const tookMs = fault.struckAt === undefined ? undefined : performance.now() - fault.struckAt;
      // Twice: its own time-outs are as long, and begin when QEMU has ended.
      const result = await Promise.race([receiving, late(2 * limitMs)]);
      cancelled.throwIfAborted();
      if (verdict === 'hung' || verdict === 'monitor lost') {
        await cut();
        if ((await this.#cancel()) && verdict === 'hung') verdict = 'hung until cut off';
      }
      if (!WITHOUT_MONITOR.includes(verdict) && this.#wasRunning) {
        const found = { verdict, words };
        ({ verdict, words } = await this.#orLost(cancelled, async () => runOn(this.#qmp).then(() => found)));
      }
      if (verdict === 'failed' && result?.status === 'fulfilled') verdict = 'failed as told';
      const hasEnded = ['completed', 'failed', 'failed as told'].includes(verdict);
      return {
        plan,
        struck: fault.struckAt !== undefined,
        what: fault.what,
        verdict,
        words,
        ...oursOf(result),
        tookMs: hasEnded ? tookMs : undefined,
      };
    } finally {
      fault.end();
      const cancelling = cancelled.aborted ? this.#cancel() : undefined;
      if (cancelling !== undefined) await Promise.race([cancelling, late(CUT_MS)]);
      cancelled.removeEventListener('abort', cutSoon);
      clearTimeout(cutting);
      ended.abort(new Error('the run is over'));
      await cut();
      await receiving;
      await cancelling;
    }
  }

  /** What is found out by its monitor, or what became of that. */
  async #orLost(cancelled: AbortSignal, ask: () => Promise<Found>): Promise<Found> {
    try {
      return await ask();
    } catch (error) {
      cancelled.throwIfAborted();
      const words = describeThrown(error);
      if (!this.#qmp.isOpen)
        return { verdict: (await this.#isBack(cancelled)) ? 'monitor lost' : 'gone', words };
      if (!(error instanceof MultifdError) || error.code !== 'ERR_MULTIFD_TIMEOUT') throw error;
      return { verdict: 'monitor dead', words };
    }
  }

  /** Is its monitor there again, and not another QEMU's? */
  async #isBack(cancelled: AbortSignal): Promise<boolean> {
    const isThere = await new Regaining(this.#qmp).isThere(cancelled);
    cancelled.throwIfAborted();
    const isSame = isThere && (await this.#settings.areSet(CAPABILITIES).catch(() => false));
    if (!isSame) this.#qmp.close();
    return isSame;
  }

  /** QEMU has to reach it. */
  #listenAt(folder: PrivateFolder): Address {
    const { localHost } = this.#qmp;
    return localHost === undefined ? { path: `${folder.path}/stress.sock` } : { host: localHost, port: 0 };
  }

  /** Until its migration is over; one that is not so in time is cancelled, as a person would do. */
  async #watch(
    fault: QemuFault,
    passOn: PassOn,
    isOursOver: () => boolean,
    cancelled: AbortSignal,
  ): Promise<Found> {
    const { limitMs } = this.#options;
    const began = performance.now();
    let moved = { bytes: -1, hasEnded: false, at: began };
    const told = (migration: MigrationStatus): void => {
      cancelled.throwIfAborted();
      const now = performance.now();
      const { bytes } = passOn;
      const hasEnded = isOursOver();
      // What the fault holds back for a time is not QEMU's silence; and that we have gone it is to see in its time.
      if (bytes !== moved.bytes || hasEnded !== moved.hasEnded || fault.holds)
        moved = { bytes, hasEnded, at: now };
      const quiet = now - moved.at > limitMs;
      if (!quiet && now - began <= MOST_LIMITS * limitMs) return;
      const when = quiet ? `with nothing sent for ${limitMs} ms` : `within ${MOST_LIMITS * limitMs} ms`;
      throw notOver(this.#qmp, migration, when);
    };
    try {
      const { status, error } = await migrationOver(this.#qmp, undefined, told);
      return { verdict: status === 'completed' ? 'completed' : 'failed', words: error ?? '' };
    } catch (error) {
      cancelled.throwIfAborted();
      if (!(error instanceof MultifdError) || error.code !== 'ERR_MULTIFD_TIMEOUT') throw error;
      // It may be a command that was not answered: then it is the monitor that hangs.
      await queryMigration(this.#qmp).catch(() => {
        throw error;
      });
      const words = describeThrown(error);
      return { verdict: (await this.#cancel()) ? 'hung until cancelled' : 'hung', words };
    }
  }

  async #cancel(): Promise<boolean> {
    try {
      if (!isOver(await queryMigration(this.#qmp))) await this.#qmp.execute('migrate_cancel', {}, CANCEL_MS);
      await migrationOver(this.#qmp, CANCEL_MS);
      return true;
    } catch {
      return false;
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.problem = await leftBehind(this.#qmp, this.#settings, 'migrating');
    if (this.#qmp.isOpen && this.#wasRunning)
      await withLimit(runOn(this.#qmp), CANCEL_MS, 'ERR_MULTIFD_TIMEOUT', '').catch(() => {});
    this.#qmp.close();
  }
}

/** Puts its settings back. @returns what could not be put back, or may be left */
async function leftBehind(
  qmp: Qmp,
  settings: MigrationSettings | undefined,
  state: 'untouched' | 'migrating',
): Promise<string | undefined> {
  const were = settings?.describe(CAPABILITIES);
  const problem = qmp.isOpen ? await settings?.putBackOrSay() : undefined;
  return qmp.isOpen || were === undefined ? problem : lostWords(state, were);
}

function late(ms: number): Promise<undefined> {
  return new Promise((resolve) => void setTimeout(() => resolve(undefined), ms).unref());
}
