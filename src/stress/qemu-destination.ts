/**
 * A QEMU as destination: a file is sent to it, with a fault on the way, and it is watched until it has said something, has closed
 * its connections, or has done neither for as long as the limit is. Its memory and its monitor are not looked at: what it came to
 * is inferred from what went out to it, what it answered, and how it ended.
 *
 *     sendMigration() --> pass-on, fault --> ADDRESS: QEMU, waiting with -incoming
 *
 * Whether anybody listens at ADDRESS is seen by the pass-on's own first connection: one that were made to find that out, and
 * closed, a QEMU would take for the migration.
 *
 * Who has had a fault is of no more use: for more than one run a command starts it anew, see started-qemu.ts.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { MultifdError } from '../errors.js';
import { sendMigration } from '../migration/send.js';
import { readMappedRam } from '../mapped-ram/read.js';
import { MigrationFile } from '../packed/open.js';
import type { Compression } from '../options.js';
import { PrivateFolder } from '../qmp/private-folder.js';
import { formatAddress, type Address } from '../transport/address.js';
import { PassOn, type PassedConnection } from '../transport/pass-on.js';
import { QemuFault, type Given } from './qemu-fault.js';
import type { QemuPlan } from './qemu-plan.js';
import { oursOf, settled, type QemuRunReport, type Verdict } from './qemu-report.js';
import { StartedQemu, type QemuEnd } from './started-qemu.js';
import { endOfStream } from './stream-end.js';

const POLL_MS = 20;
const NOT_KNOWN = 'not known: it is alive; ask its monitor';

export interface QemuDestinationOptions {
  incoming: Address;
  file: string;
  channels: number;
  compression: Compression;
  /** Starts a QEMU that waits at `incoming`; undefined: one waits already. */
  start: string | undefined;
  limitMs: number;
}

export async function stressDestination(
  plan: QemuPlan,
  options: QemuDestinationOptions,
  cancelled: AbortSignal,
): Promise<QemuRunReport> {
  const { incoming, file, channels, compression, start, limitMs } = options;
  const { pageSize, mark } = await readFile(file);
  const fault = new QemuFault(plan, compression === 'none', pageSize, mark);
  const qemu = start === undefined ? undefined : StartedQemu.start(start, incoming);
  let passOn: PassOn | undefined;
  let report: QemuRunReport | undefined;
  try {
    using folder = new PrivateFolder();
    await qemu?.listens(incoming, cancelled);
    const through = await PassOn.listen({ path: `${folder.path}/stress.sock` }, incoming, {
      connection: (connection) => fault.connection(connection),
    });
    passOn = through;
    fault.begin(through);
    const began = performance.now();
    const ended = new AbortController();
    const sending = settled(
      sendMigration({
        file,
        to: through.address,
        channels,
        compression,
        stallTimeoutMs: limitMs,
        signal: AbortSignal.any([cancelled, ended.signal]),
      }),
    );
    const result = await Promise.race([sending, sleep(6 * limitMs, undefined, { ref: false })]);
    ended.abort(new Error('the limit is over'));
    cancelled.throwIfAborted();
    if (start === undefined) requireReached(through, incoming, limitMs);
    const struckAt = fault.struckAt ?? began;
    const { ours, wrong } = oursOf(result);
    const did =
      result?.status === 'fulfilled'
        ? 'loaded'
        : await watched({ passOn: through, qemu, ours, given: () => fault.given }, limitMs, cancelled);
    const isAtItsLimit =
      did === 'loaded' ? result?.status !== 'fulfilled' : did === 'hung' || did === NOT_KNOWN;
    report = {
      plan,
      struck: fault.struckAt !== undefined,
      what: fault.what,
      verdict: did === 'loaded' ? loadedAs(fault) : did,
      words: qemu?.words ?? '',
      ours,
      tookMs: isAtItsLimit || fault.struckAt === undefined ? undefined : performance.now() - struckAt,
      wrong,
    };
    return report;
  } finally {
    fault.end();
    await passOn?.close();
    const left = await qemu?.end();
    if (report !== undefined && left !== undefined) report.problem = left;
  }
}

async function readFile(file: string): Promise<{ pageSize: number; mark: Buffer }> {
  await using opened = await MigrationFile.open(file);
  const description = await readMappedRam(opened.content);
  return { pageSize: description.pageSize, mark: await endOfStream(opened.content, description) };
}

function loadedAs({ effect, given }: QemuFault): Verdict {
  // What was cut off behind the end has nothing of the guest.
  if (effect === 'same' || given === 'yes') return 'loaded';
  return effect === 'wrong' ? 'loaded wrong RAM' : 'loaded, RAM not known';
}

/** @throws MultifdError ERR_MULTIFD_CONNECT, ERR_MULTIFD_TIMEOUT if nobody was there: that is no QEMU that did something */
export function requireReached(
  { connections }: { connections: readonly Pick<PassedConnection, 'hasReached' | 'refused'>[] },
  to: Address,
  limitMs: number,
): void {
  if (connections.some(({ hasReached }) => hasReached === true)) return;
  const where = formatAddress(to);
  const refused = connections.find((connection) => connection.refused !== undefined)?.refused;
  if (refused !== undefined)
    throw MultifdError.wrap(refused, 'ERR_MULTIFD_CONNECT', `cannot connect to ${where}`);
  if (connections.length > 0 && connections.every(({ hasReached }) => hasReached === undefined))
    throw new MultifdError('ERR_MULTIFD_TIMEOUT', `no connection to ${where} within ${limitMs} ms`);
}

/** A guest that has been loaded may have switched itself off. */
const ENDED_WELL: Record<Given, Verdict> = { yes: 'loaded', no: 'refused', unknown: 'closed' };

export interface Watched {
  passOn: { readonly connections: readonly { readonly farHasEnded: boolean }[] };
  /** Undefined: nobody has started it here. */
  qemu: { readonly ending: QemuEnd | undefined } | undefined;
  ours: string;
  given: () => Given;
}

/** Our side has failed: what does QEMU do? */
export async function watched(
  { passOn, qemu, ours, given }: Watched,
  limitMs: number,
  cancelled?: AbortSignal,
): Promise<Verdict> {
  if (/SHUT: received/.test(ours)) return 'refused';
  const until = performance.now() + limitMs;
  while (performance.now() < until) {
    cancelled?.throwIfAborted();
    if (qemu?.ending !== undefined) return qemu.ending === 'well' ? ENDED_WELL[given()] : qemu.ending;
    // A QEMU that nobody has started here is seen by its connections alone.
    if (qemu === undefined && passOn.connections.every((connection) => connection.farHasEnded))
      return 'closed';
    await sleep(POLL_MS);
  }
  // That it hangs is said only of one that cannot have loaded, and holds what came from here open: what is alive of a command that
  // does not begin with exec may be something else.
  if (given() === 'no')
    return passOn.connections.every((connection) => connection.farHasEnded) ? 'closed' : 'hung';
  return given() === 'yes' && qemu !== undefined ? 'loaded' : NOT_KNOWN;
}
