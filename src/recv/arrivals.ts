/**
 * Who comes in, and until when: the listening address, main and channels as they are let in, and the times that the next one
 * has. On the calling thread.
 *
 *     nobody                acceptTimeoutMs for the first one; 0: for ever
 *     main or a channel     connectTimeoutMs for the next one, each anew, since a source may need a while to start 255
 *     a handshake failed    REFUSED_GRACE_MS for anybody good, while nobody is in
 *
 * A channel's descriptor is handed to its thread when the blocks are known (begin()): without TLS it waits here for that,
 * with TLS at its seat, behind its handshake.
 */
import type { MessagePort } from 'node:worker_threads';
import { MultifdError, codeOf, receivedExpected } from '../errors.js';
import type { CheckedReceiverOptions } from '../options.js';
import { SET_UP } from '../set-up.js';
import { STOP_RUN, type Control } from '../shared/control.js';
import type { Address } from '../transport/address.js';
import { Admission } from '../transport/admission.js';
import type { Connection } from '../transport/connect.js';
import { freeHusks, type TakenConnection } from '../transport/descriptor.js';
import { HELLO_MS, Listener, type ListenerEvents } from '../transport/listener.js';
import type { CheckedTls } from '../transport/tls/check-options.js';
import { isOfCredentials } from '../transport/tls/explain.js';
import type { ReceiveChannelTask } from './channel.js';
import type { TlsSeatTask } from './tls-seat.js';
import { TlsSeats } from './tls-seats.js';

/** How long a source may be waited for when somebody's handshake has failed and nobody is in. */
const REFUSED_GRACE_MS = 5000;
const RETRY_MS = 250;

/** The receiver. */
export interface ArrivalsSession {
  control: Control;
  fail: (error: MultifdError) => void;
  start: (id: number, task: ReceiveChannelTask | TlsSeatTask, transfer?: readonly MessagePort[]) => void;
  /** Without a connection. */
  taskOf: (id: number) => ReceiveChannelTask;
}

/** Of a migration with a main stream. */
export interface ArrivalsHooks {
  /** Without it main is in already. */
  main?(connection: Connection, begun: Buffer): void;
  anyUuid?: boolean;
  /** Of a migration that may be carried on: listens already, and longer than this session; see stream/resume-section.ts. */
  kept?: { listener: Listener; address: Address; key: Buffer };
}

export class Arrivals {
  /** Resolves when the first channel is in. */
  readonly firstIn: Promise<void>;
  readonly #options: CheckedReceiverOptions;
  readonly #session: ArrivalsSession;
  readonly #admission: Admission;
  readonly #listener: Listener;
  readonly #kept: ArrivalsHooks['kept'];
  readonly #events: ListenerEvents;
  readonly #seats: TlsSeats | undefined;
  /** A main stream comes in at all, and has not yet. */
  readonly #hasMain: boolean;
  #mainDue: boolean;
  readonly #connections: (TakenConnection | undefined)[] = [];
  #begun = false;
  #resolveFirst!: () => void;
  #timer: NodeJS.Timeout | undefined;
  #tlsError: MultifdError | undefined;
  /** How much that says: of credentials, of a connection that was closed, or nothing. */
  #told = -1;
  #grace: NodeJS.Timeout | undefined;

  constructor(options: CheckedReceiverOptions, hooks: ArrivalsHooks | undefined, session: ArrivalsSession) {
    this.#options = options;
    this.#session = session;
    this.#hasMain = this.#mainDue = hooks?.main !== undefined;
    this.#kept = hooks?.kept;
    this.firstIn = new Promise((resolve) => (this.#resolveFirst = resolve));
    const { channels, maxStrays, tls, uuid } = options;
    const admission = new Admission(channels, hooks?.anyUuid === true ? undefined : uuid, this.#kept?.key);
    this.#admission = admission;
    this.#events = {
      channel: (id, connection) => this.#takeIn(id, connection),
      refused: session.fail,
      candidate: (connection, maxVersion) => this.#seats?.take(connection, maxVersion),
      notSecured: (error) => this.#notSecured(error),
      closed: () => this.#seats?.close(),
      ...(hooks?.main && { main: (connection, begun) => this.#takeMain(hooks, connection, begun) }),
    };
    this.#listener = this.#kept?.listener ?? new Listener({ admission, maxStrays, tls }, this.#events);
    if (tls !== undefined) this.#seats = this.#makeSeats(tls);
  }

  #makeSeats(tls: CheckedTls): TlsSeats {
    return new TlsSeats({
      tls,
      admission: this.#admission,
      maxStrays: this.#options.maxStrays,
      helloMs: HELLO_MS,
      start: (id, seat, port) => {
        const { compression } = this.#options;
        this.#session.start(id, { ...seat, id, compression, shared: this.#session.control.shared }, [port]);
      },
      admitted: () => {
        this.#cameIn();
        this.#listener.closeIfComplete();
      },
      refused: this.#session.fail,
      stray: (error) => {
        this.#listener.strays++;
        if (error !== undefined) this.#notSecured(error);
      },
    });
  }

  /** @throws MultifdError ERR_MULTIFD_LISTEN */
  async listen(): Promise<Address> {
    if (this.#kept !== undefined) {
      this.#listener.serve(this.#admission, this.#events);
      return this.#kept.address;
    }
    return this.#listener.listen(this.#options.address, this.#options.listenMode);
  }

  /** Channels that have come in. */
  get count(): number {
    return this.#admission.count;
  }

  /** Connections that were dropped because they were no channels. */
  get strays(): number {
    return this.#listener.strays;
  }

  /** The VM's, as given or as the first hello has told it. */
  get uuid(): Uint8Array | undefined {
    return this.#admission.uuid;
  }

  /** The blocks are known: the channels may start, those that are in and those that come. */
  begin(): void {
    this.#begun = true;
    for (const [id, connection] of this.#connections.entries()) {
      if (connection !== undefined) this.#start(id, connection);
    }
    this.#seats?.begin(this.#session.taskOf);
  }

  expectFirst(): void {
    const { acceptTimeoutMs, connectTimeoutMs } = this.#options;
    if (this.#kept !== undefined) return this.#expect(connectTimeoutMs, 1);
    if (acceptTimeoutMs > 0) this.#expect(acceptTimeoutMs, 1);
  }

  #expect(ms: number, channels: number): void {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#session.fail(this.#tooLate(ms, channels)), ms);
  }

  #tooLate(ms: number, expected: number): MultifdError {
    const { count } = this.#admission;
    if (this.#isEmpty && this.#tlsError !== undefined) return this.#tlsError;
    const fewer =
      count > 0 && count < expected
        ? `the source has fewer channels than the ${expected} here: ${SET_UP.channels}: `
        : '';
    const isMainAlone = count === 0 && this.#hasMain && !this.#mainDue;
    const none = isMainAlone ? 'is capability multifd on at the source? ' : '';
    const channels = receivedExpected(`channels, no other within ${ms} ms`, count, expected);
    const main = this.#mainDue ? '; the main stream has not come in' : '';
    const tls = this.#listener.sawTls ? `; a connection came in with TLS: ${SET_UP.tls}` : '';
    return new MultifdError('ERR_MULTIFD_TIMEOUT', `${fewer}${none}${channels}${main}${tls}`);
  }

  /** While nobody is in: why somebody was refused, who is the source more often than not. */
  get refused(): MultifdError | undefined {
    return this.#isEmpty && this.#told > 0 ? this.#tlsError : undefined;
  }

  /** Neither main nor a channel is in. */
  get #isEmpty(): boolean {
    return this.#admission.count === 0 && this.#mainDue === this.#hasMain;
  }

  /** A channel or the main stream has come in: the next one has its time from now on. */
  #arrived(): void {
    clearTimeout(this.#grace);
    const { channels, connectTimeoutMs } = this.#options;
    if (this.#admission.complete && !this.#mainDue) clearTimeout(this.#timer);
    else this.#expect(connectTimeoutMs, channels);
  }

  get #isOver(): boolean {
    return this.#session.control.stopped !== STOP_RUN;
  }

  #takeMain(hooks: ArrivalsHooks, connection: Connection, begun: Buffer): void {
    if (this.#isOver) {
      connection.raw.destroy();
      return;
    }
    this.#mainDue = false;
    this.#arrived();
    hooks.main?.(connection, begun);
  }

  #takeIn(id: number, connection: TakenConnection): void {
    if (this.#isOver) {
      connection.husk.socket.destroy();
      return;
    }
    this.#cameIn();
    this.#connections[id] = connection;
    if (this.#begun) this.#start(id, connection);
  }

  /** A channel is in. */
  #cameIn(): void {
    this.#arrived();
    this.#resolveFirst();
  }

  #start(id: number, { fd, surplus }: TakenConnection): void {
    this.#session.start(id, { ...this.#session.taskOf(id), fd, surplus });
  }

  /**
   * A handshake that failed. It may be anybody's, so it ends nothing as long as a source comes; but it is the source's own
   * more often than not, and who waits for it shall be told.
   */
  #notSecured(error: MultifdError): void {
    // A source that is refused closes its channels inside their handshakes: that says less than what came before. One that is
    // silent or unreadable says nothing at all.
    const told = !isOfCredentials(error) ? 0 : codeOf(error.cause) === 'ECONNRESET' ? 1 : 2;
    if (told > this.#told || (told === this.#told && told !== 1)) {
      this.#tlsError = error;
      this.#told = told;
    }
    if (!isOfCredentials(error) || this.#grace !== undefined || !this.#isEmpty) return;
    this.#endGrace(Math.min(REFUSED_GRACE_MS, this.#options.connectTimeoutMs));
  }

  #endGrace(ms: number): void {
    this.#grace = setTimeout(() => {
      // Somebody is at it just now: has its time (HELLO_MS, and authorize's), and may be the good one.
      const isTried = this.#listener.handshakes + (this.#seats?.underWay ?? 0) > 0;
      if (isTried) this.#endGrace(RETRY_MS);
      else this.#session.fail(this.#tlsError as MultifdError);
    }, ms);
  }

  /** Nobody else is let in. */
  close(): void {
    if (this.#kept === undefined) this.#listener.close();
    else this.#listener.leave(this.#admission);
  }

  /** Channels that no thread has yet are broken at once: a source must not go on writing into them. */
  abandon(): void {
    for (const connection of this.#connections) connection?.husk.socket.destroy();
    this.#connections.length = 0;
  }

  /** The threads are gone: nothing is left of any connection. */
  release(): void {
    clearTimeout(this.#timer);
    clearTimeout(this.#grace);
    this.close();
    this.#seats?.release();
    freeHusks(this.#connections.flatMap((connection) => connection?.husk ?? []));
    this.#connections.length = 0;
  }
}
