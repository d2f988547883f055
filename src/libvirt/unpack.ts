/**
 * The plain bytes behind the head of a save image, in order, as a source for a ByteReader.
 *
 *     raw           the file itself
 *     gzip          node:zlib
 *     zstd          node:zlib where this Node has it (22.15 and later), else the program
 *     bzip2 xz lzop zstd     PROGRAM -dc, as libvirt does it (program.ts)
 *
 * Memory: a few chunks on each way, and what the codec itself wants, which has a bound: 32 KiB with gzip, 128 MiB with zstd
 * (its own default), 1 GiB with xz (told to it). How much comes out of how little is not bounded, as nothing of it is kept.
 *
 * Who owns the bytes: a chunk is the consumer's.
 */
import type { FileHandle } from 'node:fs/promises';
import { Readable, type Transform } from 'node:stream';
import zlib from 'node:zlib';
import { MultifdError } from '../errors.js';
import type { ByteSource } from '../stream/byte-reader.js';
import { STREAM_ERRORS } from '../stream/codes.js';
import { readAt } from '../stream/positioned-file.js';
import { runUnpacker } from './program.js';
import type { SaveFormat, SaveImage } from './save-image.js';

/** As a reader of it is called in messages. */
export const UNPACKED_NAME = "libvirt's save image, unpacked";

/** Read at once. */
const PIECE_BYTES = 2 ** 18;
const MAGIC_BYTES = 4;
/** What comes out at once. */
const CHUNK_BYTES = 2 ** 16;

/** Node's own from 22.15 on; the types that this is built with may know no more than 20. */
interface MaybeZstd {
  createZstdDecompress?: (options?: { chunkSize?: number }) => Transform;
}

/** To be closed in any case. */
export interface UnpackedStream extends ByteSource {
  close(): Promise<void>;
}

/**
 * @param silenceMs how long a program may take for its next bytes
 * @throws MultifdError, also from read(): ERR_MULTIFD_RUNTIME where a program is missing, STREAM_ERRORS.file for what does not
 *   unpack, ERR_MULTIFD_STALL, STREAM_ERRORS.io
 */
export function unpack(file: FileHandle, image: SaveImage, silenceMs: number): UnpackedStream {
  const { format, streamOffset } = image;
  switch (format) {
    case 'raw':
    case 'sparse':
      return streamOf(pieces(file, streamOffset));
    case 'gzip':
      return decoded(file, image, zlib.createGunzip({ chunkSize: CHUNK_BYTES }));
    case 'zstd': {
      const { createZstdDecompress } = zlib as MaybeZstd;
      if (createZstdDecompress !== undefined) {
        return decoded(file, image, createZstdDecompress({ chunkSize: CHUNK_BYTES }));
      }
      break;
    }
  }
  const packed = pieces(file, streamOffset);
  return runUnpacker(format, format === 'zstd' ? zstdOnly(packed) : packed, silenceMs);
}

/** Its program takes what gzip and xz have packed as well, which Node's own does not: the answer is the same on each Node. */
async function* zstdOnly(
  packed: AsyncGenerator<Buffer, void, undefined>,
): AsyncGenerator<Buffer, void, undefined> {
  let isFirst = true;
  for await (const piece of packed) {
    if (isFirst && !beginsZstd(piece))
      throw broken('zstd', new Error(`it begins with ${piece.toString('hex', 0, MAGIC_BYTES)}`));
    isFirst = false;
    yield piece;
  }
}

/** A frame, or one that is to be skipped. */
function beginsZstd(piece: Buffer): boolean {
  const magic = piece.length < MAGIC_BYTES ? 0 : piece.readUInt32LE(0);
  return magic === 0xfd2fb528 || magic >>> 4 === 0x184d2a5;
}

async function* pieces(file: FileHandle, from: number): AsyncGenerator<Buffer, void, undefined> {
  for (let at = from; ;) {
    const piece = await readAt(file, at, PIECE_BYTES);
    if (piece.length === 0) return;
    at += piece.length;
    yield piece;
  }
}

function streamOf(chunks: AsyncGenerator<Buffer, void, undefined>): UnpackedStream {
  return {
    read: async () => (await chunks.next()).value ?? null,
    close: async () => void (await chunks.return()),
  };
}

function decoded(file: FileHandle, { format, streamOffset }: SaveImage, codec: Transform): UnpackedStream {
  const input = Readable.from(pieces(file, streamOffset), { objectMode: false });
  input.on('error', (error) => codec.destroy(error));
  input.pipe(codec);
  const chunks = codec[Symbol.asyncIterator]() as AsyncIterator<Buffer, undefined>;
  return {
    read: async () => {
      try {
        return (await chunks.next()).value ?? null;
      } catch (error) {
        throw broken(format, error);
      }
    },
    close: async () => {
      input.unpipe(codec);
      codec.destroy();
      // The file is closed by its owner next: no read of it may be under way.
      await new Promise<void>((resolve) => {
        if (input.closed) resolve();
        else input.once('close', () => resolve()).destroy();
      });
    },
  };
}

function broken(format: SaveFormat, error: unknown): MultifdError {
  if (error instanceof MultifdError) return error;
  const { code, message } = error as NodeJS.ErrnoException;
  const what = code === 'Z_BUF_ERROR' ? 'its end is missing' : message;
  return new MultifdError(
    STREAM_ERRORS.file,
    `libvirt's save image: received data that is no whole ${format}, expected ${format}: ${what}`,
    { cause: error },
  );
}
