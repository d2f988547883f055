/**
 * The bytes of the item that is being read from a main stream, shared by main-stream.ts and ram-records.ts: what is read
 * between begin() and raw() is the item's, and a refusal names the byte at which it begins. On the calling thread.
 */
import type { MultifdError } from '../errors.js';
import type { ByteReader } from './byte-reader.js';
import { type StreamError, refusal } from './codes.js';

export class ItemBytes {
  readonly #reader: ByteReader;
  #at = 0;

  constructor(reader: ByteReader) {
    this.#reader = reader;
  }

  /** Where the item begins in the stream. */
  get at(): number {
    return this.#at;
  }

  begin(): void {
    this.#reader.record();
    this.#at = this.#reader.position;
  }

  raw(): { at: number; raw: Buffer } {
    return { at: this.#at, raw: this.#reader.recorded() };
  }

  /** A refusal of the item. */
  refusal(error: StreamError, what: string, received: unknown, expected: unknown): MultifdError {
    return refusal(error, `${this.#reader.name} at byte ${this.#at}: ${what}`, received, expected);
  }
}
