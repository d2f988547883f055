/** A sender and a receiver in this process, opened once; move() is one full pass with its sync. */
import {
  createReceiver,
  createSender,
  type Receiver,
  type Sender,
  type SenderOptions,
} from '../../src/index.js';

export class Engine {
  readonly sender: Sender;
  readonly receiver: Receiver;
  readonly #size: number;

  private constructor(sender: Sender, receiver: Receiver, size: number) {
    this.sender = sender;
    this.receiver = receiver;
    this.#size = size;
  }

  static async open(
    source: SharedArrayBuffer,
    destination: SharedArrayBuffer,
    options: Partial<SenderOptions>,
  ): Promise<Engine> {
    const { channels, compression } = options;
    const receiver = await createReceiver({
      address: { port: 0 },
      blocks: [{ name: 'pc.ram', memory: destination }],
      channels,
      compression,
    });
    const sender = await createSender({
      ...options,
      address: receiver.address,
      blocks: [{ name: 'pc.ram', memory: source }],
    });
    await receiver.ready;
    return new Engine(sender, receiver, source.byteLength);
  }

  async move(): Promise<void> {
    await this.sender.queueRange('pc.ram', 0, this.#size);
    await Promise.all([this.sender.sync(), this.receiver.sync()]);
  }

  async close(): Promise<void> {
    await this.sender.end();
    await this.receiver.end();
  }
}

/** GB a second of one call of `move`. */
export async function rate(bytes: number, move: () => Promise<void>): Promise<number> {
  const begun = performance.now();
  await move();
  return bytes / 1e6 / (performance.now() - begun);
}

/** The figures mean nothing if the bytes are not there. */
export function mustBeEqual(source: SharedArrayBuffer, destination: SharedArrayBuffer): void {
  if (Buffer.from(source).compare(Buffer.from(destination)) !== 0)
    throw new Error('destination differs from source');
}
