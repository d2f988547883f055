/**
 * The error codes of this folder, by meaning: the one place that says which of `ERROR_CODES` a meaning has.
 */
export { quote } from '../printable.js';
import { type ErrorCode, MultifdError, receivedExpected } from '../errors.js';

export const STREAM_ERRORS = {
  /** The stream ended inside something. */
  eof: 'ERR_MULTIFD_EOF',
  /** It does not begin with `QEVM`, version 3. */
  magic: 'ERR_MULTIFD_STREAM',
  /** It breaks the format. */
  format: 'ERR_MULTIFD_STREAM',
  /** It uses a part of the format that is not supported. */
  unsupported: 'ERR_MULTIFD_STREAM',
  /** A count or a length is above its bound. */
  limit: 'ERR_MULTIFD_STREAM',
  /** A record names a RAM block that the block list does not have. */
  block: 'ERR_MULTIFD_STREAM',
  /** A record's page lies outside its block. */
  offset: 'ERR_MULTIFD_STREAM',
  /** Page sizes do not agree. */
  pageSize: 'ERR_MULTIFD_STREAM',
  /** A mapped-ram file is not sound. */
  file: 'ERR_MULTIFD_STREAM',
  /** The VM description is no JSON of the expected shape. */
  vmDescription: 'ERR_MULTIFD_STREAM',
  /** A message of the return path is wrong. */
  returnPath: 'ERR_MULTIFD_PROTOCOL',
  /** A method was called in a state that it does not fit. */
  state: 'ERR_MULTIFD_STATE',
  /** Reading or writing a file failed. */
  io: 'ERR_MULTIFD_IO',
} as const satisfies Record<string, ErrorCode>;

export type StreamError = keyof typeof STREAM_ERRORS;

/** A refusal: `what: received X, expected Y`. */
export function refusal(
  error: StreamError,
  what: string,
  received: unknown,
  expected: unknown,
): MultifdError {
  return new MultifdError(STREAM_ERRORS[error], receivedExpected(what, received, expected));
}
