/**
 * The QEMU of `--start`: in a process group of its own, which is killed behind each run. What leaves the group (setsid, -daemonize)
 * can neither be watched nor ended: it is told, and nothing here waits for it.
 */
import { spawn, type ChildProcess } from 'node:child_process';
import fs from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { MultifdError } from '../errors.js';
import type { Address } from '../transport/address.js';

const START_MS = 30_000;
const POLL_MS = 20;
/** One that leaves its group ends a moment after it listens. */
const SETTLE_MS = 100;
/** A killed QEMU has to give back its guest's memory. */
const GONE_MS = 5000;
const STDERR_CHARS = 2000;
const HOW =
  'expected a command that stays in its process group: begin it with exec, without setsid or -daemonize';

/** `well`: with exit code 0. */
export type QemuEnd = 'refused' | 'crashed' | 'well';

export class StartedQemu {
  readonly #child: ChildProcess;
  readonly #closed: Promise<true>;
  readonly #goneMs: number;
  #stderr = '';

  /** @param goneMs for the end of what was killed */
  constructor(command: string, goneMs = GONE_MS) {
    this.#goneMs = goneMs;
    this.#child = spawn('/bin/sh', ['-c', command], { detached: true, stdio: ['ignore', 'ignore', 'pipe'] });
    this.#closed = new Promise((resolve) => this.#child.once('close', () => resolve(true)));
    this.#child.on('error', (error) => (this.#stderr += error.message));
    this.#child.stderr?.on('data', (text: Buffer) => {
      this.#stderr = (this.#stderr + text.toString()).slice(-STDERR_CHARS);
    });
    process.on('exit', this.#kill);
  }

  /** @throws MultifdError ERR_MULTIFD_CONNECT if somebody else listens there */
  static start(command: string, { path = '' }: Address): StartedQemu {
    if (isListenedOn(path)) {
      const message = `received somebody who listens at ${path} already, expected nobody before --start; ${HOW}`;
      throw new MultifdError('ERR_MULTIFD_CONNECT', message);
    }
    return new StartedQemu(command);
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
      if (this.hasEnded) this.#refuse(path, 'does not listen', 'it has ended');
      if (performance.now() > until) this.#refuse(path, 'does not listen', `not within ${START_MS} ms`);
      await sleep(POLL_MS);
    }
    await sleep(SETTLE_MS);
    if (this.hasEnded && isListenedOn(path)) this.#refuse(path, 'listens', `its command has ended; ${HOW}`);
  }

  #refuse(path: string, does: string, why: string): never {
    const words = this.words === '' ? '' : `; it says: ${this.words}`;
    throw new MultifdError('ERR_MULTIFD_CONNECT', `the QEMU of --start ${does} at ${path}: ${why}${words}`);
  }

  /**
   * With all that it has started, as far as it is in its group.
   *
   * @returns what is left of it, undefined if nothing is
   */
  async end(): Promise<string | undefined> {
    process.off('exit', this.#kill);
    this.#kill();
    const late = new AbortController();
    const isGone = await Promise.race([
      this.#closed,
      sleep(this.#goneMs, false, { signal: late.signal }).catch(() => false),
    ]);
    late.abort();
    if (isGone) return undefined;
    // Else it would hold this process up as well.
    this.#child.stderr?.destroy();
    this.#child.unref();
    return `of the QEMU of --start a process is alive and holds its stderr ${this.#goneMs} ms behind SIGKILL; ${HOW}`;
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
