/**
 * The receiving half of zstd. The checker (zstd-frame.ts) walks over every payload first; then each frame goes to the decoder
 * that fits it. What is found wrong by decoding has one message, whichever decoder found it; its own words are the cause.
 *
 *     frame                       with a StreamDecoder            without
 *     raw blocks                  copied                          copied
 *     begins and ends here        it                              @mongodb-js/zstd, if it is the only one
 *     others                      it                              zstd-blocks.ts, in JavaScript
 */
import { MultifdError, receivedExpected } from '../errors.js';
import { copyPages } from '../ram/copy.js';
import { MULTIFD_PACKET_BYTES } from '../wire/packet.js';
import type { ReceiveMethod } from './contract.js';
import { Releaser } from './release.js';
import { zstdBinding } from './zstd-binding.js';
import { BlockDecoder } from './zstd-blocks.js';
import { FrameWalker, copyRawFrame, refuse, wrongSize, type FramePart } from './zstd-frame.js';

/** A codec that decodes frames piece by piece, in the calling thread. It writes nothing but the output's bytes. */
export interface StreamDecoder {
  /** Bytes of the last call's output space that were left over. */
  readonly outputLeft: number;
  /** Bytes of the last call's input that were left over. */
  readonly inputLeft: number;
  /** Message of the last call's failure; undefined if it went well. */
  readonly failure: string | undefined;
  /** A stretch of a frame; true if it did not fail. The results are in the fields. */
  run(input: Buffer, inputOffset: number, output: Buffer, outputOffset: number): boolean;
  close(): void;
}

const NOTHING = Buffer.alloc(0);

export class ZstdReceiver implements ReceiveMethod {
  readonly #pageSize: number;
  readonly #walker = new FrameWalker();
  readonly #decoder: StreamDecoder | undefined;
  readonly #probe = Buffer.alloc(1);
  readonly #releaser: Releaser | undefined;
  /** The binding's buffer that the last call has resolved with. */
  #lent: Buffer | undefined;
  #blocks: BlockDecoder | undefined;
  /** Of the packet at hand. */
  #filled = 0;

  /**
   * @param pageSize a frame may end at each multiple of it
   * @param decoder undefined: @mongodb-js/zstd, if `usesBinding`, and our own
   */
  constructor(pageSize: number, decoder: StreamDecoder | undefined, usesBinding = true) {
    this.#pageSize = pageSize;
    this.#decoder = decoder;
    if (decoder === undefined && usesBinding) this.#releaser = new Releaser();
  }

  decompress(payload: Buffer, pages: Buffer): void | Promise<Buffer | void> {
    const parts = this.#walker.walk(payload, pages.length);
    this.#filled = 0;
    this.#giveBack();
    if (this.#releaser !== undefined) {
      // As our sender makes them: one frame, and perhaps one of raw blocks, which need no decoder.
      const packed = parts.filter((part) => !isRawFrame(part));
      if (packed.length === 1 && fitsBinding(packed[0], pages)) return this.#byBinding(payload, parts, pages);
    }
    for (const part of parts) this.#count(part, this.#decode(payload, part, pages), pages);
    this.#checkFilled(pages);
  }

  #decode(payload: Buffer, part: FramePart, pages: Buffer): number {
    if (isRawFrame(part)) {
      if (this.#filled + part.minSize > pages.length) throw undecodable(pages);
      return copyRawFrame(payload, part, pages, this.#filled);
    }
    if (this.#decoder !== undefined) return this.#byStream(this.#decoder, payload, part, pages);
    this.#blocks ??= new BlockDecoder();
    try {
      if (part.begins) this.#blocks.begin(part.frame);
      return this.#blocks.decode(payload, part.blocks, part.end, part.ends, pages, this.#filled);
    } catch (error) {
      throw undecodable(pages, error);
    }
  }

  #byStream(decoder: StreamDecoder, payload: Buffer, part: FramePart, pages: Buffer): number {
    const input = payload.subarray(part.start, part.end);
    let filled = this.#filled;
    for (let read = 0; read < input.length;) {
      if (!decoder.run(input, read, pages, filled)) throw undecodable(pages, decoder.failure);
      const nowRead = input.length - decoder.inputLeft;
      const nowFilled = pages.length - decoder.outputLeft;
      if (nowRead === read && nowFilled === filled) throw undecodable(pages);
      read = nowRead;
      filled = nowFilled;
    }
    // Bytes beyond the last page may wait inside the decoder.
    if (filled === pages.length) {
      decoder.run(NOTHING, 0, this.#probe, 0);
      if (decoder.failure === undefined && decoder.outputLeft === 0) throw undecodable(pages);
    }
    return filled - this.#filled;
  }

  async #byBinding(payload: Buffer, parts: FramePart[], pages: Buffer): Promise<Buffer | void> {
    for (const part of parts) {
      if (isRawFrame(part)) {
        this.#count(part, this.#decode(payload, part, pages), pages);
        continue;
      }
      let decoded: Buffer;
      try {
        decoded = await zstdBinding().decompress(payload.subarray(part.start, part.end));
      } catch (error) {
        throw undecodable(pages, error);
      }
      this.#lent = decoded;
      if (this.#filled + decoded.length > pages.length) throw undecodable(pages);
      const at = this.#filled;
      this.#count(part, decoded.length, pages);
      if (parts.length === 1 && decoded.length === pages.length) return decoded;
      copyPages(decoded, 0, pages, at, decoded.length);
      this.#giveBack();
    }
    this.#checkFilled(pages);
  }

  /** So many bytes more are decoded, of this part. */
  #count(part: FramePart, bytes: number, pages: Buffer): void {
    const { frame } = part;
    frame.decoded += bytes;
    if (
      frame.contentSize !== undefined &&
      (frame.decoded > frame.contentSize || (part.ends && frame.decoded !== frame.contentSize))
    ) {
      throw undecodable(pages);
    }
    this.#filled += bytes;
    if (part.ends && (bytes === 0 || this.#filled % this.#pageSize !== 0)) {
      throw refuse(
        receivedExpected(
          'end of a frame at byte',
          this.#filled,
          `a multiple of ${this.#pageSize}, after some pages`,
        ),
      );
    }
  }

  #giveBack(): void {
    if (this.#lent !== undefined) this.#releaser?.release(this.#lent);
    this.#lent = undefined;
  }

  #checkFilled(pages: Buffer): void {
    if (this.#filled !== pages.length) throw wrongSize(this.#filled, pages.length);
  }

  close(): void {
    this.#decoder?.close();
    this.#releaser?.close();
    this.#blocks = undefined;
  }
}

function isRawFrame(part: FramePart): boolean {
  return part.raw && part.begins && part.ends;
}

/** A whole frame. The binding does not bound its output itself, and the frames that it makes have no content size. */
function fitsBinding(part: FramePart, pages: Buffer): boolean {
  return part.begins && part.ends && part.maxSize <= pages.length + MULTIFD_PACKET_BYTES;
}

function undecodable(pages: Buffer, cause?: unknown): MultifdError {
  return refuse(
    `received blocks that are corrupt, or that decode to more or to less than was promised, expected ${pages.length} bytes`,
    cause,
  );
}
