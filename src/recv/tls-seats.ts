/**
 * The calling thread's side of the seats (tls-seat.ts): gives connections to them, asks for consent, looks at hellos, tells
 * each channel its task.
 *
 *     a connection --> a new seat while there are fewer than channels and the others have one, else the seat with the fewest
 *
 * So each channel has a thread of its own as long as nobody else connects, and strays share what there is. Beyond
 * maxStrays under way the oldest is dropped.
 */
import { MessageChannel, type MessagePort } from 'node:worker_threads';
import { MultifdError, codeOf } from '../errors.js';
import type { Admission } from '../transport/admission.js';
import { freeHusks, type TakenConnection } from '../transport/descriptor.js';
import type { CheckedTls } from '../transport/tls/check-options.js';
import type { TlsVersion } from '../transport/tls/options.js';
import type { FromSeat, TlsSeatTask, ToSeat } from './tls-seat.js';
import type { ReceiveChannelTask } from './channel.js';

/** Descriptors of strays are freed so many at a time. */
const FREE_AT_ONCE = 32;

export interface TlsSeatsOptions {
  tls: CheckedTls;
  admission: Admission;
  maxStrays: number;
  helloMs: number;
  /** Starts a seat's thread. */
  start: (seat: number, task: Omit<TlsSeatTask, 'shared' | 'id' | 'compression'>, port: MessagePort) => void;
  /** A channel is in. */
  admitted: (id: number) => void;
  /** A hello that ends the migration. */
  refused: (error: MultifdError) => void;
  /** A connection that was no channel; why, if it had a handshake that failed. */
  stray: (error: MultifdError | undefined) => void;
}

interface Seat {
  port: MessagePort;
  /** Channels, and connections that may become some. */
  load: number;
}

interface Given {
  seat: Seat;
  husk: TakenConnection['husk'];
  /** Its hello was good. */
  id: number | undefined;
  /** Its seat has been told so, and has not closed it yet. */
  dropped: boolean;
}

export class TlsSeats {
  readonly #options: TlsSeatsOptions;
  readonly #seats: Seat[] = [];
  readonly #given = new Map<number, Given>();
  readonly #closed: TakenConnection['husk'][] = [];
  #next = 0;
  #taskOf: ((id: number) => ReceiveChannelTask) | undefined;
  /** Channels whose task is not known yet. */
  readonly #early: number[] = [];
  #over = false;

  constructor(options: TlsSeatsOptions) {
    this.#options = options;
  }

  take({ fd, surplus, husk }: TakenConnection, maxVersion: TlsVersion | undefined): void {
    if (this.#over) {
      husk.socket.destroy();
      return;
    }
    this.#dropOldest();
    const seat = this.#seatFor();
    const n = this.#next++;
    seat.load++;
    this.#given.set(n, { seat, husk, id: undefined, dropped: false });
    this.#post(seat, { kind: 'take', n, fd, surplus, maxVersion });
  }

  /** The channels may start: from now on what each is to do is known. */
  begin(taskOf: (id: number) => ReceiveChannelTask): void {
    this.#taskOf = taskOf;
    for (const n of this.#early.splice(0)) this.#begin(n);
  }

  /** Nobody else is expected. */
  close(): void {
    this.#over = true;
    for (const seat of this.#seats) this.#post(seat, { kind: 'leave' });
  }

  /** The threads are gone. */
  release(): void {
    this.#over = true;
    for (const { port } of this.#seats) port.close();
    freeHusks([...this.#closed, ...[...this.#given.values()].map(({ husk }) => husk)]);
    this.#given.clear();
    this.#closed.length = 0;
  }

  /** Connections that may still become channels. */
  get underWay(): number {
    return this.#strays().length;
  }

  #strays(): [number, Given][] {
    return [...this.#given].filter(([, { id, dropped }]) => id === undefined && !dropped);
  }

  #dropOldest(): void {
    const strays = this.#strays();
    if (strays.length < this.#options.maxStrays) return;
    this.#drop(...strays[0]);
  }

  #drop(n: number, given: Given): void {
    given.dropped = true;
    this.#post(given.seat, { kind: 'drop', n });
  }

  #seatFor(): Seat {
    const idle = this.#seats.find(({ load }) => load === 0);
    if (idle !== undefined) return idle;
    const { admission, tls, helloMs, start } = this.#options;
    if (this.#seats.length === admission.channels) {
      return this.#seats.reduce((fewest, seat) => (seat.load < fewest.load ? seat : fewest));
    }
    const { port1, port2 } = new MessageChannel();
    const seat: Seat = { port: port1, load: 0 };
    port1.on('message', (message: FromSeat) => void this.#hear(message));
    // The session keeps the process alive.
    port1.unref();
    start(this.#seats.length, { tls: tls.credentials.toPlain(), port: port2, helloMs }, port2);
    this.#seats.push(seat);
    return seat;
  }

  async #hear(message: FromSeat): Promise<void> {
    const { n } = message;
    const given = this.#given.get(n);
    if (given === undefined) return;
    if (message.kind === 'ask') {
      // Whatever it throws is no consent.
      const yes = await Promise.resolve()
        .then(() => this.#options.tls.authorize?.(message.peer))
        .catch(() => false);
      this.#post(given.seat, { kind: 'consent', n, yes: yes === true });
    } else if (message.kind === 'hello') this.#hello(n, given, Buffer.from(message.bytes));
    else this.#strayed(n, given, message.error && MultifdError.fromPlain(message.error));
  }

  #hello(n: number, given: Given, bytes: Buffer): void {
    // On its way when it was dropped.
    if (given.dropped) return;
    const { admission, admitted, refused } = this.#options;
    if (admission.isStranger(bytes)) {
      this.#drop(n, given);
      return;
    }
    try {
      const { id, uuid } = admission.check(bytes);
      admission.take(id, uuid);
      given.id = id;
    } catch (thrown) {
      const error = MultifdError.wrap(thrown, 'ERR_MULTIFD_WORKER', 'hello');
      this.#drop(n, given);
      // As without TLS: who speaks our magic and gets the rest wrong is a source that is set up wrongly.
      if (codeOf(error) !== 'ERR_MULTIFD_MAGIC') refused(error);
      return;
    }
    admitted(given.id);
    if (this.#taskOf === undefined) this.#early.push(n);
    else this.#begin(n);
  }

  #begin(n: number): void {
    const given = this.#given.get(n);
    if (given?.id === undefined || this.#taskOf === undefined) return;
    this.#post(given.seat, { kind: 'channel', n, task: this.#taskOf(given.id) });
  }

  #strayed(n: number, given: Given, error: MultifdError | undefined): void {
    this.#given.delete(n);
    given.seat.load--;
    this.#closed.push(given.husk);
    if (this.#closed.length >= FREE_AT_ONCE) freeHusks(this.#closed.splice(0));
    if (!this.#over) this.#options.stray(error);
  }

  #post(seat: Seat, message: ToSeat): void {
    seat.port.postMessage(message);
  }
}
