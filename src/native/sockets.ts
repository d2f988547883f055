/**
 * Sending without a copy: the kernel reads the pages where they lie, and says on the socket's error queue when it needs them
 * no more. Source: sendmsg(2), Documentation/networking/msg_zerocopy.
 *
 *     enable()               once
 *     sendInPlace(pieces)    one call of sendmsg; the kernel numbers those that took something: 0, 1, 2 ...
 *     sendCopy(pieces)       the same, but copied and without a number: for what is no page
 *     reap()                 ranges of these numbers that are done, in any order, several at a time
 *
 * Nothing here waits but wait() and waitForCompletion(), and those no longer than they are told. What the numbers mean, and
 * whose the memory is until then, is src/transport/zero-copy.ts's.
 */
import { MultifdError } from '../errors.js';
import { addressOf, callSystem, type SystemCalls } from './system-calls.js';

const SOL_SOCKET = 1;
const SO_ZEROCOPY = 60;
const MSG_DONTWAIT = 0x40;
const MSG_NOSIGNAL = 0x4000;
const MSG_ERRQUEUE = 0x2000;
const MSG_MORE = 0x8000;
const MSG_ZEROCOPY = 0x4000000;
const EAGAIN = 11;
const EINTR = 4;
const ENOBUFS = 105;
const POLLOUT = 4;

/** As many pieces as one call takes (IOV_MAX). */
export const MAX_PIECES = 1024;

// struct msghdr: name, name's length, iov, iov's count, control, control's length, flags; each at its own 8 bytes.
const MSGHDR_WORDS = 7;
const MSG_IOV = 2;
const MSG_IOV_COUNT = 3;
const MSG_CONTROL = 4;
const MSG_CONTROL_LENGTH = 5;

// struct cmsghdr (length, level, type: 16 bytes) and struct sock_extended_err behind it.
const CMSG_HEADER_BYTES = 16;
const CMSG_ALIGNMENT = 8;
const EE_ORIGIN = 4;
const EE_CODE = 6;
const EE_INFO = 8;
const EE_DATA = 12;
const SO_EE_ORIGIN_ZEROCOPY = 5;
const SO_EE_CODE_ZEROCOPY_COPIED = 1;
const CONTROL_BYTES = 128;
/** Of the error queue in one go. */
const MAX_REAPED = 256;

/** Calls number `from` to `to`, both included, modulo 2^32, are done with. */
export interface Completion {
  from: number;
  to: number;
  /** The kernel has copied after all: what was asked for was no use. */
  copied: boolean;
}

/** What a call came to: bytes taken, or why none. */
export type SendResult = number | 'again' | 'locked-memory';

/** A descriptor that sends without copies. One thread's. */
export class ZeroCopySocket {
  readonly #calls: SystemCalls;
  readonly #fd: number;
  readonly #iov = new BigUint64Array(2 * MAX_PIECES);
  readonly #message = new BigUint64Array(MSGHDR_WORDS);
  readonly #messageBytes = new Uint8Array(this.#message.buffer);
  readonly #control = Buffer.alloc(CONTROL_BYTES);
  readonly #poll = new Uint8Array(8);

  constructor(calls: SystemCalls, fd: number) {
    this.#calls = calls;
    this.#fd = fd;
    new DataView(this.#poll.buffer).setInt32(0, fd, true);
    this.#message[MSG_IOV] = addressOf(calls, new Uint8Array(this.#iov.buffer));
  }

  /** @throws MultifdError ERR_MULTIFD_RUNTIME: the kernel (before 4.14), or this kind of socket, cannot */
  enable(): void {
    const one = new Uint8Array(4);
    one[0] = 1;
    const args = [this.#fd, SOL_SOCKET, SO_ZEROCOPY, one, one.length];
    try {
      callSystem(this.#calls, 'setsockopt', args, 'ERR_MULTIFD_RUNTIME');
    } catch (error) {
      const { message, cause } = error as MultifdError;
      const text = `zeroCopySend: this system sends nothing without a copy, ${message}; leave it off`;
      throw new MultifdError('ERR_MULTIFD_RUNTIME', text, { cause });
    }
  }

  /**
   * One call, which takes as much as the socket has room for. It gets a number if it took anything.
   *
   * @param pieces at most MAX_PIECES, of memory that stays where it is until the call is reaped
   * @returns bytes taken; `again` if there is no room; `locked-memory` if the kernel may keep no more pages: for all calls
   *   together by RLIMIT_MEMLOCK, or for this socket by net.core.optmem_max
   * @throws MultifdError ERR_MULTIFD_CONNECTION
   */
  sendInPlace(pieces: readonly Uint8Array[]): SendResult {
    const sent = this.#send(pieces, MSG_ZEROCOPY, [EAGAIN, EINTR, ENOBUFS]);
    if (sent >= 0) return sent;
    return sent === -ENOBUFS ? 'locked-memory' : 'again';
  }

  /**
   * The same for memory that is free again as soon as this returns.
   *
   * @param more something follows at once: no segment of its own for this
   */
  sendCopy(pieces: readonly Uint8Array[], more: boolean): number | 'again' {
    const sent = this.#send(pieces, more ? MSG_MORE : 0, [EAGAIN, EINTR]);
    return sent >= 0 ? sent : 'again';
  }

  #send(pieces: readonly Uint8Array[], how: number, passes: readonly number[]): number {
    for (const [i, piece] of pieces.entries()) {
      this.#iov[2 * i] = addressOf(this.#calls, piece);
      this.#iov[2 * i + 1] = BigInt(piece.length);
    }
    const message = this.#message;
    message[MSG_IOV_COUNT] = BigInt(pieces.length);
    message[MSG_CONTROL] = 0n;
    message[MSG_CONTROL_LENGTH] = 0n;
    const args = [this.#fd, this.#messageBytes, MSG_DONTWAIT | MSG_NOSIGNAL | how];
    return callSystem(this.#calls, 'sendmsg', args, 'ERR_MULTIFD_CONNECTION', passes);
  }

  /**
   * What is done since the last time; never waits.
   *
   * @throws MultifdError ERR_MULTIFD_CONNECTION
   */
  reap(): Completion[] {
    const completions: Completion[] = [];
    const message = this.#message;
    while (completions.length < MAX_REAPED) {
      message[MSG_IOV_COUNT] = 0n;
      message[MSG_CONTROL] = addressOf(this.#calls, this.#control);
      message[MSG_CONTROL_LENGTH] = BigInt(CONTROL_BYTES);
      const args = [this.#fd, this.#messageBytes, MSG_ERRQUEUE | MSG_DONTWAIT];
      const got = callSystem(this.#calls, 'recvmsg', args, 'ERR_MULTIFD_CONNECTION', [EAGAIN, EINTR]);
      if (got < 0) break;
      this.#readControl(Number(message[MSG_CONTROL_LENGTH]), completions);
    }
    return completions;
  }

  /** Waits for room, or for a completion, at most so long: the thread stands still. */
  wait(timeoutMs: number): void {
    this.#poll[4] = POLLOUT;
    callSystem(this.#calls, 'poll', [this.#poll, 1, timeoutMs], 'ERR_MULTIFD_CONNECTION', [EINTR]);
  }

  /** The same for a completion alone. */
  waitForCompletion(timeoutMs: number): void {
    this.#poll[4] = 0;
    callSystem(this.#calls, 'poll', [this.#poll, 1, timeoutMs], 'ERR_MULTIFD_CONNECTION', [EINTR]);
  }

  #readControl(length: number, completions: Completion[]): void {
    const control = this.#control;
    for (let at = 0; at + CMSG_HEADER_BYTES <= length;) {
      const bytes = Number(control.readBigUInt64LE(at));
      if (bytes < CMSG_HEADER_BYTES || at + bytes > length) return;
      const error = at + CMSG_HEADER_BYTES;
      // The level and the type of the header are those of IPv4 or IPv6; the origin says the same for both.
      if (bytes >= CMSG_HEADER_BYTES + 16 && control[error + EE_ORIGIN] === SO_EE_ORIGIN_ZEROCOPY) {
        completions.push({
          from: control.readUInt32LE(error + EE_INFO),
          to: control.readUInt32LE(error + EE_DATA),
          copied: (control[error + EE_CODE] & SO_EE_CODE_ZEROCOPY_COPIED) !== 0,
        });
      }
      at += Math.ceil(bytes / CMSG_ALIGNMENT) * CMSG_ALIGNMENT;
    }
  }
}
