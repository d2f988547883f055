/**
 * Failures of the command line itself, beside the engine's MultifdErrors; and what any thrown thing means for the
 * last line of output and the exit code.
 */
import { MultifdError } from '../errors.js';

/** All codes, with their meaning. */
export const CLI_ERROR_CODES = {
  ERR_CLI_DIFFERENT: 'after the migration the RAM of the two sides differs',
  ERR_CLI_DESTINATION: 'the destination process could not be started, failed, or ended too early',
  ERR_CLI_ROOM: "there is not enough memory or disk space for the guest's RAM",
  ERR_CLI_RAM_FILE: 'the file of --ram changed while it was read',
  ERR_CLI_UNSOUND: 'the inspected file has a problem that keeps it from being loaded',
  ERR_CLI_QEMU: 'the QEMU that demo --qemu needs is not there',
  ERR_CLI_V86: 'the package v86 that demo --v86 needs is not installed',
  ERR_CLI_STRESS: 'a run of the stress has not ended as it has to',
  ERR_CLI_GUEST: 'the guest of demo --v86 said nothing for too long',
  ERR_CLI_USAGE: 'the command line is wrong',
  ERR_CLI_SIGNAL: 'cancelled by a signal',
  ERR_CLI_STDOUT: 'stdout was closed before everything was written',
} as const;

export type CliErrorCode = keyof typeof CLI_ERROR_CODES;

export const EXIT_OK = 0;
export const EXIT_FAILED = 1;
export const EXIT_USAGE = 2;

export class CliError extends Error {
  override readonly name = 'CliError';
  readonly code: CliErrorCode;
  readonly exitCode: number;

  constructor(code: CliErrorCode, message: string, details: { exitCode?: number; cause?: unknown } = {}) {
    super(message, details.cause === undefined ? undefined : { cause: details.cause });
    this.code = code;
    this.exitCode = details.exitCode ?? EXIT_FAILED;
  }
}

/** An option whose value turns out wrong after parsing: exit code 2. */
export class UsageError extends Error {
  override readonly name = 'UsageError';
}

/** What machines are told of a failure. */
export interface Failure {
  code: string;
  message: string;
}

export function describeFailure(thrown: unknown): Failure {
  if (!(thrown instanceof Error)) return { code: 'ERR_CLI_UNKNOWN', message: String(thrown) };
  const code = (thrown as NodeJS.ErrnoException).code;
  return { code: typeof code === 'string' ? code : thrown.name, message: thrown.message };
}

export function exitCodeOf(thrown: unknown): number {
  return thrown instanceof CliError ? thrown.exitCode : EXIT_FAILED;
}

/** A failure of another process, rebuilt on this side. */
export function destinationError(failure: Failure, process = 'destination'): Error {
  const message = `${process}: ${failure.message}`;
  if (failure.code.startsWith('ERR_MULTIFD_')) {
    return MultifdError.fromPlain({ code: failure.code as MultifdError['code'], message });
  }
  const code = failure.code in CLI_ERROR_CODES ? (failure.code as CliErrorCode) : 'ERR_CLI_DESTINATION';
  return new CliError(code, message);
}
