/**
 * A whole migration between two fresh processes: both guests' RAM is there, and all channels are connected, before the
 * clock starts; each pass begins with queueRange() and ends when both sides' sync() has returned; at the end
 * the memories are compared by digest.
 */
import type { Address, Compression } from '../../src/index.js';
import { Child } from './child.js';
import type { Image } from './image.js';

export interface MigrationCase {
  size: number;
  channels: number;
  compression?: Compression;
  pageSize?: number;
  image?: Image;
  /** The source's RAM is this file's bytes, instead of an image. */
  file?: string;
  /** Is the destination's memory written, as zeroes, before the clock starts (default), or never touched? */
  prefault?: boolean;
  /** RAM in huge pages, at both ends. */
  hugePages?: boolean;
  /** Is the main loops' delay wanted? It costs a timer a millisecond. */
  watchLoop?: boolean;
  /** Pages go without a copy. */
  zeroCopySend?: boolean;
  /** The folder with credentials of both roles, for TLS. */
  tlsFolder?: string;
  /** A first pass over so many bytes that is not reported: code that is run for the first time is slow. */
  warmUpBytes?: number;
}

/** What an end is told. */
export type MigrationStart = MigrationCase & Required<Omit<MigrationCase, 'file' | 'tlsFolder'>>;

/** Of the main thread's event loop, in milliseconds, while passes run. */
export interface Delay {
  p50: number;
  p99: number;
  max: number;
}

export interface EndReport {
  /** Peak of the process beside its guest's RAM and what it had before, in bytes. */
  above: number;
  delay: Delay;
  /** Of all its threads, while passes run that count. */
  cpuSeconds: number;
  digest: number;
  wireBytes: number;
}

/** To both ends: a pass over so many bytes, 0 for the end. */
export interface Pass {
  bytes: number;
  counts: boolean;
}

export interface Moved {
  begunMs: number;
  endedMs: number;
}

const DEFAULTS = {
  compression: 'none',
  pageSize: 4096,
  image: 'mixed',
  prefault: true,
  hugePages: false,
  watchLoop: false,
  warmUpBytes: 0,
  zeroCopySend: false,
} as const;

export class Migration {
  readonly #sender: Child;
  readonly #receiver: Child;
  readonly #size: number;

  private constructor(sender: Child, receiver: Child, size: number) {
    this.#sender = sender;
    this.#receiver = receiver;
    this.#size = size;
  }

  static async open(how: MigrationCase): Promise<Migration> {
    const all: MigrationStart = { ...DEFAULTS, ...how };
    const receiver = new Child('./endpoint.js', { role: 'receive', ...all });
    const sender = new Child('./endpoint.js', { role: 'send', ...all });
    sender.tell(await receiver.next<{ address: Address }>());
    await Promise.all([receiver.next<{ open: true }>(), sender.next<{ open: true }>()]);
    const migration = new Migration(sender, receiver, all.size);
    if (all.warmUpBytes > 0) await migration.#move({ bytes: all.warmUpBytes, counts: false });
    return migration;
  }

  /** One pass over all of the RAM, in seconds. */
  pass(): Promise<number> {
    return this.#move({ bytes: this.#size, counts: true });
  }

  async #move(pass: Pass): Promise<number> {
    this.#receiver.tell(pass);
    this.#sender.tell(pass);
    const [sent, received] = await Promise.all([this.#sender.next<Moved>(), this.#receiver.next<Moved>()]);
    return (Math.max(sent.endedMs, received.endedMs) - sent.begunMs) / 1000;
  }

  /** Compares, and ends both. */
  async close(): Promise<{ send: EndReport; receive: EndReport }> {
    const end: Pass = { bytes: 0, counts: false };
    this.#receiver.tell(end);
    this.#sender.tell(end);
    const [send, receive] = await Promise.all([
      this.#sender.next<EndReport>(),
      this.#receiver.next<EndReport>(),
    ]);
    if (send.digest !== receive.digest) throw new Error('destination differs from source');
    await Promise.all([this.#sender.end(), this.#receiver.end()]);
    return { send, receive };
  }
}

export interface MigrationReport {
  /** Of each pass. */
  seconds: number[];
  send: EndReport;
  receive: EndReport;
}

/** All of it: processes, passes, comparison. */
export async function migrate(how: MigrationCase, passes = 1): Promise<MigrationReport> {
  const migration = await Migration.open(how);
  const seconds: number[] = [];
  for (let i = 0; i < passes; i++) seconds.push(await migration.pass());
  return { seconds, ...(await migration.close()) };
}
