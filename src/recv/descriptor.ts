/**
 * Handing an accepted connection to a worker, by its file descriptor.
 *
 * Node cannot move a socket between threads, and it cannot duplicate a descriptor. But within a process the number is
 * enough: the worker opens `new net.Socket({ fd })` and is from then on the one that reads and closes it. The accepting
 * thread's own socket object is left over, a husk: it must never close its number, which may belong to somebody else
 * by then, and it cannot be freed without closing it.
 *
 * So a husk is freed under cover: once the worker has closed the connection, /dev/null is opened until it lands on the
 * very number (the kernel gives the lowest free one), and closing the husk closes that. While the number is held
 * nobody else can get it; if somebody else has it already, the husk waits for another time.
 */
import fs from 'node:fs';
import type net from 'node:net';

/** Descriptors below the husk's that may be free, more than which are not tried. */
const MAX_TRIES = 1024;

interface Husk {
  socket: net.Socket;
  fd: number;
  /** Which connection the number stood for. */
  dev: number;
  ino: number;
}

interface SocketInternals {
  _handle: { fd: number; readStop(): number; reading?: boolean } | null;
}

/** Of all sessions of this thread: a number may be busy when its session ends. */
const husks: Husk[] = [];

export interface TakenConnection {
  fd: number;
  /** What had been read and not been taken from the socket. */
  surplus: Buffer;
  husk: Husk;
}

/** Stops reading and gives the descriptor away; undefined if the connection is gone already. */
export function takeDescriptor(socket: net.Socket): TakenConnection | undefined {
  const handle = (socket as unknown as SocketInternals)._handle;
  if (socket.destroyed || handle === null || handle === undefined || handle.fd < 0) return undefined;
  socket.pause();
  handle.readStop();
  handle.reading = false;
  const chunks: Buffer[] = [];
  for (;;) {
    const chunk = socket.read() as Buffer | null;
    if (chunk === null) break;
    chunks.push(chunk);
  }
  // read() asks the handle for more.
  handle.readStop();
  handle.reading = false;
  socket.setTimeout(0);
  socket.removeAllListeners();
  socket.on('error', () => {});
  socket.unref();
  const { fd } = handle;
  const { dev, ino } = fs.fstatSync(fd);
  return { fd, surplus: Buffer.concat(chunks), husk: { socket, fd, dev, ino } };
}

/**
 * The worker is gone: frees this husk and those left from before, as far as possible now. A worker that died before it
 * could take the descriptor has left the connection open, and then it is this side's to close.
 */
export function freeHusk(husk: Husk): void {
  if (isOpen(husk)) {
    husk.socket.destroy();
    return;
  }
  husks.push(husk);
  for (let i = husks.length - 1; i >= 0; i--) {
    if (free(husks[i])) husks.splice(i, 1);
  }
}

/** Husks that wait for their number to become free. */
export function pendingHusks(): number {
  return husks.length;
}

function isOpen(husk: Husk): boolean {
  try {
    const { dev, ino } = fs.fstatSync(husk.fd);
    return dev === husk.dev && ino === husk.ino;
  } catch {
    return false;
  }
}

function free(husk: Husk): boolean {
  const covers: number[] = [];
  let covered = false;
  try {
    for (let i = 0; i < MAX_TRIES && !covered; i++) {
      const fd = fs.openSync('/dev/null', 'r');
      if (fd === husk.fd) covered = true;
      else covers.push(fd);
      if (fd > husk.fd) break;
    }
    if (covered) husk.socket.destroy();
  } catch {
    // No descriptor to be had just now: another time.
  } finally {
    for (const fd of covers) fs.closeSync(fd);
  }
  return covered;
}
