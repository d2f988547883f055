/**
 * The sections beside `ram` that may come before ram's END, read to their exact end. A section has no length, and a
 * footer cannot be searched for (`7e <id>` may be anybody's data), so whoever passes a section on must know its body;
 * what is not in this table is refused by name.
 *
 *     idstr                               from a source with           sections
 *     .../virtio-mem-device-early         a virtio-mem device          FULL, behind ram's START
 *     dirty-bitmap                        capability dirty-bitmaps     START, PART, END
 *     spapr/htab                          a pseries guest with HPT     START, PART, END
 *     s390-storage_attributes             an s390x guest               START, PART, END
 *
 * Nothing is made of the bytes: they are passed on as they are, and a body only finds its own end. Lengths have the
 * bounds that QEMU's own loader has, or its sender. All integers big-endian.
 *
 * Called by main-stream.ts on its thread.
 */
import type { MultifdError } from '../errors.js';
import type { ByteReader } from './byte-reader.js';
import { type StreamError, refusal } from './codes.js';
import type { OtherSectionType } from './records.js';

/** Reads one body. Yields whenever a piece has been read that can be passed on. */
export type ReadBody = (reader: ByteReader) => AsyncGenerator<void, void, undefined>;

export interface OtherSection {
  versionId: number;
  /** FULL, or START with PARTs and END. */
  iterates: boolean;
  readBody: ReadBody;
}

const PIECE_BYTES = 65536;
const EARLY_IDSTR = /(?:^|\/)virtio-mem-device-early$/;
const BY_IDSTR: ReadonlyMap<string, OtherSection> = new Map([
  ['dirty-bitmap', { versionId: 1, iterates: true, readBody: readDirtyBitmap }],
  ['spapr/htab', { versionId: 1, iterates: true, readBody: readHtab }],
  ['s390-storage_attributes', { versionId: 0, iterates: true, readBody: readStorageAttributes }],
]);
const VIRTIO_MEM_EARLY: OtherSection = { versionId: 1, iterates: false, readBody: readVirtioMemEarly };

/** What messages say may come. */
export const OTHER_SECTIONS = [...BY_IDSTR.keys(), 'virtio-mem-device-early'].join(', ');

/** Is this device's state sent before ram's END? The VM description lists it among those that come after. */
export function isEarlyDevice(idstr: string): boolean {
  return EARLY_IDSTR.test(idstr);
}

/** Undefined for a section whose end could not be found. */
export function otherSection(idstr: string, type: OtherSectionType): OtherSection | undefined {
  const section = isEarlyDevice(idstr) ? VIRTIO_MEM_EARLY : BY_IDSTR.get(idstr);
  return section?.iterates === (type !== 'full') ? section : undefined;
}

function refuse(
  reader: ByteReader,
  error: StreamError,
  what: string,
  received: unknown,
  expected: unknown,
): MultifdError {
  return refusal(error, `${reader.name} before byte ${reader.position}: ${what}`, received, expected);
}

async function* pass(reader: ByteReader, bytes: number, what: string): AsyncGenerator<void, void, undefined> {
  for (let left = bytes; left > 0; left -= PIECE_BYTES) {
    await reader.exactly(Math.min(left, PIECE_BYTES), what);
    yield;
  }
}

// ---- virtio-mem ----

const MIN_BLOCK_BYTES = 2 ** 20;
/** By choice: 2^28 blocks of the smallest size, a bitmap of 32 MiB. */
const MAX_REGION_BYTES = 2 ** 48;

/** u64 address, u64 region size, u64 block size, u32 node, u64 plugged size; a bit for each block, in words of 64. */
async function* readVirtioMemEarly(reader: ByteReader): AsyncGenerator<void, void, undefined> {
  const what = "virtio-mem's state";
  await reader.exactly(8, what);
  const regionBytes = await reader.u64(what);
  const blockBytes = await reader.u64(what);
  const isPower = Number.isInteger(Math.log2(blockBytes));
  if (!isPower || blockBytes < MIN_BLOCK_BYTES) {
    throw refuse(reader, 'format', 'block size of virtio-mem', blockBytes, 'a power of two from 1 MiB on');
  }
  if (regionBytes % blockBytes !== 0 || regionBytes > MAX_REGION_BYTES) {
    const expected = `a multiple of ${blockBytes}, at most 2^48`;
    throw refuse(reader, 'limit', 'region size of virtio-mem', regionBytes, expected);
  }
  await reader.exactly(12, what);
  yield;
  yield* pass(reader, 8 * Math.ceil(regionBytes / blockBytes / 64), "virtio-mem's bitmap");
}

// ---- dirty-bitmap ----

const BITMAP_EOS = 0x01;
const BITMAP_ZEROES = 0x02;
const BITMAP_NAME = 0x04;
const BITMAP_DEVICE_NAME = 0x08;
const BITMAP_START = 0x10;
const BITMAP_COMPLETE = 0x20;
const BITMAP_BITS = 0x40;
/** A second byte of flags follows; nobody sends one. */
const BITMAP_EXTRA_FLAGS = 0x80;
const BITMAP_KINDS = BITMAP_START | BITMAP_COMPLETE | BITMAP_BITS;
/** As QEMU's loader has it: ten times what is sent. */
const MAX_BITMAP_CHUNK_BYTES = 10 * 1024;

/**
 * Chunks: u8 flags, [u8 n, n bytes device], [u8 n, n bytes bitmap], then by kind
 *
 *     START 0x10      u32 granularity, u8 flags
 *     COMPLETE 0x20   nothing
 *     BITS 0x40       u64 sector, u32 sectors, and unless ZEROES 0x02: u64 n, n bytes
 *
 * up to the one with EOS 0x01, which QEMU sends alone.
 */
async function* readDirtyBitmap(reader: ByteReader): AsyncGenerator<void, void, undefined> {
  const what = 'a dirty bitmap';
  for (let flags = 0; (flags & BITMAP_EOS) === 0;) {
    flags = await reader.u8(what);
    const kind = flags & BITMAP_KINDS;
    // At most one of the three.
    if ((flags & BITMAP_EXTRA_FLAGS) !== 0 || (kind & (kind - 1)) !== 0) {
      const expected = 'START 0x10, COMPLETE 0x20 or BITS 0x40, or EOS 0x01';
      throw refuse(reader, 'format', 'flags of a dirty bitmap', `0x${flags.toString(16)}`, expected);
    }
    if ((flags & BITMAP_DEVICE_NAME) !== 0) await reader.exactly(await reader.u8(what), what);
    if ((flags & BITMAP_NAME) !== 0) await reader.exactly(await reader.u8(what), what);
    if (kind === BITMAP_START) await reader.exactly(5, what);
    if (kind === BITMAP_BITS) {
      await reader.exactly(12, what);
      const bytes = (flags & BITMAP_ZEROES) !== 0 ? 0 : await reader.u64(what);
      if (bytes > MAX_BITMAP_CHUNK_BYTES) {
        throw refuse(reader, 'limit', 'bytes of a dirty bitmap', bytes, `at most ${MAX_BITMAP_CHUNK_BYTES}`);
      }
      await reader.exactly(bytes, what);
    }
    yield;
  }
}

// ---- spapr/htab ----

const NO_HPT = 0xffffffff;
const HPTE_BYTES = 16;

/**
 * u32: the table's shift, or -1 without a table, and no more; or 0, and chunks: u32 index, u16 valid, u16 invalid,
 * 16 bytes for each that is valid. A chunk of three zeros is the last.
 */
async function* readHtab(reader: ByteReader): AsyncGenerator<void, void, undefined> {
  const what = 'the hash page table';
  const header = await reader.u32(what);
  yield;
  if (header !== 0) {
    if (header !== NO_HPT && header > 46) {
      throw refuse(reader, 'format', 'shift of the hash page table', header, '-1, or at most 46');
    }
    return;
  }
  for (;;) {
    const index = await reader.u32(what);
    const valid = await reader.u16(what);
    const invalid = await reader.u16(what);
    yield;
    if (index === 0 && valid === 0 && invalid === 0) return;
    yield* pass(reader, HPTE_BYTES * valid, what);
  }
}

// ---- s390-storage_attributes ----

const ATTRIBUTES_EOS = 0x01;
const ATTRIBUTES_MORE = 0x02;
const ATTRIBUTES_DONE = 0x08;
/** s390x has pages of 4 KiB. */
const ATTRIBUTES_FLAGS = 4096 - 1;
/** Twice what QEMU sends at once. */
const MAX_ATTRIBUTES_BYTES = 2 ** 20;

/** u64 address | flags: MORE 0x02, then u64 n, n bytes; DONE 0x08, nothing; EOS 0x01, the end. */
async function* readStorageAttributes(reader: ByteReader): AsyncGenerator<void, void, undefined> {
  const what = 'storage attributes';
  for (;;) {
    const flags = (await reader.exactly(8, what)).readUInt32BE(4) & ATTRIBUTES_FLAGS;
    yield;
    if (flags === ATTRIBUTES_EOS) return;
    if (flags === ATTRIBUTES_MORE) {
      const bytes = await reader.u64(what);
      if (bytes > MAX_ATTRIBUTES_BYTES) {
        throw refuse(
          reader,
          'limit',
          'bytes of storage attributes',
          bytes,
          `at most ${MAX_ATTRIBUTES_BYTES}`,
        );
      }
      yield;
      yield* pass(reader, bytes, what);
    } else if (flags !== ATTRIBUTES_DONE) {
      const expected = 'EOS 0x1, MORE 0x2 or DONE 0x8';
      throw refuse(reader, 'format', 'flags of storage attributes', `0x${flags.toString(16)}`, expected);
    }
  }
}
