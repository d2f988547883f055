/**
 * A QEMU that takes a migration in, by its monitor: does it wait, where does it listen, what becomes of its guest, and what it
 * has to say when it fails.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { MultifdError, describeThrown } from '../errors.js';
import { printable } from '../printable.js';
import { formatAddress, type Address } from '../transport/address.js';
import { textOf } from './json.js';
import { endWords, migrationOver, queryGuest, queryMigration } from './machine.js';
import type { Qmp } from './qmp.js';
import { Regaining, lostWords } from './regain.js';
import { requireObject, type MigrationSettings } from './settings.js';

/** For QEMU to say that it is done, or why not, when all has been sent. */
export const END_MS = 30_000;
/** A QEMU that hangs is not asked for long. */
const LAST_WORDS_MS = 3_000;
const POLL_MS = 50;
const MAX_PORT = 65535;
const LOADED =
  'but QEMU says that it has loaded all: the guest is there, and may run (query-status). See to it that it does not before the ' +
  'file is resumed in another QEMU';

/** @throws MultifdError ERR_MULTIFD_QMP unless it waits for a migration to come in, and for its address */
export async function requireWaiting(qmp: Qmp): Promise<void> {
  const { status } = await queryGuest(qmp);
  if (status !== 'inmigrate') {
    throw qmpError(qmp, `QEMU is in state ${status}, expected inmigrate: start it with -incoming defer`);
  }
  const incoming = await queryMigration(qmp);
  if (incoming.status !== 'none') {
    const expected = 'expected one that waits: start it with -incoming defer and no address';
    throw qmpError(qmp, `QEMU's migration is in state ${incoming.status}, ${expected}`);
  }
}

/** @returns where to connect to */
export async function listenAt(
  qmp: Qmp,
  command: 'migrate-incoming' | 'migrate-recover',
  to: Address,
  more: object = {},
): Promise<Address> {
  try {
    await qmp.execute(command, { uri: formatAddress(to), ...more });
  } catch (refused) {
    const hint = /bind|permission|no such file/i.test(describeThrown(refused))
      ? '. If it runs as another user, or elsewhere: give an address that it can listen on (to, --to)'
      : '';
    throw new MultifdError('ERR_MULTIFD_QMP', `${describeThrown(refused)}${hint}`, { cause: refused });
  }
  if (to.path !== undefined || to.port !== 0) return to;
  const answer = requireObject(qmp, 'query-migrate', await qmp.execute('query-migrate'));
  const addresses = answer['socket-address'] as { port?: unknown }[] | undefined;
  const port = Number(textOf(addresses?.[0]?.port));
  if (Number.isInteger(port) && port > 0 && port <= MAX_PORT) return { ...to, port };
  throw qmpError(qmp, 'query-migrate: received no port, expected the one that QEMU listens on');
}

/**
 * When all has been sent, and accepted by QEMU's SHUT 0: it says so by its monitor as well, gets its settings back, and is told
 * what becomes of the guest. A monitor that is lost meanwhile is looked for, for one time, however often it is lost; an abort
 * ends that.
 *
 * @param on capabilities that `settings` has switched on
 * @throws MultifdError ERR_MULTIFD_QMP, or ERR_MULTIFD_ABORTED, which say what is known where the monitor is not found again;
 *   ERR_MULTIFD_TIMEOUT
 */
export async function finishLoaded(
  qmp: Qmp,
  settings: MigrationSettings | undefined,
  { on, run, signal }: { on: readonly string[]; run: boolean | undefined; signal: AbortSignal | undefined },
): Promise<{ status: string; problem: string | undefined }> {
  const regaining = new Regaining(qmp);
  while (await regaining.isThere(signal)) {
    try {
      const { status: end } = await migrationOver(qmp, END_MS);
      // It may be one in its place that answers: that one has loaded nothing.
      if (end !== 'completed') throw qmpError(qmp, `QEMU's migration ${endWords(end)}`);
      const problem = await settings?.putBackOrSay();
      return { status: await guestIn(qmp, run), problem };
    } catch (error) {
      if (qmp.isOpen) throw error;
    }
  }
  const words = `the guest is loaded, QEMU has accepted all of it; ${lostWords('loaded', settings?.describe(on))}`;
  if (signal?.aborted !== true) throw qmpError(qmp, words);
  throw new MultifdError('ERR_MULTIFD_ABORTED', `aborted; ${words}`, { cause: signal.reason });
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

/** Why it has failed, as far as it says that. */
async function lastWords(qmp: Qmp): Promise<string> {
  await new Regaining(qmp, LAST_WORDS_MS).isThere();
  const late = performance.now() + LAST_WORDS_MS;
  try {
    for (;;) {
      const answer = requireObject(
        qmp,
        'query-migrate',
        await qmp.execute('query-migrate', {}, LAST_WORDS_MS),
      );
      if (answer.status === 'completed') return LOADED;
      if (typeof answer['error-desc'] === 'string') return `QEMU says: ${printable(answer['error-desc'])}`;
      if (answer.status === 'failed') return "QEMU's migration has failed, its log may say why";
      if (performance.now() > late) {
        return `QEMU's migration has not said that it failed, its log may say why`;
      }
      await sleep(POLL_MS);
    }
  } catch {
    return qmp.isOpen
      ? 'QEMU answers nothing any more'
      : 'QEMU is not heard of at its monitor any more: if it has ended, its log says why';
  }
}

/**
 * What failed when something had been sent: with QEMU's own words, if it has any, and with what the file says.
 *
 * @param explanation of what it may have refused
 */
export async function refusedWords(qmp: Qmp, first: MultifdError, explanation: string): Promise<string[]> {
  const words = [await lastWords(qmp)];
  if (words[0] === LOADED) return words;
  if (first.code !== 'ERR_MULTIFD_ABORTED') words.push(explanation);
  return [...words, 'start a new QEMU for the next attempt'];
}

/** The same error with more to say. */
export function withWords(first: MultifdError, words: readonly string[]): MultifdError {
  return first.reworded([first.message, ...words].join('; '), { cause: first.cause ?? first });
}

/** @throws MultifdError ERR_MULTIFD_ABORTED */
export function requireGoing(signal: AbortSignal | undefined): void {
  if (signal?.aborted === true) {
    throw new MultifdError('ERR_MULTIFD_ABORTED', 'aborted', { cause: signal.reason });
  }
}

export function qmpError(qmp: Qmp, what: string): MultifdError {
  return new MultifdError('ERR_MULTIFD_QMP', `${qmp.address}: ${what}`);
}
