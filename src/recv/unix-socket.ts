/**
 * A unix socket to listen on: nobody can connect to it before it has its mode, what a dead process left is taken over,
 * and what is somebody else's is left alone.
 *
 *     PATH               what is done
 *     not there          made in a folder of its own, mode 0700; chmod; then linked to PATH, which must not be there yet
 *     a socket           connected to: ECONNREFUSED, and it is left over: replaced by rename. Anything else: in use
 *     anything else      in use: a file is never removed
 *
 * bind() makes a socket with the umask's mode, the umask is the whole process's and not a worker thread's to change, and
 * a chmod behind bind() leaves a moment in which others connect: therefore the folder. Where its path is too long for
 * sun_path there is that moment.
 */
import fs from 'node:fs';
import net from 'node:net';
import path from 'node:path';
import { MAX_UNIX_PATH_BYTES } from '../options.js';

/** `.XXXXXX/s` */
const EXTRA_BYTES = 9;

/**
 * Listens.
 *
 * @param mode of the socket: who may write to it may connect
 * @returns removes the socket, if PATH still is it; to be called when the server is closed
 * @throws errors of the file system, and EADDRINUSE
 */
export async function listenOnUnixSocket(
  server: net.Server,
  file: string,
  options: { mode: number; backlog: number },
): Promise<() => void> {
  const isLeft = await isLeftOver(file);
  const bind = (where: string): Promise<void> =>
    new Promise((resolve, reject) => {
      server.once('error', reject);
      server.listen({ path: where, backlog: options.backlog, exclusive: true }, () => {
        server.off('error', reject);
        resolve();
      });
    });
  if (Buffer.byteLength(file) + EXTRA_BYTES > MAX_UNIX_PATH_BYTES) {
    if (isLeft) fs.rmSync(file, { force: true });
    await bind(file);
    fs.chmodSync(file, options.mode);
    return () => {};
  }
  const folder = fs.mkdtempSync(`${file}.`);
  const made = path.join(folder, 's');
  try {
    await bind(made);
    fs.chmodSync(made, options.mode);
    const { ino, dev } = fs.lstatSync(made, { bigint: true });
    if (isLeft || !link(made, file)) fs.renameSync(made, file);
    return () => {
      const there = fs.lstatSync(file, { bigint: true, throwIfNoEntry: false });
      if (there?.ino === ino && there.dev === dev) fs.rmSync(file, { force: true });
    };
  } finally {
    fs.rmSync(folder, { recursive: true, force: true });
  }
}

/** As a rename that does not replace. Not every file system has links. */
function link(from: string, to: string): boolean {
  try {
    fs.linkSync(from, to);
    return true;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EEXIST') return false;
    throw inUse(to);
  }
}

async function isLeftOver(file: string): Promise<boolean> {
  const there = fs.lstatSync(file, { throwIfNoEntry: false });
  if (there === undefined) return false;
  if (!there.isSocket()) throw inUse(file);
  const socket = net.connect(file);
  const code = await new Promise<string | undefined>((resolve) => {
    socket.once('connect', () => resolve(undefined));
    socket.once('error', (error: NodeJS.ErrnoException) => resolve(error.code));
  });
  socket.on('error', () => {});
  socket.destroy();
  if (code !== 'ECONNREFUSED' && code !== 'ENOENT') throw inUse(file);
  return code === 'ECONNREFUSED';
}

function inUse(file: string): Error {
  return Object.assign(new Error(`listen EADDRINUSE: address already in use ${file}`), {
    code: 'EADDRINUSE',
  });
}
