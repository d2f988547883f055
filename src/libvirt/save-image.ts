/**
 * The head of what libvirt saves a domain in: `virsh save`, `managedsave`, the memory of an external snapshot. QEMU's stream
 * follows it. Integers in the byte order of the host that wrote it.
 *
 *      0  LibvirtQemudSave      LibvirtQemudPart until it is whole
 *     16  u32 version           1 or 2; swapped where it is above that
 *     20  u32 data_len          bytes of the data below
 *     24  u32 was_running
 *     28  u32 format            0 raw, 1 gzip, 2 bzip2, 3 xz, 4 lzop, 5 zstd: a plain stream, packed by that program
 *                               6 sparse (libvirt >= 11.2): a mapped-ram file, its offsets from the file's begin on
 *     32  u32 cookie            where in the data a second document begins; 0 for none
 *     36  56 bytes, unused
 *     92  data                  the domain's XML, NUL; the cookie, NUL; padding
 *         stream
 *
 * The file is not trusted: lengths are held against the file and a bound before anything is read by them.
 */
import { MultifdError } from '../errors.js';
import { wrong } from '../option-checks.js';
import { STREAM_ERRORS, refusal } from '../stream/codes.js';
import { type ReadableFile, readAt, sizeOf } from '../stream/positioned-file.js';
import { describeDomain } from './domain-xml.js';

export const SAVE_HEADER_BYTES = 92;
const MAGIC = 'LibvirtQemudSave';
const MAGIC_PARTIAL = 'LibvirtQemudPart';
const MAX_VERSION = 2;
/**
 * What libvirt's clients and its daemon hand each other is at most 4 MiB of text, so no domain has a longer XML; that of one
 * with hundreds of devices has a few hundred KiB. By choice as much again for cookie and padding.
 */
export const MAX_DATA_BYTES = 2 ** 23;

/** By their numbers. */
export const SAVE_FORMATS = ['raw', 'gzip', 'bzip2', 'xz', 'lzop', 'zstd', 'sparse'] as const;
export type SaveFormat = (typeof SAVE_FORMATS)[number];

export interface SaveImage {
  /** How the stream is packed. */
  format: SaveFormat;
  /** Was the domain running when it was saved? */
  wasRunning: boolean;
  /** The domain's name and uuid, as its XML says them; null where it does not. */
  name: string | null;
  uuid: string | null;
  /** The domain's XML. */
  xml: string;
  /** Where QEMU's stream, as it is packed, begins in the file. */
  streamOffset: number;
}

/**
 * @param offset where the image begins in the file
 * @returns undefined if it is none of libvirt's
 * @throws MultifdError STREAM_ERRORS.io; .file, .unsupported, .limit, .eof for one that is not whole, or not known
 */
export async function readSaveImage(file: ReadableFile, offset = 0): Promise<SaveImage | undefined> {
  const head = await readAt(file, offset, SAVE_HEADER_BYTES);
  const magic = head.toString('latin1', 0, MAGIC.length);
  if (magic === MAGIC_PARTIAL) {
    throw refuse('file', 'magic', MAGIC_PARTIAL, `${MAGIC}: libvirt has not finished it`);
  }
  if (magic !== MAGIC) return undefined;
  requireBytes('header', head.length, SAVE_HEADER_BYTES);
  const isSwapped = head.readUInt32LE(16) > MAX_VERSION;
  const u32 = (at: number): number => (isSwapped ? head.readUInt32BE(at) : head.readUInt32LE(at));
  const version = u32(16);
  if (version < 1 || version > MAX_VERSION) {
    throw refuse('unsupported', 'version', head.readUInt32LE(16), `1 to ${MAX_VERSION}`);
  }
  const dataBytes = u32(20);
  if (dataBytes === 0 || dataBytes > MAX_DATA_BYTES) {
    throw refuse('limit', 'bytes of XML', dataBytes, `1 to ${MAX_DATA_BYTES}`);
  }
  const format = SAVE_FORMATS[u32(28)] as SaveFormat | undefined;
  if (format === undefined) {
    const known = SAVE_FORMATS.map((name, number) => `${number} ${name}`).join(', ');
    throw refuse('unsupported', 'format', u32(28), known);
  }
  const streamOffset = offset + SAVE_HEADER_BYTES + dataBytes;
  // Before as much is read.
  requireBytes('file', await sizeOf(file), streamOffset);
  const data = await readAt(file, offset + SAVE_HEADER_BYTES, dataBytes);
  requireBytes('XML', data.length, dataBytes);
  const end = data.indexOf(0);
  if (end < 0) throw refuse('format', 'XML', 'no NUL at its end', 'one');
  const cookie = u32(32);
  if (cookie !== 0 && (cookie <= end || cookie >= dataBytes)) {
    throw refuse('format', 'place of the cookie', cookie, `0, or ${end + 1} to ${dataBytes - 1}`);
  }
  const xml = data.toString('utf8', 0, end);
  const identity = await describeDomain(xml);
  return { format, wasRunning: u32(24) !== 0, ...identity, xml, streamOffset };
}

function requireBytes(what: string, received: number, expected: number): void {
  if (received < expected) throw refuse('eof', `bytes of the ${what}`, received, `at least ${expected}`);
}

function refuse(
  error: 'file' | 'unsupported' | 'limit' | 'eof' | 'format',
  what: string,
  received: unknown,
  expected: string,
): MultifdError {
  return refusal(error, `libvirt's save image: ${what}`, received, expected);
}

/**
 * Where the mapped-ram file begins whose pages are wanted in any order.
 *
 * @throws MultifdError ERR_MULTIFD_OPTION for a stream that is read in order
 */
export function offsetForPostcopy(image: SaveImage | undefined, offset: number): number {
  if (image === undefined) return offset;
  if (image.format === 'sparse') return image.streamOffset;
  const allowed = `only for a file with a place for each page: mapped-ram, or libvirt's format sparse, not ${image.format}`;
  throw wrong('mode', 'postcopy', allowed);
}

/** @throws MultifdError STREAM_ERRORS.unsupported if `what` cannot be had of a stream that is read in order */
export function requireSparse(image: SaveImage, what: string): void {
  if (image.format === 'sparse') return;
  throw new MultifdError(
    STREAM_ERRORS.unsupported,
    `${what}: received a save image of libvirt in format ${image.format}, expected format sparse`,
  );
}
