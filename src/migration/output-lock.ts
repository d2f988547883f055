/**
 * Who makes OUT holds a lock beside it, so that a second one is refused while the first lives, and so that what a dead
 * one left is told from what a living one is writing.
 *
 * Node has no flock(). The lock is a listening unix socket, OUT.lock, mode 0600: binding it is atomic, the kernel
 * answers for it exactly as long as its process lives, whatever killed it, and it is seen from every process that sees
 * the folder, in other containers too. Neither an age nor a process id would be proof.
 *
 *     OUT.lock    not there                   held
 *                 a socket that is left over  its maker is dead: taken over by one (transport/unix-socket.ts), and held
 *                 anything else               it lives: ERR_MULTIFD_IO
 *
 * A file system without sockets has its lock in the temporary folder, under a name made of the folder's device and inode.
 *
 * The lock keeps two receivers apart early and with a clear word. It is not what keeps their pages apart: each writes
 * through the descriptor of a file that it has made itself (output-file.ts).
 */
import { createHash } from 'node:crypto';
import fs from 'node:fs/promises';
import os from 'node:os';
import path from 'node:path';
import { MultifdError, codeOf } from '../errors.js';
import { holdUnixSocket } from '../transport/unix-socket.js';

const MODE = 0o600;
/** The file system has no sockets, or none of that name. */
const NO_SOCKETS = ['EPERM', 'EACCES', 'EOPNOTSUPP', 'ENOTSUP', 'ENOSYS', 'EINVAL', 'ENAMETOOLONG'];

export class OutputLock implements AsyncDisposable {
  readonly #giveBack: () => Promise<void>;

  private constructor(giveBack: () => Promise<void>) {
    this.#giveBack = giveBack;
  }

  /**
   * @param out the file that is to be made; its folder must exist
   * @throws MultifdError ERR_MULTIFD_IO if somebody living has it
   */
  static async take(out: string): Promise<OutputLock> {
    // One file, one lock, by whichever links its folder is reached.
    const beside = `${path.join(await realFolder(out), path.basename(path.resolve(out)))}.lock`;
    try {
      return await OutputLock.#takeAt(beside, out);
    } catch (error) {
      if (error instanceof MultifdError || !NO_SOCKETS.includes(codeOf(error))) throw failed(error, beside);
    }
    const elsewhere = await elsewhereOf(out);
    try {
      return await OutputLock.#takeAt(elsewhere, out);
    } catch (error) {
      throw failed(error, elsewhere);
    }
  }

  /** What a dead one has left of a lock goes; a living one's stays, and nothing is made. Never fails. */
  static async clear(out: string): Promise<void> {
    try {
      const beside = `${path.join(await realFolder(out), path.basename(path.resolve(out)))}.lock`;
      for (const socket of [beside, await elsewhereOf(out)]) {
        const there = await fs.lstat(socket).catch(() => undefined);
        if (there?.isSocket() !== true) continue;
        const lock = await OutputLock.#takeAt(socket, out);
        await lock[Symbol.asyncDispose]();
      }
    } catch {
      // It is somebody's.
    }
  }

  static async #takeAt(socket: string, out: string): Promise<OutputLock> {
    const there = await fs.lstat(socket).catch(() => undefined);
    if (there !== undefined && !there.isSocket()) {
      throw new MultifdError(
        'ERR_MULTIFD_IO',
        `${socket} is no socket, expected the lock of ${out}: remove it`,
      );
    }
    try {
      return new OutputLock(await holdUnixSocket(socket, MODE));
    } catch (error) {
      if (codeOf(error) !== 'EADDRINUSE') throw error;
      const other =
        there === undefined || there.uid === process.getuid?.()
          ? 'lives'
          : `is user ${there.uid}'s: if no process of his has it, remove it`;
      throw new MultifdError(
        'ERR_MULTIFD_IO',
        `${out} is being received by another process: its lock ${socket} ${other}`,
      );
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#giveBack();
  }
}

async function realFolder(out: string): Promise<string> {
  try {
    return await fs.realpath(path.dirname(path.resolve(out)));
  } catch (error) {
    throw failed(error, out);
  }
}

async function elsewhereOf(out: string): Promise<string> {
  const resolved = path.resolve(out);
  try {
    const { dev, ino } = await fs.stat(path.dirname(resolved), { bigint: true });
    // Each user has his own: nobody's lock of that name can be in another's way.
    const key = `${dev}:${ino}:${path.basename(resolved)}:${process.getuid?.() ?? ''}`;
    const name = createHash('sha256').update(key).digest('hex').slice(0, 24);
    return path.join(os.tmpdir(), `multifd-${name}.lock`);
  } catch (error) {
    throw failed(error, out);
  }
}

function failed(error: unknown, what: string): MultifdError {
  return MultifdError.wrap(error, 'ERR_MULTIFD_IO', what);
}
