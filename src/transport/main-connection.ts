/**
 * The main stream's socket as a migration uses it: a byte reader with what was read before its owner was known, the
 * return path in the other direction, and an end that a failure of the session brings about.
 */
import type net from 'node:net';
import { MultifdError } from '../errors.js';
import { ByteReader } from '../stream/byte-reader.js';

/** Read ahead of the consumer at most, and so much again that is on its way when the socket is paused. */
const READ_AHEAD_BYTES = 2 ** 20;

export class MainConnection {
  readonly reader: ByteReader;
  readonly #socket: net.Socket;
  readonly #chunks: Buffer[] = [];
  /** A unix socket has no reset, and needs none: who writes to one that is closed is told at once. */
  readonly #isTcp: boolean;
  #buffered = 0;
  #moved = 0;
  #ended = false;
  #broken: MultifdError | undefined;
  #wake: (() => void) | undefined;

  constructor(socket: net.Socket, begun: Buffer) {
    this.#socket = socket;
    this.#isTcp = socket.remoteAddress !== undefined;
    if (begun.length > 0) this.#take(begun);
    socket.on('data', (chunk: Buffer) => this.#take(chunk));
    socket.on('end', () => this.#end());
    socket.on('close', () => this.#end());
    socket.on('error', (error) => {
      this.#broken ??= MultifdError.wrap(error, 'ERR_MULTIFD_CONNECTION', 'main stream broke');
      this.#end();
    });
    socket.resume();
    this.reader = new ByteReader(this.#read(), { name: 'main stream' });
  }

  /** Why the connection ended, if it was not by its peer's orderly end. */
  get broken(): MultifdError | undefined {
    return this.#broken;
  }

  /** Has the peer ended it, or has it broken? */
  get ended(): boolean {
    return this.#ended;
  }

  /** Bytes that came in or went out: while it grows the peer is there. */
  get moved(): number {
    return this.#moved;
  }

  #take(chunk: Buffer): void {
    this.#chunks.push(chunk);
    this.#moved += chunk.length;
    this.#buffered += chunk.length;
    if (this.#buffered > READ_AHEAD_BYTES) this.#socket.pause();
    this.#wake?.();
  }

  #end(): void {
    this.#ended = true;
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
          resolve();
        } else reject(MultifdError.wrap(error, 'ERR_MULTIFD_CONNECTION', 'main stream broke'));
      });
    });
  }

  /** Orderly: what was written goes out, then FIN. */
  async end(): Promise<void> {
    if (this.#socket.destroyed) return;
    await new Promise<void>((resolve) => {
      this.#socket.once('close', () => resolve());
      this.#socket.end(() => resolve());
    });
  }

  destroy(): void {
    this.#socket.destroy();
  }

  /**
   * For a migration that fails: the peer's next write fails. After an orderly end (FIN) a first one would still succeed,
   * and a source whose last write it is would take its migration as completed.
   */
  breakOff(): void {
    if (this.#isTcp) this.#socket.resetAndDestroy();
    else this.#socket.destroy();
  }
}
