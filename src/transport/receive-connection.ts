/**
 * A channel's receiving end, on the channel's own thread: a connection taken over by its descriptor, read where its owner
 * wants the bytes, watched, closed.
 *
 *     resume() --> kernel reads into intake.view() --> intake.read(count) --+-- wants more: again
 *                                                                           +-- does not: the socket is not read until resume()
 *
 * Who owns the bytes: what view() gives is the kernel's to write from that call to the next read(); guest RAM mostly, so
 * that no byte is copied on its way.
 */
import net from 'node:net';
import { MultifdError } from '../errors.js';
import { watchStall } from './stall.js';

const KEEP_ALIVE_MS = 10_000;

/** What takes the bytes. */
export interface ConnectionIntake {
  /** Where the next bytes shall go. */
  view(): Uint8Array;
  /** So many are there. @returns whether more are wanted now */
  read(count: number): boolean;
}

export interface ReceiveConnectionOptions {
  /** The connection's descriptor; it is closed by close(). */
  fd: number;
  intake: ConnectionIntake;
  stallTimeoutMs: number;
  /** A count of bytes that grows; undefined while nothing is due. */
  moved: () => number | undefined;
  /** The peer's orderly end, or the descriptor's. May come more than once. */
  ended: () => void;
  broke: (error: MultifdError) => void;
  stalled: () => void;
}

export class ReceiveConnection {
  readonly #socket: net.Socket;
  readonly #unwatch: () => void;

  constructor({ fd, intake, stallTimeoutMs, moved, ended, broke, stalled }: ReceiveConnectionOptions) {
    const socket = new net.Socket({
      fd,
      readable: true,
      writable: true,
      allowHalfOpen: true,
      onread: { buffer: () => intake.view(), callback: (count) => intake.read(count) },
    });
    this.#socket = socket;
    socket.pause();
    socket.on('error', (error) => {
      broke(MultifdError.wrap(error, 'ERR_MULTIFD_CONNECTION', 'connection broke'));
    });
    socket.on('end', ended);
    socket.on('close', ended);
    this.#unwatch = watchStall(stallTimeoutMs, moved, stalled);
    socket.setKeepAlive(true, KEEP_ALIVE_MS);
  }

  /** Reads on. */
  resume(): void {
    this.#socket.resume();
  }

  /** Waits until the descriptor is closed. */
  async close(): Promise<void> {
    this.#unwatch();
    const socket = this.#socket;
    if (socket.closed) return;
    await new Promise<void>((resolve) => {
      socket.once('close', () => resolve());
      socket.destroy();
    });
  }
}
