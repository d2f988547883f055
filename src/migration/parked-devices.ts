/**
 * Devices' state that comes over the channels while a migration is received into a file, where there are no channels: kept
 * beside the file until the devices' sections say whose it is and in which order, then written into those, where
 * sendMigration() finds it as it finds any other state.
 *
 *     channels    DEVICE_STATE packets, any order   keep()      OUT.part.devices, which has lost its name at once
 *     tail        FULL: so many bytes and pieces    convert()   FULL: the bytes themselves
 *                 VM description                                a new one: of what is in the file
 *
 * Only a VM of a source of ours sends such packets here (live/device-pieces.ts), so where some have come the tail is read as
 * one of ours; any other passes as it is. The state itself is never in memory, and what is noted of it is bounded: a piece has
 * 1 MiB but for the last one of each device, and devices have a number that they cannot be above.
 *
 * On the calling thread, but packets of several channels at a time.
 */
import { open, rm, type FileHandle } from 'node:fs/promises';
import { MultifdError, receivedExpected } from '../errors.js';
import { MAX_DEVICES } from '../live/options.js';
import { type Piece, Pieces, decodePiece } from '../live/device-pieces.js';
import {
  type DeviceState,
  type Named,
  encodeEnd,
  encodeSectionHead,
  encodeStateSize,
  nameOf,
  nextSection,
  readBytes,
  readSectionFooter,
  readSectionHead,
  readStateSize,
  skipDescription,
} from '../live/device-sections.js';
import { ByteReader } from '../stream/byte-reader.js';
import type { Configuration } from '../stream/configuration.js';
import { encodeFooter } from '../stream/main-writer.js';
import { readAt, writeAt } from '../stream/positioned-file.js';

const MODE = 0o600;

/** Where a piece lies. */
interface Kept {
  position: number;
  bytes: number;
}

export interface TailOptions {
  configuration: Configuration;
  pageSize: number;
  /** Do sections end with a footer? */
  footers: boolean;
  maxDescription: number;
}

export class ParkedDevices {
  readonly #path: string | undefined;
  #file: Promise<FileHandle> | undefined;
  #end = 0;
  #moved = 0;
  readonly #pieces = new Map<string, Pieces<Kept>>();

  /** @param part the file that is made; without one pieces are only counted */
  constructor(part: string | undefined) {
    if (part !== undefined) this.#path = `${part}.devices`;
  }

  /** Has any come? */
  get any(): boolean {
    return this.#pieces.size > 0;
  }

  /** Bytes of the tail so far: while they are copied nothing comes from the source. */
  get moved(): number {
    return this.#moved;
  }

  /** A packet; its payload is free when this resolves. @throws MultifdError ERR_MULTIFD_DEVICE_STATE, ERR_MULTIFD_IO */
  async keep(idstr: string, instanceId: number, payload: Buffer): Promise<void> {
    const piece = decodePiece({ idstr, instanceId }, payload);
    const position = this.#place({ idstr, instanceId }, piece);
    if (this.#path === undefined) return;
    this.#file ??= this.#open(this.#path);
    await writeAt(await this.#file, piece.data, position);
  }

  #place(device: Named, piece: Piece): number {
    const key = nameOf(device);
    let pieces = this.#pieces.get(key);
    if (pieces === undefined) {
      if (this.#pieces.size === MAX_DEVICES) throw tooMany('devices whose state comes over the channels');
      this.#pieces.set(key, (pieces = new Pieces(device)));
    }
    const position = this.#end;
    pieces.add(piece, { position, bytes: piece.data.length });
    this.#end += piece.data.length;
    return position;
  }

  async #open(path: string): Promise<FileHandle> {
    try {
      // Whoever was killed in between left one that is empty.
      await rm(path, { force: true });
      const file = await open(path, 'wx+', MODE);
      await rm(path, { force: true });
      return file;
    } catch (error) {
      throw MultifdError.wrap(error, 'ERR_MULTIFD_IO', path);
    }
  }

  /**
   * The tail as it is to be in the file, and behind it what came behind it.
   *
   * @throws MultifdError ERR_MULTIFD_STREAM, ERR_MULTIFD_EOF, ERR_MULTIFD_IO
   */
  async *convert(tail: AsyncIterable<Buffer>, options: TailOptions): AsyncGenerator<Buffer, void, undefined> {
    for await (const bytes of this.#convert(tail, options)) {
      this.#moved += bytes.length;
      yield bytes;
    }
  }

  async *#convert(
    tail: AsyncIterable<Buffer>,
    { configuration, pageSize, footers, maxDescription }: TailOptions,
  ): AsyncGenerator<Buffer, void, undefined> {
    const reader = new ByteReader(tail, { name: "devices' state" });
    const states: DeviceState[] = [];
    while (await nextSection(reader)) {
      const head = await readSectionHead(reader);
      const { bytes, pieces } = await readStateSize(reader);
      const size = { bytes, pieces: 0 };
      yield encodeSectionHead(head.sectionId, head);
      yield encodeStateSize(size);
      const key = nameOf(head);
      const come = this.#pieces.get(key) ?? new Pieces<Kept>(head);
      const kept = come.whole(pieces === 0 ? { bytes: 0, pieces } : { bytes, pieces });
      this.#pieces.delete(key);
      if (pieces === 0) yield* readBytes(reader, bytes);
      else yield* this.#read(kept);
      if (footers) {
        await readSectionFooter(reader, head);
        yield encodeFooter(head.sectionId);
      }
      if (states.length === MAX_DEVICES) throw tooMany('devices');
      states.push({ device: head, data: size });
    }
    const [left] = this.#pieces.keys();
    if (left !== undefined) {
      const message = receivedExpected(
        "devices' state",
        'its end',
        `a section of ${left}, whose state has come`,
      );
      throw new MultifdError('ERR_MULTIFD_STREAM', message);
    }
    await skipDescription(reader, maxDescription);
    yield encodeEnd(states, configuration, pageSize);
    if (reader.buffered.length > 0) yield reader.buffered;
  }

  async *#read(kept: readonly Kept[]): AsyncGenerator<Buffer, void, undefined> {
    const file = await this.#file;
    for (const { position, bytes } of kept) {
      const piece = file === undefined ? Buffer.alloc(bytes) : await readAt(file, position, bytes);
      if (piece.length < bytes) {
        const message = receivedExpected(`${this.#path}: bytes at ${position}`, piece.length, bytes);
        throw new MultifdError('ERR_MULTIFD_IO', message);
      }
      yield piece;
    }
  }

  async close(): Promise<void> {
    await this.#file?.then((file) => file.close()).catch(() => {});
  }
}

function tooMany(what: string): MultifdError {
  const message = receivedExpected(what, `more than ${MAX_DEVICES}`, `at most ${MAX_DEVICES}`);
  return new MultifdError('ERR_MULTIFD_DEVICE_STATE', message);
}
