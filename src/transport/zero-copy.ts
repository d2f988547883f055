/**
 * Sending without a copy, on the channel's own thread: what SendConnection writes with where option zeroCopySend is set.
 *
 *     pieces   header | pages, pages | header | header | pages ...
 *              sendCopy  sendInPlace   sendCopy          sendInPlace      in this order, each as far as the socket has room
 *                  no room: poll in slices, a turn of the event loop between them
 *     later    the kernel's completions --> zero-copy-calls.ts --> released()
 *
 * Node's socket writes nothing itself meanwhile: all goes through here, from the hello to the last SYNC, so that no byte
 * passes another. Node still reads, to notice an end or a reset, and closes. It polls the same descriptor and is woken as
 * long as completions lie there, so they are taken away at once, by a timer where nothing else is to be done.
 *
 * Who owns the bytes: the list of pieces, and those that are copied, only until `written` is called. Pages are the kernel's
 * until released() says so, and what they hold in that time is what arrives: it reads a page when it sends it, and once more
 * when it has to send it again. So:
 *
 *     guest RAM that is shared      the embedder's, which may write to it at any time: whoever writes to a page queues it again,
 *                                   as with every way to send. sync() waits for released(): behind it nothing is read
 *     staging buffers, slots        the channel's: used again only when they are released
 *
 * If the connection breaks, or is given up, while pages are with the kernel, it is reset, so that the kernel sends nothing
 * of them any more (SendConnection). Memory that is dropped then is no danger: the kernel has pinned the pages that it has, and
 * gives them to nobody else before. (A thread that had to be terminated cannot reset: what the kernel had then is still sent.)
 */
import { performance } from 'node:perf_hooks';
import { MAX_PIECES, type SendResult, type ZeroCopySocket } from '../native/sockets.js';
import { tooLittleLockedMemory } from './locked-memory.js';
import { ZeroCopyCalls } from './zero-copy-calls.js';

/** Of one call: a packet's pages. The kernel locks memory for the whole of it, however little it takes. */
const MAX_CALL_BYTES = 2 ** 19;
/** Where memory may not be locked: down to the smallest page. */
const MIN_CALL_BYTES = 4096;
/** So long the thread stands still at a time; what else happens to the channel waits as long. */
const SLICE_MS = 5;
/** Between looks at completions while nothing is waited for. */
const IDLE_MS = 1;
const MAX_IDLE_MS = 16;
/** Other channels may have all the memory that may be locked: for how long it is tried without any of this one's own. */
const LOCKED_MS = 1000;
const LOCKED_RETRY_MS = 10;
/** Writes that released() can be asked about. */
const MAX_MARKS = 16;

type NativeSocket = Pick<ZeroCopySocket, 'sendInPlace' | 'sendCopy' | 'reap' | 'wait' | 'waitForCompletion'>;

export interface ZeroCopyHooks {
  /** Is the descriptor still this connection's? Asked before each call. */
  isOpen: () => boolean;
  /** Nothing goes on; called once. */
  broke: (error: Error) => void;
  /** Packets whose pages have all been handed over, and of these later such as the kernel has copied all the same. */
  sent: (packets: number) => void;
  copied: (packets: number) => void;
}

export class ZeroCopyWriter {
  readonly #socket: NativeSocket;
  readonly #hooks: ZeroCopyHooks;
  readonly #calls = new ZeroCopyCalls();
  /** Of the write on its way; #index and #at say how far it is. */
  #pieces: readonly Uint8Array[] = [];
  #inPlace: readonly boolean[] = [];
  #index = 0;
  #at = 0;
  #written: (() => void) | undefined;
  /** Of the last writes: the calls that were made when they were through. */
  readonly #marks: number[] = [];
  readonly #batch: Uint8Array[] = [];
  #callBytes = MAX_CALL_BYTES;
  /** Since when memory has not been had for the smallest call, with none outstanding. */
  #lockedSince: number | undefined;
  /** Waits for room in the socket, which ends with a completion as well. */
  #waiting = false;
  #moved = 0;
  #idleMs = IDLE_MS;
  #idle: NodeJS.Timeout | undefined;
  #broken = false;

  constructor(socket: NativeSocket, hooks: ZeroCopyHooks) {
    this.#socket = socket;
    this.#hooks = hooks;
  }

  /** Grows whenever something moves: bytes that the kernel has taken, and completions. */
  get moved(): number {
    return this.#moved;
  }

  /** Does the kernel have pages? */
  get hasPages(): boolean {
    return this.#calls.outstanding > 0;
  }

  /**
   * To be called only while nothing else is being written.
   *
   * @param pieces none of them empty
   * @param inPlace of each piece: is it pages?
   * @param written called once, when the kernel has taken all: it has copied what is no page
   */
  write(pieces: readonly Uint8Array[], inPlace: readonly boolean[], written: () => void): void {
    this.#pieces = pieces.slice();
    this.#inPlace = inPlace.slice();
    this.#index = 0;
    this.#at = 0;
    this.#written = written;
    this.#callBytes = MAX_CALL_BYTES;
    this.#try(() => this.#advance());
  }

  /** What the kernel has done with by now. */
  reap(): void {
    this.#try(() => this.#reap());
  }

  /**
   * Until the kernel has done with the pages of all writes but the last so many; or the connection has broken.
   *
   * @param but below MAX_MARKS; a write on its way is one of them
   */
  async released(but: number): Promise<void> {
    const last = this.#marks.length - (this.#written === undefined ? 1 : 0);
    const made = this.#marks[last - but];
    if (made === undefined) return;
    this.reap();
    while (this.#isOpen() && !this.#calls.areDone(made)) {
      await new Promise(setImmediate);
      this.#try(() => {
        this.#reap();
        if (this.#calls.areDone(made) || this.#waiting) return;
        this.#socket.waitForCompletion(SLICE_MS);
        this.#reap();
      });
    }
  }

  /** No timer is left. */
  stop(): void {
    this.#broken = true;
    clearTimeout(this.#idle);
  }

  #isOpen(): boolean {
    return !this.#broken && this.#hooks.isOpen();
  }

  /** Calls of the system, as long as the descriptor is ours: a number that was closed may be somebody else's. */
  #try(step: () => void): void {
    if (!this.#isOpen()) return;
    try {
      step();
    } catch (error) {
      this.stop();
      this.#hooks.broke(error as Error);
    }
  }

  #advance(): void {
    while (this.#index < this.#pieces.length) {
      const sent = this.#call();
      if (typeof sent === 'number') continue;
      if (sent === 'again') this.#later(() => this.#socket.wait(SLICE_MS));
      else if (this.hasPages) this.#later(() => this.#socket.waitForCompletion(SLICE_MS));
      else if (this.#callBytes > MIN_CALL_BYTES) {
        this.#callBytes /= 2;
        continue;
      } else this.#retryLocked();
      return;
    }
    const written = this.#written;
    this.#pieces = [];
    this.#written = undefined;
    this.#marks.push(this.#calls.made);
    if (this.#marks.length > MAX_MARKS) this.#marks.shift();
    this.#reapWhenIdle();
    written?.();
  }

  /** What is next of one kind, in one call. */
  #call(): SendResult {
    const pieces = this.#pieces;
    const inPlace = this.#inPlace[this.#index];
    const most = inPlace ? this.#callBytes : Infinity;
    const batch = this.#batch;
    batch.length = 0;
    let index = this.#index;
    let at = this.#at;
    for (let bytes = 0; index < pieces.length && this.#inPlace[index] === inPlace; index++, at = 0) {
      if (batch.length === MAX_PIECES || bytes === most) break;
      const piece = pieces[index];
      const end = Math.min(piece.length, at + most - bytes);
      batch.push(at === 0 && end === piece.length ? piece : piece.subarray(at, end));
      bytes += end - at;
    }
    if (!inPlace) {
      const sent = this.#socket.sendCopy(batch, index < pieces.length);
      if (sent !== 'again') this.#take(sent);
      return sent;
    }
    const sent = this.#socket.sendInPlace(batch);
    if (typeof sent !== 'number') return sent;
    this.#lockedSince = undefined;
    this.#take(sent);
    // A packet's pages end where a header begins, or the write does.
    const packets = this.#inPlace[this.#index] === true ? 0 : 1;
    this.#calls.make(packets);
    this.#hooks.sent(packets);
    this.#reap();
    return sent;
  }

  #take(bytes: number): void {
    this.#moved += bytes;
    this.#at += bytes;
    while (this.#index < this.#pieces.length && this.#at >= this.#pieces[this.#index].length) {
      this.#at -= this.#pieces[this.#index++].length;
    }
  }

  /** A turn of the event loop, in which an end, a stop or a stall is noticed; then `wait`, then on. */
  #later(wait: () => void): void {
    this.#waiting = true;
    setImmediate(() => {
      this.#waiting = false;
      this.#try(() => {
        this.#reap();
        wait();
        this.#reap();
        this.#advance();
      });
    });
  }

  /** None of the memory that may be locked is this channel's. */
  #retryLocked(): void {
    const now = performance.now();
    this.#lockedSince ??= now;
    if (now - this.#lockedSince > LOCKED_MS) throw tooLittleLockedMemory(MIN_CALL_BYTES);
    setTimeout(() => this.#try(() => this.#advance()), LOCKED_RETRY_MS);
  }

  #reap(): void {
    if (!this.hasPages) return;
    for (const completion of this.#socket.reap()) {
      const packets = this.#calls.done(completion);
      this.#moved++;
      this.#idleMs = IDLE_MS;
      if (completion.copied) this.#hooks.copied(packets);
    }
  }

  #reapWhenIdle(): void {
    if (this.#idle !== undefined || !this.hasPages) return;
    this.#idle = setTimeout(() => {
      this.#idle = undefined;
      this.#idleMs = Math.min(2 * this.#idleMs, MAX_IDLE_MS);
      this.#try(() => {
        this.#reap();
        this.#reapWhenIdle();
      });
    }, this.#idleMs);
  }
}
