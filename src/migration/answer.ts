/**
 * What a destination says to a source of ours on the return path, read from the first byte on: the PONG, which says that its
 * channels are all in, whether it carries on (stream/resume-section.ts), and the SHUT, which decides. A SHUT 0 before that which
 * it answers has begun to go out (the devices' state, or the last of it) is refused: nobody can have loaded what was not sent.
 * So is a message of a type that is none, as a QEMU's source does it.
 */
import { MultifdError, receivedExpected } from '../errors.js';
import type { ByteReader } from '../stream/byte-reader.js';
import type { ResumeAnswer } from '../stream/resume-section.js';
import { refusal } from '../stream/codes.js';
import { RP_SWITCHOVER_ACK, readReturnPath } from '../stream/return-path.js';
import type { MainConnection } from '../transport/main-connection.js';

export class Answer {
  readonly pong: Promise<void>;
  readonly resumed: Promise<ResumeAnswer>;
  /** The status; rejects if the destination goes without one. */
  readonly shut: Promise<number>;
  readonly #onPages: ((data: Buffer) => void) | undefined;
  #ponged!: () => void;
  /** Who waits for the PONG of one PING, by its value. */
  readonly #waiting = new Map<number, () => void>();
  #told!: (answer: ResumeAnswer) => void;
  #isDue = false;
  #isIgnored = false;
  #isLoaded = false;

  /** @param onPages what has come in tries before; of a source that may be carried on */
  constructor(reader: ByteReader, onPages?: (data: Buffer) => void) {
    this.#onPages = onPages;
    this.pong = new Promise((resolve) => (this.#ponged = resolve));
    this.resumed = new Promise((resolve) => (this.#told = resolve));
    this.shut = this.#read(reader);
    this.shut.catch(() => {});
  }

  /** Has the destination said that all is loaded? Known before `shut` settles. */
  get isLoaded(): boolean {
    return this.#isLoaded;
  }

  /** Until the PONG with this value has come, which is asked for behind this call. */
  ponged(value: number): Promise<void> {
    return new Promise((resolve) => this.#waiting.set(value, resolve));
  }

  /** From here on the destination may come to have all. */
  expectShut(): void {
    this.#isDue = true;
  }

  /**
   * What shows that the destination gets on, in bytes: what it has taken, and once it may come to have all also that it says that
   * it is loading. What it says before is progress of nothing: it could say so for ever.
   */
  moved(main: Pick<MainConnection, 'moved' | 'written'>): number {
    return this.#isDue ? main.moved : main.written;
  }

  /** From here on nothing that the destination says counts. */
  ignore(): void {
    this.#isIgnored = true;
  }

  async #read(reader: ByteReader): Promise<number> {
    for await (const message of readReturnPath(reader)) {
      if (message.kind === 'pong') {
        this.#ponged();
        this.#waiting.get(message.value)?.();
        this.#waiting.delete(message.value);
      }
      if (message.kind === 'resume') this.#told(message);
      if (message.kind === 'resume-pages') this.#onPages?.(message.data);
      if (message.kind === 'other' && message.type > RP_SWITCHOVER_ACK)
        throw refusal('returnPath', 'return path: message', `type ${message.type}`, 'type 1 to 7');
      if (message.kind !== 'shut') continue;
      if (message.status === 0 && !this.#isDue) {
        const early = receivedExpected("the destination's SHUT 0", "before the devices' state", 'after it');
        throw new MultifdError('ERR_MULTIFD_STREAM', early);
      }
      this.#isLoaded = message.status === 0 && !this.#isIgnored;
      return message.status;
    }
    throw new MultifdError(
      'ERR_MULTIFD_CONNECTION',
      'the destination closed the main stream before it had loaded all',
    );
  }
}

/** The error of a status that is not 0. */
export function refusedBy(status: number): MultifdError {
  return new MultifdError('ERR_MULTIFD_STREAM', receivedExpected("the destination's SHUT", status, 0));
}
