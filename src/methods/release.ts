/**
 * Gives the memory of a codec's buffer back when it is done with.
 *
 * @mongodb-js/zstd returns a new buffer for each packet, outside the JavaScript heap. The collector does not see that pressure
 * until 60 to 90 MiB a channel have piled up, and only a flag that changes the embedder's process would let us call it.
 * A buffer's memory goes with it, though, when it is posted to another thread, and a message to nobody is freed at once. Node
 * does not post a buffer that native code owns; but a byte stream takes over what is put into it, and what comes out is
 * a buffer like any other.
 *
 *     buffer -> stream -> a port whose other end is closed
 *
 * Where a Node refuses a step, the collector has the buffer as before.
 */
import { MessageChannel, type MessagePort } from 'node:worker_threads';
import {
  ReadableByteStreamController,
  ReadableStream,
  type ReadableStreamDefaultReader,
} from 'node:stream/web';

export class Releaser {
  #controller: ReadableByteStreamController | undefined;
  readonly #reader: ReadableStreamDefaultReader<Uint8Array>;
  readonly #port: MessagePort;

  constructor() {
    const stream = new ReadableStream({
      type: 'bytes',
      start: (controller) => {
        this.#controller = controller;
      },
    });
    this.#reader = stream.getReader();
    const { port1, port2 } = new MessageChannel();
    port2.close();
    this.#port = port1;
  }

  /** Nobody reads or writes `buffer` any more, the system included. */
  release(buffer: Buffer): void {
    // One of Node's pool has neighbours.
    if (buffer.length !== buffer.buffer.byteLength) return;
    try {
      this.#controller?.enqueue(new Uint8Array(buffer.buffer));
    } catch {
      this.#controller = undefined;
      return;
    }
    this.#reader.read().then(this.#post, ignore);
  }

  readonly #post = ({ value }: { value?: Uint8Array | undefined }): void => {
    if (value === undefined) return;
    try {
      this.#port.postMessage(null, [value.buffer as ArrayBuffer]);
    } catch {
      this.#controller = undefined;
    }
  };

  close(): void {
    this.#controller = undefined;
    this.#port.close();
  }
}

function ignore(): void {}
