/**
 * The block list: what follows the MEM_SIZE record of ram's START section, repeated until the used lengths add up to
 * the record's total. All integers big-endian.
 *
 *     u8 n, n bytes   id             "pc.ram"
 *     u64             used_length    > 0, a multiple of the page size
 *     u64             page_size      only with capability postcopy-ram, and only for a block on huge pages
 *     u64             address        only with capability x-ignore-shared
 *     28 bytes        mapped-ram     only with capability mapped-ram (a file); the next entry, or the next record,
 *                                    then lies at pages_offset + used_length
 *
 *     off  size  mapped-ram header
 *       0     4   version        1
 *       4     8   page_size      the target page size
 *      12     8   bitmap_offset  absolute, in the file
 *      20     8   pages_offset   absolute, in the file
 *
 * Capability postcopy-ram is not announced in the stream. A page_size shows itself all the same: it is a power of two,
 * not smaller than the target's and below 2^53, so its first byte is 0, which no id's length is, and as a record it
 * would have no flags, which no record is without. (With x-ignore-shared the next u64 is taken as the address.)
 * Behind an entry that is not the last one the next byte tells. Behind the last one the list may be all that there is for
 * now: a source of ours sends no more before it has its PONG. So a page_size there is left for the next record to show.
 */
import { setImmediate as yieldToLoop } from 'node:timers/promises';
import { MAX_PAGE_SIZE, MIN_PAGE_SIZE } from '../ram/block.js';
import { type Bounds, DEFAULT_BOUNDS, atMost } from './bounds.js';
import type { ByteReader } from './byte-reader.js';
import { quote, refusal } from './codes.js';
import { decodeName, encodeName, encodeU32 } from './configuration.js';

/** 16 TiB of pages of 4 KiB in all, as for one block: a page's index has 32 bits. */
export const MAX_RAM_PAGES = 2 ** 32;
/** Each takes some ten microseconds. */
const BLOCKS_A_TURN = 128;
export const MAPPED_RAM_HEADER_BYTES = 28;
export const MAPPED_RAM_VERSION = 1;

const OFF_PAGE_SIZE = 4;
const OFF_BITMAP_OFFSET = 12;
const OFF_PAGES_OFFSET = 20;

/** The header that a mapped-ram file has after a block's entry. */
export interface MappedRamHeader {
  version: number;
  pageSize: number;
  bitmapOffset: number;
  pagesOffset: number;
}

export interface StreamBlock {
  /** QEMU's idstr. */
  name: string;
  /** used_length, in bytes. */
  usedLength: number;
  /** The host page size, where the stream says it. */
  hostPageSize?: number;
  /** The guest address, with x-ignore-shared. */
  address?: bigint;
  /** In a mapped-ram file. */
  mapped?: MappedRamHeader;
}

/** What decoding must know. */
export interface BlockListOptions {
  pageSize: number;
  /** Where nothing has told the page size yet: called with that of a file's first mapped-ram header. */
  onPageSize?: ((pageSize: number) => void) | undefined;
  ignoreShared: boolean;
  mappedRam: boolean;
  /** Default: DEFAULT_BOUNDS. */
  bounds?: Pick<Bounds, 'maxRam' | 'maxBlocks'>;
  /**
   * Called with what is wrong in a mapped-ram header but does not keep the rest of the stream from being read;
   * throws, or goes on.
   */
  onProblem: (problem: Error) => void;
  /** Called with each entry once it has been read, and with its position. */
  onBlock?: ((block: StreamBlock, at: number) => void) | undefined;
}

function isPageSize(pageSize: number): boolean {
  return pageSize >= MIN_PAGE_SIZE && pageSize <= MAX_PAGE_SIZE && Number.isInteger(Math.log2(pageSize));
}

/** @throws MultifdError STREAM_ERRORS.pageSize */
export function requirePageSize(pageSize: number): void {
  if (isPageSize(pageSize)) return;
  throw refusal('pageSize', 'page size', pageSize, `a power of two, ${MIN_PAGE_SIZE} to ${MAX_PAGE_SIZE}`);
}

/**
 * The entries, from behind the MEM_SIZE record on, without the last one's page_size; not a byte behind it is waited for.
 * In a file the reader is then behind the last block's pages.
 *
 * @param total the sum of all used lengths
 * @throws MultifdError STREAM_ERRORS.format, .limit, .eof
 */
export async function decodeBlockList(
  reader: ByteReader,
  total: number,
  options: BlockListOptions,
): Promise<StreamBlock[]> {
  let { pageSize } = options;
  const { maxRam, maxBlocks } = options.bounds ?? DEFAULT_BOUNDS;
  const blocks: StreamBlock[] = [];
  const names = new Set<string>();
  if (total === 0 || total % pageSize !== 0 || total / pageSize > MAX_RAM_PAGES) {
    const expected = `a multiple of ${pageSize}, 1 to ${MAX_RAM_PAGES} pages`;
    throw refusal('limit', `${reader.name} at byte ${reader.position}: RAM in all`, total, expected);
  }
  if (total > maxRam) {
    const where = `${reader.name} at byte ${reader.position}`;
    throw refusal('limit', `${where}: bytes of RAM in all`, total, atMost('maxRam', maxRam));
  }
  let left = total;
  while (left > 0) {
    const at = reader.position;
    const where = `${reader.name} at byte ${at}`;
    if (blocks.length === maxBlocks) {
      throw refusal(
        'limit',
        `${where}: RAM blocks`,
        `more than ${maxBlocks}`,
        atMost('maxBlocks', maxBlocks),
      );
    }
    const name = await decodeName(reader, 'name of a RAM block');
    const what = `${where}: RAM block ${quote(name)}`;
    if (names.has(name)) throw refusal('format', what, 'a second one of this name', 'each name once');
    names.add(name);
    const usedLength = await reader.u64('used_length');
    if (usedLength === 0 || usedLength % pageSize !== 0 || usedLength > left) {
      const expected = `a multiple of ${pageSize}, 1 to ${left}`;
      throw refusal('format', `${what}: used_length`, usedLength, expected);
    }
    left -= usedLength;
    const block: StreamBlock = { name, usedLength };
    if (options.ignoreShared) {
      block.address = (await reader.exactly(8, 'address')).readBigUInt64BE(0);
    } else if (!options.mappedRam && left > 0 && (await reader.peek(1))[0] === 0) {
      block.hostPageSize = checkHostPageSize(await reader.u64('page_size'), what, pageSize);
    }
    if (options.mappedRam) {
      if (blocks.length === 0 && options.onPageSize !== undefined) {
        pageSize = await peekPageSize(reader, usedLength, total, pageSize);
        options.onPageSize(pageSize);
      }
      block.mapped = await decodeMapped(reader, what, usedLength, { ...options, pageSize });
    }
    blocks.push(block);
    options.onBlock?.(block, at);
    // Thousands of them come in one read.
    if (blocks.length % BLOCKS_A_TURN === 0) await yieldToLoop();
  }
  return blocks;
}

/** An entry as it is written; without the jump that follows it in a file. */
export function encodeBlock(block: StreamBlock): Buffer {
  const { hostPageSize, address, mapped } = block;
  const pieces = [encodeName(block.name), encodeU64(block.usedLength)];
  if (hostPageSize !== undefined) pieces.push(encodeU64(hostPageSize));
  if (address !== undefined) pieces.push(encodeU64(address));
  if (mapped !== undefined) pieces.push(encodeMappedRamHeader(mapped));
  return Buffer.concat(pieces);
}

export function encodeMappedRamHeader(header: MappedRamHeader): Buffer {
  return Buffer.concat([
    encodeU32(header.version),
    encodeU64(header.pageSize),
    encodeU64(header.bitmapOffset),
    encodeU64(header.pagesOffset),
  ]);
}

export function encodeU64(value: number | bigint): Buffer {
  const bytes = Buffer.allocUnsafe(8);
  bytes.writeBigUInt64BE(BigInt(value), 0);
  return bytes;
}

/**
 * @param what the block, for messages
 * @throws MultifdError STREAM_ERRORS.format
 */
export function checkHostPageSize(size: number, what: string, pageSize: number): number {
  if (size < pageSize || !Number.isSafeInteger(size) || !Number.isInteger(Math.log2(size))) {
    throw refusal('format', `${what}: page_size`, size, `a power of two, at least ${pageSize}`);
  }
  return size;
}

/** What the header that comes next says; `assumed` where that cannot be. */
async function peekPageSize(
  reader: ByteReader,
  usedLength: number,
  total: number,
  assumed: number,
): Promise<number> {
  const bytes = await reader.peek(MAPPED_RAM_HEADER_BYTES);
  if (bytes.length < MAPPED_RAM_HEADER_BYTES) return assumed;
  const pageSize = Number(bytes.readBigUInt64BE(OFF_PAGE_SIZE));
  return isPageSize(pageSize) && usedLength % pageSize === 0 && total % pageSize === 0 ? pageSize : assumed;
}

async function decodeMapped(
  reader: ByteReader,
  what: string,
  usedLength: number,
  options: BlockListOptions,
): Promise<MappedRamHeader> {
  const bytes = await reader.exactly(MAPPED_RAM_HEADER_BYTES, 'a mapped-ram header');
  const field = (name: string, at: number): number => {
    const value = Number(bytes.readBigUInt64BE(at));
    // Both ends of what an offset spans must be numbers that are exact.
    if (Number.isSafeInteger(value + usedLength)) return value;
    throw refusal('limit', `${what}: ${name}`, bytes.toString('hex', at, at + 8), 'less than 2^53');
  };
  const header: MappedRamHeader = {
    version: bytes.readUInt32BE(0),
    pageSize: field('page_size', OFF_PAGE_SIZE),
    bitmapOffset: field('bitmap_offset', OFF_BITMAP_OFFSET),
    pagesOffset: field('pages_offset', OFF_PAGES_OFFSET),
  };
  const { pageSize } = options;
  if (header.version > MAPPED_RAM_VERSION) {
    options.onProblem(
      refusal('unsupported', `${what}: mapped-ram version`, header.version, `at most ${MAPPED_RAM_VERSION}`),
    );
  }
  if (header.pageSize !== pageSize) {
    options.onProblem(refusal('pageSize', `${what}: mapped-ram page_size`, header.pageSize, pageSize));
  }
  if (header.pagesOffset % pageSize !== 0) {
    const expected = `a multiple of ${pageSize}`;
    options.onProblem(refusal('file', `${what}: pages_offset`, header.pagesOffset, expected));
  }
  if (header.pagesOffset < reader.position) {
    throw refusal('file', `${what}: pages_offset`, header.pagesOffset, `at least ${reader.position}`);
  }
  reader.seek(header.pagesOffset + usedLength);
  return header;
}
