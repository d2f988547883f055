/**
 * Resumes a VM from a file by postcopy: its guest runs before its memory has been read (postcopy/send.ts).
 *
 *     here                                        QEMU, by QMP
 *     the file's head is read                     greeting; inmigrate? machine and memory as the file's?
 *                                                 remember its settings; postcopy-ram and return-path on, all else off
 *                                                 stop, where the guest is not to run; migrate-incoming
 *     devices, RUN  ------------------------->    the guest runs, unless QEMU was started with -S, or told to stop
 *     pages, as they are asked for and all others
 *     <- SHUT 0                                   completed; its settings put back; cont, where it is asked for
 *
 * A connection that breaks while the guest runs leaves it in `postcopy-paused`, and QEMU with our settings: they cannot be put
 * back while its migration is under way. `recover` goes on from there: `migrate-recover` at a new socket, then the pages that
 * are missing. Which settings QEMU had at first nobody knows by then.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { MultifdError } from '../errors.js';
import type { Described } from '../migration/needs.js';
import { callHook } from '../migration/options.js';
import { wrong } from '../option-checks.js';
import { checkPostcopy, type CheckedPostcopy, type PostcopyOptions } from '../postcopy/options.js';
import { SOUND_COPY } from '../postcopy/fate.js';
import { sendPostcopy } from '../postcopy/send.js';
import type { PostcopyResult, PostcopySession } from '../postcopy/session.js';
import {
  checkAddress,
  checkToldAddress,
  formatAddress,
  type Address,
  type AddressText,
} from '../transport/address.js';
import { FileMark } from './file-mark.js';
import { explainRefusal, requireFit } from './fit.js';
import {
  finishLoaded,
  listenAt,
  qmpError,
  refusedWords,
  requireGoing,
  requireWaiting,
  withWords,
} from './incoming.js';
import { queryGuest, queryMigration } from './machine.js';
import type { PrivateFolder } from './private-folder.js';
import { checkQemuTls, qemuTlsParameters, requireNoCreds, type QemuTlsOptions } from './qemu-tls.js';
import type { Qmp } from './qmp.js';
import { addressToBe } from './resume-options.js';
import { QmpSchema } from './schema.js';
import { MigrationSettings } from './settings.js';

const CAPABILITIES = ['postcopy-ram', 'return-path'];
/** For QEMU to see that its connection has broken. */
const PAUSED_MS = 10_000;
const POLL_MS = 50;

export interface InstantResumeOptions extends Omit<PostcopyOptions, 'to'> {
  /** The control socket (-qmp) of a QEMU that was started with `-incoming defer`; no other client holds it. */
  qmp: Address | AddressText;
  /** As in ResumeVmOptions. */
  to?: Address | AddressText;
  /** As in ResumeVmOptions. */
  run?: boolean;
  /** QEMU's side of TLS; goes with `tls`, which is ours. */
  qemuTls?: QemuTlsOptions;
}

export interface InstantlyResumedVm extends PostcopyResult {
  /** QEMU's RunState in the end, such as `running`. */
  status: string;
  /** Capabilities that QEMU had on and that were off for the run; `tls-creds`, if they were, behind a private socket. */
  switchedOff: string[];
  /** Settings of QEMU that could not be put back: its words. Undefined if all is as it was. */
  problem: string | undefined;
}

/** Of a QEMU that has been told to run its guest: it says so when it has loaded the devices. */
const TOLD_MS = 5_000;

/** What resumeVm() hands on, which has connected. */
export interface InstantResume {
  qmp: Address;
  to: Address | undefined;
  run: boolean | undefined;
  qemuTls: QemuTlsOptions | undefined;
  /** As sendPostcopy() wants it. */
  send: Omit<PostcopyOptions, 'to'>;
  /** What it makes of that. */
  checked: CheckedPostcopy;
}

/** With what the file says: is the guest not to run, and which file is it? */
export type InstantFile = InstantResume & { holds: boolean; digest: string };

/** @throws MultifdError as sendPostcopy() before it opens anything */
export async function checkInstant(options: InstantResumeOptions): Promise<InstantResume> {
  const { qmp, to, run, qemuTls, ...send } = options;
  if (run !== undefined && typeof run !== 'boolean') throw wrong('run', run, 'true or false');
  const address = to === undefined ? undefined : checkToldAddress(to, 0, 'to');
  return {
    qmp: checkAddress(qmp, 1, 'qmp'),
    to: address,
    run,
    qemuTls: checkQemuTls(qemuTls, send.tls),
    send,
    checked: await checkPostcopy({ ...send, to: addressToBe(address) }),
  };
}

/** @throws MultifdError ERR_MULTIFD_QMP, and with all codes of sendMigration({ mode: 'postcopy' }) */
export async function resumeInstantly(
  qmp: Qmp,
  needs: Described,
  resume: InstantFile,
  folder: PrivateFolder | undefined,
): Promise<InstantlyResumedVm> {
  return new Resuming(qmp, needs, resume, resume.to ?? { path: `${folder?.path}/resume.sock` }).run();
}

class Resuming {
  readonly #qmp: Qmp;
  readonly #needs: Described;
  readonly #resume: InstantFile;
  readonly #listen: Address;
  #session: PostcopySession | undefined;

  readonly #mark: FileMark;
  #isListening = false;
  readonly #stop = new AbortController();
  /** Settles when it is known whether the guest runs, and the caller has been told. */
  #told: Promise<void> | undefined;
  #hookError: MultifdError | undefined;

  constructor(qmp: Qmp, needs: Described, resume: InstantFile, listen: Address) {
    this.#qmp = qmp;
    this.#needs = needs;
    this.#resume = resume;
    this.#listen = listen;
    this.#mark = new FileMark(qmp, resume.digest);
  }

  async run(): Promise<InstantlyResumedVm> {
    const { run, send } = this.#resume;
    const settings = send.recover === true ? undefined : await this.#prepare();
    let sent: PostcopyResult;
    const { signal } = send;
    const abort = (): void => this.#stop.abort(signal?.reason);
    if (signal?.aborted === true) abort();
    signal?.addEventListener('abort', abort, { once: true });
    try {
      sent = await this.#send(settings);
    } catch (thrown) {
      throw await this.#explained(this.#orHook(thrown), settings);
    } finally {
      signal?.removeEventListener('abort', abort);
      await this.#told;
    }
    await this.#mark.remove();
    const end = await finishLoaded(this.#qmp, settings, { on: CAPABILITIES, run, signal });
    if (this.#hookError !== undefined) throw this.#hookError;
    return { ...sent, ...end, switchedOff: settings?.switchedOff(CAPABILITIES) ?? [] };
  }

  async #prepare(): Promise<MigrationSettings> {
    const qmp = this.#qmp;
    const schema = await QmpSchema.query(qmp);
    for (const name of CAPABILITIES)
      if (!schema.capabilities.has(name)) throw qmpError(qmp, `this QEMU has no capability ${name}`);
    await requireWaiting(qmp);
    await requireFit(qmp, this.#needs);
    const settings = await MigrationSettings.remember(qmp);
    const { send, qemuTls, to } = this.#resume;
    const tls = await qemuTlsParameters(qmp, {
      qemuTls,
      ours: send.tls !== undefined,
      endpoint: 'server',
      present: settings.tlsCreds,
      address: to,
    });
    try {
      requireGoing(send.signal);
      await settings.set(CAPABILITIES, {
        ...(schema.parameters.has('mode') && { mode: 'normal' }),
        ...tls,
      });
      requireGoing(send.signal);
    } catch (error) {
      await settings.putBack().catch(() => {});
      throw error;
    }
    await this.#mark.add(settings.isTlsOff);
    return settings;
  }

  async #send(settings: MigrationSettings | undefined): Promise<PostcopyResult> {
    const qmp = this.#qmp;
    const { send, holds } = this.#resume;
    if (settings === undefined) {
      await this.#requirePaused();
      await requireFit(qmp, this.#needs);
      await this.#mark.requireSame(send.file);
      if (send.tls === undefined) await this.#requirePlain();
    }
    const command = settings === undefined ? 'migrate-recover' : 'migrate-incoming';
    const to = await listenAt(qmp, command, this.#listen);
    this.#isListening = true;
    // It keeps that in mind: RUN alone would start a guest that was parked while it was paused. One that cannot listen stays as it was.
    if (holds && settings !== undefined) await qmp.execute('stop');
    const sent = await sendPostcopy({
      ...send,
      to,
      signal: this.#stop.signal,
      onSession: (session) => {
        this.#session = session;
        send.onSession?.(session);
      },
      onRunning: (afterMs) => {
        this.#told = this.#tell(afterMs);
      },
    });
    return sent;
  }

  /** The destination's word is that the devices are loaded; whether the guest runs then, its monitor knows. Never rejects. */
  async #tell(afterMs: number): Promise<void> {
    const { onRunning } = this.#resume.send;
    if (onRunning === undefined) return;
    const late = performance.now() + TOLD_MS;
    try {
      let { status, running } = await queryGuest(this.#qmp);
      for (
        ;
        status === 'inmigrate' && performance.now() < late;
        { status, running } = await queryGuest(this.#qmp)
      )
        await sleep(POLL_MS);
      if (!running) return;
    } catch {
      // Nobody says so.
      return;
    }
    try {
      callHook('onRunning', () => onRunning(afterMs));
    } catch (error) {
      this.#hookError = error as MultifdError;
      this.#stop.abort(error);
    }
  }

  /** What stopped it, in place of the abort that it was stopped by. */
  #orHook(thrown: unknown): unknown {
    const hook = this.#hookError;
    if (hook === undefined || !(thrown instanceof MultifdError) || thrown.cause !== hook) return thrown;
    const message = thrown.message.replace(/^aborted/, hook.message);
    return new MultifdError('ERR_MULTIFD_POSTCOPY_PAUSED', message, { cause: hook });
  }

  async #requirePaused(): Promise<void> {
    const late = performance.now() + PAUSED_MS;
    for (;;) {
      const { status } = await queryMigration(this.#qmp);
      if (status === 'postcopy-paused') return;
      if (status !== 'postcopy-active' || performance.now() > late) {
        const expected =
          'expected postcopy-paused: an instant resume whose connection broke (option recover)';
        throw qmpError(this.#qmp, `QEMU's migration is in state ${status}, ${expected}`);
      }
      await sleep(POLL_MS);
    }
  }

  /** Nothing is set in a QEMU that goes on: it speaks TLS, or does not, as the one did whose connection broke. */
  async #requirePlain(): Promise<void> {
    const { tlsCreds } = await MigrationSettings.remember(this.#qmp);
    requireNoCreds(this.#qmp, tlsCreds, this.#listen);
    if (this.#resume.to === undefined || !(await this.#mark.isTlsOff())) return;
    const message =
      "QEMU's tls-creds were switched off for a private socket, and there are no credentials here: the guest's RAM would go " +
      `through ${formatAddress(this.#resume.to)} in plain text: give no address (to, --to), so that it goes on through a private one`;
    throw new MultifdError('ERR_MULTIFD_TLS', `${this.#qmp.address}: ${message}`);
  }

  async #explained(thrown: unknown, settings: MigrationSettings | undefined): Promise<MultifdError> {
    const first = MultifdError.wrap(thrown, 'ERR_MULTIFD_QMP', 'resume');
    const state = this.#session?.stats().state ?? 'setup';
    if (first.code === 'ERR_MULTIFD_POSTCOPY_PAUSED' || state === 'running' || state === 'recovering')
      return withWords(first, [
        first.message.includes(SOUND_COPY)
          ? 'then the same command with --recover (option recover) goes on'
          : 'the same command with --recover (option recover) goes on',
      ]);
    if (!this.#isListening) {
      // Nothing was sent: it is as it was, and waits.
      if (settings !== undefined) await this.#mark.remove();
      const problem = this.#qmp.isOpen ? await settings?.putBackOrSay() : undefined;
      return withWords(first, problem === undefined ? [] : [problem]);
    }
    const words = await refusedWords(this.#qmp, first, explainRefusal(this.#needs, 'mode postcopy'));
    if (this.#qmp.isOpen) await settings?.putBack().catch(() => {});
    return withWords(first, words);
  }
}
