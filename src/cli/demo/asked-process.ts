/**
 * A handle on a process of the demo's own: starts it, asks it things, hears of its failure or death, ends it.
 *
 * Failure travels through `stop`, which is the whole run's: what goes wrong over there aborts it, and when it is
 * aborted, for whatever reason, everything asked is refused with that reason. No process is left behind: end() asks
 * it to leave and kills it if it does not; if this process exits first, an 'exit' handler kills it; if this process
 * is killed, it notices that itself (by 'disconnect').
 */
import { fork, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { CliError, destinationError, type Failure } from '../cli-error.js';

/** How long it may take to leave. */
const LEAVE_MS = 1000;

interface Pending {
  resolve: (value: never) => void;
  reject: (reason: Error) => void;
}

interface Request {
  type: string;
}

/** What the process says: replies have the id of what was asked, and `failed` is the last word. */
type Said = { type: 'reply'; id: number; value: unknown } | { type: 'failed'; failure: Failure };

/** Replies by the type of what is asked. */
export class AskedProcess<Q extends Request, Replies extends Record<Q['type'], unknown>> {
  /** As messages have it. */
  readonly #name: string;
  readonly #stop: AbortController;
  readonly #child: ChildProcess;
  readonly #pending = new Map<number, Pending>();
  readonly #onOther: ((message: unknown) => void) | undefined;
  #nextId = 0;
  #ending = false;

  /** @param onOther hears all that is neither a reply nor a failure */
  constructor(stop: AbortController, name: string, program: string, onOther?: (message: unknown) => void) {
    this.#name = name;
    this.#stop = stop;
    this.#onOther = onOther;
    // stdout is for this process's data alone.
    this.#child = fork(program, [], { stdio: ['ignore', 2, 2, 'ipc'] });
    this.#child.on('message', this.#onMessage);
    this.#child.on('error', (cause) => this.#fail(`${name} process: ${cause.message}`, cause));
    this.#child.on('exit', (code, signal) => {
      process.off('exit', this.#kill);
      const how = signal === null ? `exited with code ${code}` : `was killed by ${signal}`;
      this.#fail(`the ${name} process ${how} before it was done`);
    });
    process.on('exit', this.#kill);
    stop.signal.addEventListener('abort', this.#refuseAll);
  }

  get pid(): number | undefined {
    return this.#child.pid;
  }

  async ask<R extends Q>(request: R): Promise<Replies[R['type']]> {
    this.#stop.signal.throwIfAborted();
    const id = this.#nextId++;
    return new Promise<Replies[R['type']]>((resolve, reject) => {
      this.#pending.set(id, { resolve, reject });
      // An error of the channel means that the process is gone, and 'exit' knows more about that.
      this.#child.send({ ...request, id }, () => {});
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
    const said = message as Said;
    if (said.type === 'failed') {
      this.#stop.abort(destinationError(said.failure, this.#name));
      return;
    }
    if (said.type !== 'reply') {
      this.#onOther?.(message);
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
