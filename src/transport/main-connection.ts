/**
 * The main stream's socket as a migration uses it: a byte reader with what was read before its owner was known, the
 * return path in the other direction, and an end that a failure of the session brings about.
 */
import type net from 'node:net';
import { MultifdError } from '../errors.js';
import { ByteReader } from '../stream/byte-reader.js';
import type { Connection } from './connect.js';
import { brokenBy, brokenEarly } from './tls/broken.js';
import { explainEarlyEnd } from './tls/explain.js';

/** Read ahead of the consumer at most, and so much again that is on its way when the socket is paused. */
const READ_AHEAD_BYTES = 2 ** 20;

export class MainConnection {
  readonly reader: ByteReader;
  readonly #connection: Connection;
  readonly #socket: net.Socket;
  readonly #chunks: Buffer[] = [];
  /** A unix socket has no reset, and needs none: who writes to one that is closed is told at once. */
  readonly #isTcp: boolean;
  #buffered = 0;
  #moved = 0;
  #written = 0;
  #taken = 0;
  /** This side has ended it. */
  #isOver = false;
  #ended = false;
  #broken: MultifdError | undefined;
  #wake: (() => void) | undefined;
  #resolveOver!: () => void;
  /** Resolves when the peer has ended it, or it has broken: all that will ever come is here. */
  readonly over = new Promise<void>((resolve) => (this.#resolveOver = resolve));

  constructor(connection: Connection, begun: Buffer) {
    const { socket, raw, tls } = connection;
    this.#connection = connection;
    this.#socket = socket;
    this.#isTcp = raw.remoteAddress !== undefined;
    if (begun.length > 0) this.#take(begun);
    socket.on('data', (chunk: Buffer) => this.#take(chunk));
    const early = (cause?: Error): void => {
      this.#broken ??= this.#early(cause);
    };
    socket.on('end', () => {
      early();
      this.#end();
    });
    socket.on('close', () => this.#end());
    socket.on('error', (error) => {
      early(error);
      this.#broken ??= brokenBy(tls, error, 'main stream broke');
      this.#end();
    });
    // Of a TLS connection that came whole in one piece this has been told already.
    if (socket.errored || socket.readableEnded || socket.destroyed) {
      early(socket.errored ?? undefined);
      if (socket.errored) this.#broken ??= brokenBy(tls, socket.errored, 'main stream broke');
      this.#end();
    }
    socket.resume();
    this.reader = new ByteReader(this.#read(), { name: 'main stream' });
  }

  /** Why the connection ended, if it was not by its peer's orderly end. */
  get broken(): MultifdError | undefined {
    return this.#broken;
  }

  /** Does it speak TLS? */
  get isSecure(): boolean {
    return this.#connection.tls !== undefined;
  }

  /** Has the peer ended it, or has it broken? */
  get ended(): boolean {
    return this.#ended;
  }

  /** Bytes that came in or went out: while it grows the peer is there. */
  get moved(): number {
    return this.#moved;
  }

  /** Of them those that went out: what the peer has taken. */
  get written(): number {
    return this.#written;
  }

  #take(chunk: Buffer): void {
    this.#chunks.push(chunk);
    this.#moved += chunk.length;
    this.#taken += chunk.length;
    this.#buffered += chunk.length;
    if (this.#buffered > READ_AHEAD_BYTES) this.#socket.pause();
    this.#wake?.();
  }

  /** A QEMU judges the other side behind the handshake, in either role, and says nothing. */
  #early(cause?: Error): MultifdError | undefined {
    const { tls } = this.#connection;
    return tls === undefined || this.#taken > 0 || this.#isOver ? undefined : brokenEarly(tls, cause);
  }

  /** What an end would mean now, if that can only be guessed: that the other side did not like this one's credentials. */
  get earlyEnd(): string | undefined {
    const { tls } = this.#connection;
    return tls === undefined || this.#taken > 0 ? undefined : explainEarlyEnd(tls);
  }

  #end(): void {
    this.#ended = true;
    this.#resolveOver();
    this.#wake?.();
  }

  async *#read(): AsyncGenerator<Buffer, void, undefined> {
    for (;;) {
      const chunk = this.#chunks.shift();
      if (chunk !== undefined) {
        this.#buffered -= chunk.length;
        if (this.#buffered <= READ_AHEAD_BYTES) this.#socket.resume();
        yield chunk;
      } else if (this.#broken !== undefined) throw this.#broken;
      else if (this.#ended) return;
      else {
        await new Promise<void>((resolve) => (this.#wake = resolve));
        this.#wake = undefined;
      }
    }
  }

  /** Writes on the socket; resolves when the kernel has taken it. */
  async write(bytes: Buffer): Promise<void> {
    if (bytes.length === 0) return;
    if (this.#broken !== undefined) throw this.#broken;
    await new Promise<void>((resolve, reject) => {
      this.#socket.write(bytes, (error) => {
        if (error === undefined || error === null) {
          this.#moved += bytes.length;
          this.#written += bytes.length;
          resolve();
        } else {
          // It may be known before the peer's end is read.
          reject(this.#early(error) ?? brokenBy(this.#connection.tls, error, 'main stream broke'));
        }
      });
    });
  }

  /** Orderly: what was written goes out, then its end. */
  async end(): Promise<void> {
    this.#isOver = true;
    if (this.#socket.destroyed) return;
    await new Promise<void>((resolve) => {
      this.#socket.once('close', () => resolve());
      this.#socket.end(() => resolve());
    });
  }

  destroy(): void {
    this.#isOver = true;
    this.#socket.destroy();
  }

  /**
   * For a migration that fails: the peer's next write fails. After an orderly end (FIN) a first one would still succeed,
   * and a source whose last write it is would take its migration as completed.
   */
  breakOff(): void {
    this.#isOver = true;
    // Without an end of TLS, which would be an orderly one.
    const { raw } = this.#connection;
    // Nor after an end that is under way: libuv refuses a reset then, and Node keeps the handle for good and spins at its exit.
    // That of TLS ends the connection beneath without its knowing.
    const ends = raw.writableEnded || this.#socket.writableEnded;
    if (this.#isTcp && !ends) raw.resetAndDestroy();
    else raw.destroy();
  }
}
