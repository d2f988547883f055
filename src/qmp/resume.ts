/**
 * Resumes a VM from a file in a QEMU that waits with `-incoming defer`: its monitor is told to take in what we send.
 *
 *     here                                        QEMU, by QMP
 *     options checked, the file looked at         greeting, what it knows; inmigrate? machine and memory as the file's?
 *                                                 remember its capabilities and parameters, set ours
 *                                                 migrate-incoming at a socket in a folder of our own (or at `to`)
 *     sendMigration()  --- main, channels ----->
 *     <- SHUT 0                                   completed
 *                                                 put back its settings; cont, where it is asked for
 *
 * Whether the guest runs then is QEMU's affair: it does as it did when it was parked, unless QEMU was started with -S. `run`
 * decides otherwise. A domain that libvirt saved was paused for that: of one that ran QEMU is told `cont`, -S or not, for nothing
 * tells the one pause from the other.
 *
 * A QEMU that refuses says why in its log, and before 9.1 ends; a later one is told to stay, and says it here. One that has
 * refused a packet answers nothing any more. So each wait has a limit, and what the file tells is told along.
 */
import { MultifdError } from '../errors.js';
import type { Described } from '../migration/needs.js';
import { sendMigration, type SentMigration } from '../migration/send.js';
import { requireOptions } from '../migration/options.js';
import { wrongMode } from '../postcopy/options.js';
import { explainRefusal, requireFit } from './fit.js';
import { finishLoaded, listenAt, refusedWords, requireGoing, requireWaiting, withWords } from './incoming.js';
import { PrivateFolder } from './private-folder.js';
import { qemuTlsParameters } from './qemu-tls.js';
import { Qmp } from './qmp.js';
import { checkResumeOptions, type CheckedResume, type ResumeVmOptions } from './resume-options.js';
import {
  checkInstant,
  resumeInstantly,
  type InstantResumeOptions,
  type InstantlyResumedVm,
} from './resume-instant.js';
import { lookAtFile } from './resume-file.js';
import { QmpSchema } from './schema.js';
import { MigrationSettings, requireMultifd, requireObject } from './settings.js';

const CAPABILITIES = ['multifd'];

export interface ResumedVm extends SentMigration {
  /** QEMU's RunState in the end, such as `running`. */
  status: string;
  /** Capabilities that QEMU had on and that were off for the run; `tls-creds`, if they were, behind a private socket. */
  switchedOff: string[];
  /** Settings of QEMU that could not be put back: its words. Undefined if all is as it was. */
  problem: string | undefined;
}

/**
 * Resolves when QEMU has loaded all and has its settings back. With mode `postcopy` the guest runs long before.
 *
 * @throws MultifdError ERR_MULTIFD_QMP and with all codes of sendMigration(); that QEMU is of no more use then, unless nothing
 *   had been sent, or the guest runs there (ERR_MULTIFD_POSTCOPY_PAUSED)
 */
export async function resumeVm(options: ResumeVmOptions): Promise<ResumedVm>;
export async function resumeVm(options: InstantResumeOptions): Promise<InstantlyResumedVm>;
export async function resumeVm(
  options: ResumeVmOptions | InstantResumeOptions,
): Promise<ResumedVm | InstantlyResumedVm> {
  requireOptions(options);
  if (options.mode === 'postcopy') return resumeAtOnce(options);
  if (options.mode !== undefined && options.mode !== 'precopy') throw wrongMode(options.mode);
  const checked = await checkResumeOptions(options);
  const file = await lookAtFile(checked.checked, sendingOf(options));
  const qmp = await Qmp.connect(checked.qmp, {}, options.signal);
  using folder = checked.to === undefined ? new PrivateFolder() : undefined;
  try {
    // libvirt has paused the domain to save it, and resumes one that ran.
    const run = checked.run ?? (file.libvirt?.wasRunning === true ? true : undefined);
    return await resume(qmp, file.needs, { ...checked, run }, folder);
  } finally {
    qmp.close();
  }
}

async function resumeAtOnce(options: InstantResumeOptions): Promise<InstantlyResumedVm> {
  const checked = await checkInstant(options);
  const { needs, wasHeld, digest, offset } = await lookAtFile(checked.checked, sendingOf(options));
  const qmp = await Qmp.connect(checked.qmp, {}, options.signal);
  using folder = checked.to === undefined ? new PrivateFolder() : undefined;
  try {
    const holds = checked.run === false || (checked.run === undefined && wasHeld);
    const resume = { ...checked, holds, digest, send: { ...checked.send, offset } };
    return await resumeInstantly(qmp, needs, resume, folder);
  } finally {
    qmp.close();
  }
}

function sendingOf({ pageSize, stallTimeoutMs }: Pick<ResumeVmOptions, 'pageSize' | 'stallTimeoutMs'>): {
  pageSize: number | undefined;
  stallTimeoutMs: number | undefined;
} {
  return { pageSize, stallTimeoutMs };
}

async function resume(
  qmp: Qmp,
  needs: Described,
  options: CheckedResume,
  folder: PrivateFolder | undefined,
): Promise<ResumedVm> {
  const { channels, compression, send, signal, run } = options;
  const { schema, uuid, settings, parameters } = await qmp.abortable(signal, async () => {
    const schema = await QmpSchema.query(qmp);
    requireMultifd(qmp, schema, compression);
    await requireWaiting(qmp);
    await requireFit(qmp, needs);
    const uuid = send.uuid ?? (await uuidOf(qmp));
    const settings = await MigrationSettings.remember(qmp);
    const tls = await qemuTlsParameters(qmp, {
      qemuTls: options.qemuTls,
      ours: send.tls !== undefined,
      endpoint: 'server',
      present: settings.tlsCreds,
      address: options.to,
    });
    const parameters = {
      'multifd-channels': channels,
      'multifd-compression': compression,
      ...(schema.parameters.has('mode') && { mode: 'normal' }),
      ...tls,
    };
    return { schema, uuid, settings, parameters };
  });
  let sent: SentMigration | undefined;
  let isSending = false;
  try {
    requireGoing(signal);
    await settings.set(CAPABILITIES, parameters);
    requireGoing(signal);
    const to = await listenAt(
      qmp,
      'migrate-incoming',
      options.to ?? { path: `${folder?.path}/resume.sock` },
      {
        ...(schema.hasArgument('migrate-incoming', 'exit-on-error') && { 'exit-on-error': false }),
      },
    );
    isSending = true;
    // QEMU keeps in mind that the guest is not to run; one that takes nothing in stays as it was.
    if (run === false) await qmp.execute('stop');
    requireGoing(signal);
    sent = await sendMigration({ ...send, to, ...(uuid !== undefined && { uuid }) });
    const end = await finishLoaded(qmp, settings, { on: CAPABILITIES, run, signal });
    return { ...sent, ...end, switchedOff: settings.switchedOff(CAPABILITIES) };
  } catch (thrown) {
    // Its words say all that is known.
    if (sent !== undefined && !qmp.isOpen) throw thrown;
    const how = `${channels} channels, ${compression}`;
    throw await explained(qmp, thrown, isSending ? explainRefusal(needs, how) : undefined, settings);
  }
}

/** With what QEMU says now, if it says anything, and with what the file says. */
async function explained(
  qmp: Qmp,
  thrown: unknown,
  explanation: string | undefined,
  settings: MigrationSettings,
): Promise<MultifdError> {
  const first = MultifdError.wrap(thrown, 'ERR_MULTIFD_QMP', 'resume');
  if (explanation === undefined) {
    const problem = await settings.putBackOrSay();
    return withWords(first, problem === undefined ? [] : [problem]);
  }
  const words = await refusedWords(qmp, first, explanation);
  if (qmp.isOpen) await settings.putBack().catch(() => {});
  return withWords(first, words);
}

/** QEMU compares it in each channel's hello, and the file has no place for it. */
async function uuidOf(qmp: Qmp): Promise<string | undefined> {
  const { UUID: uuid } = requireObject(qmp, 'query-uuid', await qmp.execute('query-uuid'));
  // One that has none has this.
  return typeof uuid === 'string' ? uuid : undefined;
}
