/**
 * The little that this folder wants of a file; `FileHandle` of node:fs/promises has it. Positions only, no cursor:
 * the channel threads read and write the same file at the same time.
 */
import { open, stat, type FileHandle } from 'node:fs/promises';
import { MultifdError } from '../errors.js';
import { type ByteSource, CHUNK_BYTES } from './byte-reader.js';
import { STREAM_ERRORS, quote } from './codes.js';

export interface ReadableFile {
  read(buffer: Buffer, offset: number, length: number, position: number): Promise<{ bytesRead: number }>;
  stat(): Promise<{ size: number; isBlockDevice?: () => boolean }>;
}

export interface WritableFile {
  write(
    buffer: Uint8Array,
    offset: number,
    length: number,
    position: number,
  ): Promise<{ bytesWritten: number }>;
  truncate(length: number): Promise<void>;
}

/**
 * Opens a file to read from any place of it.
 *
 * @throws MultifdError STREAM_ERRORS.io; also for a pipe, whose opening would wait for its other end, and for whatever
 *   else has no places
 */
export async function openToRead(file: string): Promise<FileHandle> {
  try {
    const stats = await stat(file);
    if (stats.isFile() || stats.isBlockDevice()) return await open(file, 'r');
  } catch (error) {
    throw MultifdError.wrap(error, STREAM_ERRORS.io, quote(String(file)));
  }
  throw new MultifdError(STREAM_ERRORS.io, `${quote(file)} is neither a regular file nor a block device`);
}

/** In bytes. A block device's is 0 by stat(), so it is looked for: where the last byte is that can be read. */
export async function sizeOf(file: ReadableFile): Promise<number> {
  const stats = await file.stat();
  if (stats.isBlockDevice?.() !== true) return stats.size;
  const has = async (position: number): Promise<boolean> => (await readAt(file, position, 1)).length === 1;
  if (!(await has(0))) return 0;
  let last = 0;
  let end = 1;
  // Doubled as long as the position is one that can be asked for.
  for (; end < MAX_POSITION && (await has(end)); end *= 2) last = end;
  while (end - last > 1) {
    const middle = last + Math.floor((end - last) / 2);
    if (await has(middle)) last = middle;
    else end = middle;
  }
  return end;
}

/** As many of `length` bytes from `position` on as the file has. */
export async function readAt(file: ReadableFile, position: number, length: number): Promise<Buffer> {
  const into = Buffer.allocUnsafe(length);
  let done = 0;
  try {
    while (done < length) {
      const { bytesRead } = await file.read(into, done, length - done, position + done);
      if (bytesRead === 0) break;
      done += bytesRead;
    }
  } catch (error) {
    throw MultifdError.wrap(error, STREAM_ERRORS.io, `read at ${position + done}`);
  }
  return into.subarray(0, done);
}

export async function writeAt(file: WritableFile, bytes: Uint8Array, position: number): Promise<void> {
  let done = 0;
  try {
    while (done < bytes.length) {
      done += (await file.write(bytes, done, bytes.length - done, position + done)).bytesWritten;
    }
  } catch (error) {
    throw MultifdError.wrap(error, STREAM_ERRORS.io, `write at ${position + done}`);
  }
}

/** Above any device; read() takes positions below 2^53 only. */
const MAX_POSITION = 2 ** 52;

/** What is read first at a new place: in a mapped-ram file a few dozen bytes are wanted there. */
const FIRST_BYTES = 1024;

/** A file as the source of a ByteReader, from `position` on; each chunk is memory of its own. */
export class FileSource implements ByteSource {
  readonly #file: ReadableFile;
  #position: number;
  #chunkBytes = FIRST_BYTES;

  constructor(file: ReadableFile, position: number) {
    this.#file = file;
    this.#position = position;
  }

  async read(max: number): Promise<Buffer | null> {
    const chunk = await readAt(this.#file, this.#position, Math.min(max, this.#chunkBytes));
    this.#position += chunk.length;
    this.#chunkBytes = Math.min(4 * this.#chunkBytes, CHUNK_BYTES);
    return chunk.length === 0 ? null : chunk;
  }

  seek(position: number): void {
    this.#position = position;
    this.#chunkBytes = FIRST_BYTES;
  }
}
