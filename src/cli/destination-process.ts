/**
 * The source's handle on the destination process: starts it, asks it things, hears of its failure or death, ends it.
 *
 * Whatever goes wrong over there is told once, to `failed`, and refuses all requests from then on. No process is left
 * behind: end() asks it to leave and kills it if it does not; if this process exits first, an 'exit' handler kills it;
 * if this process is killed, it notices that itself (demo-destination.ts).
 */
import { fork, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { fileURLToPath } from 'node:url';
import { CliError, destinationError } from './cli-error.js';
import type { Replies, Request, ToDestination, ToSource } from './messages.js';

/** How long it may take to leave. */
const LEAVE_MS = 1000;

interface Pending {
  resolve: (value: never) => void;
  reject: (error: Error) => void;
}

export class DestinationProcess {
  readonly pid: number | undefined;
  readonly #child: ChildProcess;
  readonly #failed: (error: Error) => void;
  readonly #pending = new Map<number, Pending>();
  #nextId = 0;
  #error: Error | undefined;
  #ending = false;

  /** @param failed is called at most once: it failed, died or could not be started */
  constructor(failed: (error: Error) => void) {
    this.#failed = failed;
    // stdout is for this process's data alone.
    this.#child = fork(fileURLToPath(new URL('demo-destination.js', import.meta.url)), [], {
      stdio: ['ignore', 2, 2, 'ipc'],
    });
    this.pid = this.#child.pid;
    this.#child.on('message', this.#onMessage);
    this.#child.on('error', (cause) => {
      this.#fail(new CliError('ERR_CLI_DESTINATION', `destination process: ${cause.message}`, { cause }));
    });
    this.#child.on('exit', (code, signal) => {
      process.off('exit', this.#kill);
      const how = signal === null ? `exited with code ${code}` : `was killed by ${signal}`;
      this.#fail(new CliError('ERR_CLI_DESTINATION', `the destination process ${how} before it was done`));
    });
    process.on('exit', this.#kill);
  }

  /** Why nothing more can be asked. */
  get error(): Error | undefined {
    return this.#error;
  }

  async ask<R extends Request>(request: R): Promise<Replies[R['type']]> {
    if (this.#error !== undefined) throw this.#error;
    const id = this.#nextId++;
    return new Promise<Replies[R['type']]>((resolve, reject) => {
      this.#pending.set(id, { resolve: resolve as Pending['resolve'], reject });
      // An error of the channel means that the process is gone, and 'exit' knows more about that.
      this.#child.send({ ...request, id } satisfies ToDestination, () => {});
    });
  }

  /** Resolves when the process is gone; never rejects. */
  async end(): Promise<void> {
    this.#ending = true;
    this.#fail(new CliError('ERR_CLI_DESTINATION', 'the destination process was ended'));
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
      this.#fail(destinationError(said.failure));
      return;
    }
    const pending = this.#pending.get(said.id);
    this.#pending.delete(said.id);
    pending?.resolve(said.value as never);
  };

  #fail(error: Error): void {
    if (this.#error !== undefined) return;
    this.#error = error;
    for (const { reject } of this.#pending.values()) reject(error);
    this.#pending.clear();
    if (!this.#ending) this.#failed(error);
  }

  readonly #kill = (): void => {
    this.#child.kill('SIGKILL');
  };
}
