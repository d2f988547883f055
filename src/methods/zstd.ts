/**
 * Method zstd. A real QEMU keeps one frame open for the whole life of a channel and flushes it at the end of each
 * packet; its receiver also takes frames that end, at a page's end. Source: QEMU's multifd-zstd, specification 3.3.
 *
 * Sending: one complete frame a packet, and a second one for pages that travel as they are, so that a receiver without a
 * fast streaming decoder is fast. Made by Node's own zstd where the running Node has it, else by @mongodb-js/zstd.
 *
 * Receiving: both forms. A checker walks over every payload first (zstd-frame.ts), so that the answer does not depend on the
 * decoder. Frames of raw blocks are copied. All others go to Node's own decoder where there is one. Without it, a packet of
 * one whole frame goes to @mongodb-js/zstd (one call; its output is bounded by the frame's blocks beforehand), and what is
 * left to our own (zstd-blocks.ts), in JavaScript, at a fifth of the speed.
 *
 * What no checker can see: a corrupt compressed block. Most are refused by all decoders. Of those that libzstd takes, since
 * it does not look at everything, ours takes all but 1 in 1000, and the other way round; 1 in 100 where the first Huffman table of an endless frame is hit.
 */
import { createRequire } from 'node:module';
import zlib from 'node:zlib';
import { MultifdError, receivedExpected } from '../errors.js';
import { MAX_PAYLOAD_BYTES, MULTIFD_PACKET_BYTES } from '../wire/packet.js';
import { SyncEngine, canDrive } from './engine.js';
import { copyPages } from '../ram/copy.js';
import type { ReceiveMethod, SendMethod } from './contract.js';
import { Releaser } from './release.js';
import { BlockDecoder } from './zstd-blocks.js';
import { FrameWalker, copyRawFrame, rawFrame, refuse, wrongSize, type FramePart } from './zstd-frame.js';

/** zlib.createZstdCompress and its constants: Node 22.15 and 23.8 on; not in every version of the types. */
interface NodeZstd {
  createZstdCompress(options: { params: Record<number, number> }): object;
  createZstdDecompress(): object;
  constants: { ZSTD_c_compressionLevel: number; ZSTD_e_continue: number; ZSTD_e_end: number };
}
const nodeZstd = zlib as unknown as NodeZstd;
export const hasNodeZstd: boolean = canDrive && typeof nodeZstd.createZstdCompress === 'function';

/** The public compress() of @mongodb-js/zstd 1.2.2 drops its level; the binding below it honours it. */
interface ZstdBinding {
  compress(data: Buffer, level: number): Promise<Buffer>;
  decompress(data: Buffer): Promise<Buffer>;
}
let loadedBinding: ZstdBinding | undefined;
function binding(): ZstdBinding {
  loadedBinding ??= createRequire(import.meta.url)('@mongodb-js/zstd/bindings') as ZstdBinding;
  return loadedBinding;
}

const NOTHING = Buffer.alloc(0);
/** A payload is released when so many calls have come after the one that returned its promise. */
const CALLS_LENT = 3;
const OUTPUT_BYTES = MULTIFD_PACKET_BYTES + 65536;

/** @param level 1 to 20 */
export function createZstdSender(level: number, native = hasNodeZstd): SendMethod {
  return native ? new NodeZstdSender(level) : new BindingSender(level);
}

export function createZstdReceiver(pageSize: number, native = hasNodeZstd): ReceiveMethod {
  return new ZstdReceiver(pageSize, native);
}

class NodeZstdSender implements SendMethod {
  readonly #engine: SyncEngine;
  readonly #outputs = [Buffer.allocUnsafeSlow(OUTPUT_BYTES), Buffer.allocUnsafeSlow(OUTPUT_BYTES)];
  #turn = 0;

  constructor(level: number) {
    const params = { [nodeZstd.constants.ZSTD_c_compressionLevel]: level };
    this.#engine = new SyncEngine(nodeZstd.createZstdCompress({ params }));
  }

  compress(pages: Buffer): Buffer {
    if (pages.length === 0) return NOTHING;
    const output = this.#outputs[this.#turn];
    this.#turn ^= 1;
    const engine = this.#engine;
    if (!engine.run(nodeZstd.constants.ZSTD_e_end, pages, 0, output, 0, output.length)) {
      throw new MultifdError('ERR_MULTIFD_COMPRESS', `zstd: ${engine.failure}`);
    }
    if (engine.outputLeft === 0 || engine.inputLeft !== 0) {
      throw new MultifdError(
        'ERR_MULTIFD_COMPRESS',
        `zstd: ${pages.length} bytes did not fit ${output.length}`,
      );
    }
    return output.subarray(0, output.length - engine.outputLeft);
  }

  readonly raw = rawFrame;

  close(): void {
    this.#engine.close();
  }
}

class BindingSender implements SendMethod {
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
      payload = await binding().compress(pages, this.#level);
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

/**
 * The checker, then for each frame the decoder that fits it. What is found wrong by decoding has one message, whichever
 * decoder found it; its own words are the cause.
 */
class ZstdReceiver implements ReceiveMethod {
  readonly #pageSize: number;
  readonly #walker = new FrameWalker();
  readonly #engine: SyncEngine | undefined;
  readonly #probe = Buffer.alloc(1);
  readonly #releaser: Releaser | undefined;
  /** The binding's buffer that the last call has resolved with. */
  #lent: Buffer | undefined;
  #blocks: BlockDecoder | undefined;
  /** Of the packet at hand. */
  #filled = 0;

  constructor(pageSize: number, native: boolean) {
    this.#pageSize = pageSize;
    if (native) this.#engine = new SyncEngine(nodeZstd.createZstdDecompress());
    else this.#releaser = new Releaser();
  }

  decompress(payload: Buffer, pages: Buffer): void | Promise<Buffer | void> {
    const parts = this.#walker.walk(payload, pages.length);
    this.#filled = 0;
    this.#giveBack();
    if (this.#engine === undefined) {
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
    if (this.#engine !== undefined) return this.#byNode(this.#engine, payload, part, pages);
    this.#blocks ??= new BlockDecoder();
    try {
      if (part.begins) this.#blocks.begin(part.frame);
      return this.#blocks.decode(payload, part.blocks, part.end, part.ends, pages, this.#filled);
    } catch (error) {
      throw undecodable(pages, error);
    }
  }

  #byNode(engine: SyncEngine, payload: Buffer, part: FramePart, pages: Buffer): number {
    const input = payload.subarray(part.start, part.end);
    const flush = nodeZstd.constants.ZSTD_e_continue;
    let filled = this.#filled;
    for (let read = 0; read < input.length;) {
      if (!engine.run(flush, input, read, pages, filled, pages.length - filled)) {
        throw undecodable(pages, engine.failure);
      }
      const nowRead = input.length - engine.inputLeft;
      const nowFilled = pages.length - engine.outputLeft;
      if (nowRead === read && nowFilled === filled) throw undecodable(pages);
      read = nowRead;
      filled = nowFilled;
    }
    // Bytes beyond the last page may wait inside the decoder.
    if (filled === pages.length) {
      engine.run(flush, NOTHING, 0, this.#probe, 0, 1);
      if (engine.failure === undefined && engine.outputLeft === 0) throw undecodable(pages);
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
        decoded = await binding().decompress(payload.subarray(part.start, part.end));
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
    this.#engine?.close();
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
