/** Drives the plain sockets of plain-socket.ts: one connection between two workers for each channel. */
import { once } from 'node:events';
import { Worker } from 'node:worker_threads';

const PIECE_BYTES = 524288;

export class PlainSockets {
  readonly #senders: Worker[] = [];
  readonly #receivers: Worker[] = [];

  static async open(
    source: SharedArrayBuffer,
    destination: SharedArrayBuffer,
    count: number,
  ): Promise<PlainSockets> {
    const plain = new PlainSockets();
    const bytes = source.byteLength / count;
    const worker = (workerData: object): Worker =>
      new Worker(new URL('./plain-socket.js', import.meta.url), { workerData });
    for (let i = 0; i < count; i++) {
      const share = { base: i * bytes, bytes, pieceBytes: PIECE_BYTES };
      const receiver = worker({ role: 'receive', memory: destination, port: 0, ...share });
      const [{ port }] = (await once(receiver, 'message')) as [{ port: number }];
      const sender = worker({ role: 'send', memory: source, port, ...share });
      await once(sender, 'message');
      plain.#receivers.push(receiver);
      plain.#senders.push(sender);
    }
    return plain;
  }

  /** Moves all of the source once; resolves when the last byte is in place. */
  async move(): Promise<void> {
    const received = this.#receivers.map((receiver) => once(receiver, 'message'));
    for (const sender of this.#senders) sender.postMessage('go');
    await Promise.all(received);
  }

  async close(): Promise<void> {
    await Promise.all([...this.#senders, ...this.#receivers].map((worker) => worker.terminate()));
  }
}
