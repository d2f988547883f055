/**
 * The file that a migration is received into: made as OUT.part, whole and on disk before it is OUT.
 *
 *     make()      OUT is free, or a regular file and `overwrite`   else ERR_MULTIFD_IO
 *                 lock (output-lock.ts)                            a living receiver of OUT: ERR_MULTIFD_IO
 *                 OUT.part, new, O_EXCL, mode 0600                 what a dead one left: only with `overwrite`
 *     handle      whoever writes into the file does it through this descriptor, the channel threads too
 *     direct      with option directIo: the same file once more, for its pages (ram/direct-io.ts)
 *     name()      rename: THE moment; in one turn of the event loop with the caller's last look at his session
 *     onDisk()    fsync of the folder
 *     unname()    back to OUT.part: the folder could not be written, or the source could not be told
 *     giveUp()    OUT.part goes, if it is still the file made here
 *
 * Nobody opens, removes or names a file that he has not made: by its name another file may be meant by now, so each
 * step that goes by the name compares device and inode with the descriptor first. Nothing here follows a link: OUT.part
 * is made with O_EXCL, and an OUT that is a link is itself replaced (with `overwrite`), not what it points to.
 */
import fs from 'node:fs';
import { open, rename, rm, type FileHandle } from 'node:fs/promises';
import path from 'node:path';
import { MultifdError, codeOf } from '../errors.js';
import { openDirect, tryDirectWrite } from '../ram/direct-io.js';
import type { WritableFile } from '../stream/positioned-file.js';
import { OutputLock } from './output-lock.js';

/** A guest's memory holds its keys and passwords. */
const MODE = 0o600;
/** Errors by which a folder's fsync says that there is no such thing here, or not for this user. */
const NO_FOLDER_SYNC = [
  'EINVAL',
  'ENOTSUP',
  'EOPNOTSUPP',
  'ENOSYS',
  'EBADF',
  'EPERM',
  'EACCES',
  'EISDIR',
  'EROFS',
];

export class OutputFile {
  readonly out: string;
  /** The same whatever the working directory is. */
  readonly #path: string;
  /** The name until it is whole. */
  readonly part: string;
  readonly handle: FileHandle;
  readonly direct: FileHandle | undefined;
  readonly #overwrite: boolean;
  readonly #lock: OutputLock;
  /** Is OUT.part this file, as far as it was done here? */
  #partial = true;
  #named = false;

  private constructor(
    out: string,
    resolved: string,
    overwrite: boolean,
    [handle, direct]: [FileHandle, FileHandle | undefined],
    lock: OutputLock,
  ) {
    this.out = out;
    this.#path = resolved;
    this.part = `${this.#path}.part`;
    this.#overwrite = overwrite;
    this.handle = handle;
    this.direct = direct;
    this.#lock = lock;
  }

  /**
   * @param directIo shall `direct` be there?
   * @throws MultifdError ERR_MULTIFD_IO
   */
  static async make(out: string, overwrite: boolean, directIo = false): Promise<OutputFile> {
    // Once, since the working directory may be another one after a wait.
    const resolved = path.resolve(out);
    const part = `${resolved}.part`;
    refuseExisting(out, overwrite);
    requireFolder(out);
    const lock = await OutputLock.take(out);
    try {
      // Another one may have finished while the lock was waited for.
      refuseExisting(resolved, overwrite);
      if (overwrite) await removeLeft(part);
      let handle: FileHandle;
      try {
        handle = await open(part, 'wx+', MODE);
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error;
        const message = `${part} exists, and whoever made it has ended: look into it, remove it, or give option overwrite`;
        throw new MultifdError('ERR_MULTIFD_IO', message, { cause: error });
      }
      let direct: FileHandle | undefined;
      try {
        await giveMode(handle);
        await trySync(handle);
        if (directIo) {
          direct = await openDirect(part, 'r+', handle);
          await tryDirectWrite(direct, part);
        }
      } catch (error) {
        await direct?.close();
        await handle.close();
        await rm(part, { force: true });
        throw error;
      }
      return new OutputFile(out, resolved, overwrite, [handle, direct], lock);
    } catch (error) {
      await lock[Symbol.asyncDispose]();
      throw MultifdError.wrap(error, 'ERR_MULTIFD_IO', part);
    }
  }

  /** As who writes the stream and the bitmaps takes it. */
  get stream(): WritableFile {
    return this.handle;
  }

  /** All that is written is on disk. */
  async sync(): Promise<void> {
    await this.handle.sync();
  }

  /** Has it got its name? */
  get named(): boolean {
    return this.#named;
  }

  /**
   * Gives it its name, without leaving the event loop's turn. A name that came into being in the meantime is not taken
   * from anybody without `overwrite`.
   *
   * @throws MultifdError ERR_MULTIFD_IO
   */
  name(): void {
    try {
      if (!this.#isOurs(this.part)) {
        this.#partial = false;
        throw new MultifdError('ERR_MULTIFD_IO', `${this.part} is another file by now: somebody replaced it`);
      }
      refuseExisting(this.#path, this.#overwrite);
      if (this.#overwrite || !this.#link()) fs.renameSync(this.part, this.#path);
    } catch (error) {
      throw MultifdError.wrap(error, 'ERR_MULTIFD_IO', this.out);
    }
    this.#named = true;
    this.#partial = false;
  }

  /** As a rename that does not replace. Not every file system has links. */
  #link(): boolean {
    try {
      fs.linkSync(this.part, this.#path);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'EEXIST') refuseExisting(this.#path, false);
      return false;
    }
    fs.rmSync(this.part, { force: true });
    return true;
  }

  /** The folder's fsync, so that the name outlives the machine. @throws what the file system says of a disk that fails */
  async onDisk(): Promise<void> {
    try {
      const folder = await open(path.dirname(this.#path), 'r');
      await folder.sync().finally(() => folder.close());
    } catch (error) {
      if (!NO_FOLDER_SYNC.includes((error as NodeJS.ErrnoException).code ?? '')) throw error;
    }
  }

  /** Takes the name back: it is whole, so it is not thrown away, but nobody shall take it for a guest that was moved. */
  async unname(): Promise<void> {
    if (!this.#isOurs(this.#path)) return;
    await rename(this.#path, this.part);
    this.#named = false;
  }

  /** OUT.part stays, whatever comes. @returns whether it is this file */
  keep(): boolean {
    this.#partial = false;
    return this.#isOurs(this.part);
  }

  /** Closes it; a partial file goes. */
  async giveUp(): Promise<void> {
    if (this.#partial && this.#isOurs(this.part)) await rm(this.part, { force: true }).catch(() => {});
    await this.close();
  }

  /** To be called when no thread uses the descriptors any more. */
  async close(): Promise<void> {
    await this.direct?.close().catch(() => {});
    await this.handle.close().catch(() => {});
    await this.#lock[Symbol.asyncDispose]();
  }

  #isOurs(file: string): boolean {
    const named = fs.lstatSync(file, { bigint: true, throwIfNoEntry: false });
    if (named === undefined) return false;
    const ours = fs.fstatSync(this.handle.fd, { bigint: true });
    return named.ino === ours.ino && named.dev === ours.dev;
  }
}

function requireFolder(out: string): void {
  const folder = path.dirname(path.resolve(out));
  try {
    if (fs.statSync(folder).isDirectory()) return;
  } catch (error) {
    throw MultifdError.wrap(error, 'ERR_MULTIFD_IO', `folder of ${out}`);
  }
  throw new MultifdError('ERR_MULTIFD_IO', `${folder} is no folder, expected the folder of ${out}`);
}

/** Only a regular file is replaced, or a link as such: a device, a pipe, a socket is somebody's. */
function refuseExisting(out: string, overwrite: boolean): void {
  let there: fs.Stats | undefined;
  try {
    there = fs.lstatSync(out, { throwIfNoEntry: false });
  } catch (error) {
    throw MultifdError.wrap(error, 'ERR_MULTIFD_IO', out);
  }
  if (there === undefined) return;
  if (there.isDirectory()) {
    throw new MultifdError('ERR_MULTIFD_IO', `${out} is a directory, expected the name of a file`);
  }
  if (!there.isFile() && !there.isSymbolicLink()) {
    throw new MultifdError(
      'ERR_MULTIFD_IO',
      `${out} is ${kindOf(there)}, expected a regular file: it is not overwritten`,
    );
  }
  if (overwrite) return;
  const message = `${out} exists already; it is not overwritten without option overwrite`;
  throw new MultifdError('ERR_MULTIFD_IO', message);
}

/**
 * An umask may have taken bits from the owner as well. Under --permission Node has no fchmod; what open() has made is right
 * under any umask that leaves the owner his own.
 */
async function giveMode(handle: FileHandle): Promise<void> {
  try {
    await handle.chmod(MODE);
  } catch (error) {
    const { mode } = await handle.stat();
    if (codeOf(error) !== 'ERR_ACCESS_DENIED' || (mode & 0o777) !== MODE) throw error;
  }
}

/** Under --permission Node 26 has no fsync: told before anybody connects, not when a whole guest has come. */
async function trySync(handle: FileHandle): Promise<void> {
  if (!('permission' in process)) return;
  try {
    await handle.sync();
  } catch (cause) {
    if (codeOf(cause) !== 'ERR_ACCESS_DENIED') throw cause;
    const message =
      'received --permission, expected none: with it this Node has no fsync, and a file is kept when it is on disk';
    throw new MultifdError('ERR_MULTIFD_RUNTIME', message, { cause });
  }
}

/** The lock is held, so whoever made it has ended. */
async function removeLeft(part: string): Promise<void> {
  const there = fs.lstatSync(part, { throwIfNoEntry: false });
  if (there === undefined) return;
  if (!there.isFile()) {
    const message = `${part} is ${kindOf(there)}, expected a partial file: remove it first`;
    throw new MultifdError('ERR_MULTIFD_IO', message);
  }
  await rm(part, { force: true });
}

function kindOf(stats: fs.Stats): string {
  if (stats.isDirectory()) return 'a directory';
  if (stats.isSymbolicLink()) return 'a link';
  if (stats.isFIFO()) return 'a pipe';
  if (stats.isSocket()) return 'a socket';
  return 'a device';
}
