/**
 * A VM as its monitor shows it: does its guest run, and what becomes of its migration. Read by polling, since events can be
 * missed before they are enabled and say less.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { MultifdError } from '../errors.js';
import { printable } from '../printable.js';
import { numberOf, textOf } from './json.js';
import type { Qmp } from './qmp.js';
import { requireObject } from './settings.js';

const POLL_MS = 50;
/** For QEMU to put away what it had for a migration that is over: its threads end, and its connections. By choice. */
const PUT_AWAY_MS = 30_000;
/** For QEMU to let its guest run on by itself, when its migration has ended. */
const RUN_ON_MS = 2_000;
/** For `cont` to be taken, and to do something: it is refused while QEMU finishes. */
const CONT_MS = 10_000;

/** Migrations that are over; QEMU leaves `status` out if there has been none. */
const OVER: readonly string[] = ['none', 'completed', 'failed', 'cancelled'];
/** A guest that stands still for its migration's sake and for no other reason. */
const STOPPED_BY_MIGRATION: readonly string[] = ['finish-migrate', 'paused', 'postmigrate'];

export interface GuestStatus {
  /** QEMU's RunState. */
  status: string;
  running: boolean;
}

/** Part of the answer to query-migrate. */
export interface MigrationStatus {
  /** `none` if there has been none. */
  status: string;
  /** Why it failed. */
  error: string | undefined;
  /** Why it cannot be migrated; empty if it can. */
  blockedReasons: string[];
  /** Bytes; of RAM. */
  totalBytes: number;
  remainingBytes: number;
  transferredBytes: number;
  /** How often the dirty pages have been asked for. */
  dirtySyncCount: number;
}

export async function queryGuest(qmp: Qmp): Promise<GuestStatus> {
  const { status, running } = requireObject(qmp, 'query-status', await qmp.execute('query-status'));
  return { status: printable(textOf(status)), running: running === true };
}

export async function queryMigration(qmp: Qmp): Promise<MigrationStatus> {
  const answer = requireObject(qmp, 'query-migrate', await qmp.execute('query-migrate'));
  const { status, 'error-desc': error, 'blocked-reasons': reasons, ram } = answer;
  const counts = ram !== null && typeof ram === 'object' ? (ram as Record<string, unknown>) : {};
  return {
    status: typeof status === 'string' ? printable(status) : 'none',
    error: typeof error === 'string' ? printable(error) : undefined,
    blockedReasons: Array.isArray(reasons) ? reasons.map((reason) => printable(textOf(reason))) : [],
    totalBytes: numberOf(counts.total),
    remainingBytes: numberOf(counts.remaining),
    transferredBytes: numberOf(counts.transferred),
    dirtySyncCount: numberOf(counts['dirty-sync-count']),
  };
}

/** How a migration has ended, as words for `QEMU's migration ...`. */
export function endWords(status: string): string {
  if (status === 'none') return 'has gone';
  return status === 'cancelled' ? 'was cancelled' : `has ${status}`;
}

export function isOver({ status }: MigrationStatus): boolean {
  return OVER.includes(status);
}

/**
 * Has QEMU put away all that it had for a migration? It says `failed` or `completed` before that, and takes other settings then,
 * which are its end: with multifd switched off it leaves its channels behind, and runs into an assertion (10.0: 11 of 35).
 * What it has last is its instance of yank, known since 6.0.
 */
async function isPutAway(qmp: Qmp): Promise<boolean> {
  const users = await qmp.execute('query-yank').catch((error: unknown) => {
    if (!qmp.isOpen || (error instanceof MultifdError && error.code === 'ERR_MULTIFD_TIMEOUT')) throw error;
    return [];
  });
  return !(
    Array.isArray(users) &&
    (users as ({ type?: unknown } | null)[]).some((user) => user?.type === 'migration')
  );
}

/**
 * Until the migration is over, one way or the other, and QEMU has put away all that it had for it. That takes a moment; one that
 * is not done with it after PUT_AWAY_MS is waited for no longer, whatever the limit.
 *
 * @param told each answer, again and again; may throw, which ends it
 * @param limitMs undefined waits as long as it takes to be over
 * @throws MultifdError ERR_MULTIFD_TIMEOUT, ERR_MULTIFD_QMP
 */
export async function migrationOver(
  qmp: Qmp,
  limitMs = Infinity,
  told: (status: MigrationStatus) => void = () => {},
): Promise<MigrationStatus> {
  const began = performance.now();
  let wasOverAt: number | undefined;
  for (;;) {
    const migration = await queryMigration(qmp);
    told(migration);
    const now = performance.now();
    if (!isOver(migration)) wasOverAt = undefined;
    else if (await isPutAway(qmp)) return migration;
    else wasOverAt ??= now;
    if (now - began > limitMs) throw notOver(qmp, migration, `within ${limitMs} ms`);
    if (wasOverAt !== undefined && now - wasOverAt > PUT_AWAY_MS)
      throw notOver(qmp, migration, `within ${PUT_AWAY_MS} ms`);
    await sleep(POLL_MS);
  }
}

/** What is said of a migration that does not end. */
export function notOver(qmp: Qmp, migration: MigrationStatus, when: string): MultifdError {
  const end = isOver(migration) ? 'that QEMU has put away what it had for it' : 'its end';
  const message = `${qmp.address}: received migration status ${migration.status}, expected ${end} ${when}`;
  return new MultifdError('ERR_MULTIFD_TIMEOUT', message);
}

/**
 * After a migration that failed or was cancelled a guest that ran runs on. QEMU sees to it by itself, a little after the
 * status is told; where it does not, such as when the devices had been saved already, it is helped. A guest that stands still
 * for a reason of its own (a disk's error, a panic) is left as it is.
 *
 * @param contMs so long `cont` may do nothing
 * @returns the guest's status by then
 * @throws MultifdError ERR_MULTIFD_QMP with QEMU's words if it cannot go on
 */
export async function runOn(qmp: Qmp, contMs = CONT_MS): Promise<GuestStatus> {
  const since = performance.now();
  for (;;) {
    const guest = await queryGuest(qmp);
    if (guest.running || !STOPPED_BY_MIGRATION.includes(guest.status)) return guest;
    const waited = performance.now() - since;
    if (waited > RUN_ON_MS) {
      try {
        await qmp.execute('cont');
        // It may say yes each time, and stand still all the same.
        if (waited > contMs) return await queryGuest(qmp);
      } catch (error) {
        if (!qmp.isOpen || waited > contMs) throw error;
      }
    }
    await sleep(POLL_MS);
  }
}
