/**
 * A QEMU as destination: a file is sent to it, with a fault on the way, and it is watched until it has said something, has closed
 * its connections, or has done neither for as long as the limit is. Its memory and its monitor are not looked at: what it came to
 * is inferred from what went out to it, what it answered, and how it ended.
 *
 *     sendMigration() --> pass-on, fault --> ADDRESS: QEMU, waiting with -incoming
 *
 * Who has had a fault is of no more use: for more than one run a command starts it anew, in a process group of its own, which is
 * killed behind each run.
 */
import { spawn, type ChildProcess } from 'node:child_process';
import fs from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { MultifdError } from '../errors.js';
import { sendMigration } from '../migration/send.js';
import { readMappedRam } from '../mapped-ram/read.js';
import { MigrationFile } from '../packed/open.js';
import type { Compression } from '../options.js';
import { PrivateFolder } from '../qmp/private-folder.js';
import type { Address } from '../transport/address.js';
import { PassOn } from '../transport/pass-on.js';
import { QemuFault, type Given } from './qemu-fault.js';
import type { QemuPlan } from './qemu-plan.js';
import { oursOf, settled, type QemuRunReport, type Verdict } from './qemu-report.js';
import { endOfStream } from './stream-end.js';

const START_MS = 30_000;
const POLL_MS = 20;
const STDERR_CHARS = 2000;
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
  const qemu = start === undefined ? undefined : new StartedQemu(start);
  using folder = new PrivateFolder();
  let passOn: PassOn | undefined;
  try {
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
    const struckAt = fault.struckAt ?? began;
    const { ours, wrong } = oursOf(result);
    const did =
      result?.status === 'fulfilled'
        ? 'loaded'
        : await watched({ passOn: through, qemu, ours, given: () => fault.given }, limitMs);
    const isAtItsLimit =
      did === 'loaded' ? result?.status !== 'fulfilled' : did === 'hung' || did === NOT_KNOWN;
    return {
      plan,
      struck: fault.struckAt !== undefined,
      what: fault.what,
      verdict: did === 'loaded' ? loadedAs(fault) : did,
      words: qemu?.words ?? '',
      ours,
      tookMs: isAtItsLimit || fault.struckAt === undefined ? undefined : performance.now() - struckAt,
      wrong,
    };
  } finally {
    fault.end();
    await passOn?.close();
    await qemu?.end();
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

/** `well`: with exit code 0. */
export type QemuEnd = 'refused' | 'crashed' | 'well';

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
export async function watched({ passOn, qemu, ours, given }: Watched, limitMs: number): Promise<Verdict> {
  if (/SHUT: received/.test(ours)) return 'refused';
  const until = performance.now() + limitMs;
  while (performance.now() < until) {
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

class StartedQemu {
  readonly #child: ChildProcess;
  readonly #exit: Promise<unknown>;
  #stderr = '';

  constructor(command: string) {
    this.#child = spawn('/bin/sh', ['-c', command], { detached: true, stdio: ['ignore', 'ignore', 'pipe'] });
    this.#exit = new Promise((resolve) => this.#child.once('close', resolve));
    this.#child.on('error', (error) => (this.#stderr += error.message));
    this.#child.stderr?.on('data', (text: Buffer) => {
      this.#stderr = (this.#stderr + text.toString()).slice(-STDERR_CHARS);
    });
    process.on('exit', this.#kill);
  }

  get hasEnded(): boolean {
    return this.#child.exitCode !== null || this.#child.signalCode !== null;
  }

  /** How it has ended, as its exit tells; a shell around it says 128 and the signal's number. */
  get ending(): QemuEnd | undefined {
    if (!this.hasEnded) return undefined;
    const { exitCode, signalCode } = this.#child;
    if (signalCode !== null || (exitCode ?? 0) > 128) return 'crashed';
    return exitCode === 0 ? 'well' : 'refused';
  }

  get words(): string {
    return this.#stderr.trim();
  }

  /**
   * Not by connecting: QEMU would take that for its source.
   *
   * @throws MultifdError ERR_MULTIFD_CONNECT
   */
  async listens({ path = '' }: Address, cancelled: AbortSignal): Promise<void> {
    const until = performance.now() + START_MS;
    while (!isListenedOn(path)) {
      cancelled.throwIfAborted();
      const why = this.hasEnded
        ? 'it has ended'
        : performance.now() > until
          ? `not within ${START_MS} ms`
          : undefined;
      if (why !== undefined) {
        const message = `the QEMU of --start does not listen at ${path}: ${why}; it says: ${this.words}`;
        throw new MultifdError('ERR_MULTIFD_CONNECT', message);
      }
      await sleep(POLL_MS);
    }
  }

  /** With all that it has started. */
  async end(): Promise<void> {
    process.off('exit', this.#kill);
    this.#kill();
    await this.#exit;
  }

  readonly #kill = (): void => {
    if (this.#child.pid === undefined) return;
    try {
      process.kill(-this.#child.pid, 'SIGKILL');
    } catch {
      // It is gone.
    }
  };
}

/** By the kernel's table: the file alone is there before anybody listens, and after he has gone. Linux. */
function isListenedOn(path: string): boolean {
  const FLAG_LISTENS = '00010000';
  const table = fs.readFileSync('/proc/net/unix', 'utf8');
  return table.split('\n').some((line) => line.endsWith(` ${path}`) && line.split(' ')[3] === FLAG_LISTENS);
}
