/**
 * Handing what a channel holds to its TLS socket, a portion at a time.
 *
 *     header | 512 KiB of RAM | header | page | page | ...
 *     [ joined ][  as it lies  ][ joined ................. ]
 *
 * Given all at once, Node first copies the pieces into new memory of their length, encrypts all of it, and only then
 * writes, which shows: megabytes leave the processor's cache in between, twice. One piece it encrypts where it lies. So
 * large pieces go as they are, and small ones are copied into one buffer that is always the same: each write costs a
 * turn of the event loop and a TLS record.
 *
 * Who owns the bytes: the pieces are read until `written` is called; the list of them only until write() returns.
 */
import type net from 'node:net';

type Written = (error?: Error | null) => void;

/** A packet's payload. */
const PORTION_BYTES = 2 ** 19;
/** Of a TLS record, at most. What is joined ends with a full one where a large piece follows. */
const RECORD_BYTES = 2 ** 14;
/** What is as large is not copied. */
const LARGE_BYTES = 4 * RECORD_BYTES;
const JOINED_BYTES = 8 * RECORD_BYTES;

export class PortionWriter {
  readonly #socket: net.Socket;
  readonly #joined = Buffer.allocUnsafeSlow(JOINED_BYTES);
  #pieces: readonly Uint8Array[] = [];
  #index = 0;
  /** In the piece at #index. */
  #at = 0;
  #written: Written = () => {};

  constructor(socket: net.Socket) {
    this.#socket = socket;
  }

  /**
   * To be called only while nothing else is being written.
   *
   * @param pieces at least one
   * @param written called once, when the last piece is with the kernel or a write has failed
   */
  write(pieces: readonly Uint8Array[], written: Written): void {
    this.#pieces = pieces.slice();
    this.#index = 0;
    this.#at = 0;
    this.#written = written;
    this.#next();
  }

  readonly #next: Written = (error) => {
    if ((error ?? undefined) !== undefined || this.#index === this.#pieces.length) {
      this.#pieces = [];
      this.#written(error);
      return;
    }
    const portion = this.#left() >= LARGE_BYTES ? this.#take(PORTION_BYTES) : this.#join();
    this.#socket.write(portion, this.#next);
  };

  /** Of the piece in hand. */
  #left(): number {
    return this.#pieces[this.#index].length - this.#at;
  }

  #take(most: number): Uint8Array {
    const piece = this.#pieces[this.#index];
    const end = Math.min(piece.length, this.#at + most);
    const taken = piece.subarray(this.#at, end);
    this.#at = end;
    if (end === piece.length) {
      this.#index++;
      this.#at = 0;
    }
    return taken;
  }

  #join(): Uint8Array {
    let have = 0;
    while (this.#index < this.#pieces.length && have < JOINED_BYTES) {
      const isLarge = this.#left() >= LARGE_BYTES;
      const room = isLarge ? -have & (RECORD_BYTES - 1) : JOINED_BYTES - have;
      const taken = this.#take(room);
      this.#joined.set(taken, have);
      have += taken.length;
      if (isLarge) break;
    }
    return this.#joined.subarray(0, have);
  }
}
