/**
 * A process of a bench and its parent: start and messages, in order, one at a time, with an end to all waiting.
 *
 *     parent                                          child
 *     const child = new Child('./endpoint.js', start)
 *     child.tell({...})              ---->            serve<Start>(async (start, parent) => {
 *     await child.next<Answer>()     <----              await parent.next<...>(); parent.tell({...});
 *     await child.end()              <--- exit 0      });
 *
 * A child whose parent goes ends itself; a child that says nothing for LIMIT_MS is killed.
 */
import { fork, type ChildProcess } from 'node:child_process';

const LIMIT_MS = 90_000;

class Inbox {
  readonly #messages: unknown[] = [];
  #failure: Error | undefined;
  #wake: (() => void) | undefined;

  put(message: unknown): void {
    this.#messages.push(message);
    this.#wake?.();
  }

  fail(error: Error): void {
    this.#failure ??= error;
    this.#wake?.();
  }

  async next<T>(): Promise<T> {
    while (this.#messages.length === 0) {
      if (this.#failure !== undefined) throw this.#failure;
      await new Promise<void>((resolve) => (this.#wake = resolve));
    }
    return this.#messages.shift() as T;
  }
}

/** What both ends do with each other. */
export interface Peer {
  tell(message: object): void;
  next<T>(): Promise<T>;
}

export class Child implements Peer {
  readonly #child: ChildProcess;
  readonly #inbox = new Inbox();
  readonly #exit: Promise<number | null>;
  readonly #module: string;

  /** @param module beside this file */
  constructor(module: string, start: object) {
    this.#module = module;
    this.#child = fork(new URL(module, import.meta.url));
    this.#child.on('message', (message) => this.#inbox.put(message));
    this.#exit = new Promise((resolve) => {
      this.#child.once('exit', (code, signal) => {
        this.#inbox.fail(new Error(`${module} ended with ${signal ?? `exit code ${code}`}`));
        resolve(code);
      });
    });
    this.tell(start);
  }

  tell(message: object): void {
    this.#child.send(message);
  }

  async next<T>(): Promise<T> {
    const timer = setTimeout(() => this.#child.kill('SIGKILL'), LIMIT_MS);
    try {
      return await this.#inbox.next<T>();
    } finally {
      clearTimeout(timer);
    }
  }

  /** Waits until it has ended by itself. */
  async end(): Promise<void> {
    const timer = setTimeout(() => this.#child.kill('SIGKILL'), LIMIT_MS);
    const code = await this.#exit;
    clearTimeout(timer);
    if (code !== 0) throw new Error(`${this.#module} exited with ${code}`);
  }
}

/** In the child: runs `main` with the start it was given, then ends. */
export function serve<S>(main: (start: S, parent: Peer) => Promise<void>): void {
  const inbox = new Inbox();
  let over = false;
  process.on('message', (message) => inbox.put(message));
  process.on('disconnect', () => process.exit(over ? 0 : 1));
  const parent: Peer = {
    tell: (message) => void process.send?.(message),
    next: () => inbox.next(),
  };
  void inbox
    .next<S>()
    .then((start) => main(start, parent))
    .then(() => {
      over = true;
      process.disconnect();
    });
}
