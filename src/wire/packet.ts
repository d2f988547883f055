/**
 * The RAM packet header: fixed size, always sent in full. All integers big-endian.
 *
 *     off  size
 *       0     4   magic             0x11223344
 *       4     4   version           1
 *       8     4   flags             SYNC 0x01 | method 0x3e | DEVICE_STATE 0x40 (then device-state.ts applies)
 *      12     4   pages_alloc       capacity, at most N = 512 KiB / page size
 *      16     4   normal_pages      pages with data in the payload
 *      20     4   next_packet_size  payload bytes; only meaningful if normal_pages > 0
 *      24     8   packet_num        one counter over all channels
 *      32     4   zero_pages        QEMU >= 9.0; 0 before
 *      36    28   reserved, 0
 *      64   256   ramblock          NUL padded
 *     320   8*N   offset[N]         normal pages in payload order, then zero pages, then unused
 *
 * QEMU 7.2 leaves stale values of earlier packets in next_packet_size, ramblock and the unused offsets of packets
 * without pages: nothing of those is looked at here unless a page is listed.
 *
 * Filled by a send channel, unfilled by a receive channel, both in their worker threads, into and out of buffers
 * that live as long as the channel.
 */
import { MultifdError, hex32, receivedExpected, type ErrorCode } from '../errors.js';
import { quote } from '../printable.js';
import { SET_UP } from '../set-up.js';
import { MULTIFD_MAGIC, MULTIFD_VERSION } from './hello.js';

/** Of targets that QEMU has. */
export const MIN_PAGE_SIZE = 4096;
export const MAX_PAGE_SIZE = 65536;
/** MULTIFD_PACKET_SIZE of QEMU: the page bytes that one packet holds at most. */
export const MULTIFD_PACKET_BYTES = 524288;
/** A receiver's payload buffer in QEMU, so the largest payload a sender may announce. */
export const MAX_PAYLOAD_BYTES = 2 * MULTIFD_PACKET_BYTES;
/** magic, version, flags: what must be read before the packet's kind is known. */
export const PACKET_START_BYTES = 12;
export const RAMBLOCK_NAME_BYTES = 256;

export const MULTIFD_FLAG_SYNC = 0x01;
export const MULTIFD_FLAG_COMPRESSION_MASK = 0x3e;
export const MULTIFD_FLAG_NOCOMP = 0x00;
export const MULTIFD_FLAG_ZLIB = 0x02;
export const MULTIFD_FLAG_ZSTD = 0x04;
export const MULTIFD_FLAG_DEVICE_STATE = 0x40;

const OFF_VERSION = 4;
const OFF_FLAGS = 8;
const OFF_PAGES_ALLOC = 12;
const OFF_NORMAL_PAGES = 16;
const OFF_NEXT_PACKET_SIZE = 20;
const OFF_PACKET_NUM = 24;
const OFF_ZERO_PAGES = 32;
const OFF_RAMBLOCK = 64;
const OFF_OFFSETS = OFF_RAMBLOCK + RAMBLOCK_NAME_BYTES;
const RESERVED = new Uint8Array(OFF_RAMBLOCK - OFF_ZERO_PAGES - 4);

const TWO_32 = 0x1_0000_0000;

/** N: the page count limit of a packet. */
export function pagesPerPacket(pageSize: number): number {
  return MULTIFD_PACKET_BYTES / pageSize;
}

/** Header size: 1344 for 4 KiB pages, 384 for 64 KiB. */
export function packetHeaderBytes(pageSize: number): number {
  return OFF_OFFSETS + 8 * pagesPerPacket(pageSize);
}

/** What a send channel puts into a header. `pages` are page indexes: normal pages first, then zero pages. */
export interface PacketToSend {
  flags: number;
  normalPages: number;
  zeroPages: number;
  nextPacketSize: number;
  packetNum: number;
  /** The block's name in 256 NUL-padded bytes; undefined for a SYNC packet. */
  ramblock: Uint8Array | undefined;
  /** Or the first page of all, where they lie side by side. */
  pages: Uint32Array | number;
  /** Where no page is listed (default 0). */
  pagesAlloc?: number;
}

/** Writes the whole header, to `begin` and on; unused fields and offsets become 0, as QEMU 10.0 sends them. */
export function fillPacket(into: Buffer, pageSize: number, packet: PacketToSend, begin = 0): void {
  const { pages, ramblock } = packet;
  const listed = packet.normalPages + packet.zeroPages;
  const view = viewOf(into, begin);
  const limit = pagesPerPacket(pageSize);
  const end = begin + packetHeaderBytes(pageSize);
  view.setUint32(0, MULTIFD_MAGIC);
  view.setUint32(OFF_VERSION, MULTIFD_VERSION);
  view.setUint32(OFF_FLAGS, packet.flags);
  // QEMU >= 9.2 announces N in data packets and 0 in packets that only say SYNC, older ones N in all.
  view.setUint32(OFF_PAGES_ALLOC, listed > 0 ? limit : (packet.pagesAlloc ?? 0));
  view.setUint32(OFF_NORMAL_PAGES, packet.normalPages);
  view.setUint32(OFF_NEXT_PACKET_SIZE, packet.nextPacketSize);
  view.setUint32(OFF_PACKET_NUM, Math.floor(packet.packetNum / TWO_32));
  view.setUint32(OFF_PACKET_NUM + 4, packet.packetNum % TWO_32);
  view.setUint32(OFF_ZERO_PAGES, packet.zeroPages);
  into.set(RESERVED, begin + OFF_ZERO_PAGES + 4);
  if (ramblock === undefined) into.fill(0, begin + OFF_RAMBLOCK, begin + OFF_OFFSETS);
  else into.set(ramblock, begin + OFF_RAMBLOCK);
  if (typeof pages === 'number') fillOffsetRange(view, pages, listed, pageSize);
  else fillOffsets(view, pages, listed, pageSize);
  if (listed < limit) into.fill(0, begin + OFF_OFFSETS + 8 * listed, end);
}

/** The loops over the pages alone: the sooner they are compiled, the sooner a migration is at speed. */
function fillOffsets(view: DataView, pages: Uint32Array, listed: number, pageSize: number): void {
  // A page index times its size: bits that leave the low word are the high one.
  const shift = 31 - Math.clz32(pageSize);
  for (let i = 0, at = OFF_OFFSETS; i < listed; i++, at += 8) {
    const page = pages[i];
    view.setUint32(at, page >>> (32 - shift));
    view.setUint32(at + 4, page << shift);
  }
}

function fillOffsetRange(view: DataView, first: number, listed: number, pageSize: number): void {
  const shift = 31 - Math.clz32(pageSize);
  for (let i = 0, at = OFF_OFFSETS; i < listed; i++, at += 8) {
    view.setUint32(at, (first + i) >>> (32 - shift));
    view.setUint32(at + 4, (first + i) << shift);
  }
}

/** Of a header, or as much of one as is there. */
function viewOf(bytes: Buffer, begin: number): DataView {
  return new DataView(bytes.buffer, bytes.byteOffset + begin, bytes.length - begin);
}

/** What a receive channel knows before it reads, and a header is checked against. */
export interface PacketExpectation {
  pageSize: number;
  /** The method bits of the configured compression. */
  methodFlag: number;
  /** Index of a block, and its size in bytes, by its name; or undefined. */
  findBlock(name: string): KnownBlock | undefined;
  /** What findBlock() gave last, and for which bytes: most packets have the name of the packet before. */
  last?: { name: Buffer; block: KnownBlock };
}

export interface KnownBlock {
  index: number;
  size: number;
}

/** A decoded header; one object a channel, refilled for every packet. */
export class PacketHeader {
  flags = 0;
  pagesAlloc = 0;
  normalPages = 0;
  zeroPages = 0;
  nextPacketSize = 0;
  packetNum = 0;
  /** Index of the block that `findBlock` gave; -1 when no page is listed. */
  block = -1;
  /** Page indexes: normal pages in payload order, then zero pages. */
  readonly pages: Uint32Array;

  constructor(pageSize: number) {
    this.pages = new Uint32Array(pagesPerPacket(pageSize));
  }

  get sync(): boolean {
    return (this.flags & MULTIFD_FLAG_SYNC) !== 0;
  }
}

/**
 * Checks the first 12 bytes of a packet and returns its flags.
 *
 * @throws MultifdError ERR_MULTIFD_MAGIC, ERR_MULTIFD_VERSION
 */
export function unfillPacketStart(bytes: Buffer): number {
  return unfillStart(viewOf(bytes, 0));
}

function unfillStart(view: DataView): number {
  const magic = view.getUint32(0);
  if (magic !== MULTIFD_MAGIC) {
    throw new MultifdError(
      'ERR_MULTIFD_MAGIC',
      receivedExpected('packet magic', hex32(magic), hex32(MULTIFD_MAGIC)),
    );
  }
  const version = view.getUint32(OFF_VERSION);
  if (version !== MULTIFD_VERSION) {
    throw new MultifdError(
      'ERR_MULTIFD_VERSION',
      receivedExpected('packet version', version, MULTIFD_VERSION),
    );
  }
  return view.getUint32(OFF_FLAGS);
}

/**
 * Decodes the whole RAM header at `begin` into `into`, every number bounded before it is used, in QEMU's order: the first
 * failure wins.
 *
 * @throws MultifdError ERR_MULTIFD_MAGIC, _VERSION, _PAGES_ALLOC, _NORMAL_PAGES, _ZERO_PAGES, _RAMBLOCK, _OFFSET,
 *   _METHOD, _PACKET_SIZE; from _PAGES_ALLOC on with `packetNum`
 */
export function unfillPacket(
  bytes: Buffer,
  expected: PacketExpectation,
  into: PacketHeader,
  begin = 0,
): void {
  const { pageSize } = expected;
  const limit = pagesPerPacket(pageSize);
  const view = viewOf(bytes, begin);
  into.flags = unfillStart(view);
  into.packetNum = view.getUint32(OFF_PACKET_NUM) * TWO_32 + view.getUint32(OFF_PACKET_NUM + 4);
  into.pagesAlloc = 0;
  into.normalPages = 0;
  into.zeroPages = 0;
  into.nextPacketSize = 0;
  into.block = -1;

  const pagesAlloc = view.getUint32(OFF_PAGES_ALLOC);
  const normalPages = view.getUint32(OFF_NORMAL_PAGES);
  const zeroPages = view.getUint32(OFF_ZERO_PAGES);
  if (pagesAlloc > limit) refuseCount(into, 'ERR_MULTIFD_PAGES_ALLOC', 'pages_alloc', pagesAlloc, limit);
  if (normalPages > pagesAlloc)
    refuseCount(into, 'ERR_MULTIFD_NORMAL_PAGES', 'normal_pages', normalPages, pagesAlloc);
  if (zeroPages > pagesAlloc - normalPages)
    refuseCount(into, 'ERR_MULTIFD_ZERO_PAGES', 'zero_pages', zeroPages, pagesAlloc - normalPages);
  into.pagesAlloc = pagesAlloc;
  const listed = normalPages + zeroPages;
  if (listed === 0) return;

  const block = findBlock(bytes, begin, expected, into);
  const good = unfillOffsets(view, into.pages, listed, pageSize, block.size);
  if (good < listed) refuseOffset(view, good, blockName(bytes, begin), block.size, pageSize, into);
  const method = into.flags & MULTIFD_FLAG_COMPRESSION_MASK;
  if (method !== expected.methodFlag) {
    const received = receivedExpected('method bits', methodName(method), methodName(expected.methodFlag));
    refuse(into, 'ERR_MULTIFD_METHOD', `${received}: ${SET_UP.compression}`);
  }
  // Method none: receivers of QEMU read normal_pages * PAGE whatever the field says.
  let nextPacketSize = normalPages * pageSize;
  if (normalPages > 0 && method !== MULTIFD_FLAG_NOCOMP) {
    nextPacketSize = view.getUint32(OFF_NEXT_PACKET_SIZE);
    if (nextPacketSize === 0 || nextPacketSize > MAX_PAYLOAD_BYTES) {
      const allowed = `1 to ${MAX_PAYLOAD_BYTES}`;
      const received = receivedExpected('next_packet_size', nextPacketSize, allowed);
      refuse(into, 'ERR_MULTIFD_PACKET_SIZE', received);
    }
  }
  into.nextPacketSize = nextPacketSize;
  into.normalPages = normalPages;
  into.zeroPages = zeroPages;
  into.block = block.index;
}

function refuse(into: PacketHeader, code: ErrorCode, message: string): never {
  throw new MultifdError(code, message, { packetNum: into.packetNum });
}

function refuseCount(
  into: PacketHeader,
  code: ErrorCode,
  what: string,
  received: number,
  most: number,
): never {
  return refuse(into, code, receivedExpected(what, received, `at most ${most}`));
}

function findBlock(
  bytes: Buffer,
  begin: number,
  expected: PacketExpectation,
  into: PacketHeader,
): KnownBlock {
  const { last } = expected;
  const at = begin + OFF_RAMBLOCK;
  const end = at + RAMBLOCK_NAME_BYTES;
  if (last !== undefined && bytes.compare(last.name, 0, RAMBLOCK_NAME_BYTES, at, end) === 0)
    return last.block;
  const name = blockName(bytes, begin);
  const block = expected.findBlock(name);
  if (block === undefined) {
    const received = receivedExpected('ramblock', quote(name), 'a known RAM block');
    return refuse(into, 'ERR_MULTIFD_RAMBLOCK', `${received}: ${SET_UP.blocks}`);
  }
  expected.last = { name: Buffer.from(bytes.subarray(at, end)), block };
  return block;
}

function blockName(bytes: Buffer, begin: number): string {
  const at = begin + OFF_RAMBLOCK;
  // Byte 255 counts as NUL whatever was sent.
  const field = bytes.subarray(at, at + RAMBLOCK_NAME_BYTES - 1);
  const nul = field.indexOf(0);
  return field.toString('latin1', 0, nul < 0 ? field.length : nul);
}

/** @returns how many offsets, from the first on, are those of pages of the block */
function unfillOffsets(
  view: DataView,
  pages: Uint32Array,
  listed: number,
  pageSize: number,
  blockSize: number,
): number {
  const shift = 31 - Math.clz32(pageSize);
  const below = pageSize - 1;
  const highs = -1 << shift;
  const lastPage = blockSize / pageSize - 1;
  for (let i = 0, at = OFF_OFFSETS; i < listed; i++, at += 8) {
    const high = view.getUint32(at);
    const low = view.getUint32(at + 4);
    const page = ((high << (32 - shift)) | (low >>> shift)) >>> 0;
    // A page index has 32 bits (RAMBlock), so the high word has no more than `shift`.
    if ((low & below) !== 0 || (high & highs) !== 0 || page > lastPage) return i;
    pages[i] = page;
  }
  return listed;
}

function refuseOffset(
  view: DataView,
  i: number,
  name: string,
  blockSize: number,
  pageSize: number,
  into: PacketHeader,
): never {
  const at = OFF_OFFSETS + 8 * i;
  // Above 2^53 this rounds, and is still far above any block.
  const offset = view.getUint32(at) * TWO_32 + view.getUint32(at + 4);
  const isBeyond = offset > blockSize - pageSize;
  const allowed = isBeyond ? `at most ${blockSize - pageSize}` : `a multiple of ${pageSize}`;
  const received = receivedExpected(`offset ${i} in ${quote(name)}`, offset, allowed);
  const [what, where] = isBeyond
    ? ['the size of the block', SET_UP.blocks]
    : ['the page size', SET_UP.pageSize];
  return refuse(into, 'ERR_MULTIFD_OFFSET', `${received}; is ${what} the same at the source (${where})?`);
}

const METHOD_NAMES: Record<number, string> = {
  0x00: 'none',
  0x02: 'zlib',
  0x04: 'zstd',
  0x08: 'qpl',
  0x10: 'uadk',
  0x20: 'qatzip',
};

function methodName(bits: number): string {
  return `${METHOD_NAMES[bits] ?? 'unknown'} (0x${bits.toString(16).padStart(2, '0')})`;
}
