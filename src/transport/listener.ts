/**
 * The listening address: accepts connections in any order, reads their hellos, and gives each valid channel on.
 *
 *     accepted -- 4 bytes --> "QEVM", and a main stream is expected: to the session, once
 *        +- 2 bytes, 16 03 -> TLS, and a main stream is expected: the migration is refused
 *        +------- 64 bytes --> magic wrong             stray: dropped, counted
 *        |                     magic right, else wrong the migration is refused: version, uuid, id, taken already
 *        |                     all right               descriptor and surplus to the session
 *        +-- HELLO_MS without 64 bytes, or too many such --> stray: dropped, counted
 *
 * With TLS nothing can be told apart before the handshake but whether there will be one:
 *
 *     accepted -- 16 03, a whole ClientHello --> main expected: handshake here (main-handshakes.ts)
 *        |                                       else: descriptor to a channel's thread, before the handshake
 *        +------- "QEVM" or our magic ---------> a source that speaks plain text: told, stray
 *        +------- else, HELLO_MS, too many ----> stray
 *
 * One that is kept (option `keeps`) outlives the sessions that it serves, one after the other:
 *
 *     idle        every main stream that comes is its owner's to judge; a hello is a stranger's
 *     serve()     a session's channels come in; main streams still go to the owner
 *                 back to idle: all are in, and have been for a while, or leave()
 *
 * A peer that speaks our magic and gets the rest wrong is a misconfigured source, and the operator must hear of it; one
 * that does not is a port scanner or a health check. Runs on the calling thread.
 */
import net from 'node:net';
import { MultifdError, receivedExpected } from '../errors.js';
import { formatAddress, type Address } from './address.js';
import { SET_UP } from '../set-up.js';
import { trace } from '../trace.js';
import { HELLO_BYTES, MULTIFD_MAGIC } from '../wire/hello.js';
import type { Admission } from './admission.js';
import type { Connection } from './connect.js';
import { takeDescriptor, type TakenConnection } from './descriptor.js';
import type { CheckedTls } from './tls/check-options.js';
import { explainTlsFailure } from './tls/explain.js';
import { offersTls12 } from './tls/client-hello.js';
import { loadedTls } from './tls/loaded.js';
import type { MainHandshakes, PendingHandshake } from './tls/main-handshakes.js';
import type { TlsVersion } from './tls/options.js';
import { listenOnUnixSocket } from './unix-socket.js';

/** "QEVM": what the main migration stream begins with. */
const QEMU_VM_FILE_MAGIC = 0x5145564d;
/** A TLS record of the handshake, whatever its minor version; its header, and the most that one record holds. */
const TLS_HANDSHAKE = 0x1603;
const TLS_HEADER_BYTES = 5;
const TLS_RECORD_BYTES = 2 ** 14;
/** For what a connection is to show itself by: a hello, a ClientHello, a whole handshake. */
export const HELLO_MS = 10_000;
/** A migration's source with more channels connects its last ones when ours are in: it shall be told. */
const MORE_MS = 1000;
const BACKLOG = 511;

export interface ListenerEvents {
  /** A channel with a valid hello. */
  channel(id: number, connection: TakenConnection): void;
  /** The main stream, with what has been read of it, its magic first. Only if it is expected. */
  main?(connection: Connection, begun: Buffer): void;
  /** A hello that ends the migration. */
  refused(error: MultifdError): void;
  /** With TLS: a connection that begins a handshake, for a channel's thread. */
  candidate?(connection: TakenConnection, maxVersion: TlsVersion | undefined): void;
  /** With TLS: a handshake that failed, or a source that speaks plain text. */
  notSecured?(error: MultifdError): void;
  /** Nobody else is let in. */
  closed?(): void;
  /** A hello without the key that is expected. Where nobody asks, it is one more stray. */
  stranger?(): void;
}

export interface ListenerOptions {
  admission: Admission;
  /** Connections that have not said hello yet; beyond it the oldest goes. */
  maxStrays: number;
  tls: CheckedTls | undefined;
  /** It is its owner's, who gives its sessions to it and closes it. */
  keeps?: boolean;
}

export class Listener {
  /** Connections that were dropped because they were no channels. */
  strays = 0;
  /** Did one of them begin with a TLS ClientHello? */
  sawTls = false;
  readonly #server: net.Server;
  /** Connections without a hello so far, oldest first, and what ends their time. */
  readonly #silent = new Map<net.Socket, NodeJS.Timeout>();
  /** While it is idle, its own. */
  readonly #idle: { admission: Admission; events: ListenerEvents };
  readonly #keeps: boolean;
  #admission: Admission;
  readonly #tls: CheckedTls | undefined;
  readonly #mainHandshakes: MainHandshakes | undefined;
  #events: ListenerEvents;
  readonly #maxStrays: number;
  #closed = false;
  #mainTaken = false;
  #more: NodeJS.Timeout | undefined;

  constructor({ admission, maxStrays, tls, keeps = false }: ListenerOptions, events: ListenerEvents) {
    this.#idle = { admission, events };
    this.#keeps = keeps;
    this.#admission = admission;
    this.#maxStrays = maxStrays;
    this.#events = events;
    this.#tls = tls;
    if (tls !== undefined && events.main !== undefined) {
      const { MainHandshakes } = loadedTls();
      this.#mainHandshakes = new MainHandshakes(
        tls,
        HELLO_MS,
        {
          main: (socket, raw) => this.#securedMain({ socket, raw, tls: tls.credentials }),
          rest: (pending) => this.#candidate(pending),
          failed: (error) => this.#notSecured(error),
        },
        keeps,
      );
    }
    this.#server = net.createServer({ noDelay: true, allowHalfOpen: true }, (socket) => this.#accept(socket));
  }

  /** @throws MultifdError ERR_MULTIFD_LISTEN */
  async listen(address: Address, mode = 0o600): Promise<Address> {
    if (address.path !== undefined) {
      try {
        this.#remove = await listenOnUnixSocket(this.#server, address.path, { mode, backlog: BACKLOG });
      } catch (error) {
        throw MultifdError.wrap(error, 'ERR_MULTIFD_LISTEN', `cannot listen on ${formatAddress(address)}`);
      }
      this.#server.on('error', () => {});
      // The session ended meanwhile.
      if (this.#closed) this.#end();
      return address;
    }
    await new Promise<void>((resolve, reject) => {
      const failed = (error: Error): void =>
        reject(MultifdError.wrap(error, 'ERR_MULTIFD_LISTEN', `cannot listen on ${formatAddress(address)}`));
      this.#server.once('error', failed);
      this.#server.listen({ ...address, backlog: BACKLOG }, () => {
        this.#server.off('error', failed);
        // The session ended while a name was looked up.
        if (this.#closed) this.#server.close();
        resolve();
      });
    });
    // Failing to accept (no descriptors left) is the operating system's moment; channels that never come in time out.
    this.#server.on('error', () => {});
    const bound = this.#server.address();
    if (bound === null || typeof bound === 'string') return address;
    return { host: bound.address, port: bound.port };
  }

  #accept(socket: net.Socket): void {
    if (this.#closed) {
      socket.destroy();
      return;
    }
    for (const oldest of this.#silent.keys()) {
      if (this.#silent.size < this.#maxStrays) break;
      this.#drop(oldest, 'too many connections without a hello');
    }
    const tls = this.#tls;
    const hello = Buffer.alloc(tls === undefined ? HELLO_BYTES : TLS_HEADER_BYTES + TLS_RECORD_BYTES);
    let have = 0;
    // A time-out of the socket would begin anew with every byte.
    const timer = setTimeout(() => this.#drop(socket, `no hello within ${HELLO_MS} ms`), HELLO_MS);
    this.#silent.set(socket, timer);
    socket.on('error', () => this.#drop(socket, 'broken before its hello'));
    socket.on('end', () => this.#drop(socket, 'ended before its hello'));
    socket.on('close', () => this.#drop(socket, 'closed before its hello'));
    if (tls !== undefined) {
      socket.on('data', (chunk: Buffer) => {
        const from = have;
        have += chunk.copy(hello, have);
        if (this.#silent.has(socket))
          this.#begun(socket, tls, hello.subarray(0, have), chunk.subarray(have - from));
      });
      return;
    }
    socket.on('data', (chunk: Buffer) => {
      if (have === HELLO_BYTES) return;
      const count = chunk.copy(hello, have, 0);
      have += count;
      if (have >= 2 && !this.#complete && this.#events.main !== undefined && isTls(hello)) {
        have = HELLO_BYTES;
        this.#refuseTls(socket);
      } else if (
        have >= 4 &&
        this.#events.main !== undefined &&
        hello.readUInt32BE(0) === QEMU_VM_FILE_MAGIC
      ) {
        this.#main(socket, Buffer.concat([hello.subarray(0, have), chunk.subarray(count)]));
        have = HELLO_BYTES;
      } else if (have === HELLO_BYTES) this.#hello(socket, hello, chunk.subarray(count));
    });
  }

  #drop(socket: net.Socket, why: string): void {
    if (!this.#forget(socket)) return;
    this.strays++;
    trace('multifd_recv_new_channel', () => ({ stray: why }));
    socket.destroy();
  }

  // ---- with TLS ----

  /** @param begun what has come so far, and `rest` behind it */
  #begun(socket: net.Socket, { credentials }: CheckedTls, begun: Buffer, rest: Buffer): void {
    if (begun.length >= 2 && isTls(begun)) {
      if (begun.length < TLS_HEADER_BYTES) return;
      const record = begun.readUInt16BE(TLS_HEADER_BYTES - 2);
      if (record > TLS_RECORD_BYTES) this.#drop(socket, 'no TLS record');
      else if (begun.length >= TLS_HEADER_BYTES + record) {
        const hello = begun.subarray(0, TLS_HEADER_BYTES + record);
        const old =
          !loadedTls().ticketsCanBeStopped() && credentials.minVersion === 'TLSv1.2' && offersTls12(hello);
        const maxVersion = old ? 'TLSv1.2' : undefined;
        this.#secure({ raw: socket, maxVersion }, Buffer.concat([begun, rest]));
      }
    } else if (begun.length >= 4) {
      const magic = begun.readUInt32BE(0);
      this.#drop(socket, 'plain text');
      if (magic !== QEMU_VM_FILE_MAGIC && magic !== MULTIFD_MAGIC) return;
      const error = Object.assign(new Error('plain text'), { code: 'ERR_SSL_WRONG_VERSION_NUMBER' });
      this.#events.notSecured?.(explainTlsFailure({ credentials, error }));
    }
  }

  #secure(pending: PendingHandshake, begun: Buffer): void {
    const { raw: socket } = pending;
    this.#forget(socket);
    socket.pause();
    // By name: a stream that has all of its listeners removed flows again.
    for (const event of ['data', 'end', 'close', 'error']) socket.removeAllListeners(event);
    socket.on('error', () => {});
    // Read again, by whoever does the handshake.
    socket.unshift(begun);
    const isServing = this.#keeps ? !this.#isIdle : this.#mainTaken;
    const main = isServing ? undefined : this.#mainHandshakes;
    if (main === undefined) {
      this.#candidate(pending);
      return;
    }
    if (main.count >= this.#maxStrays) main.dropOldest();
    main.add(pending);
  }

  #candidate({ raw, maxVersion }: PendingHandshake): void {
    const connection = takeDescriptor(raw);
    if (connection !== undefined) this.#events.candidate?.(connection, maxVersion);
  }

  /** Handshakes that may still be those of a main stream. */
  get handshakes(): number {
    return this.#mainHandshakes?.count ?? 0;
  }

  #notSecured(error: MultifdError): void {
    this.strays++;
    trace('multifd_recv_new_channel', () => ({ stray: error.message }));
    this.#events.notSecured?.(error);
  }

  #securedMain(connection: Connection): void {
    this.#mainTaken = !this.#keeps;
    trace('multifd_recv_new_channel', () => ({ main: true }));
    this.#events.main?.(connection, Buffer.alloc(0));
    this.closeIfComplete();
  }

  // ---- without ----

  #refuseTls(socket: net.Socket): void {
    this.#forget(socket);
    socket.destroy();
    const received = 'a TLS ClientHello: the source has tls-creds set';
    const expected = `plain text, as there are no credentials here (${SET_UP.tls}); in QEMU: migrate_set_parameter tls-creds ""`;
    const message = receivedExpected('first bytes of a connection', received, expected);
    this.#events.refused(new MultifdError('ERR_MULTIFD_TLS', message));
  }

  #main(socket: net.Socket, begun: Buffer): void {
    if (this.#mainTaken) {
      this.#drop(socket, 'a second main stream');
      return;
    }
    this.#mainTaken = !this.#keeps;
    this.#forget(socket);
    socket.pause();
    socket.removeAllListeners();
    socket.on('error', () => {});
    trace('multifd_recv_new_channel', () => ({ main: true }));
    this.#events.main?.({ socket, raw: socket, tls: undefined }, begun);
    this.closeIfComplete();
  }

  /** Nobody else is expected: no further connections. */
  closeIfComplete(): void {
    if (!this.#complete) return;
    if (this.#events.main === undefined) this.close();
    // Through TLS a main stream could not be told from one channel more.
    else if (this.#keeps && this.#tls !== undefined) this.leave(this.#admission);
    else if (this.#keeps)
      this.#more = setTimeout((of: Admission) => this.leave(of), MORE_MS, this.#admission);
    else this.#more = setTimeout(() => this.close(), MORE_MS);
  }

  get #complete(): boolean {
    if (!this.#admission.complete) return false;
    if (this.#keeps) return !this.#isIdle;
    return this.#mainTaken || this.#events.main === undefined;
  }

  // ---- one that is kept ----

  get #isIdle(): boolean {
    return this.#admission === this.#idle.admission;
  }

  /** From now on the channels of a session are let in. @param events without main: that is its owner's */
  serve(admission: Admission, events: Omit<ListenerEvents, 'main'>): void {
    this.#admission = admission;
    this.#events = { ...events, main: (...came) => this.#idle.events.main?.(...came) };
  }

  /** And from now on no longer. */
  leave(of: Admission): void {
    if (this.#isIdle || of !== this.#admission) return;
    clearTimeout(this.#more);
    const events = this.#events;
    ({ admission: this.#admission, events: this.#events } = this.#idle);
    events.closed?.();
  }

  #forget(socket: net.Socket): boolean {
    clearTimeout(this.#silent.get(socket));
    return this.#silent.delete(socket);
  }

  #hello(socket: net.Socket, bytes: Buffer, rest: Buffer): void {
    let admitted: { id: number; uuid: Uint8Array };
    if (isChannel(bytes) && this.#admission.isStranger(bytes)) {
      this.#drop(socket, 'not of this migration');
      this.#events.stranger?.();
      return;
    }
    try {
      admitted = this.#admission.check(bytes);
    } catch (thrown) {
      const error = MultifdError.wrap(thrown, 'ERR_MULTIFD_WORKER', 'hello');
      this.#drop(socket, error.message);
      if (error.code === 'ERR_MULTIFD_MAGIC') {
        this.sawTls ||= isTls(bytes);
        return;
      }
      this.strays--;
      this.#events.refused(error);
      return;
    }
    this.#forget(socket);
    const connection = takeDescriptor(socket);
    if (connection === undefined) return;
    const { id, uuid } = admitted;
    this.#admission.take(id, uuid);
    connection.surplus = Buffer.concat([rest, connection.surplus]);
    trace('multifd_recv_new_channel', () => ({ id }));
    this.#events.channel(id, connection);
    this.closeIfComplete();
  }

  #end(): void {
    this.#server.close();
    this.#remove?.();
  }
  #remove: (() => void) | undefined;

  /** No further connections; a unix socket's path goes. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    clearTimeout(this.#more);
    this.#mainHandshakes?.close();
    this.#end();
    for (const socket of [...this.#silent.keys()])
      this.#drop(socket, 'all channels are in, or the session has ended');
    this.#events.closed?.();
  }
}

function isChannel(hello: Buffer): boolean {
  return hello.readUInt32BE(0) === MULTIFD_MAGIC;
}

function isTls(begun: Buffer): boolean {
  return begun.readUInt16BE(0) === TLS_HANDSHAKE;
}
