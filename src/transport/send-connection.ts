/**
 * A channel's sending end, on the channel's own thread: connected, written to in one call at a time, watched, ended.
 *
 *     connect()  -> write(pieces) -> flushed() -> write() ...  -> finish(): everything written, then the end
 *        broken by the peer, by a stall, by break(): flushed() throws why, whatever it waits for
 *
 * Who owns the bytes: the pieces that write() gets are the connection's until flushed() returns; the kernel reads them
 * where they lie, in guest RAM as well.
 */
import { performance } from 'node:perf_hooks';
import { MultifdError } from '../errors.js';
import type { Address } from './address.js';
import type net from 'node:net';
import { connect } from './connect.js';
import { destroyed } from './raw-socket.js';
import { brokenBy } from './tls/broken.js';
import { tlsAgreed, type TlsAgreed } from './tls/agreed.js';
import type { TlsCredentials } from './tls/credentials.js';
import { writePieces } from './write-pieces.js';
import { PortionWriter } from './write-portions.js';

/** See #watchStall(); the slack is for a thread that gets no processor. */
const STALL_PERIODS = 4;
const STALL_SLACK_MS = 100;
/** At an orderly end, how long the peer may take to read what is left. */
const FINISH_TIMEOUT_MS = 10_000;
const KEEP_ALIVE_MS = 10_000;

export interface SendConnectionOptions {
  address: Address;
  connectTimeoutMs: number;
  stallTimeoutMs: number;
  tls: TlsCredentials | undefined;
  /** Called once, when the connection has broken; what it returns is what flushed() throws. */
  broke: (error: MultifdError) => MultifdError;
}

export class SendConnection {
  readonly #options: SendConnectionOptions;
  #socket: net.Socket | undefined;
  #raw: net.Socket | undefined;
  /** With TLS. */
  #portions: PortionWriter | undefined;
  #broken: MultifdError | undefined;
  #wakeWriter: (() => void) | undefined;
  #writing = false;
  #peerEnded = false;

  constructor(options: SendConnectionOptions) {
    this.#options = options;
  }

  /** Why it has broken, if it has. */
  get broken(): MultifdError | undefined {
    return this.#broken;
  }

  /** With TLS: what the two ends agreed on. */
  get secured(): TlsAgreed | undefined {
    return this.#secured;
  }
  #secured: TlsAgreed | undefined;

  /** Is something on its way? */
  get writing(): boolean {
    return this.#writing;
  }

  /** Has the peer ended it? One closes its channels as soon as it has loaded everything, or when it refuses. */
  get peerEnded(): boolean {
    return this.#peerEnded;
  }

  /** @throws MultifdError ERR_MULTIFD_CONNECT, ERR_MULTIFD_TIMEOUT, and what break() was given meanwhile */
  async connect(): Promise<void> {
    const { address, connectTimeoutMs: timeoutMs, stallTimeoutMs, tls } = this.#options;
    const { socket } = await connect({ address, timeoutMs, tls }, (raw) => {
      this.#raw = this.#socket = raw;
    });
    this.#socket = socket;
    if (tls !== undefined) this.#portions = new PortionWriter(socket);
    this.#secured = tlsAgreed(socket);
    if (this.#broken !== undefined) throw this.#broken;
    socket.on('error', (error) => this.break(brokenBy(tls, error, 'connection broke')));
    socket.on('close', () => {
      this.break(new MultifdError('ERR_MULTIFD_CONNECTION', 'connection was closed'));
    });
    // A receiver never writes; reading is how its end, or its nonsense, is noticed. A real one closes its channels as
    // soon as it has loaded everything, so an end is a failure only if something is still to be sent.
    socket.on('data', () => {
      this.break(new MultifdError('ERR_MULTIFD_PROTOCOL', 'received data, expected none on a send channel'));
    });
    socket.on('end', () => {
      this.#peerEnded = true;
      if (this.#writing)
        this.break(new MultifdError('ERR_MULTIFD_CONNECTION', 'the peer closed the channel'));
    });
    this.#watchStall(socket, stallTimeoutMs);
    socket.setKeepAlive(true, KEEP_ALIVE_MS);
  }

  /**
   * Node takes partly written data for progress, and lets a period pass in which there was some; so it is asked four
   * times as often, and four periods in a row without any are a stall: after one stallTimeoutMs, or a quarter more. Of TLS
   * Node sees nothing between a write's begin and its end; there the queue beneath is looked at here.
   */
  #watchStall(socket: net.Socket, stallTimeoutMs: number): void {
    const periodMs = Math.ceil(stallTimeoutMs / STALL_PERIODS);
    let periods = 0;
    let last = 0;
    let queued = 0;
    socket.setTimeout(periodMs);
    socket.on('timeout', () => {
      const now = performance.now();
      const left = this.#raw === socket ? 0 : queuedBytes(this.#raw);
      if (left !== queued) {
        queued = left;
        last = now;
        periods = 0;
        socket.setTimeout(periodMs);
        return;
      }
      // A period that was not silent, or not waited for, lies between.
      if (!this.#writing || now - last > 1.5 * periodMs + STALL_SLACK_MS) periods = 0;
      last = now;
      if (this.#writing && ++periods >= STALL_PERIODS) {
        const message = `the peer has read nothing for ${stallTimeoutMs} ms`;
        this.break(new MultifdError('ERR_MULTIFD_STALL', message));
      } else socket.setTimeout(periodMs);
    });
  }

  /** Ends it at once: the first reason counts. */
  break(error: MultifdError): void {
    if (this.#broken !== undefined) return;
    this.#broken = this.#options.broke(error);
    this.#writing = false;
    this.#wakeWriter?.();
    this.#socket?.destroy();
    this.#raw?.destroy();
  }

  /** Hands the pieces, at least one, to the kernel, in one call (with TLS in several). Only while nothing is on its way. */
  write(pieces: readonly Uint8Array[]): void {
    this.#writing = true;
    if (this.#portions !== undefined) this.#portions.write(pieces, this.#written);
    else writePieces(this.#socket as net.Socket, pieces, this.#written);
  }

  readonly #written = (error?: Error | null): void => {
    if (error !== undefined && error !== null) {
      this.break(brokenBy(this.#options.tls, error, 'write failed'));
      return;
    }
    this.#writing = false;
    this.#wakeWriter?.();
  };

  /** Until nothing is on its way. @throws why the connection broke */
  async flushed(): Promise<void> {
    if (this.#writing) {
      await new Promise<void>((resolve) => {
        this.#wakeWriter = resolve;
      });
      this.#wakeWriter = undefined;
    }
    if (this.#broken !== undefined) throw this.#broken;
  }

  /** Orderly end: everything written, then the end: of TLS, and FIN. */
  async finish(): Promise<void> {
    await this.flushed();
    const socket = this.#socket as net.Socket;
    await new Promise<void>((resolve) => {
      const timer = setTimeout(resolve, FINISH_TIMEOUT_MS);
      const done = (): void => {
        clearTimeout(timer);
        resolve();
      };
      socket.end(done);
      socket.once('close', done);
    });
  }

  /** Waits until the descriptor is closed. */
  async close(): Promise<void> {
    this.#socket?.destroy();
    if (this.#raw !== undefined) await destroyed(this.#raw);
  }
}

/** What the kernel has not taken yet. Node has no public name for it. */
function queuedBytes(raw: net.Socket | undefined): number {
  const { _handle: handle } = raw as unknown as { _handle: { writeQueueSize?: number } | null };
  return handle?.writeQueueSize ?? 0;
}
