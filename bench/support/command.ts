/** One of the package's own commands with --json, as a process: waits for its records. */
import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { within } from '../../src/qmp/within.js';

const MAIN = fileURLToPath(new URL('../../cli/main.js', import.meta.url));
const LIMIT_MS = 60_000;

export class Command {
  readonly #name: string;
  readonly #child: ChildProcess;
  readonly #waiting = new Map<string, (record: unknown) => void>();
  readonly #ended: Promise<never>;

  constructor(name: string, args: readonly string[]) {
    this.#name = name;
    this.#child = spawn(process.execPath, [MAIN, name, ...args, '--json', '--no-progress'], {
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    createInterface({ input: this.#child.stdout as NodeJS.ReadableStream }).on('line', (text) => {
      const record = JSON.parse(text) as { type: string };
      this.#waiting.get(record.type)?.(record);
    });
    this.#ended = once(this.#child, 'close').then(([code]) => {
      throw new Error(`multifd ${name} exited with ${String(code)} and did not say what was waited for`);
    });
    this.#ended.catch(() => {});
  }

  /** The record of this type, which must be waited for before it can have come. */
  async record<T>(type: string): Promise<T> {
    const record = new Promise((resolve) => this.#waiting.set(type, resolve));
    return within(
      Promise.race([record, this.#ended]),
      LIMIT_MS,
      `multifd ${this.#name}: ${type}`,
    ) as Promise<T>;
  }

  async end(): Promise<void> {
    this.#child.kill('SIGKILL');
    await this.#ended.catch(() => {});
  }
}
