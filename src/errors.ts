/**
 * The one error class and the table of its codes. Every failure that a caller can see is a `MultifdError`;
 * `code` is stable, the message is for people and says what was received (or given) and what was expected.
 *
 * Across threads an error travels as a `PlainError` (a structured clone drops an Error's own properties) and is
 * rebuilt on the other side by `MultifdError.fromPlain`.
 */
import { types } from 'node:util';

/** All codes, with the meaning that the README prints. */
export const ERROR_CODES = {
  ERR_MULTIFD_OPTION: 'an option is wrong: the message says what was given and what is allowed',
  ERR_MULTIFD_BLOCK:
    'a RAM block is described wrongly, its memory was taken away, or a call names a block that does not exist',
  ERR_MULTIFD_RANGE: 'an offset or a length is not page-aligned or lies outside its block',
  ERR_MULTIFD_STATE: 'the call does not fit the state, for instance queueing after close()',
  ERR_MULTIFD_CLOSED: 'close() or cancel() was called while the operation was under way',
  ERR_MULTIFD_ABORTED: 'the AbortSignal fired; `cause` is its reason',
  ERR_MULTIFD_LISTEN: 'the address cannot be listened on',
  ERR_MULTIFD_CONNECT: 'a channel, or QMP, could not connect',
  ERR_MULTIFD_TLS:
    'TLS: credentials are missing or unfit, or a handshake failed: the message says which side refused what',
  ERR_MULTIFD_TIMEOUT: 'channels did not connect, or did not come in, in time; or QMP did not answer',
  ERR_MULTIFD_STALL: 'the peer is connected but nothing moved for stallTimeoutMs',
  ERR_MULTIFD_CONNECTION:
    'a channel broke: reset, broken pipe, or closed by the peer while data was still due',
  ERR_MULTIFD_EOF: 'a channel ended inside a packet, or before a SYNC packet that is still due',
  ERR_MULTIFD_MAGIC: 'a hello or a packet does not begin with the magic 0x11223344',
  ERR_MULTIFD_VERSION: 'a hello or a packet has a version other than 1',
  ERR_MULTIFD_UUID: "the source's VM uuid is not the receiver's",
  ERR_MULTIFD_CHANNEL_ID: 'a hello carries a channel id that is not below `channels`',
  ERR_MULTIFD_CHANNEL_DUPLICATE: 'a second connection came for a channel that is taken',
  ERR_MULTIFD_PAGES_ALLOC: 'pages_alloc of a packet is above the limit (512 KiB / page size)',
  ERR_MULTIFD_NORMAL_PAGES: 'normal_pages of a packet is above its pages_alloc',
  ERR_MULTIFD_ZERO_PAGES: 'zero_pages of a packet is above pages_alloc - normal_pages',
  ERR_MULTIFD_RAMBLOCK: 'a packet names a RAM block that the receiver does not have',
  ERR_MULTIFD_OFFSET: 'a page offset of a packet lies outside its block or is not page-aligned',
  ERR_MULTIFD_METHOD: "a packet's method bits are not the configured compression",
  ERR_MULTIFD_PACKET_SIZE: 'next_packet_size of a packet is 0 or above 1 MiB',
  ERR_MULTIFD_DECOMPRESS: 'a payload does not decode to exactly its pages',
  ERR_MULTIFD_COMPRESS: 'a codec failed on the sending side',
  ERR_MULTIFD_DEVICE_STATE:
    'a device-state packet is refused: SYNC set, empty, too large, bad idstr, unknown device',
  ERR_MULTIFD_PROTOCOL: 'the peer did what the protocol does not allow, for instance wrote on a send channel',
  ERR_MULTIFD_CONVERGENCE: 'the guest dirtied its memory faster than it could be sent, for maxRounds rounds',
  ERR_MULTIFD_VERIFY: "option verify: the memory at the destination is not the source's; nothing was started",
  ERR_MULTIFD_POSTCOPY_PAUSED:
    'postcopy broke off while the guest ran: it is postcopy-paused at the destination; go on with option recover',
  ERR_MULTIFD_STREAM: 'the main migration stream is refused, or a mapped-ram file is not sound',
  ERR_MULTIFD_HOOK:
    "an embedder's callback (a device's load(), onZeroPages, onStart and the like) threw; `cause` is what it threw",
  ERR_MULTIFD_QMP:
    "QEMU's control socket: QEMU refuses a command (the message has its words), closed it, or it is no QMP",
  ERR_MULTIFD_IO: 'reading or writing a file-backed RAM block failed',
  ERR_MULTIFD_RUNTIME:
    'not Node, no leave to start threads, or what they or an option need is missing: the message says what to do',
  ERR_MULTIFD_WORKER: 'a channel thread died or failed in a way that is a bug',
} as const;

export type ErrorCode = keyof typeof ERROR_CODES;

/** A MultifdError as it crosses a thread boundary. */
export interface PlainError {
  code: ErrorCode;
  message: string;
  channel?: number | undefined;
  packetNum?: number | undefined;
  cause?: { name: string; message: string; code?: string | undefined } | undefined;
}

export interface ErrorDetails {
  /** The channel number, where one channel failed. */
  channel?: number | undefined;
  /** `packet_num` of the packet concerned, where there is one. */
  packetNum?: number | undefined;
  /** The path of a file that is whole and has not got its name, where one is kept. */
  kept?: string | undefined;
  cause?: unknown;
}

export class MultifdError extends Error {
  override readonly name = 'MultifdError';
  /** Stable; one of `ERROR_CODES`. */
  readonly code: ErrorCode;
  readonly channel: number | undefined;
  readonly packetNum: number | undefined;
  /** Where the guest has come in whole, and its file could not be given its name: the path at which it is kept. */
  readonly kept: string | undefined;
  /**
   * Later failures of the same session, which this one, the first, most likely caused; of one that was aborted also the
   * handshake that failed while it waited for a source.
   */
  readonly suppressed: MultifdError[] = [];

  constructor(code: ErrorCode, message: string, details: ErrorDetails = {}) {
    super(message, details.cause === undefined ? undefined : { cause: details.cause });
    this.code = code;
    this.channel = details.channel;
    this.packetNum = details.packetNum;
    this.kept = details.kept;
  }

  /** @internal The same error in other words; what else it says of itself stays, where `changes` does not say otherwise. */
  reworded(message: string, changes: ErrorDetails & { code?: ErrorCode } = {}): MultifdError {
    const { code = this.code, ...details } = changes;
    const error = new MultifdError(code, message, { ...this, cause: this.cause, ...details });
    error.suppressed.push(...this.suppressed);
    return error;
  }

  /** @internal The same error with the channel filled in, for code that does not know on which channel it runs. */
  onChannel(channel: number, packetNum?: number): MultifdError {
    if (this.channel !== undefined) return this;
    const error = this.reworded(`channel ${channel}: ${this.message}`, {
      channel,
      packetNum: this.packetNum ?? packetNum,
    });
    if (this.stack !== undefined) error.stack = this.stack;
    return error;
  }

  /**
   * @internal What the session says that this one has ended, where that was broken by something of its own as well, such as the
   * death of a thread. Copies: a session's error has this one among its own.
   */
  suppress(first: MultifdError | undefined): void {
    if (first === undefined || first === this) return;
    for (const one of [first, ...first.suppressed]) {
      const isKnown = this.suppressed.some(
        ({ code, message }) => code === one.code && message === one.message,
      );
      if (one === this || one.cause === this || isKnown) continue;
      this.suppressed.push(new MultifdError(one.code, one.message, { ...one, cause: one.cause }));
    }
  }

  /** @internal */
  toPlain(): PlainError {
    const cause: unknown = this.cause;
    return {
      code: this.code,
      message: this.message,
      channel: this.channel,
      packetNum: this.packetNum,
      cause: cause === undefined ? undefined : plainCause(cause),
    };
  }

  /** @internal */
  static fromPlain(plain: PlainError): MultifdError {
    let cause: Error | undefined;
    if (plain.cause !== undefined) {
      cause = Object.assign(new Error(plain.cause.message), { code: plain.cause.code });
      cause.name = plain.cause.name;
    }
    return new MultifdError(plain.code, plain.message, { ...plain, cause });
  }

  /** @internal Wraps whatever was thrown; a MultifdError passes unchanged. */
  static wrap(thrown: unknown, code: ErrorCode, what: string): MultifdError {
    if (thrown instanceof MultifdError) return thrown;
    return new MultifdError(code, `${what}: ${describeThrown(thrown)}`, { cause: thrown });
  }
}

/** Those of another realm (a vm context, jest's) are no instances of this one's Error, nor are Node's own there. */
function isError(thrown: unknown): thrown is Error {
  if (types.isNativeError(thrown) || thrown instanceof Error) return true;
  return Object.prototype.toString.call(thrown) === '[object DOMException]';
}

/** Text of whatever was thrown; never throws itself. */
export function describeThrown(thrown: unknown): string {
  if (isError(thrown)) return thrown.message;
  try {
    return String(thrown);
  } catch {
    return 'an object without a text';
  }
}

/** Only what a structured clone is sure to carry: a cause is often somebody else's object. */
function plainCause(cause: unknown): NonNullable<PlainError['cause']> {
  if (!isError(cause)) return { name: 'Error', message: describeThrown(cause) };
  const { code } = cause as NodeJS.ErrnoException;
  return { name: cause.name, message: cause.message, code: typeof code === 'string' ? code : undefined };
}

/** "received X, expected Y": the shape of every refusal's message. */
export function receivedExpected(what: string, received: unknown, expected: unknown): string {
  return `${what}: received ${String(received)}, expected ${String(expected)}`;
}

/** Hex of a 32-bit wire word, for messages. */
export function hex32(value: number): string {
  return `0x${(value >>> 0).toString(16).padStart(8, '0')}`;
}

/** The code of an error of the system, such as ENOENT; empty if it has none. */
export function codeOf(error: unknown): string {
  return (error as NodeJS.ErrnoException | null | undefined)?.code ?? '';
}
