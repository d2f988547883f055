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

/** Free descriptors below the husks', more than which are not tried at a time; 255 channels leave some 3000 behind. */
const MAX_TRIES = 16384;

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
 * The workers are gone: frees these husks and those left from before, as far as possible now. A worker that died before
 * it could take the descriptor has left the connection open, and then it is this side's to close.
 */
export function freeHusks(left: readonly Husk[]): void {
  for (const husk of left) {
    if (isOpen(husk)) husk.socket.destroy();
    else husks.push(husk);
  }
  // Again, since two may wait for the same number.
  while (husks.length > 0) {
    const freed = sweep(husks);
    if (freed.length === 0) return;
    for (const husk of freed) husks.splice(husks.indexOf(husk), 1);
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

/**
 * From the lowest free number to the highest of the husks': a sweep costs as much as there are numbers on its
 * way, and one for each husk would be minutes with 255 channels.
 *
 * @returns those that could be freed
 */
function sweep(waiting: readonly Husk[]): Husk[] {
  const byNumber = new Map(waiting.map((husk) => [husk.fd, husk]));
  const highest = Math.max(...byNumber.keys());
  const covers: number[] = [];
  const freed: Husk[] = [];
  try {
    while (freed.length < byNumber.size && covers.length < MAX_TRIES) {
      const fd = fs.openSync('/dev/null', 'r');
      const husk = byNumber.get(fd);
      if (husk === undefined) covers.push(fd);
      else freed.push(husk);
      if (fd >= highest) break;
    }
  } catch {
    // No descriptor to be had just now: another time.
  }
  // Only now: a number that is closed is the next to be given.
  for (const { socket } of freed) socket.destroy();
  for (const fd of covers) fs.closeSync(fd);
  return freed;
}
