/**
 * A channel's sending end, on the channel's own thread: connected, written to in one call at a time, watched, ended.
 *
 *     connect()  -> write(pieces) -> flushed() -> write() ...  -> finish(): everything written, then the end
 *        broken by the peer, by a stall, by break(): flushed() throws why, whatever it waits for
 *
 *     written by   write-pieces.ts      all pieces in one call of the system's
 *                  write-portions.ts    with TLS
 *                  zero-copy.ts         with zeroCopySend: pages are not copied
 *
 * Who owns the bytes: the pieces that write() gets are the connection's until flushed() returns; the kernel reads them
 * where they lie, in guest RAM as well. With zeroCopySend the pages among them are the kernel's until released() returns,
 * or until the connection is closed: one that is given up while the kernel has pages is reset, and sends no more of them.
 */
import { performance } from 'node:perf_hooks';
import { MultifdError } from '../errors.js';
import { ZeroCopySocket } from '../native/sockets.js';
import { requireSystemCalls } from '../native/system-calls.js';
import type { Address } from './address.js';
import type net from 'node:net';
import { connect } from './connect.js';
import { destroyed } from './raw-socket.js';
import { brokenBy } from './tls/broken.js';
import { tlsAgreed, type TlsAgreed } from './tls/agreed.js';
import type { TlsCredentials } from './tls/credentials.js';
import { watchStall } from './stall.js';
import { writePieces } from './write-pieces.js';
import { PortionWriter } from './write-portions.js';
import { ZeroCopyWriter } from './zero-copy.js';

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
  /** Are pages sent without a copy? Then told how many packets of them went out, and how many were copied all the same. */
  zeroCopy: ZeroCopyCounter | undefined;
  /** Called once, when the connection has broken; what it returns is what flushed() throws. */
  broke: (error: MultifdError) => MultifdError;
}

export interface ZeroCopyCounter {
  sent: (packets: number) => void;
  copied: (packets: number) => void;
}

export class SendConnection {
  readonly #options: SendConnectionOptions;
  #socket: net.Socket | undefined;
  #raw: net.Socket | undefined;
  /** With TLS. */
  #portions: PortionWriter | undefined;
  /** With zeroCopySend. */
  #zeroCopy: ZeroCopyWriter | undefined;
  #unwatch: (() => void) | undefined;
  /** Until the kernel has done with pages. */
  #releasing = false;
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
      this.#endedEarly();
    });
    if (this.#options.zeroCopy === undefined) this.#watchStall(socket, stallTimeoutMs);
    else this.#openZeroCopy(socket, this.#options.zeroCopy);
    socket.setKeepAlive(true, KEEP_ALIVE_MS);
  }

  /** Node sees nothing of what is written then, so that it is watched here, the wait for completions as well. */
  #openZeroCopy(socket: net.Socket, { sent, copied }: ZeroCopyCounter): void {
    const fd = descriptorOf(socket);
    const native = new ZeroCopySocket(requireSystemCalls('zeroCopySend'), fd);
    native.enable();
    const writer = new ZeroCopyWriter(native, {
      isOpen: () => !socket.destroyed && descriptorOf(socket) === fd,
      // The reason first: where memory may not be locked the connection stands, and its end is all that the peer sees.
      broke: (error) => this.break(writeFailed(error), () => setImmediate(() => this.#drop())),
      sent,
      copied,
    });
    this.#zeroCopy = writer;
    const { stallTimeoutMs } = this.#options;
    const moved = (): number | undefined => (this.#writing || this.#releasing ? writer.moved : undefined);
    this.#unwatch = watchStall(stallTimeoutMs, moved, () => this.#stalled());
  }

  /** Is the peer's end one in the middle? It has acknowledged all that it has read, so pages that are still out it has not. */
  #endedEarly(): void {
    if (this.#releasing) this.#zeroCopy?.reap();
    if (this.#writing || (this.#releasing && this.#zeroCopy?.hasPages === true))
      this.break(new MultifdError('ERR_MULTIFD_CONNECTION', 'the peer closed the channel'));
  }

  #stalled(): void {
    const message = `the peer has read nothing for ${this.#options.stallTimeoutMs} ms`;
    this.break(new MultifdError('ERR_MULTIFD_STALL', message));
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
        this.#stalled();
      } else socket.setTimeout(periodMs);
    });
  }

  /**
   * Ends it at once: the first reason counts.
   *
   * @param drop closes it, when whoever waits has heard of the reason
   */
  break(error: MultifdError, drop = (): void => this.#drop()): void {
    if (this.#broken !== undefined) return;
    this.#broken = this.#options.broke(error);
    this.#writing = false;
    this.#wakeWriter?.();
    drop();
  }

  #drop(): void {
    this.#unwatch?.();
    this.#zeroCopy?.stop();
    // An end would let the kernel send what it has of them later, from memory that may be something else's by then.
    if (this.#zeroCopy?.hasPages === true) this.#raw?.resetAndDestroy();
    this.#socket?.destroy();
    this.#raw?.destroy();
  }

  /**
   * Hands the pieces, at least one, to the kernel, in one call (with TLS, and without copies, in several). Only while nothing
   * is on its way.
   *
   * @param arePages of each piece: is it guest pages, which may go without a copy?
   */
  write(pieces: readonly Uint8Array[], arePages: readonly boolean[]): void {
    this.#writing = true;
    if (this.#zeroCopy !== undefined) this.#zeroCopy.write(pieces, arePages, this.#written);
    else if (this.#portions !== undefined) this.#portions.write(pieces, this.#written);
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

  /**
   * Until the memory of pages is not read any more: of all writes but the last so many, and with `but` 0 when nothing is on
   * its way either. Without zeroCopySend that is what flushed() says, and of earlier writes nothing is left to wait for.
   *
   * @throws why the connection broke
   */
  async released(but = 0): Promise<void> {
    if (but === 0) await this.flushed();
    if (this.#zeroCopy?.hasPages === true) {
      this.#releasing = true;
      if (this.#peerEnded) this.#endedEarly();
      await this.#zeroCopy.released(but);
      this.#releasing = false;
    }
    if (this.#broken !== undefined) throw this.#broken;
  }

  /** Orderly end: everything written, then the end: of TLS, and FIN. */
  async finish(): Promise<void> {
    await this.released();
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
    this.#drop();
    if (this.#raw !== undefined) await destroyed(this.#raw);
  }
}

/** As Node's own sockets say it. */
function writeFailed(error: Error): MultifdError {
  const isSystems = error instanceof MultifdError && error.code === 'ERR_MULTIFD_CONNECTION';
  return brokenBy(undefined, isSystems ? (error.cause as Error) : error, 'write failed');
}

/** Below 0 if it is closed. Node has no public name for it. */
function descriptorOf(socket: net.Socket): number {
  return (socket as unknown as { _handle: { fd: number } | null })._handle?.fd ?? -1;
}

/** What the kernel has not taken yet. Node has no public name for it. */
function queuedBytes(raw: net.Socket | undefined): number {
  const { _handle: handle } = raw as unknown as { _handle: { writeQueueSize?: number } | null };
  return handle?.writeQueueSize ?? 0;
}
