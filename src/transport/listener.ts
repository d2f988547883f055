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
 * A peer that speaks our magic and gets the rest wrong is a misconfigured source, and the operator must hear of it; one
 * that does not is a port scanner or a health check. Runs on the calling thread.
 */
import net from 'node:net';
import { MultifdError, receivedExpected } from '../errors.js';
import { formatAddress, type Address } from './address.js';
import { SET_UP } from '../set-up.js';
import { trace } from '../trace.js';
import { HELLO_BYTES, decodeHello } from '../wire/hello.js';
import type { Connection } from './connect.js';
import { takeDescriptor, type TakenConnection } from './descriptor.js';
import { listenOnUnixSocket } from './unix-socket.js';

/** "QEVM": what the main migration stream begins with. */
const QEMU_VM_FILE_MAGIC = 0x5145564d;
/** A TLS record of the handshake, whatever its minor version. */
const TLS_HANDSHAKE = 0x1603;
const HELLO_MS = 10_000;
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
}

export class Listener {
  /** Connections that were dropped because they were no channels. */
  strays = 0;
  /** Did one of them begin with a TLS ClientHello? */
  sawTls = false;
  readonly #server: net.Server;
  /** Connections without a hello so far, oldest first, and what ends their time. */
  readonly #silent = new Map<net.Socket, NodeJS.Timeout>();
  readonly #taken = new Set<number>();
  /** What each hello must have; undefined until the first one has told it. */
  #uuid: Uint8Array | undefined;
  readonly #channels: number;
  readonly #events: ListenerEvents;
  readonly #maxStrays: number;
  #closed = false;
  #mainTaken = false;
  #more: NodeJS.Timeout | undefined;

  /**
   * @param options.uuid undefined: that of the first hello holds for all
   * @param options.maxStrays connections that have not said hello yet; beyond it the oldest goes
   */
  constructor(
    options: { uuid: Uint8Array | undefined; channels: number; maxStrays: number },
    events: ListenerEvents,
  ) {
    const { uuid, channels, maxStrays } = options;
    this.#uuid = uuid;
    this.#channels = channels;
    this.#maxStrays = maxStrays;
    this.#events = events;
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
    const hello = Buffer.alloc(HELLO_BYTES);
    let have = 0;
    // A time-out of the socket would begin anew with every byte.
    const timer = setTimeout(() => this.#drop(socket, `no hello within ${HELLO_MS} ms`), HELLO_MS);
    this.#silent.set(socket, timer);
    socket.on('error', () => this.#drop(socket, 'broken before its hello'));
    socket.on('end', () => this.#drop(socket, 'ended before its hello'));
    socket.on('close', () => this.#drop(socket, 'closed before its hello'));
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

  #refuseTls(socket: net.Socket): void {
    this.#forget(socket);
    socket.destroy();
    const received = 'a TLS ClientHello: the source has tls-creds set';
    const expected = `plain text: switch it off with migrate_set_parameter tls-creds "" (${SET_UP.tls})`;
    const message = receivedExpected('first bytes of a connection', received, expected);
    this.#events.refused(new MultifdError('ERR_MULTIFD_MAGIC', message));
  }

  #main(socket: net.Socket, begun: Buffer): void {
    if (this.#mainTaken) {
      this.#drop(socket, 'a second main stream');
      return;
    }
    this.#mainTaken = true;
    this.#forget(socket);
    socket.pause();
    socket.removeAllListeners();
    socket.on('error', () => {});
    trace('multifd_recv_new_channel', () => ({ main: true }));
    this.#events.main?.({ socket, raw: socket, tls: undefined }, begun);
    this.#closeIfComplete();
  }

  #closeIfComplete(): void {
    if (!this.#complete) return;
    if (this.#events.main === undefined) this.close();
    else this.#more = setTimeout(() => this.close(), MORE_MS);
  }

  get #complete(): boolean {
    if (this.#taken.size < this.#channels) return false;
    return this.#mainTaken || this.#events.main === undefined;
  }

  #forget(socket: net.Socket): boolean {
    clearTimeout(this.#silent.get(socket));
    return this.#silent.delete(socket);
  }

  #hello(socket: net.Socket, bytes: Buffer, rest: Buffer): void {
    let id: number;
    let uuid: Uint8Array;
    try {
      const decoded = decodeHello(bytes, { uuid: this.#uuid, channels: this.#channels });
      id = decoded.id;
      uuid = decoded.uuid;
      if (this.#taken.has(id)) {
        throw new MultifdError(
          'ERR_MULTIFD_CHANNEL_DUPLICATE',
          receivedExpected(
            `hello of channel ${id}`,
            'a second connection',
            'one connection for each channel',
          ),
          { channel: id },
        );
      }
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
    this.#taken.add(id);
    this.#uuid = uuid;
    connection.surplus = Buffer.concat([rest, connection.surplus]);
    trace('multifd_recv_new_channel', () => ({ id }));
    this.#events.channel(id, connection);
    this.#closeIfComplete();
  }

  /** The VM's, as given or as the first hello has told it. */
  get uuid(): Uint8Array | undefined {
    return this.#uuid;
  }

  /** Channels that have come in. */
  get count(): number {
    return this.#taken.size;
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
    this.#end();
    for (const socket of [...this.#silent.keys()])
      this.#drop(socket, 'all channels are in, or the session has ended');
  }
}

function isTls(begun: Buffer): boolean {
  return begun.readUInt16BE(0) === TLS_HANDSHAKE;
}
