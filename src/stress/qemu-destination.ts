/**
 * A QEMU as destination: a file is sent to it, with a fault on the way, and it is watched until it has said something, has closed
 * its connections, or has done neither for as long as the limit is.
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
import type { Compression } from '../options.js';
import { PrivateFolder } from '../qmp/private-folder.js';
import type { Address } from '../transport/address.js';
import { PassOn } from '../transport/pass-on.js';
import { QemuFault } from './qemu-fault.js';
import type { QemuPlan } from './qemu-plan.js';
import { oursOf, settled, type QemuRunReport, type Verdict } from './qemu-report.js';

const START_MS = 30_000;
const POLL_MS = 20;
const STDERR_CHARS = 2000;

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
  const { pageSize } = await readMappedRam(file);
  const fault = new QemuFault(plan, compression === 'none', pageSize);
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
    const loaded = result?.status === 'fulfilled';
    const did = loaded ? 'loaded' : await watched(through, qemu, ours, limitMs);
    return {
      plan,
      struck: fault.struckAt !== undefined,
      what: fault.what,
      verdict: did === 'loaded' ? loadedAs(fault) : did,
      words: qemu?.words ?? '',
      ours,
      tookMs: did === 'hung' || fault.struckAt === undefined ? undefined : performance.now() - struckAt,
      wrong,
    };
  } finally {
    fault.end();
    await passOn?.close();
    await qemu?.end();
  }
}

function loadedAs({ effect }: QemuFault): Verdict {
  if (effect === 'same') return 'loaded';
  return effect === 'wrong' ? 'loaded wrong RAM' : 'loaded, RAM not known';
}

/** Our side has failed: what does QEMU do? */
async function watched(
  passOn: PassOn,
  qemu: StartedQemu | undefined,
  ours: string,
  limitMs: number,
): Promise<Verdict> {
  if (/SHUT: received/.test(ours)) return 'refused';
  const until = performance.now() + limitMs;
  while (performance.now() < until) {
    if (qemu?.hasEnded === true) return 'refused';
    // A QEMU that nobody has started here is seen by its connections alone.
    if (qemu === undefined && passOn.connections.every((connection) => connection.farHasEnded))
      return 'closed';
    await sleep(POLL_MS);
  }
  return 'hung';
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
