/**
 * The stressing process's handle on a side's process: starts it, and anew when a fault has killed it; ends it. One process has one
 * run after the other, so that what they leave behind adds up and is seen.
 */
import { fork, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import fs from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import type { SideName } from './engine-plan.js';
import type { FromSide, ToSide } from './messages.js';

const PROGRAM = fileURLToPath(new URL('stress-process.js', import.meta.url));
const READY_MS = 30_000;
const LEAVE_MS = 1000;
/** Of what it has said on stderr, kept as evidence. */
const STDERR_CHARS = 20_000;

export interface SideEvents {
  said(message: FromSide): void;
  /** It is dead, and nobody ended it. */
  died(how: string): void;
}

/** Killed by somebody while it started, or too slow: that run's failure, and not the stress's. */
export class SideNotStarted extends Error {}

function howOf(code: number | null, signal: string | null): string {
  return signal === null ? `exited with code ${code}` : `killed by ${signal}`;
}

export class SideProcess {
  readonly name: SideName;
  stderr = '';
  /** Runs that it has had. */
  runs = 0;
  events: SideEvents | undefined;
  readonly #program: string;
  readonly #tmp: string;
  #child: ChildProcess | undefined;
  #ending = false;

  /** @param tmp its own folder for temporary files: what is left there is its own */
  constructor(name: SideName, tmp: string, program = PROGRAM) {
    this.name = name;
    this.#tmp = tmp;
    this.#program = program;
  }

  /** Names of what it has left among temporary files, which are gone then. */
  takeTemporary(): string[] {
    const names = fs.readdirSync(this.#tmp);
    for (const name of names) fs.rmSync(path.join(this.#tmp, name), { recursive: true, force: true });
    return names;
  }

  get pid(): number | undefined {
    return this.#child?.pid;
  }

  get isAlive(): boolean {
    return this.#child !== undefined && this.#child.exitCode === null && this.#child.signalCode === null;
  }

  /**
   * Starts it where it is not there.
   *
   * @throws SideNotStarted
   */
  async ready(): Promise<void> {
    if (this.isAlive) return;
    this.runs = 0;
    this.stderr = '';
    this.#ending = false;
    const child = fork(this.#program, [], {
      stdio: ['ignore', 'pipe', 'pipe', 'ipc'],
      execArgv: ['--expose-gc'],
      env: { ...process.env, TMPDIR: this.#tmp },
    });
    this.#child = child;
    for (const stream of [child.stdout, child.stderr])
      stream?.on('data', (text: Buffer) => {
        this.stderr = (this.stderr + text.toString()).slice(-STDERR_CHARS);
      });
    process.on('exit', this.#kill);
    child.on('message', (message) => this.events?.said(message as FromSide));
    // A signal that it is not there any more to get.
    child.on('error', () => {});
    child.on('exit', (code, signal) => {
      process.off('exit', this.#kill);
      if (!this.#ending) this.events?.died(howOf(code, signal));
    });
    const late = AbortSignal.timeout(READY_MS);
    const failed = once(child, 'exit').then(([code, signal]: unknown[]) => {
      throw new SideNotStarted(howOf(code as number | null, signal as string | null));
    });
    failed.catch(() => {});
    const ready = once(child, 'message', { signal: late }).catch(() => {
      throw new SideNotStarted(`nothing within ${READY_MS} ms`);
    });
    await Promise.race([ready, failed]);
  }

  send(message: ToSide): void {
    if (this.#child?.connected === true) this.#child.send(message, () => {});
  }

  signal(name: NodeJS.Signals): boolean {
    return this.#child?.kill(name) ?? false;
  }

  /** Resolves when the process is gone; never rejects. */
  async end(): Promise<void> {
    const child = this.#child;
    if (child === undefined || !this.isAlive) return;
    this.#ending = true;
    const gone = once(child, 'exit');
    const late = setTimeout(this.#kill, LEAVE_MS);
    child.kill('SIGCONT');
    if (child.connected) child.disconnect();
    await gone;
    clearTimeout(late);
  }

  readonly #kill = (): void => {
    this.#child?.kill('SIGKILL');
  };
}
