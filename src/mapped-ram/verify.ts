/**
 * Reads all of a mapped-ram file's RAM: that it can be read at all, how many of the pages that are there are zero, and
 * a digest of each block as the guest will see it (pages that are not there count as zero). Of a packed file all frames are
 * decoded, those without a page as well.
 */
import { createHash } from 'node:crypto';
import { MultifdError } from '../errors.js';
import { abortSignal, callback, checkKeys, fileName } from '../option-checks.js';
import { MigrationFile } from '../packed/open.js';
import { checkDirectIo } from '../ram/direct-io.js';
import { isZeroRange } from '../ram/zero-page.js';
import { STREAM_ERRORS, quote } from '../stream/codes.js';
import type { MappedRamDescription } from './description.js';
import { readPageRuns } from './pages.js';
import { DirectPageReader, PIECE_BYTES, PageReader, tryDirectReads } from './read-pages.js';

export interface VerifiedBlock {
  name: string;
  size: number;
  /** Present pages that hold only zeros: sound, and a few bytes wasted. */
  presentZeroPages: number;
  /** SHA-256 of the block's RAM, hexadecimal. */
  sha256: string;
}

export interface VerifyOptions {
  signal?: AbortSignal;
  /** Read the pages past the page cache (O_DIRECT; default false). QEMU: direct-io. */
  directIo?: boolean;
  /** Called after each piece with the bytes of RAM done so far, holes included. */
  onProgress?: (bytes: number) => void;
}

const OPTIONS: Record<keyof VerifyOptions, true> = { signal: true, directIo: true, onProgress: true };

/**
 * @param description of this file; must be sound
 * @throws MultifdError STREAM_ERRORS.io, .eof; ERR_MULTIFD_ABORTED
 */
export async function verifyMappedRam(
  file: string,
  description: MappedRamDescription,
  options: VerifyOptions = {},
): Promise<VerifiedBlock[]> {
  checkKeys(options, Object.keys(OPTIONS));
  fileName('file', file);
  abortSignal(options.signal);
  callback('onProgress', options.onProgress);
  const directIo = checkDirectIo(options.directIo);
  const { pageSize } = description;
  const going = (): void => {
    if (options.signal?.aborted !== true) return;
    throw new MultifdError('ERR_MULTIFD_ABORTED', 'aborted', { cause: options.signal.reason });
  };
  const zeros = Buffer.alloc(PIECE_BYTES);
  const verified: VerifiedBlock[] = [];
  let done = 0;
  await using opened = await MigrationFile.open(file, directIo);
  const { content, directPages } = opened;
  if (directPages !== undefined) await tryDirectReads(directPages, description);
  const reader = directPages === undefined ? new PageReader(content) : new DirectPageReader(directPages);
  for (const block of description.blocks) {
    const hash = createHash('sha256');
    let presentZeroPages = 0;
    for await (const { page, count, present } of readPageRuns(content, block)) {
      const end = (page + count) * pageSize;
      for (let at = page * pageSize; at < end;) {
        going();
        const length = Math.min(PIECE_BYTES, end - at);
        let bytes: Buffer = zeros.subarray(0, length);
        if (present) {
          bytes = await reader.read(block.pagesOffset + at, length);
          if (bytes.length < length) {
            const message = `mapped-ram file: pages of ${quote(block.name)}: received ${at + bytes.length} bytes, expected ${end}`;
            throw new MultifdError(STREAM_ERRORS.eof, message);
          }
          for (let i = 0; i < length; i += pageSize) {
            if (isZeroRange(bytes, i, pageSize)) presentZeroPages++;
          }
        }
        hash.update(bytes);
        at += length;
        done += length;
        options.onProgress?.(done);
        // Long runs that are not there take no turn of the event loop by themselves.
        if (!present) await new Promise((resolve) => setImmediate(resolve));
      }
    }
    verified.push({
      name: block.name,
      size: block.usedLength,
      presentZeroPages,
      sha256: hash.digest('hex'),
    });
  }
  await opened.packed?.verifyRest(going);
  return verified;
}
