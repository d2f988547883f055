/**
 * A migration file as whoever reads it opens it: plain, or packed by `multifd pack` (seek-table.ts), told by its first bytes.
 *
 *              handle        content                 pages               ram()
 *     plain    its file      the same                the same, or        its file, and the O_DIRECT one
 *                                                    O_DIRECT
 *     packed   its file      the plain bytes         the plain bytes     its file, and the seek table
 */
import type { FileHandle } from 'node:fs/promises';
import { DIRECT, PACKED, type InFile } from '../ram/block.js';
import { openDirect } from '../ram/direct-io.js';
import { openToRead } from '../stream/positioned-file.js';
import { PackedFile } from './packed-file.js';
import { readSeekTable } from './seek-table.js';

export class MigrationFile implements AsyncDisposable {
  /** The file itself. */
  readonly handle: FileHandle;
  /** The same past the page cache. */
  readonly direct: FileHandle | undefined;
  readonly packed: PackedFile | undefined;

  private constructor(handle: FileHandle, direct: FileHandle | undefined, packed: PackedFile | undefined) {
    this.handle = handle;
    this.direct = direct;
    this.packed = packed;
  }

  /**
   * Once, and read by its descriptor from here on: its name may mean another file later.
   *
   * @throws MultifdError ERR_MULTIFD_IO; STREAM_ERRORS.file and others for one that is packed and cannot be read
   */
  static async open(file: string, directIo = false): Promise<MigrationFile> {
    const handle = await openToRead(file);
    let direct: FileHandle | undefined;
    try {
      const table = await readSeekTable(handle);
      if (directIo) direct = await openDirect(file, 'r', handle);
      const packed = table === undefined ? undefined : new PackedFile(handle, table, direct);
      return new MigrationFile(handle, direct, packed);
    } catch (error) {
      await direct?.close();
      await handle.close();
      throw error;
    }
  }

  /** Stream, headers, bitmaps and pages, by their places in the plain file. */
  get content(): FileHandle | PackedFile {
    return this.packed ?? this.handle;
  }

  /** The O_DIRECT descriptor, where pages are to be read by it in place. */
  get directPages(): FileHandle | undefined {
    return this.packed === undefined ? this.direct : undefined;
  }

  /** What a block has to be given, whose pages the channels read. */
  ram(): InFile {
    if (this.packed === undefined) return { file: this.handle, [DIRECT]: this.direct };
    const table = this.packed.table.buffer;
    return { file: this.handle, [PACKED]: { table, fd: this.handle.fd, directFd: this.direct?.fd } };
  }

  /** To be called when nobody reads any more. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.packed?.close();
    await this.direct?.close().catch(() => {});
    await this.handle.close().catch(() => {});
  }
}
