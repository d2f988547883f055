/**
 * Who makes OUT holds a lock beside it, so that a second one is refused while the first lives, and so that what a dead
 * one left is told from what a living one is writing.
 *
 * Node has no flock(). The lock is a listening unix socket, OUT.lock, mode 0600: binding it is atomic, the kernel
 * answers for it exactly as long as its process lives, whatever killed it, and it is seen from every process that sees
 * the folder, in other containers too. Neither an age nor a process id would be proof.
 *
 *     bind OUT.lock      ok              held
 *                        EADDRINUSE      connect to it:
 *                                          ECONNREFUSED, twice   its maker is dead: moved away, and bound again
 *                                          anything else         it lives: ERR_MULTIFD_IO
 *
 * Twice, since between bind() and listen() of a living maker there is a moment that refuses as well. What is moved away
 * is looked at once more: only the socket that refused is removed.
 *
 * A path too long for sun_path, or a file system without sockets, has its lock in the temporary folder, under a name
 * made of the folder's device and inode.
 *
 * The lock keeps two receivers apart early and with a clear word. It is not what keeps their pages apart: each writes
 * through the descriptor of a file that it has made itself (output-file.ts).
 */
import { createHash, randomBytes } from 'node:crypto';
import fs from 'node:fs/promises';
import net from 'node:net';
import os from 'node:os';
import path from 'node:path';
import { MultifdError } from '../errors.js';
import { MAX_UNIX_PATH_BYTES } from '../options.js';

/** Whoever is between bind() and listen() is through by then. */
const SECOND_LOOK_MS = 100;
/** Others may be taking over the same lock; each round one of them gets it. */
const ROUNDS = 8;
/** The file system has no sockets. */
const NO_SOCKETS = ['EPERM', 'EACCES', 'EOPNOTSUPP', 'ENOTSUP', 'ENOSYS', 'EINVAL', 'ENAMETOOLONG'];

export class OutputLock implements AsyncDisposable {
  readonly #server: net.Server;

  private constructor(server: net.Server) {
    this.#server = server;
  }

  /**
   * @param out the file that is to be made; its folder must exist
   * @throws MultifdError ERR_MULTIFD_IO if somebody living has it
   */
  static async take(out: string): Promise<OutputLock> {
    // One file, one lock, by whichever links its folder is reached.
    const beside = `${path.join(await realFolder(out), path.basename(path.resolve(out)))}.lock`;
    if (Buffer.byteLength(beside) <= MAX_UNIX_PATH_BYTES) {
      try {
        return await takeAt(beside, out);
      } catch (error) {
        if (error instanceof MultifdError || !NO_SOCKETS.includes(codeOf(error))) throw failed(error, beside);
      }
    }
    const elsewhere = await elsewhereOf(out);
    try {
      return await takeAt(elsewhere, out);
    } catch (error) {
      throw failed(error, elsewhere);
    }
  }

  /** The socket goes with its server. */
  async [Symbol.asyncDispose](): Promise<void> {
    await new Promise<void>((resolve) => this.#server.close(() => resolve()));
  }

  /** @internal */
  static async bind(socket: string): Promise<OutputLock> {
    const server = net.createServer((connection) => connection.destroy());
    await new Promise<void>((resolve, reject) => {
      server.once('error', reject);
      // Exclusive: in a worker of node:cluster it would be the primary's.
      server.listen({ path: socket, exclusive: true }, resolve);
    });
    server.on('error', () => {});
    server.unref();
    await fs.chmod(socket, 0o600);
    return new OutputLock(server);
  }
}

async function takeAt(socket: string, out: string): Promise<OutputLock> {
  for (let round = 0; round < ROUNDS; round++) {
    try {
      return await OutputLock.bind(socket);
    } catch (error) {
      if (codeOf(error) !== 'EADDRINUSE') throw error;
    }
    const there = await fs.lstat(socket).catch(() => undefined);
    if (there === undefined) continue;
    if (!there.isSocket()) {
      throw new MultifdError(
        'ERR_MULTIFD_IO',
        `${socket} is no socket, expected the lock of ${out}: remove it`,
      );
    }
    if (!(await isDead(socket))) {
      throw new MultifdError(
        'ERR_MULTIFD_IO',
        `${out} is being received by another process: its lock ${socket} lives`,
      );
    }
    await removeDead(socket, there.ino);
  }
  throw new MultifdError(
    'ERR_MULTIFD_IO',
    `${out} is being received by others: they take the lock ${socket} in turns`,
  );
}

async function isDead(socket: string): Promise<boolean> {
  if ((await answerOf(socket)) !== 'ECONNREFUSED') return false;
  await new Promise((resolve) => setTimeout(resolve, SECOND_LOOK_MS));
  const again = await answerOf(socket);
  return again === 'ECONNREFUSED' || again === 'ENOENT';
}

/** @returns the code of the failure, or undefined where somebody listens */
async function answerOf(socket: string): Promise<string | undefined> {
  const connection = net.connect(socket);
  try {
    return await new Promise((resolve) => {
      connection.once('connect', () => resolve(undefined));
      connection.once('error', (error) => resolve(codeOf(error)));
    });
  } finally {
    connection.on('error', () => {});
    connection.destroy();
  }
}

/** Of all who have seen it dead one moves it away; a living one that took its place meanwhile is put back. */
async function removeDead(socket: string, ino: number): Promise<void> {
  const away = `${socket.slice(0, -5)}.${randomBytes(4).toString('hex')}.dead`;
  try {
    await fs.rename(socket, away);
  } catch (error) {
    if (codeOf(error) === 'ENOENT') return;
    throw error;
  }
  if ((await fs.lstat(away)).ino !== ino) await fs.link(away, socket).catch(() => {});
  await fs.rm(away, { force: true });
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

function codeOf(error: unknown): string {
  return (error as NodeJS.ErrnoException).code ?? '';
}

function failed(error: unknown, what: string): MultifdError {
  return MultifdError.wrap(error, 'ERR_MULTIFD_IO', what);
}
