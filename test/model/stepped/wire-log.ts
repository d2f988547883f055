/**
 * What a send channel has written, packet by packet, into the notes of the run: pages and device states by their numbers,
 * SYNCs. Pages and payloads are looked at where they carry their numbers: they must still be there when the kernel reads.
 */
import { HELLO_BYTES } from '../../../src/wire/hello.js';
import { DEVICE_STATE_HEADER_BYTES } from '../../../src/wire/device-state.js';
import { packetHeaderBytes } from '../../../src/wire/packet.js';
import { DEVICE_NUMBERS, PAGE_SIZE, PRIVATE_NUMBERS, isStamped } from './jobs.js';
import { LOG_LENGTH, NOTE_LOG, NOTE_WRITTEN, type Stepper } from './stepper.js';

const HEADER_BYTES = packetHeaderBytes(PAGE_SIZE);
const FLAG_SYNC = 0x01;
const FLAG_DEVICE_STATE = 0x40;

export class WireLog {
  readonly #stepper: Stepper;
  readonly #id: number;
  #begun = false;
  /** Numbers of the pages, or the device state, whose bytes come next. */
  readonly #due: number[] = [];

  constructor(stepper: Stepper) {
    this.#stepper = stepper;
    this.#id = stepper.thread - 1;
  }

  take(pieces: readonly Uint8Array[], arePages: readonly boolean[]): void {
    for (const [i, piece] of pieces.entries()) {
      const bytes = Buffer.from(piece.buffer, piece.byteOffset, piece.length);
      if (!this.#begun) {
        if (bytes.length !== HELLO_BYTES) this.#wrong(`a hello of ${bytes.length} bytes`);
        this.#begun = true;
      } else if (arePages[i]) this.#takePages(bytes);
      else if (this.#due.length > 0) this.#takeDeviceState(bytes);
      else this.#takeHeaders(bytes);
    }
    if (this.#due.length > 0) this.#wrong(`a write ends ${this.#due.length} payloads too early`);
  }

  #takeHeaders(bytes: Buffer): void {
    for (let at = 0; at < bytes.length;) {
      const flags = bytes.readUInt32BE(at + 8);
      if ((flags & FLAG_DEVICE_STATE) !== 0) {
        this.#due.push(DEVICE_NUMBERS + bytes.readUInt32BE(at + 268));
        at += DEVICE_STATE_HEADER_BYTES;
        continue;
      }
      this.#takeHeader(bytes.subarray(at, at + HEADER_BYTES), flags);
      at += HEADER_BYTES;
    }
  }

  #takeHeader(header: Buffer, flags: number): void {
    const normal = header.readUInt32BE(16);
    const zero = header.readUInt32BE(32);
    const first = header[64] === 'p'.charCodeAt(0) ? PRIVATE_NUMBERS : 1;
    for (let i = 0; i < normal + zero; i++) {
      const number = first + header.readUInt32BE(320 + 8 * i + 4) / PAGE_SIZE;
      if (i < normal) this.#due.push(number);
      else this.#note(number, true);
    }
    if ((flags & FLAG_SYNC) !== 0) this.#note(-1, false);
  }

  #takePages(bytes: Buffer): void {
    for (let at = 0; at < bytes.length; at += PAGE_SIZE) {
      const number = this.#due.shift();
      if (number === undefined) this.#wrong('a page that no header has named');
      else if (!isStamped(bytes.subarray(at, at + PAGE_SIZE), number))
        this.#wrong(`page ${number} was not there any more`);
      else this.#note(number, true);
    }
  }

  #takeDeviceState(bytes: Buffer): void {
    const number = this.#due.shift() as number;
    if (!isStamped(bytes, number)) this.#wrong(`device state ${number} was not there any more`);
    this.#note(number, true);
  }

  #note(number: number, isJob: boolean): void {
    const { notes } = this.#stepper;
    const log = NOTE_LOG + this.#id * (LOG_LENGTH + 1);
    const count = notes[log];
    if (count === LOG_LENGTH) this.#wrong('too much for the notes');
    notes[log + 1 + count] = number;
    notes[log]++;
    if (isJob) notes[NOTE_WRITTEN + this.#id]++;
  }

  #wrong(message: string): void {
    this.#stepper.fail(`channel ${this.#id}: ${message}`);
  }
}

/** What channel `id` has written so far. */
export function loggedOf(notes: Int32Array, id: number): number[] {
  const log = NOTE_LOG + id * (LOG_LENGTH + 1);
  return [...notes.subarray(log + 1, log + 1 + notes[log])];
}
