/**
 * A unix socket to listen on: nobody can connect to it before it has its mode, what a dead process left is taken over
 * by one, and what is somebody else's is left alone.
 *
 *     made     in a folder of its own beside PATH, mode 0700; bound, chmod, listening; then linked to PATH:
 *     PATH     not there         it has its name
 *              a socket          connected to, twice: ECONNREFUSED, and it is left over: removed by whoever has the mutex
 *                                of this path, who looks once more; then linked again. Anything else: in use
 *              anything else     in use: a file is never removed
 *
 * bind() makes a socket with the umask's mode, the umask is the whole process's and not a worker thread's to change, and
 * a chmod behind bind() leaves a moment in which others connect: therefore the folder. The kernel's sun_path has 107
 * bytes; through /proc/self/fd the folder's descriptor stands for its path, however long that is.
 *
 * Two that take over the same socket must not remove each other's. No call removes a name only if it still means a
 * certain file, so they take turns: the mutex is a socket in Linux's abstract name space, which has no file that could be
 * left over. It keeps those apart that share a network name space; elsewhere they have the second look alone.
 */
import { createHash, randomBytes } from 'node:crypto';
import fs from 'node:fs';
import net from 'node:net';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { codeOf } from '../errors.js';
import { MAX_UNIX_PATH_BYTES } from './address.js';

/** Somebody else's, between bind() and listen(), is through by then. */
const SECOND_LOOK_MS = 100;
/** Each round somebody gets it. */
const ROUNDS = 8;
/** Who holds the mutex needs SECOND_LOOK_MS; whoever holds it so long wants others to wait. */
const MUTEX_MS = 3000;

/**
 * Listens.
 *
 * @param mode of the socket: who may write to it may connect
 * @returns removes the socket, if PATH still is it; to be called when the server is closed
 * @throws errors of the file system, and EADDRINUSE; the server is closed then
 */
export async function listenOnUnixSocket(
  server: net.Server,
  file: string,
  options: { mode: number; backlog: number },
): Promise<() => void> {
  // Before anything is made.
  if (fs.lstatSync(file, { throwIfNoEntry: false }) !== undefined) await requireLeftOver(file);
  const folder = fs.mkdtempSync(path.join(path.dirname(file), '.multifd-'));
  try {
    // An umask may have taken bits from the owner as well.
    fs.chmodSync(folder, 0o700);
    const made = path.join(folder, await bindIn(server, folder, options.backlog));
    fs.chmodSync(made, options.mode);
    const { ino, dev } = fs.lstatSync(made, { bigint: true });
    for (let round = 0; !link(made, file); round++) {
      if (round === ROUNDS) throw inUse(file);
      await requireLeftOver(file);
      await removeLeftOver(file);
    }
    return () => {
      const there = fs.lstatSync(file, { bigint: true, throwIfNoEntry: false });
      if (there?.ino === ino && there.dev === dev) fs.rmSync(file, { force: true });
    };
  } catch (error) {
    server.close();
    throw error;
  } finally {
    fs.rmSync(folder, { recursive: true, force: true });
  }
}

/**
 * Holds a name: a socket that listens and serves nobody. The kernel answers for it as long as this process lives.
 *
 * @returns gives it back
 * @throws as listenOnUnixSocket()
 */
export async function holdUnixSocket(file: string, mode: number): Promise<() => Promise<void>> {
  const server = net.createServer((connection) => connection.destroy());
  const remove = await listenOnUnixSocket(server, file, { mode, backlog: 8 });
  server.on('error', () => {});
  server.unref();
  return async () => {
    remove();
    await new Promise<void>((resolve) => server.close(() => resolve()));
  };
}

/** @returns the socket's name in the folder */
async function bindIn(server: net.Server, folder: string, backlog: number): Promise<string> {
  // libuv removes the path that it has bound when the server closes, and the descriptor's number may be another folder's by
  // then: a name that is nobody else's.
  const name = randomBytes(8).toString('hex');
  await withShortPath(folder, (short) => listen(server, path.join(short, name), backlog));
  return name;
}

/** @param use gets a path of the folder that is valid until it is done, and short where there is a /proc */
async function withShortPath<T>(folder: string, use: (short: string) => Promise<T>): Promise<T> {
  const fd = fs.openSync(folder, 'r');
  try {
    const short = `/proc/self/fd/${fd}`;
    return await use(fs.existsSync(short) ? short : folder);
  } finally {
    fs.closeSync(fd);
  }
}

function listen(server: net.Server, where: string, backlog?: number): Promise<void> {
  if (Buffer.byteLength(where) > MAX_UNIX_PATH_BYTES) {
    throw Object.assign(new Error(`ENAMETOOLONG: ${where}`), { code: 'ENAMETOOLONG' });
  }
  return new Promise((resolve, reject) => {
    server.once('error', reject);
    // Exclusive: in a worker of node:cluster it would be the primary's.
    server.listen({ path: where, backlog, exclusive: true }, () => {
      server.off('error', reject);
      resolve();
    });
  });
}

/** As a rename that does not replace. @returns false if the name is taken */
function link(from: string, to: string): boolean {
  try {
    fs.linkSync(from, to);
    return true;
  } catch (error) {
    if (codeOf(error) === 'EEXIST') return false;
  }
  // Not every file system has links.
  if (fs.lstatSync(to, { throwIfNoEntry: false }) !== undefined) return false;
  fs.renameSync(from, to);
  return true;
}

/** @throws EADDRINUSE if it is somebody's */
async function requireLeftOver(file: string): Promise<void> {
  if ((await isRefused(file)) === false) throw inUse(file);
  await sleep(SECOND_LOOK_MS);
  if ((await isRefused(file)) === false) throw inUse(file);
}

async function removeLeftOver(file: string): Promise<void> {
  const mutex = await takeMutex(file);
  try {
    // In one turn with the look: whoever else would remove it waits for the mutex, and who binds finds it taken.
    if ((await isRefused(file)) === true) fs.rmSync(file, { force: true });
  } finally {
    mutex.close();
  }
}

/** Does the socket refuse connections? Undefined if there is none. */
async function isRefused(file: string): Promise<boolean | undefined> {
  const there = fs.lstatSync(file, { throwIfNoEntry: false });
  if (there === undefined) return undefined;
  if (!there.isSocket()) return false;
  return withShortPath(path.dirname(file), async (short) => {
    const socket = net.connect(path.join(short, path.basename(file)));
    const code = await new Promise<string | undefined>((resolve) => {
      socket.once('connect', () => resolve(undefined));
      socket.once('error', (error) => resolve(codeOf(error)));
    });
    socket.on('error', () => {});
    socket.destroy();
    return code === 'ENOENT' ? undefined : code === 'ECONNREFUSED';
  });
}

async function takeMutex(file: string): Promise<net.Server> {
  const mutex = net.createServer((connection) => connection.destroy());
  if (process.platform !== 'linux') return mutex;
  const { dev, ino } = fs.statSync(path.dirname(file), { bigint: true });
  const key = createHash('sha256')
    .update(`${dev}:${ino}:${path.basename(file)}`)
    .digest('hex');
  for (const late = Date.now() + MUTEX_MS; Date.now() < late; await sleep(10)) {
    try {
      await listen(mutex, `\0multifd-${key.slice(0, 32)}`);
      break;
    } catch (error) {
      if (codeOf(error) !== 'EADDRINUSE') break;
    }
  }
  return mutex;
}

function inUse(file: string): Error {
  return Object.assign(new Error(`listen EADDRINUSE: address already in use ${file}`), {
    code: 'EADDRINUSE',
  });
}
