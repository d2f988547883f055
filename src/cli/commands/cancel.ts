/**
 * Cancelling by signal: the first one ends the run in good order, a second one ends the process at once (its 'exit'
 * handlers still kill the destination process and remove the temporary directory).
 */
import { CliError } from '../cli-error.js';

/** Signals that cancel, with the exit codes that shells give them: 128 + the signal's number. */
const EXIT_CODES = { SIGHUP: 129, SIGINT: 130, SIGTERM: 143 } as const;

/**
 * Below this two signals are one: the terminal sends Ctrl-C to the whole process group, and npm, which is in it,
 * passes its own copy on, so a run under `npm start` gets it twice. As long as it is because a program that is busy, loading
 * its modules say, sees two that came together far apart; whoever means it presses again.
 */
const SAME_KEYSTROKE_MS = 500;

export interface Cancellation extends Disposable {
  /** Its reason is a CliError with the exit code. */
  readonly signal: AbortSignal;
  /** Cancels for another reason. */
  cancel(reason: CliError): void;
}

export function cancelOnSignals(): Cancellation {
  const controller = new AbortController();
  let first: number | undefined;
  const onSignal = (name: NodeJS.Signals): void => {
    const exitCode = EXIT_CODES[name as keyof typeof EXIT_CODES];
    const now = performance.now();
    if (first === undefined) {
      first = now;
      controller.abort(new CliError('ERR_CLI_SIGNAL', `cancelled by ${name}`, { exitCode }));
    } else if (now - first > SAME_KEYSTROKE_MS) {
      process.exit(exitCode);
    }
  };
  const names = Object.keys(EXIT_CODES) as NodeJS.Signals[];
  for (const name of names) process.on(name, onSignal);
  return {
    signal: controller.signal,
    cancel: (reason) => controller.abort(reason),
    [Symbol.dispose]: () => {
      // One that comes while the process ends, and is not another's yet, shall not end it half way.
      if (first !== undefined) return;
      for (const name of names) process.off(name, onSignal);
    },
  };
}
