/**
 * A thread that packs, or unpacks, a frame at a time. Entry: workers/pack.ts; told what to do by pack-pool.ts.
 *
 *     pack      plain file --read--> zero?  told so    else --zstd--> the room that the task names (shared memory)
 *     unpack    packed file --read--> --zstd--> what is not zero of it --write--> its place in the plain file
 *
 * Who owns the bytes: a room is the thread's until its task is done. Descriptors are the calling thread's.
 */
import fs from 'node:fs';
import { MultifdError, type PlainError } from '../errors.js';
import { createFrameMaker } from '../methods/zstd.js';
import { ALIGNMENT, alignedBuffer } from '../ram/aligned.js';
import { directError } from '../ram/direct-io.js';
import { isZeroRange } from '../ram/zero-page.js';
import { FrameDecoder, cutFrame } from './frame-decoder.js';
import { PackedBytes } from './packed-bytes.js';
import { SeekTable } from './seek-table.js';

/** Of the plain file: a page of the guest is in one of them, and a resumed guest waits for one frame. */
export const FRAME_BYTES = 2 ** 20;
/** zstd's own bound for what does not shrink. */
export const ROOM_BYTES = FRAME_BYTES + (FRAME_BYTES >> 8) + 1024;
/** A run of zeros as long as this becomes a hole. */
const HOLE_BYTES = 2 ** 16;

/** A file by its descriptors, the second one with O_DIRECT. */
export interface Descriptors {
  fd: number;
  directFd: number | undefined;
}

export type PackJob =
  | { kind: 'pack'; from: Descriptors; level: number }
  | { kind: 'unpack'; from: Descriptors; to: Descriptors; table: SharedArrayBuffer };

/** Packing: where it lies in the plain file; no position: zeros. */
export interface PackTask {
  position?: number;
  bytes: number;
  room: SharedArrayBuffer;
}

export interface UnpackTask {
  frame: number;
}

/** Bytes in the room, 0 for nothing but zeros; of an unpacked frame, its own. */
export type PackOutcome = { bytes: number } | { error: PlainError };

export class PackThread {
  readonly #run: (task: PackTask & UnpackTask) => Promise<number> | number;

  constructor(job: PackJob) {
    this.#run = job.kind === 'pack' ? packing(job) : unpacking(job);
  }

  async run(task: PackTask & UnpackTask): Promise<PackOutcome> {
    try {
      return { bytes: await this.#run(task) };
    } catch (error) {
      return { error: MultifdError.wrap(error, 'ERR_MULTIFD_COMPRESS', 'zstd').toPlain() };
    }
  }
}

function packing({ from, level }: PackJob & { kind: 'pack' }): (task: PackTask) => Promise<number> {
  const reader = new PackedBytes(from.fd, from.directFd, FRAME_BYTES);
  return async ({ position, bytes, room }) => {
    const plain = position === undefined ? Buffer.alloc(bytes) : reader.read(position, bytes);
    if (plain.length < bytes) {
      const message = `read at ${position}: received ${plain.length} bytes, expected ${bytes}: the file has become shorter`;
      throw new MultifdError('ERR_MULTIFD_IO', message);
    }
    if (position !== undefined && isZeroRange(plain, 0, bytes)) return 0;
    const maker = createFrameMaker(level);
    try {
      const made = await maker.compress(plain, Buffer.from(room));
      if (typeof made === 'number') return made;
      new Uint8Array(room).set(made);
      return made.length;
    } finally {
      maker.close();
    }
  };
}

function unpacking(job: PackJob & { kind: 'unpack' }): (task: UnpackTask) => number {
  const table = SeekTable.attach(job.table);
  const { largest } = table;
  const reader = new PackedBytes(job.from.fd, job.from.directFd, largest.packed);
  const { fd, directFd } = job.to;
  const room =
    directFd === undefined
      ? Buffer.allocUnsafeSlow(largest.plain)
      : alignedBuffer(Math.max(1, largest.plain));
  return ({ frame }) => {
    const at = table.packedOffset(frame);
    const bytes = table.packedOffset(frame + 1) - at;
    const position = table.plainOffset(frame);
    const plain = room.subarray(0, table.plainOffset(frame + 1) - position);
    if (plain.length === 0) return 0;
    const packed = reader.read(at, bytes);
    if (packed.length < bytes) throw cutFrame(table, frame, packed.length);
    const decoder = new FrameDecoder(table);
    try {
      decoder.decode(frame, packed, plain);
    } finally {
      decoder.close();
    }
    for (let from = 0; from < plain.length;) {
      const to = Math.min(plain.length, from + HOLE_BYTES);
      if (!isZeroRange(plain, from, to - from)) {
        const suits = (position + from) % ALIGNMENT === 0 && (to - from) % ALIGNMENT === 0;
        const direct = suits ? directFd : undefined;
        write(direct ?? fd, plain, from, to, position, direct !== undefined);
      }
      from = to;
    }
    return plain.length;
  };
}

/** Of `bytes`, whose first one belongs at `position`, those from `from` to `to`. */
function write(
  fd: number,
  bytes: Buffer,
  from: number,
  to: number,
  position: number,
  isDirect: boolean,
): void {
  try {
    for (let at = from; at < to;) at += fs.writeSync(fd, bytes, at, to - at, position + at);
  } catch (error) {
    const what = `write at ${position + from}`;
    throw isDirect ? directError(error, what) : MultifdError.wrap(error, 'ERR_MULTIFD_IO', what);
  }
}
