/**
 * Method zstd. A real QEMU keeps one frame open for the whole life of a channel and flushes it at the end of each
 * packet; its receiver also takes frames that end, at a page's end. Source: QEMU's multifd-zstd, specification 3.3.
 *
 * Sending: one complete frame a packet, and a second one for pages that travel as they are, so that a receiver without a
 * fast streaming decoder is fast. Made by Node's own zstd where the running Node has it, else by @mongodb-js/zstd.
 *
 * Receiving: both forms. Node's own decoder takes either. Without it, packets of one whole frame go to
 * @mongodb-js/zstd (one call; its output is bounded by the frame's blocks beforehand), all others to fzstd, which
 * streams, at a quarter of the speed.
 */
import type { Decompress } from 'fzstd';
import { createRequire } from 'node:module';
import v8 from 'node:v8';
import vm from 'node:vm';
import zlib from 'node:zlib';
import { MultifdError, receivedExpected } from '../errors.js';
import { MAX_PAYLOAD_BYTES, MULTIFD_PACKET_BYTES } from '../wire/packet.js';
import { SyncEngine, canDrive } from './engine.js';
import { copyPages } from '../ram/copy.js';
import type { ReceiveMethod, SendMethod } from './methods.js';
import { FrameWalker, copyRawFrame, rawFrame, type FramePart } from './zstd-frame.js';

/** zlib.createZstdCompress and its constants: Node 22.15 and 23.8 on; not in every version of the types. */
interface NodeZstd {
  createZstdCompress(options: { params: Record<number, number> }): object;
  createZstdDecompress(): object;
  constants: { ZSTD_c_compressionLevel: number; ZSTD_e_continue: number; ZSTD_e_end: number };
}
const nodeZstd = zlib as unknown as NodeZstd;
export const hasNodeZstd: boolean = canDrive && typeof nodeZstd.createZstdCompress === 'function';

/** Loaded when it is needed: every channel's thread pays for what is imported. */
function newDecompress(take: (chunk: Uint8Array) => void): Decompress {
  const fzstd = createRequire(import.meta.url)('fzstd') as typeof import('fzstd');
  return new fzstd.Decompress(take);
}

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

/**
 * fzstd holds a frame back until it has 18 bytes of it, and a first packet of one page may have fewer. Four raw
 * blocks of no bytes after the header make them up.
 */
const EMPTY_BLOCKS = Buffer.alloc(12);
const NOTHING = Buffer.alloc(0);
const OUTPUT_BYTES = MULTIFD_PACKET_BYTES + 65536;

/** @param level 1 to 20 */
export function createZstdSender(level: number, native = hasNodeZstd): SendMethod {
  return native ? new NodeZstdSender(level) : new BindingSender(level);
}

export function createZstdReceiver(pageSize: number, native = hasNodeZstd): ReceiveMethod {
  return native ? new NodeZstdReceiver(pageSize) : new BindingReceiver(pageSize);
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

class NodeZstdReceiver implements ReceiveMethod {
  readonly #engine = new SyncEngine(nodeZstd.createZstdDecompress());
  readonly #probe = Buffer.alloc(1);
  readonly #pageSize: number;

  constructor(pageSize: number) {
    this.#pageSize = pageSize;
  }

  decompress(payload: Buffer, pages: Buffer): void {
    const engine = this.#engine;
    let read = 0;
    let filled = 0;
    while (read < payload.length) {
      const flush = nodeZstd.constants.ZSTD_e_continue;
      if (!engine.run(flush, payload, read, pages, filled, pages.length - filled)) {
        throw refuse(engine.failure ?? 'failed');
      }
      const nowRead = payload.length - engine.inputLeft;
      const nowFilled = pages.length - engine.outputLeft;
      // The decoder stops where a frame ends; QEMU takes that only at a page's end, and not before any output.
      if (engine.inputLeft > 0 && engine.outputLeft > 0)
        checkFrameEnd(nowFilled - filled, nowFilled, this.#pageSize);
      if (nowRead === read) throw wrongSize(`more than ${pages.length}`, pages.length);
      read = nowRead;
      filled = nowFilled;
    }
    if (filled !== pages.length) throw wrongSize(filled, pages.length);
    // Bytes beyond the last page may wait inside the decoder.
    engine.run(nodeZstd.constants.ZSTD_e_continue, NOTHING, 0, this.#probe, 0, 1);
    if (engine.failure === undefined && engine.outputLeft === 0)
      throw wrongSize(`more than ${filled}`, filled);
  }

  close(): void {
    this.#engine.close();
  }
}

class BindingSender implements SendMethod {
  readonly #level: number;
  readonly #collector = new Collector(6);

  constructor(level: number) {
    this.#level = level;
  }

  compress(pages: Buffer): Buffer | Promise<Buffer> {
    return pages.length === 0 ? NOTHING : this.#compress(pages);
  }

  readonly raw = rawFrame;

  async #compress(pages: Buffer): Promise<Buffer> {
    let payload: Buffer;
    try {
      payload = await binding().compress(pages, this.#level);
    } catch (error) {
      throw MultifdError.wrap(error, 'ERR_MULTIFD_COMPRESS', 'zstd');
    }
    if (payload.length > MAX_PAYLOAD_BYTES) {
      throw new MultifdError('ERR_MULTIFD_COMPRESS', `zstd: ${payload.length} bytes of payload`);
    }
    this.#collector.count();
    return payload;
  }

  close(): void {}
}

class BindingReceiver implements ReceiveMethod {
  readonly #pageSize: number;
  readonly #walker = new FrameWalker();
  readonly #collector = new Collector(6);
  #stream: Decompress | undefined;
  #pages: Buffer = Buffer.alloc(0);
  #filled = 0;

  constructor(pageSize: number) {
    this.#pageSize = pageSize;
  }

  async decompress(payload: Buffer, pages: Buffer): Promise<Buffer | void> {
    const parts = this.#walker.walk(payload);
    if (!parts.every((part) => part.begins && part.ends && isBounded(part, pages))) {
      this.#streamed(payload, parts, pages);
      return;
    }
    // Frames that end: each in one go. One alone, as most packets have it, needs no copy.
    if (parts.length === 1 && !parts[0].raw) return this.#frame(payload, parts[0], pages.length);
    let filled = 0;
    for (const part of parts) {
      const room = pages.length - filled;
      const before = filled;
      if (part.raw) {
        if (part.contentSize !== undefined && part.contentSize !== part.maxSize)
          throw wrongSize(part.maxSize, part.contentSize);
        if (part.maxSize > room) throw wrongSize(`more than ${pages.length}`, pages.length);
        filled += copyRawFrame(payload, part, pages, filled);
      } else {
        const decoded = await this.#frame(payload, part, undefined);
        if (decoded.length > room) throw wrongSize(`more than ${pages.length}`, pages.length);
        copyPages(decoded, 0, pages, filled, decoded.length);
        filled += decoded.length;
      }
      checkFrameEnd(filled - before, filled, this.#pageSize);
    }
    if (filled !== pages.length) throw wrongSize(filled, pages.length);
  }

  /** @param bytes that it must decode to */
  async #frame(payload: Buffer, part: FramePart, bytes: number | undefined): Promise<Buffer> {
    const { contentSize } = part;
    if (bytes !== undefined && contentSize !== undefined && contentSize !== bytes)
      throw wrongSize(contentSize, bytes);
    let decoded: Buffer;
    try {
      decoded = await binding().decompress(payload.subarray(part.start, part.end));
    } catch (error) {
      throw MultifdError.wrap(error, 'ERR_MULTIFD_DECOMPRESS', 'zstd payload');
    }
    if (bytes !== undefined && decoded.length !== bytes) throw wrongSize(decoded.length, bytes);
    this.#collector.count();
    return decoded;
  }

  #streamed(payload: Buffer, parts: FramePart[], pages: Buffer): void {
    this.#pages = pages;
    this.#filled = 0;
    for (const part of parts) {
      const before = this.#filled;
      if (part.begins) this.#stream = newDecompress((chunk) => this.#take(chunk));
      try {
        // Copies: fzstd keeps views of what it was given.
        const blocks = payload.subarray(part.blocks, part.end);
        const input = part.begins
          ? Buffer.concat([payload.subarray(part.start, part.blocks), EMPTY_BLOCKS, blocks])
          : Uint8Array.from(blocks);
        this.#stream?.push(input, part.ends);
        forgetInput(this.#stream);
      } catch (error) {
        throw MultifdError.wrap(error, 'ERR_MULTIFD_DECOMPRESS', 'zstd payload');
      }
      if (part.ends) {
        this.#stream = undefined;
        checkFrameEnd(this.#filled - before, this.#filled, this.#pageSize);
      }
    }
    if (this.#filled !== pages.length) throw wrongSize(this.#filled, pages.length);
    this.#collector.count(true);
  }

  #take(chunk: Uint8Array): void {
    if (this.#filled + chunk.length > this.#pages.length) {
      throw wrongSize(`more than ${this.#pages.length}`, this.#pages.length);
    }
    this.#pages.set(chunk, this.#filled);
    this.#filled += chunk.length;
  }

  close(): void {
    this.#stream = undefined;
  }
}

/**
 * fzstd 0.1.1 keeps a view, of no bytes, on every input that ends where a block does, as all of them do here, and with it
 * the input: it would hold all that a channel has ever received. `l` is how many bytes wait in `c`.
 */
function forgetInput(stream: Decompress | undefined): void {
  const { c: views, l: bytes } = stream as unknown as { c: unknown; l: unknown };
  if (bytes === 0 && Array.isArray(views)) views.length = 0;
}

/**
 * The binding returns a new buffer for each packet, fzstd one for each block, outside the JavaScript heap: the collector
 * does not see the pressure until it has let 60 to 90 MiB a channel pile up. A young collection every few packets keeps
 * the binding's at 10 MiB and costs less than the page faults that it saves. What fzstd keeps of the frame's
 * history outlives two of those and grows old, so a full one follows now and then; it takes 2 ms of each half second.
 * V8 gives the function only to contexts made after the flag is set, so nothing of the embedder changes.
 */
class Collector {
  readonly #every: number;
  #packets = 0;
  #streamed = 0;
  static #collect: ((options: { type: 'minor' | 'major' }) => void) | undefined;

  /** @param every packets between two young collections */
  constructor(every: number) {
    this.#every = every;
  }

  /** A packet is done. */
  count(streamed = false): void {
    if (streamed && ++this.#streamed % 64 === 0) Collector.#run('major');
    else if (++this.#packets % this.#every === 0) Collector.#run('minor');
  }

  static #run(type: 'minor' | 'major'): void {
    Collector.#collect ??= Collector.#find();
    Collector.#collect({ type });
  }

  static #find(): (options: { type: 'minor' | 'major' }) => void {
    v8.setFlagsFromString('--expose-gc');
    const gc: unknown = vm.runInNewContext('globalThis.gc');
    return typeof gc === 'function' ? (gc as () => void) : (): void => {};
  }
}

/** The binding does not bound its output itself, and the frames that it makes have no content size. */
function isBounded(part: FramePart, pages: Buffer): boolean {
  return part.maxSize <= pages.length + MULTIFD_PACKET_BYTES;
}

function checkFrameEnd(decoded: number, filled: number, pageSize: number): void {
  if (decoded === 0 || filled % pageSize !== 0) {
    throw refuse(
      receivedExpected('end of a frame at byte', filled, `a multiple of ${pageSize}, after some pages`),
    );
  }
}

function refuse(why: string): MultifdError {
  return new MultifdError('ERR_MULTIFD_DECOMPRESS', `zstd payload: ${why}`);
}

function wrongSize(received: number | string, expected: number): MultifdError {
  return new MultifdError(
    'ERR_MULTIFD_DECOMPRESS',
    receivedExpected('zstd payload, bytes decoded', received, expected),
  );
}
