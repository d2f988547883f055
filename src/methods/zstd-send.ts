/**
 * The sending halves of zstd: one complete frame a packet, and a second one for pages that travel as they are.
 *
 *     SyncSender      a codec that compresses in the calling thread, into one of two buffers by turns
 *     BindingSender   @mongodb-js/zstd, in a thread of libuv's pool, into buffers that it makes
 */
import { MultifdError } from '../errors.js';
import { MAX_PAYLOAD_BYTES, MULTIFD_PACKET_BYTES } from '../wire/packet.js';
import type { SendMethod } from './contract.js';
import { Releaser } from './release.js';
import { zstdBinding } from './zstd-binding.js';
import { rawFrame } from './zstd-frame.js';

/** A codec that compresses in the calling thread. */
export interface Compressor {
  /**
   * One complete frame.
   *
   * @returns its bytes in `output`
   * @throws MultifdError ERR_MULTIFD_COMPRESS, also if it does not fit
   */
  compress(input: Buffer, output: Buffer): number;
  close(): void;
}

const NOTHING = Buffer.alloc(0);
/** A payload is released when so many calls have come after the one that returned its promise. */
const CALLS_LENT = 3;
const OUTPUT_BYTES = MULTIFD_PACKET_BYTES + 65536;

export class SyncSender implements SendMethod {
  readonly #compressor: Compressor;
  readonly #outputs = [Buffer.allocUnsafeSlow(OUTPUT_BYTES), Buffer.allocUnsafeSlow(OUTPUT_BYTES)];
  #turn = 0;

  constructor(compressor: Compressor) {
    this.#compressor = compressor;
  }

  compress(pages: Buffer): Buffer {
    if (pages.length === 0) return NOTHING;
    const output = this.#outputs[this.#turn];
    this.#turn ^= 1;
    return output.subarray(0, this.#compressor.compress(pages, output));
  }

  readonly raw = rawFrame;

  close(): void {
    this.#compressor.close();
  }
}

export class BindingSender implements SendMethod {
  readonly #level: number;
  readonly #releaser = new Releaser();
  /** What the last calls have returned, the oldest first. */
  readonly #lent: { payload?: Buffer }[] = [];

  constructor(level: number) {
    this.#level = level;
  }

  compress(pages: Buffer): Buffer | Promise<Buffer> {
    const done = this.#lent.length === CALLS_LENT ? this.#lent.shift()?.payload : undefined;
    if (done !== undefined) this.#releaser.release(done);
    const lent = {};
    this.#lent.push(lent);
    return pages.length === 0 ? NOTHING : this.#compress(pages, lent);
  }

  readonly raw = rawFrame;

  async #compress(pages: Buffer, lent: { payload?: Buffer }): Promise<Buffer> {
    let payload: Buffer;
    try {
      payload = await zstdBinding().compress(pages, this.#level);
    } catch (error) {
      throw MultifdError.wrap(error, 'ERR_MULTIFD_COMPRESS', 'zstd');
    }
    if (payload.length > MAX_PAYLOAD_BYTES) {
      throw new MultifdError('ERR_MULTIFD_COMPRESS', `zstd: ${payload.length} bytes of payload`);
    }
    lent.payload = payload;
    return payload;
  }

  close(): void {
    this.#releaser.close();
  }
}
