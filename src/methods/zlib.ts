/**
 * Method zlib: one deflate stream for each channel, zlib format, never finished.
 *
 *     payload of packet 0   78 xx | deflate blocks | 00 00 ff ff      xx by the level
 *     payload of packet n           deflate blocks | 00 00 ff ff      history goes on, or starts afresh
 *
 * Every payload ends with a sync flush, so nothing is pending between packets; there is no final block and no Adler
 * sum. Source: QEMU's multifd-zlib, specification 3.2.
 *
 * Sending: Node's deflate as one continuing stream, as QEMU does it; where the stream cannot be driven, one
 * independent raw deflate a packet after a single header, which QEMU takes as well.
 * Receiving: Node's inflate as one continuing stream; where it cannot be driven, fflate's streaming inflater (three
 * times slower, right on all captures). fflate's deflater is not used: it cannot end a packet safely.
 */
import type { Inflate } from 'fflate';
import { createRequire } from 'node:module';
import zlib from 'node:zlib';
import { MultifdError, receivedExpected } from '../errors.js';
import { MULTIFD_PACKET_BYTES } from '../wire/packet.js';
import { SyncEngine, canDrive } from './engine.js';
import { inBlocks } from './incompressible.js';
import type { ReceiveMethod, SendMethod } from './contract.js';

const { Z_SYNC_FLUSH, Z_FULL_FLUSH, Z_FINISH } = zlib.constants;
/** Deflate grows data that it cannot shrink by 5 bytes for each 16 KiB or so. */
const OUTPUT_BYTES = MULTIFD_PACKET_BYTES + 65536;
const NOTHING = Buffer.alloc(0);
/** A stored block: 0 (not the last), then its length and the length's complement, 16 bits each. */
const STORED_BYTES = 0xffff;

/** @param level 0 to 9 */
export function createZlibSender(level: number, driven = canDrive): SendMethod {
  return driven ? new ZlibStreamSender(level) : new ZlibPacketSender(level);
}

export function createZlibReceiver(_pageSize: number, driven = canDrive): ReceiveMethod {
  return driven ? new ZlibStreamReceiver() : new FflateReceiver();
}

/**
 * Pages as they are: stored blocks, where the flush before them has ended on a byte. The deflate stream does not know of
 * them, but its receiver's window does: whatever is compressed later must not look back beyond them.
 */
function stored(pieces: readonly Uint8Array[]): Uint8Array[] {
  return inBlocks(pieces, STORED_BYTES, (bytes) => {
    const header = Buffer.alloc(5);
    header.writeUInt16LE(bytes, 1);
    header.writeUInt16LE(bytes ^ 0xffff, 3);
    return header;
  });
}

class ZlibStreamSender implements SendMethod {
  /** The stream has nothing to look back at. */
  #forgotten = false;
  readonly #engine: SyncEngine;
  readonly #outputs = [Buffer.allocUnsafeSlow(OUTPUT_BYTES), Buffer.allocUnsafeSlow(OUTPUT_BYTES)];
  #turn = 0;

  constructor(level: number) {
    this.#engine = new SyncEngine(zlib.createDeflate({ level }));
  }

  compress(pages: Buffer, rawFollows = false): Buffer {
    // A flush of nothing after a full one is an error to zlib.
    if (pages.length === 0 && this.#forgotten) return NOTHING;
    const output = this.#outputs[this.#turn];
    this.#turn ^= 1;
    const engine = this.#engine;
    this.#forgotten = rawFollows;
    if (!engine.run(rawFollows ? Z_FULL_FLUSH : Z_SYNC_FLUSH, pages, 0, output, 0, output.length)) {
      throw new MultifdError('ERR_MULTIFD_COMPRESS', `zlib: ${engine.failure}`);
    }
    if (engine.outputLeft === 0 || engine.inputLeft !== 0) {
      throw new MultifdError(
        'ERR_MULTIFD_COMPRESS',
        `zlib: ${pages.length} bytes did not fit ${output.length}`,
      );
    }
    return output.subarray(0, output.length - engine.outputLeft);
  }

  readonly raw = stored;

  close(): void {
    this.#engine.close();
  }
}

class ZlibPacketSender implements SendMethod {
  readonly #options: zlib.ZlibOptions;
  #first = true;

  constructor(level: number) {
    this.#options = { level, finishFlush: Z_SYNC_FLUSH, chunkSize: OUTPUT_BYTES };
  }

  compress(pages: Buffer): Buffer {
    const blocks = pages.length === 0 ? NOTHING : zlib.deflateRawSync(pages, this.#options);
    if (!this.#first) return blocks;
    this.#first = false;
    // Deflate with a 32 KiB window, "fastest"; 0x7801 is a multiple of 31, as the format wants.
    return Buffer.concat([Buffer.of(0x78, 0x01), blocks]);
  }

  readonly raw = stored;

  close(): void {}
}

class ZlibStreamReceiver implements ReceiveMethod {
  readonly #engine = new SyncEngine(zlib.createInflate());
  readonly #probe = Buffer.alloc(1);

  decompress(payload: Buffer, pages: Buffer): void {
    const engine = this.#engine;
    if (!engine.run(Z_SYNC_FLUSH, payload, 0, pages, 0, pages.length))
      throw refuse(engine.failure ?? 'failed');
    if (engine.outputLeft !== 0) throw wrongSize(pages.length - engine.outputLeft, pages.length);
    if (engine.inputLeft !== 0)
      throw refuse(`received ${engine.inputLeft} bytes after the last page, expected 0`);
    // Finishing fails while the stream is open, and changes nothing. When it does not fail, the stream has ended
    // (QEMU refuses that as well), or it had more bytes to give than the pages hold.
    if (engine.run(Z_FINISH, NOTHING, 0, this.#probe, 0, 1)) {
      if (engine.outputLeft === 0) throw wrongSize(`more than ${pages.length}`, pages.length);
      throw refuse('received the end of the deflate stream, expected a stream that goes on');
    }
  }

  close(): void {
    this.#engine.close();
  }
}

/** Input is fed in pieces so that the output between two checks stays below 1032 times a piece. */
const FFLATE_PIECE_BYTES = 4096;

class FflateReceiver implements ReceiveMethod {
  readonly #inflate: Inflate;
  #header = true;
  #pages: Buffer = NOTHING;
  #filled = 0;

  constructor() {
    // Loaded when it is needed: every channel's thread pays for what is imported.
    const fflate = createRequire(import.meta.url)('fflate') as typeof import('fflate');
    this.#inflate = new fflate.Inflate((chunk) => {
      if (this.#filled + chunk.length > this.#pages.length) {
        throw wrongSize(`more than ${this.#pages.length}`, this.#pages.length);
      }
      this.#pages.set(chunk, this.#filled);
      this.#filled += chunk.length;
    });
  }

  decompress(payload: Buffer, pages: Buffer): void {
    this.#pages = pages;
    this.#filled = 0;
    let at = 0;
    if (this.#header) {
      this.#header = false;
      const header = payload.length < 2 ? 0 : payload.readUInt16BE(0);
      // Method deflate, window at most 32 KiB, check bits, no preset dictionary.
      if ((header & 0x0f00) !== 0x0800 || header >>> 12 > 7 || header % 31 !== 0 || (header & 0x20) !== 0) {
        throw refuse('incorrect header check');
      }
      at = 2;
    }
    try {
      for (; at < payload.length; at += FFLATE_PIECE_BYTES) {
        // A copy: fflate keeps what it has not used yet, and the payload buffer is reused.
        this.#inflate.push(Uint8Array.from(payload.subarray(at, at + FFLATE_PIECE_BYTES)));
      }
    } catch (error) {
      throw MultifdError.wrap(error, 'ERR_MULTIFD_DECOMPRESS', 'zlib payload');
    }
    if (this.#filled !== pages.length) throw wrongSize(this.#filled, pages.length);
  }

  close(): void {}
}

function refuse(why: string): MultifdError {
  return new MultifdError('ERR_MULTIFD_DECOMPRESS', `zlib payload: ${why}`);
}

function wrongSize(received: number | string, expected: number): MultifdError {
  return new MultifdError(
    'ERR_MULTIFD_DECOMPRESS',
    receivedExpected('zlib payload, bytes decoded', received, expected),
  );
}
