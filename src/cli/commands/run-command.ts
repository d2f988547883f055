/**
 * What every command runs in: signals cancel it, a closed stdout does too, errors become one line on stderr, and the
 * exit code is set. The process then ends by itself: if it did not, something would have been left open.
 */
import { inspect } from 'node:util';
import { printable, printableLines } from '../../printable.js';
import { cancelOnSignals } from './cancel.js';
import { CliError, EXIT_OK, describeFailure, exitCodeOf } from '../cli-error.js';
import { paintFor } from '../terminal/colour.js';

/** @param command resolves with the exit code; ends early, rejecting with its reason, when `cancelled` fires */
export async function runCommand(
  verbose: boolean,
  command: (cancelled: AbortSignal) => Promise<number>,
): Promise<void> {
  using cancellation = cancelOnSignals();
  // A pipe to `head` that has seen enough: nobody is left to tell the result.
  process.stdout.on('error', (cause: Error) => {
    const message = `stdout was closed before everything was written: ${cause.message}`;
    cancellation.cancel(new CliError('ERR_CLI_STDOUT', message, { cause }));
  });
  try {
    process.exitCode = await command(cancellation.signal);
    await new Promise<void>((resolve) => process.stdout.write('', () => resolve()));
    // What was decided before a signal came stands. But what nobody could read has not been said.
    const reason: unknown = cancellation.signal.reason;
    if (reason instanceof CliError && reason.code === 'ERR_CLI_STDOUT') {
      if (process.exitCode !== EXIT_OK) throw reason;
      throw new CliError('ERR_CLI_STDOUT', `it is done, but ${reason.message}`, { cause: reason });
    }
  } catch (error) {
    printError(error, verbose || Boolean(process.env.DEBUG));
    process.exitCode = exitCodeOf(error);
  }
}

function printError(error: unknown, verbose: boolean): void {
  const { code, message } = describeFailure(error);
  const paint = paintFor(process.stderr, process.env);
  // A name or a peer's text in it is not to move the terminal's cursor.
  process.stderr.write(`${paint.bad('multifd:')} ${printable(code)}: ${printableLines(message)}\n`);
  if (verbose) process.stderr.write(`${printableLines(inspect(error, { depth: 4 }))}\n`);
}
