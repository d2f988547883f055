/**
 * Packs a file into the seekable zstd format, and unpacks it: what is between two files that are open. The frames go through
 * threads (pack-pool.ts) and are written in their order.
 *
 *     plain   [1 MiB][1 MiB][ hole  ][1 MiB]       hole: not read, where the system tells where it is
 *                |      |       |       |
 *             thread  thread  known  thread         zeros: one frame, made once
 *                |      |       |       |
 *     packed  [frame][frame][frame][frame][seek table]
 *
 * `zstd -d` makes the plain file of it again, byte for byte, with holes where it had nothing but zeros.
 *
 * Memory: four frames a thread, packed. Both files stay the caller's; when a call has settled nobody uses them any more.
 */
import type { FileHandle } from 'node:fs/promises';
import { MultifdError } from '../errors.js';
import { nextData } from '../native/holes.js';
import { sizeOf } from '../stream/positioned-file.js';
import { Appender } from './appender.js';
import { PackPool } from './pack-pool.js';
import { FRAME_BYTES, ROOM_BYTES, type Descriptors, type PackTask } from './pack-thread.js';
import { type FrameSize, type SeekTable, encodeSeekTable } from './seek-table.js';

/** By default, as zstd's. */
export const PACK_LEVEL = 3;

/** A file, and the same again with O_DIRECT where that is wanted. */
export interface OpenFile {
  handle: FileHandle;
  direct: FileHandle | undefined;
}

export interface PackingOptions {
  signal?: AbortSignal | undefined;
  /** Called with the bytes of the plain file done so far, and all of them. */
  onProgress?: ((bytes: number, totalBytes: number) => void) | undefined;
}

/** A frame on its way to the packed file. */
interface Frame {
  plain: number;
  /** Bytes in the room, 0 for zeros; undefined: known to be a hole. */
  packed: Promise<number> | undefined;
  room: SharedArrayBuffer | undefined;
}

/**
 * @param level zstd's, 1 to 20
 * @returns the packed file's length
 * @throws MultifdError ERR_MULTIFD_IO, ERR_MULTIFD_ABORTED, ERR_MULTIFD_RUNTIME without a zstd
 */
export async function packInto(
  from: OpenFile,
  to: OpenFile,
  level: number,
  { signal, onProgress }: PackingOptions,
): Promise<number> {
  const size = await sizeOf(from.handle);
  await using pool = new PackPool({ kind: 'pack', from: descriptorsOf(from), level });
  const appender = new Appender(to.handle, to.direct);
  const frames: FrameSize[] = [];
  const free: SharedArrayBuffer[] = [];
  const ahead: Frame[] = [];
  const zeros = await zeroFrame(pool);
  let data = 0;
  for (let at = 0, done = 0; done < size;) {
    requireGoing(signal);
    for (; at < size && ahead.length < pool.tasks; at += FRAME_BYTES) {
      const plain = Math.min(FRAME_BYTES, size - at);
      if (data < at + plain) data = nextData(from.handle.fd, Math.max(data, at)) ?? Infinity;
      const isHole = data >= at + plain && plain === FRAME_BYTES;
      const room = isHole ? undefined : (free.pop() ?? new SharedArrayBuffer(ROOM_BYTES));
      const packed = room && pool.run({ position: at, bytes: plain, room } satisfies PackTask);
      // Its turn to be waited for may not come.
      packed?.catch(() => {});
      ahead.push({ plain, packed, room });
    }
    const { plain, packed, room } = ahead.shift() as Frame;
    const bytes = (await packed) ?? 0;
    let made = plain === FRAME_BYTES ? zeros : undefined;
    if (room !== undefined && bytes > 0) made = new Uint8Array(room, 0, bytes);
    made ??= await zeroFrame(pool, plain);
    await appender.append(made);
    frames.push({ packed: made.length, plain });
    if (room !== undefined) free.push(room);
    done += plain;
    onProgress?.(done, size);
  }
  await appender.append(encodeSeekTable(frames));
  return appender.end();
}

async function zeroFrame(pool: PackPool, bytes = FRAME_BYTES): Promise<Uint8Array> {
  const room = new SharedArrayBuffer(ROOM_BYTES);
  return new Uint8Array(room, 0, await pool.run({ bytes, room } satisfies PackTask));
}

/**
 * @returns the plain file's length
 * @throws MultifdError as packInto(), and STREAM_ERRORS.file for frames that are not as the table says
 */
export async function unpackInto(
  from: OpenFile,
  table: SeekTable,
  to: OpenFile,
  { signal, onProgress }: PackingOptions,
): Promise<number> {
  const { plainBytes } = table;
  try {
    // Frames with nothing but zeros are not written.
    await to.handle.truncate(plainBytes);
  } catch (error) {
    throw MultifdError.wrap(error, 'ERR_MULTIFD_IO', `length ${plainBytes} of the plain file`);
  }
  const job = { from: descriptorsOf(from), to: descriptorsOf(to), table: table.buffer };
  await using pool = new PackPool({ kind: 'unpack', ...job });
  const ahead: Promise<number>[] = [];
  let done = 0;
  for (let frame = 0; frame < table.count || ahead.length > 0;) {
    requireGoing(signal);
    for (; frame < table.count && ahead.length < pool.tasks; frame++) {
      const bytes = pool.run({ frame });
      bytes.catch(() => {});
      ahead.push(bytes);
    }
    done += (await ahead.shift()) as number;
    onProgress?.(done, plainBytes);
  }
  return plainBytes;
}

function descriptorsOf({ handle, direct }: OpenFile): Descriptors {
  return { fd: handle.fd, directFd: direct?.fd };
}

function requireGoing(signal: AbortSignal | undefined): void {
  if (signal?.aborted === true) {
    throw new MultifdError('ERR_MULTIFD_ABORTED', 'aborted', { cause: signal.reason });
  }
}
