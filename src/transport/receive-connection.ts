/**
 * A channel's receiving end, on the channel's own thread: a connection taken over by its descriptor, or one whose TLS
 * handshake this thread has done, read where its owner wants the bytes, watched, closed.
 *
 *     resume() --> kernel reads into intake.view() --> intake.read(count) --+-- wants more: again
 *                                                                           +-- does not: the socket is not read until resume()
 *
 *     TLS: a record is decrypted into Node's own buffer --> intake.push(record), which copies it where it belongs
 *          an end that comes while the intake rests is told at the next resume(): what came before it is not used up yet
 *
 * Who owns the bytes: what view() gives is the kernel's to write from that call to the next read(); guest RAM mostly, so
 * that no byte is copied on its way.
 */
import net from 'node:net';
import type { MultifdError } from '../errors.js';
import type { Connection } from './connect.js';
import { destroyed } from './raw-socket.js';
import { watchStall } from './stall.js';
import { tlsAgreed, type TlsAgreed } from './tls/agreed.js';
import { brokenBy } from './tls/broken.js';

const KEEP_ALIVE_MS = 10_000;

/** What takes the bytes. */
export interface ConnectionIntake {
  /** Where the next bytes shall go. */
  view(): Uint8Array;
  /** So many are there. @returns whether more are wanted now */
  read(count: number): boolean;
  /** These have come, and are the intake's to keep. @returns whether more are wanted now */
  push(bytes: Buffer): boolean;
}

export interface ReceiveConnectionOptions {
  /** Its descriptor, or the connection itself; closed by close(). */
  from: number | Connection;
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
  /** With TLS: what the two ends agreed on. */
  readonly secured: TlsAgreed | undefined;
  readonly #socket: net.Socket;
  readonly #raw: net.Socket;
  readonly #unwatch: () => void;
  /** With TLS: nothing is wanted now. */
  #resting = false;
  /** With TLS: an end, or a break, that came meanwhile; the first counts. */
  #over: (() => void) | undefined;

  constructor(options: ReceiveConnectionOptions) {
    const { from, intake, stallTimeoutMs, moved, ended, broke, stalled } = options;
    const { socket, raw, tls } = typeof from === 'number' ? takeOver(from, intake) : from;
    this.secured = tlsAgreed(socket);
    this.#raw = raw;
    if (tls !== undefined) {
      this.#resting = true;
      socket.on('data', (bytes: Buffer) => {
        if (intake.push(bytes)) return;
        this.#resting = true;
        socket.pause();
      });
    }
    this.#socket = socket;
    socket.pause();
    const broken = (error: Error): void =>
      this.#inTurn(() => broke(brokenBy(tls, error, 'connection broke')));
    const end = (): void => this.#inTurn(ended);
    socket.on('error', broken);
    socket.on('end', end);
    socket.on('close', end);
    // A connection that was here before may have had its end already.
    if (socket.errored) broken(socket.errored);
    else if (socket.readableEnded || socket.destroyed) end();
    this.#unwatch = watchStall(stallTimeoutMs, moved, stalled);
    socket.setKeepAlive(true, KEEP_ALIVE_MS);
  }

  /** Reads on. */
  resume(): void {
    this.#resting = false;
    const over = this.#over;
    if (over === undefined) this.#socket.resume();
    else over();
  }

  #inTurn(act: () => void): void {
    if (this.#resting) this.#over ??= act;
    else act();
  }

  /** Waits until the descriptor is closed. */
  async close(): Promise<void> {
    this.#unwatch();
    this.#socket.destroy();
    await destroyed(this.#raw);
  }
}

function takeOver(fd: number, intake: ConnectionIntake): Connection {
  const socket = new net.Socket({
    fd,
    readable: true,
    writable: true,
    allowHalfOpen: true,
    onread: { buffer: () => intake.view(), callback: (count) => intake.read(count) },
  });
  return { socket, raw: socket, tls: undefined };
}
