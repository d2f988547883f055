/**
 * An independent decoder of one multifd channel's bytes, the judge of what the send channels write. Written from the
 * specification alone: nothing of src/ is imported, so that no mistake can be made twice.
 *
 * Stricter than QEMU's receivers where those read on in silence: it also refuses what a correct sender never writes
 * (a wrong next_packet_size without compression, bytes left over after the last page of a payload).
 *
 *     hello, then packets until the end
 *       12 bytes magic, version, flags  ->  0x40 set: device state (276 bytes, then next_packet_size bytes)
 *                                           else: RAM (320 + 8*N bytes, then a payload if normal_pages > 0)
 */
import { readFileSync } from 'node:fs';
import { setImmediate as nextTurn } from 'node:timers/promises';
import { type Inflate, createInflate, gunzipSync } from 'node:zlib';
import { Decompress } from 'fzstd';

export type RefCompression = 'none' | 'zlib' | 'zstd';

export interface RefRAMPacket {
  kind: 'ram';
  flags: number;
  pagesAlloc: number;
  normalPages: number;
  zeroPages: number;
  /** As sent; means nothing when normalPages is 0. */
  nextPacketSize: number;
  packetNum: bigint;
  /** As sent; stale in pageless packets of QEMU 7.2. */
  ramblock: string;
  /** The listed ones: normal pages in payload order, then zero pages. */
  offsets: bigint[];
  /** The whole header. */
  header: Buffer;
  /** The normal pages, decoded. */
  pages: Buffer[];
}

export interface RefDeviceStatePacket {
  kind: 'device-state';
  idstr: string;
  instanceId: number;
  data: Buffer;
  header: Buffer;
}

export type RefPacket = RefRAMPacket | RefDeviceStatePacket;

export interface RefChannel {
  hello: { uuid: Buffer; id: number };
  packets: RefPacket[];
}

const MAGIC = 0x11223344;
const METHOD_BITS: Record<RefCompression, number> = { none: 0x00, zlib: 0x02, zstd: 0x04 };

/** @throws Error at the first byte that a channel must not have; the message says in which packet */
export async function decodeChannel(
  bytes: Uint8Array,
  { pageSize, compression }: { pageSize: number; compression: RefCompression },
): Promise<RefChannel> {
  const input = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  let at = 0;
  const take = (length: number, what: string): Buffer => {
    if (at + length > input.length) {
      throw new Error(`${what}: ${length} bytes are due, ${input.length - at} are left`);
    }
    at += length;
    // A copy: the caller may reuse its buffer.
    return Buffer.from(input.subarray(at - length, at));
  };

  const helloBytes = take(64, 'hello');
  checkStart(helloBytes, 'hello');
  const hello = { uuid: helloBytes.subarray(8, 24), id: helloBytes[24] };

  const payloads = openPayloads(compression, pageSize);
  const packets: RefPacket[] = [];
  try {
    while (at < input.length) {
      const what = `packet ${packets.length} at byte ${at}`;
      const start = take(12, what);
      checkStart(start, what);
      const flags = start.readUInt32BE(8);
      if ((flags & 0x40) !== 0) {
        packets.push(decodeDeviceState(start, flags, take, what));
        continue;
      }
      const pageLimit = 524288 / pageSize;
      const header = Buffer.concat([start, take(308 + 8 * pageLimit, what)]);
      const packet = decodeRAMHeader(header, flags, pageLimit, what);
      if (packet.normalPages + packet.zeroPages > 0) checkPages(packet, compression, pageSize, what);
      if (packet.normalPages > 0) {
        const payload = take(packet.nextPacketSize, `${what}, payload`);
        const decoded = await payloads
          .decode(payload, packet.normalPages * pageSize)
          .catch((cause: Error) => {
            throw new Error(`${what}, payload: ${cause.message}`, { cause });
          });
        for (let i = 0; i < packet.normalPages; i++) {
          packet.pages.push(decoded.subarray(i * pageSize, (i + 1) * pageSize));
        }
      }
      packets.push(packet);
    }
  } finally {
    payloads.close();
  }
  return { hello, packets };
}

function checkStart(bytes: Buffer, what: string): void {
  const magic = bytes.readUInt32BE(0);
  if (magic !== MAGIC) throw new Error(`${what}: magic is 0x${magic.toString(16)}`);
  const version = bytes.readUInt32BE(4);
  if (version !== 1) throw new Error(`${what}: version is ${version}`);
}

function decodeRAMHeader(header: Buffer, flags: number, pageLimit: number, what: string): RefRAMPacket {
  const name = header.subarray(64, 320);
  const nul = name.indexOf(0);
  const packet: RefRAMPacket = {
    kind: 'ram',
    flags,
    pagesAlloc: header.readUInt32BE(12),
    normalPages: header.readUInt32BE(16),
    nextPacketSize: header.readUInt32BE(20),
    packetNum: header.readBigUInt64BE(24),
    zeroPages: header.readUInt32BE(32),
    ramblock: name.toString('latin1', 0, nul < 0 ? 255 : nul),
    offsets: [],
    header,
    pages: [],
  };
  const listed = packet.normalPages + packet.zeroPages;
  if (packet.pagesAlloc > pageLimit) throw new Error(`${what}: pages_alloc is ${packet.pagesAlloc}`);
  if (listed > packet.pagesAlloc)
    throw new Error(`${what}: ${listed} pages, pages_alloc is ${packet.pagesAlloc}`);
  for (let i = 0; i < listed; i++) packet.offsets.push(header.readBigUInt64BE(320 + 8 * i));
  return packet;
}

/** What only a packet with pages must keep to. */
function checkPages(packet: RefRAMPacket, compression: RefCompression, pageSize: number, what: string): void {
  const method = packet.flags & 0x3e;
  if (method !== METHOD_BITS[compression]) throw new Error(`${what}: method bits 0x${method.toString(16)}`);
  for (const offset of packet.offsets) {
    if (offset % BigInt(pageSize) !== 0n) throw new Error(`${what}: offset ${offset} is not page-aligned`);
  }
  if (packet.normalPages === 0) return;
  const size = packet.nextPacketSize;
  const right = compression === 'none' ? size === packet.normalPages * pageSize : size > 0 && size <= 1048576;
  if (!right) throw new Error(`${what}: next_packet_size is ${size} for ${packet.normalPages} normal pages`);
}

function decodeDeviceState(
  start: Buffer,
  flags: number,
  take: (length: number, what: string) => Buffer,
  what: string,
): RefDeviceStatePacket {
  if ((flags & 0x01) !== 0) throw new Error(`${what}: device state with SYNC`);
  const header = Buffer.concat([start, take(264, what)]);
  const nul = header.subarray(12, 268).indexOf(0);
  if (nul < 0) throw new Error(`${what}: idstr is not terminated`);
  const size = header.readUInt32BE(272);
  if (size === 0) throw new Error(`${what}: device state without payload`);
  return {
    kind: 'device-state',
    idstr: header.toString('latin1', 12, 12 + nul),
    instanceId: header.readUInt32BE(268),
    data: take(size, `${what}, payload`),
    header,
  };
}

/** One channel's payloads, in order; the decoder's history lives from packet to packet. */
interface Payloads {
  /** Rejects unless exactly `length` bytes come out of exactly these bytes. */
  decode(payload: Buffer, length: number): Promise<Buffer>;
  close(): void;
}

function openPayloads(compression: RefCompression, pageSize: number): Payloads {
  if (compression === 'zlib') return new ZlibPayloads();
  if (compression === 'zstd') return new ZstdPayloads(pageSize);
  return { decode: (payload) => Promise.resolve(payload), close: () => undefined };
}

function checkLength(decoded: Buffer, length: number): Buffer {
  if (decoded.length !== length)
    throw new Error(`decodes to ${decoded.length} bytes, the pages are ${length}`);
  return decoded;
}

/**
 * An empty stored block: 3 bits that say "stored, not final", padding, LEN 0, ~LEN. Decodes to nothing. The padding is
 * all ones, as zeros could pass for the missing end of the block before.
 */
const EMPTY_STORED_BLOCK = Buffer.from('f80000ffff', 'hex');

class ZlibPayloads implements Payloads {
  readonly #inflate: Inflate = createInflate();
  readonly #broken: Promise<never>;
  #out: Buffer[] = [];

  constructor() {
    this.#inflate.on('data', (chunk: Buffer) => this.#out.push(chunk));
    this.#broken = new Promise((_resolve, reject) => {
      this.#inflate.once('error', reject);
      this.#inflate.once('end', () => reject(new Error('the zlib stream ends')));
    });
    this.#broken.catch(() => undefined);
  }

  async decode(payload: Buffer, length: number): Promise<Buffer> {
    await this.#push(payload);
    const decoded = checkLength(Buffer.concat(this.#out), length);
    // Between two packets an empty block must be welcome: so the payload ended at a byte border with nothing
    // pending, and its last block was not the final one. (zlib itself tells of an end only when more input comes.)
    await this.#push(EMPTY_STORED_BLOCK);
    checkLength(Buffer.concat(this.#out), length);
    this.#out = [];
    return decoded;
  }

  async #push(bytes: Buffer): Promise<void> {
    const written = new Promise<void>((resolve) => this.#inflate.write(bytes, () => resolve()));
    await Promise.race([written, this.#broken]);
    // 'data' and 'end' may come a tick after the write's callback.
    await nextTurn();
    await Promise.race([this.#broken, Promise.resolve()]);
  }

  close(): void {
    this.#inflate.destroy();
  }
}

/** Frames are walked here block by block, to know where they end; fzstd decodes them. */
class ZstdPayloads implements Payloads {
  readonly #pageSize: number;
  /** The frame that is open, which may have begun in an earlier packet. */
  #frame: { decompress: Decompress; checksum: boolean; fresh: boolean } | undefined;
  #out: Buffer[] = [];

  constructor(pageSize: number) {
    this.#pageSize = pageSize;
  }

  async decode(payload: Buffer, length: number): Promise<Buffer> {
    this.#out = [];
    let at = 0;
    while (at < payload.length) at = this.#decodeFrame(payload, at);
    return checkLength(Buffer.concat(this.#out), length);
  }

  /** Decodes up to the frame's or the payload's end, and returns where that is. */
  #decodeFrame(payload: Buffer, from: number): number {
    let at = from;
    if (this.#frame === undefined) {
      const { headerBytes, checksum } = readFrameHeader(payload, from);
      at += headerBytes;
      const decompress = new Decompress((chunk) => this.#out.push(Buffer.from(chunk)));
      this.#frame = { decompress, checksum, fresh: true };
    }
    const { decompress, checksum, fresh } = this.#frame;
    let last = false;
    while (!last && at < payload.length) {
      if (at + 3 > payload.length) throw new Error('ends inside a zstd block header');
      const blockHeader = payload.readUIntLE(at, 3);
      const type = (blockHeader >>> 1) & 3;
      if (type === 3) throw new Error('zstd block of the reserved type');
      last = (blockHeader & 1) !== 0;
      at += 3 + (type === 1 ? 1 : blockHeader >>> 3);
      if (last && checksum) at += 4;
      if (at > payload.length) throw new Error('ends inside a zstd block');
    }
    let part = payload.subarray(from, at);
    // fzstd keeps the first 17 bytes of a frame to itself until more come. Empty raw blocks decode to nothing.
    while (fresh && !last && part.length < 18) part = Buffer.concat([part, Buffer.alloc(3)]);
    decompress.push(Buffer.from(part), last);
    this.#frame.fresh = false;
    if (last) {
      this.#frame = undefined;
      const soFar = this.#out.reduce((sum, chunk) => sum + chunk.length, 0);
      if (soFar % this.#pageSize !== 0)
        throw new Error(`a zstd frame ends inside a page, after ${soFar} bytes`);
    }
    return at;
  }

  close(): void {
    this.#frame = undefined;
  }
}

function readFrameHeader(bytes: Buffer, at: number): { headerBytes: number; checksum: boolean } {
  if (at + 6 > bytes.length) throw new Error('ends inside a zstd frame header');
  const magic = bytes.readUInt32LE(at);
  // Skippable frames are refused too: QEMU takes their end for the end of a page.
  if (magic !== 0xfd2fb528) throw new Error(`zstd magic is 0x${magic.toString(16)}`);
  const descriptor = bytes[at + 4];
  if ((descriptor & 0x08) !== 0) throw new Error('zstd frame header with the reserved bit');
  const singleSegment = (descriptor & 0x20) !== 0;
  if (!singleSegment) {
    const exponent = bytes[at + 5] >>> 3;
    const windowBytes = 2 ** (10 + exponent) * (1 + (bytes[at + 5] & 7) / 8);
    if (windowBytes > 2 ** 27) throw new Error(`zstd window of ${windowBytes} bytes`);
  }
  const dictionaryIdBytes = [0, 1, 2, 4][descriptor & 3];
  const contentSizeBytes = [singleSegment ? 1 : 0, 2, 4, 8][descriptor >>> 6];
  const headerBytes = 5 + (singleSegment ? 0 : 1) + dictionaryIdBytes + contentSizeBytes;
  return { headerBytes, checksum: (descriptor & 0x04) !== 0 };
}

/**
 * Puts a channel's packets into memory: normal pages are copied, zero pages cleared.
 *
 * @param memory the blocks' bytes by name
 */
export function applyPackets(
  packets: readonly RefPacket[],
  memory: Map<string, Buffer>,
  pageSize: number,
): void {
  for (const packet of packets) {
    if (packet.kind !== 'ram' || packet.offsets.length === 0) continue;
    const block = memory.get(packet.ramblock);
    if (block === undefined) throw new Error(`no RAM block ${JSON.stringify(packet.ramblock)}`);
    for (const [i, offset] of packet.offsets.entries()) {
      if (offset + BigInt(pageSize) > BigInt(block.length)) {
        throw new Error(`offset ${offset} is outside of ${packet.ramblock}`);
      }
      const start = Number(offset);
      if (i < packet.normalPages) block.set(packet.pages[i], start);
      else block.fill(0, start, start + pageSize);
    }
  }
}

/** The raw bytes of test/captures/NAME.bin.gz. */
export function readCapture(name: string): Buffer {
  // From the built file, dist/test/support.
  return gunzipSync(readFileSync(new URL(`../../../test/captures/${name}.bin.gz`, import.meta.url)));
}
