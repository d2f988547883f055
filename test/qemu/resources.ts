/** What a process holds: its open descriptors, each with what it stands for, and the number of its threads. */
import { readdirSync, readlinkSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';

function descriptors(): Set<string> {
  const open = new Set<string>();
  for (const fd of readdirSync('/proc/self/fd')) {
    try {
      open.add(`${fd} ${readlinkSync(`/proc/self/fd/${fd}`)}`);
    } catch {
      // It was the one that readdir itself had open.
    }
  }
  return open;
}

const threads = (): number => readdirSync('/proc/self/task').length;

/** Made while everything that may stay is there: the QEMUs with their control sockets, the codecs loaded. */
export class Resources {
  readonly #descriptors = descriptors();
  readonly #threads = threads();

  /** Waits a while for what is new to go, and says what did not; empty if nothing is left. */
  async left(limitMs: number): Promise<string[]> {
    const late = performance.now() + limitMs;
    for (;;) {
      const left = [...descriptors()].filter((open) => !this.#descriptors.has(open));
      if (threads() > this.#threads) left.push(`${threads() - this.#threads} threads more than before`);
      if (left.length === 0 || performance.now() > late) return left;
      await sleep(20);
    }
  }
}
