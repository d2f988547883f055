/**
 * Drives the plain sockets of plain-socket.ts: one connection between two workers for each channel, both ends in this
 * process (PlainSockets) or each in its own (node-sockets.ts).
 */
import { once } from 'node:events';
import { Worker } from 'node:worker_threads';
import type { PlainTask } from './plain-socket.js';

const PIECE_BYTES = 524288;

function worker(
  task: Pick<PlainTask, 'role' | 'memory' | 'port' | 'tlsFolder'>,
  index: number,
  connections: number,
): Worker {
  const bytes = task.memory.byteLength / connections;
  const workerData: PlainTask = { ...task, base: index * bytes, bytes, pieceBytes: PIECE_BYTES };
  return new Worker(new URL('./plain-socket.js', import.meta.url), { workerData });
}

export class PlainReceivers {
  readonly ports: number[] = [];
  readonly #workers: Worker[] = [];

  static async open(
    memory: SharedArrayBuffer,
    connections: number,
    tlsFolder?: string,
  ): Promise<PlainReceivers> {
    const receivers = new PlainReceivers();
    for (let i = 0; i < connections; i++) {
      const receiver = worker({ role: 'receive', memory, port: 0, tlsFolder }, i, connections);
      const [{ port }] = (await once(receiver, 'message')) as [{ port: number }];
      receivers.ports.push(port);
      receivers.#workers.push(receiver);
    }
    return receivers;
  }

  /** When the last byte of one pass was in place, in milliseconds of monotonicMs(); to be called before it begins. */
  async received(): Promise<number> {
    const times = this.#workers.map(async (receiver) => {
      const [{ receivedMs }] = (await once(receiver, 'message')) as [{ receivedMs: number }];
      return receivedMs;
    });
    return Math.max(...(await Promise.all(times)));
  }

  async close(): Promise<void> {
    await Promise.all(this.#workers.map((receiver) => receiver.terminate()));
  }
}

export class PlainSenders {
  readonly #workers: Worker[] = [];

  static async open(memory: SharedArrayBuffer, ports: number[], tlsFolder?: string): Promise<PlainSenders> {
    const senders = new PlainSenders();
    for (const [i, port] of ports.entries()) {
      const sender = worker({ role: 'send', memory, port, tlsFolder }, i, ports.length);
      await once(sender, 'message');
      senders.#workers.push(sender);
    }
    return senders;
  }

  /** Begins one pass. */
  send(): void {
    for (const sender of this.#workers) sender.postMessage('go');
  }

  async close(): Promise<void> {
    await Promise.all(this.#workers.map((sender) => sender.terminate()));
  }
}

/** Both ends in one process. */
export class PlainSockets {
  readonly #senders: PlainSenders;
  readonly #receivers: PlainReceivers;

  private constructor(senders: PlainSenders, receivers: PlainReceivers) {
    this.#senders = senders;
    this.#receivers = receivers;
  }

  static async open(
    source: SharedArrayBuffer,
    destination: SharedArrayBuffer,
    count: number,
  ): Promise<PlainSockets> {
    const receivers = await PlainReceivers.open(destination, count);
    return new PlainSockets(await PlainSenders.open(source, receivers.ports), receivers);
  }

  /** Moves all of the source once; resolves when the last byte is in place. */
  async move(): Promise<void> {
    const received = this.#receivers.received();
    this.#senders.send();
    await received;
  }

  async close(): Promise<void> {
    await Promise.all([this.#senders.close(), this.#receivers.close()]);
  }
}
