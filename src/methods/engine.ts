/**
 * Node's own codec streams, driven synchronously from buffer to buffer.
 *
 * A channel has a thread of its own and wants one stream that lives as long as the channel, an output buffer that it
 * reuses, and an output that is bounded by the pages expected. Node's public synchronous calls make a new stream and
 * a new buffer each time (80 MiB of garbage a channel before a collection), its public streams go through the thread
 * pool and allocate as well. The handle below every zlib object has had the synchronous call for as long as
 * zlib.deflateSync has existed, and that function itself uses it; it is not documented, though, so `canDrive` tries
 * it once on known bytes, and the methods have another way when it is not as expected.
 */
import zlib from 'node:zlib';

interface Handle {
  writeSync(
    flush: number,
    input: Uint8Array,
    inputOffset: number,
    inputLength: number,
    output: Uint8Array,
    outputOffset: number,
    outputLength: number,
  ): void;
  onerror: (message: string, errno: number, code: string) => void;
}

interface StreamInternals {
  _handle: Handle;
  _writeState: Uint32Array;
  close(): void;
}

export class SyncEngine {
  /** Bytes of the last call's output space that were left over. */
  outputLeft = 0;
  /** Bytes of the last call's input that were left over. */
  inputLeft = 0;
  /** Message of the last call's failure; undefined if it went well. */
  failure: string | undefined;
  readonly #stream: StreamInternals;
  #closed = false;

  constructor(stream: object) {
    this.#stream = stream as StreamInternals;
    this.#stream._handle.onerror = (message) => {
      this.failure = message;
    };
  }

  /** One call of the codec; true if it did not fail. The results are in the fields. */
  run(
    flush: number,
    input: Uint8Array,
    inputOffset: number,
    output: Uint8Array,
    outputOffset: number,
    outputLength: number,
  ): boolean {
    this.failure = undefined;
    const { _handle: handle, _writeState: state } = this.#stream;
    handle.writeSync(
      flush,
      input,
      inputOffset,
      input.length - inputOffset,
      output,
      outputOffset,
      outputLength,
    );
    if (this.failure !== undefined) return false;
    this.outputLeft = state[0];
    this.inputLeft = state[1];
    return true;
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#stream.close();
  }
}

/** Can this Node's streams be driven through SyncEngine? Tried on a stream of 1000 bytes. */
export const canDrive: boolean = ((): boolean => {
  try {
    const engine = new SyncEngine(zlib.createInflate());
    const expected = Buffer.alloc(1000, 'multifd');
    const output = Buffer.alloc(1000);
    const ok = engine.run(zlib.constants.Z_SYNC_FLUSH, zlib.deflateSync(expected), 0, output, 0, 1000);
    engine.close();
    return ok && engine.outputLeft === 0 && engine.inputLeft === 0 && output.equals(expected);
  } catch {
    return false;
  }
})();
