/**
 * Option `directIo` (QEMU: direct-io): the pages of a file's RAM go past the page cache, by a second descriptor with O_DIRECT.
 *
 *     descriptor    what goes by it                                        needs
 *     the first     stream, headers, bitmaps, tail                         nothing
 *     the second    RAM pages, from channel threads and the calling one    memory, place and length at multiples of a block
 *
 * Nothing else lies within a block's pages, and they go by the second alone, so the page cache never holds other bytes of
 * them than the disk. Whether a place suits the device is known to the kernel only: it is tried before anything is sent or
 * received, and what is refused later (EINVAL) is said with the option's name as well.
 */
import { constants } from 'node:fs';
import { open, type FileHandle } from 'node:fs/promises';
import { MultifdError, codeOf, receivedExpected } from '../errors.js';
import { flag, wrong } from '../option-checks.js';
import { ALIGNMENT, alignedBuffer } from './aligned.js';

/** No device has smaller blocks. A read that ends within one has met the file's end. */
const LEAST_BLOCK_BYTES = 512;

/**
 * @param flags the platform's; not every one has O_DIRECT
 * @throws MultifdError ERR_MULTIFD_OPTION
 */
export function checkDirectIo(value: unknown, flags: { O_DIRECT?: number } = constants): boolean {
  const isOn = flag('directIo', value);
  if (isOn && flags.O_DIRECT === undefined) {
    throw wrong('directIo', value, `false on ${process.platform}: Node has O_DIRECT on Linux alone`);
  }
  return isOn;
}

/**
 * The second descriptor of a file that is open.
 *
 * @param path the name by which it was opened
 * @throws MultifdError ERR_MULTIFD_IO if its file system has no O_DIRECT, or the name means another file by now
 */
export async function openDirect(path: string, mode: 'r' | 'r+', first: FileHandle): Promise<FileHandle> {
  const access = mode === 'r' ? constants.O_RDONLY : constants.O_RDWR;
  let handle: FileHandle;
  try {
    handle = await open(path, access | constants.O_DIRECT);
  } catch (error) {
    throw directError(error, path);
  }
  try {
    const [one, other] = await Promise.all([first.stat({ bigint: true }), handle.stat({ bigint: true })]);
    if (one.ino === other.ino && one.dev === other.dev) return handle;
    throw new MultifdError('ERR_MULTIFD_IO', `${path} is another file by now: somebody replaced it`);
  } catch (error) {
    await handle.close();
    throw MultifdError.wrap(error, 'ERR_MULTIFD_IO', path);
  }
}

/**
 * Some file systems let it be opened and refuse to write. Writes to the begin of a file that is empty, and empties it.
 *
 * @throws MultifdError ERR_MULTIFD_IO
 */
export async function tryDirectWrite(handle: FileHandle, path: string): Promise<void> {
  try {
    await writeDirect(handle, alignedBuffer(ALIGNMENT), ALIGNMENT, 0);
    await handle.truncate(0);
  } catch (error) {
    throw directError(error, path);
  }
}

/**
 * From aligned memory.
 *
 * @throws MultifdError ERR_MULTIFD_IO
 */
export async function writeDirect(
  handle: FileHandle,
  from: Buffer,
  length: number,
  position: number,
): Promise<void> {
  let done = 0;
  try {
    while (done < length) {
      done += (await handle.write(from, done, length - done, position + done)).bytesWritten;
    }
  } catch (error) {
    throw directError(error, `write at ${position + done}`);
  }
}

/**
 * Into aligned memory.
 *
 * @returns as many of `length` bytes from `position` on as the file has
 * @throws MultifdError ERR_MULTIFD_IO
 */
export async function readDirect(
  handle: FileHandle,
  into: Buffer,
  length: number,
  position: number,
): Promise<number> {
  let done = 0;
  try {
    while (done < length && !endsWithin(done)) {
      const { bytesRead } = await handle.read(into, done, length - done, position + done);
      if (bytesRead === 0) break;
      done += bytesRead;
    }
  } catch (error) {
    throw directError(error, `read at ${position + done}`);
  }
  return done;
}

/** Has a read of `done` bytes met the file's end? To read on from there would be refused, whatever the file has. */
export function endsWithin(done: number): boolean {
  return done % LEAST_BLOCK_BYTES !== 0;
}

/** EINVAL is what a kernel says of all that O_DIRECT does not suit. */
export function directError(error: unknown, what: string): MultifdError {
  if (error instanceof MultifdError || codeOf(error) !== 'EINVAL') {
    return MultifdError.wrap(error, 'ERR_MULTIFD_IO', what);
  }
  const expected = 'a file system and a place that O_DIRECT suits: leave option directIo out';
  return new MultifdError('ERR_MULTIFD_IO', receivedExpected(what, 'EINVAL', expected), { cause: error });
}
