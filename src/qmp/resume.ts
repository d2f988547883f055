/**
 * Resumes a VM from a file in a QEMU that waits with `-incoming defer`: its monitor is told to take in what we send.
 *
 *     here                                        QEMU, by QMP
 *     the file is read                            greeting, what it knows; inmigrate? machine and memory as the file's?
 *                                                 remember its capabilities and parameters, set ours
 *                                                 migrate-incoming at a socket in a folder of our own (or at `to`)
 *     sendMigration()  --- main, channels ----->
 *     <- SHUT 0                                   completed
 *                                                 put back its settings; cont, where it is asked for
 *
 * Whether the guest runs then is QEMU's affair: it does as it did when it was parked, unless QEMU was started with -S. `run`
 * decides otherwise.
 *
 * A QEMU that refuses says why in its log, and before 9.1 ends; a later one is told to stay, and says it here. One that has
 * refused a packet answers nothing any more. So each wait has a limit, and what the file tells is told along.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { MultifdError, describeThrown } from '../errors.js';
import { requireSound, type MappedRamDescription } from '../mapped-ram/description.js';
import { readMappedRam } from '../mapped-ram/read.js';
import { sendMigration, type SentMigration } from '../migration/send.js';
import { formatAddress, type Address } from '../transport/address.js';
import { explainRefusal, requireFit } from './fit.js';
import { migrationOver, queryGuest, queryMigration } from './machine.js';
import { PrivateFolder } from './private-folder.js';
import { qemuTlsParameters } from './qemu-tls.js';
import { Qmp } from './qmp.js';
import { checkResumeOptions, type CheckedResume, type ResumeVmOptions } from './resume-options.js';
import { QmpSchema } from './schema.js';
import { MigrationSettings, requireMultifd, requireObject } from './settings.js';

/** For QEMU to say that it is done, or why not, when all has been sent. */
const END_MS = 30_000;
/** A QEMU that hangs is not asked for long. */
const LAST_WORDS_MS = 3_000;
const POLL_MS = 50;
const CAPABILITIES = ['multifd'];
const NO_UUID = '00000000-0000-0000-0000-000000000000';

export interface ResumedVm extends SentMigration {
  /** QEMU's RunState in the end, such as `running`. */
  status: string;
  /** Capabilities that QEMU had on and that were off for the run. */
  switchedOff: string[];
  /** Settings of QEMU that could not be put back: its words. Undefined if all is as it was. */
  problem: string | undefined;
}

/**
 * Resolves when QEMU has loaded all and has its settings back.
 *
 * @throws MultifdError ERR_MULTIFD_QMP and with all codes of sendMigration(); that QEMU is of no more use then, unless nothing
 *   had been sent
 */
export async function resumeVm(options: ResumeVmOptions): Promise<ResumedVm> {
  const checked = checkResumeOptions(options);
  const { file, offset, pageSize, maxRam, maxBlocks, maxDescription } = checked.send;
  const description = await readMappedRam(file, { offset, pageSize, maxRam, maxBlocks, maxDescription });
  requireSound(description);
  const qmp = await Qmp.connect(checked.qmp, {}, checked.signal);
  using folder = checked.to === undefined ? new PrivateFolder() : undefined;
  try {
    return await resume(qmp, description, checked, folder);
  } finally {
    qmp.close();
  }
}

async function resume(
  qmp: Qmp,
  description: MappedRamDescription,
  options: CheckedResume,
  folder: PrivateFolder | undefined,
): Promise<ResumedVm> {
  const { channels, compression, send, signal, run } = options;
  const schema = await QmpSchema.query(qmp);
  requireMultifd(qmp, schema, compression);
  const { status } = await queryGuest(qmp);
  if (status !== 'inmigrate') {
    throw error(qmp, `QEMU is in state ${status}, expected inmigrate: start it with -incoming defer`);
  }
  const incoming = await queryMigration(qmp);
  if (incoming.status !== 'none') {
    const expected = 'expected one that waits: start it with -incoming defer and no address';
    throw error(qmp, `QEMU's migration is in state ${incoming.status}, ${expected}`);
  }
  await requireFit(qmp, description);
  const uuid = send.uuid ?? (await uuidOf(qmp));
  const settings = await MigrationSettings.remember(qmp);
  const parameters = {
    'multifd-channels': channels,
    'multifd-compression': compression,
    ...(schema.parameters.has('mode') && { mode: 'normal' }),
    ...(await qemuTlsParameters(qmp, options.qemuTls, send.tls !== undefined)),
  };
  let sent: SentMigration;
  let isSending = false;
  try {
    requireGoing(signal);
    await settings.set(CAPABILITIES, parameters);
    requireGoing(signal);
    // QEMU keeps in mind that the guest is not to run.
    if (run === false) await qmp.execute('stop');
    const to = await listenAt(qmp, options.to ?? { path: `${folder?.path}/resume.sock` }, {
      ...(schema.hasArgument('migrate-incoming', 'exit-on-error') && { 'exit-on-error': false }),
    });
    isSending = true;
    sent = await sendMigration({ ...send, to, ...(uuid !== undefined && { uuid }) });
    const end = await migrationOver(qmp, END_MS);
    if (end.status !== 'completed') throw error(qmp, `QEMU's migration has ${end.status}`);
  } catch (thrown) {
    const how = `${channels} channels, ${compression}`;
    throw await explained(qmp, thrown, isSending ? explainRefusal(description, how) : undefined, settings);
  }
  const problem = await settings.putBack().then(
    () => undefined,
    (refused: unknown) => describeThrown(refused),
  );
  return {
    ...sent,
    status: await guestIn(qmp, run),
    switchedOff: settings.switchedOff(CAPABILITIES),
    problem,
  };
}

/** @returns where to connect to */
async function listenAt(qmp: Qmp, to: Address, more: object): Promise<Address> {
  try {
    await qmp.execute('migrate-incoming', { uri: formatAddress(to), ...more });
  } catch (refused) {
    const hint = /bind|permission|no such file/i.test(describeThrown(refused))
      ? '. If it runs as another user, or elsewhere: give an address that it can listen on (to, --to)'
      : '';
    throw new MultifdError('ERR_MULTIFD_QMP', `${describeThrown(refused)}${hint}`, { cause: refused });
  }
  if (to.path !== undefined || to.port !== 0) return to;
  const answer = requireObject(qmp, 'query-migrate', await qmp.execute('query-migrate'));
  const addresses = answer['socket-address'] as { port?: unknown }[] | undefined;
  const port = Number(addresses?.[0]?.port);
  if (port > 0) return { ...to, port };
  throw error(qmp, 'query-migrate: received no port, expected the one that QEMU listens on');
}

/** The guest's state in the end. */
async function guestIn(qmp: Qmp, run: boolean | undefined): Promise<string> {
  const late = performance.now() + END_MS;
  for (;;) {
    const { status, running } = await queryGuest(qmp);
    if (status !== 'inmigrate' || performance.now() > late) {
      if (run === undefined || running === run) return status;
      await qmp.execute(run ? 'cont' : 'stop');
      return (await queryGuest(qmp)).status;
    }
    await sleep(POLL_MS);
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
  const more: string[] = [];
  if (explanation === undefined) {
    await settings.putBack().catch((error: unknown) => more.push(describeThrown(error)));
  } else {
    more.push(await lastWords(qmp));
    if (first.code !== 'ERR_MULTIFD_ABORTED') more.push(explanation);
    more.push('start a new QEMU for the next attempt');
    if (qmp.isOpen) await settings.putBack().catch(() => {});
  }
  const message = [first.message, ...more].join('; ');
  const whole = new MultifdError(first.code, message, { ...first, cause: first.cause ?? first });
  whole.suppressed.push(...first.suppressed);
  return whole;
}

async function lastWords(qmp: Qmp): Promise<string> {
  const late = performance.now() + LAST_WORDS_MS;
  try {
    for (;;) {
      const answer = requireObject(
        qmp,
        'query-migrate',
        await qmp.execute('query-migrate', {}, LAST_WORDS_MS),
      );
      if (typeof answer['error-desc'] === 'string') return `QEMU says: ${answer['error-desc']}`;
      if (answer.status === 'failed') return "QEMU's migration has failed, its log may say why";
      if (performance.now() > late) {
        return `QEMU's migration has not said that it failed, its log may say why`;
      }
      await sleep(POLL_MS);
    }
  } catch {
    return qmp.isOpen ? 'QEMU answers nothing any more' : 'QEMU has ended, its log says why';
  }
}

/** QEMU compares it in each channel's hello, and the file has no place for it. */
async function uuidOf(qmp: Qmp): Promise<string | undefined> {
  const { UUID: uuid } = requireObject(qmp, 'query-uuid', await qmp.execute('query-uuid'));
  return typeof uuid === 'string' && uuid !== NO_UUID ? uuid : undefined;
}

function requireGoing(signal: AbortSignal | undefined): void {
  if (signal?.aborted === true) {
    throw new MultifdError('ERR_MULTIFD_ABORTED', 'aborted', { cause: signal.reason });
  }
}

function error(qmp: Qmp, what: string): MultifdError {
  return new MultifdError('ERR_MULTIFD_QMP', `${qmp.address}: ${what}`);
}
