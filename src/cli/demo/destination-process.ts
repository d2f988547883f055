/**
 * The source's handle on the destination process: starts it, asks it things, hears of its failure or death, ends it.
 *
 * Failure travels through `stop`, which is the whole run's: what goes wrong over there aborts it, and when it is
 * aborted, for whatever reason, everything asked is refused with that reason. No process is left behind: end() asks
 * it to leave and kills it if it does not; if this process exits first, an 'exit' handler kills it; if this process
 * is killed, it notices that itself (demo-destination.ts).
 */
import { fork, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { fileURLToPath } from 'node:url';
import { CliError, destinationError } from '../cli-error.js';
import type { Replies, Request, ToDestination, ToSource } from './messages.js';

/** How long it may take to leave. */
const LEAVE_MS = 1000;

interface Pending {
  resolve: (value: never) => void;
  reject: (reason: Error) => void;
}

export class DestinationProcess {
  readonly #stop: AbortController;
  readonly #child: ChildProcess;
  readonly #pending = new Map<number, Pending>();
  #nextId = 0;
  #ending = false;

  constructor(stop: AbortController) {
    this.#stop = stop;
    // stdout is for this process's data alone.
    this.#child = fork(fileURLToPath(new URL('demo-destination.js', import.meta.url)), [], {
      stdio: ['ignore', 2, 2, 'ipc'],
    });
    this.#child.on('message', this.#onMessage);
    this.#child.on('error', (cause) => this.#fail(`destination process: ${cause.message}`, cause));
    this.#child.on('exit', (code, signal) => {
      process.off('exit', this.#kill);
      const how = signal === null ? `exited with code ${code}` : `was killed by ${signal}`;
      this.#fail(`the destination process ${how} before it was done`);
    });
    process.on('exit', this.#kill);
    stop.signal.addEventListener('abort', this.#refuseAll);
  }

  get pid(): number | undefined {
    return this.#child.pid;
  }

  async ask<R extends Request>(request: R): Promise<Replies[R['type']]> {
    this.#stop.signal.throwIfAborted();
    const id = this.#nextId++;
    return new Promise<Replies[R['type']]>((resolve, reject) => {
      this.#pending.set(id, { resolve: resolve, reject });
      // An error of the channel means that the process is gone, and 'exit' knows more about that.
      this.#child.send({ ...request, id } satisfies ToDestination, () => {});
    });
  }

  /** Resolves when the process is gone; never rejects. */
  async end(): Promise<void> {
    this.#ending = true;
    this.#stop.signal.removeEventListener('abort', this.#refuseAll);
    const { pid, exitCode, signalCode } = this.#child;
    if (pid === undefined || exitCode !== null || signalCode !== null) return;
    const gone = once(this.#child, 'exit');
    const late = setTimeout(this.#kill, LEAVE_MS);
    if (this.#child.connected) this.#child.disconnect();
    await gone;
    clearTimeout(late);
  }

  readonly #onMessage = (message: unknown): void => {
    const said = message as ToSource;
    if (said.type === 'failed') {
      this.#stop.abort(destinationError(said.failure));
      return;
    }
    const pending = this.#pending.get(said.id);
    this.#pending.delete(said.id);
    pending?.resolve(said.value as never);
  };

  #fail(message: string, cause?: Error): void {
    if (!this.#ending) this.#stop.abort(new CliError('ERR_CLI_DESTINATION', message, { cause }));
  }

  readonly #refuseAll = (): void => {
    for (const { reject } of this.#pending.values()) reject(this.#stop.signal.reason as Error);
    this.#pending.clear();
  };

  readonly #kill = (): void => {
    this.#child.kill('SIGKILL');
  };
}
