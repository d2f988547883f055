/** What receive, send and relay run in: the result or the failure is told, once, and progress followed to its end. */
import { CliError } from '../cli-error.js';
import type { Output } from '../terminal/output.js';
import { sayInFlags } from './tls-options.js';

/**
 * @param run does the work; what it hands to `follow` is waited for before the result is told
 * @throws the reason of `cancelled` if that is why it failed
 */
export async function runMigration<T>(
  output: Output,
  cancelled: AbortSignal,
  run: (follow: (progress: Promise<void>) => void) => Promise<T>,
  tell: (result: T, seconds: number) => { record: object; text: () => string },
): Promise<void> {
  const following: Promise<void>[] = [];
  let started: number | undefined;
  try {
    const result = await run((progress) => {
      started ??= performance.now();
      following.push(progress);
    });
    const seconds = (performance.now() - (started ?? performance.now())) / 1000;
    await Promise.all(following);
    const { record, text } = tell(result, seconds);
    output.result(record, text);
  } catch (error) {
    sayInFlags(error);
    const reason = cancelled.aborted ? cancellation(cancelled.reason, error) : error;
    await Promise.allSettled(following);
    output.failed(reason);
    throw reason;
  }
}

/** Where the failure says more than that it was cancelled, such as what is kept of a guest, that is told as well. */
function cancellation(reason: unknown, error: unknown): unknown {
  if (!(reason instanceof CliError) || !(error instanceof Error)) return reason;
  if (error === reason || error.cause === reason) return reason;
  const { code, message, exitCode } = reason;
  return new CliError(code, `${message}: ${error.message}`, { exitCode, cause: error });
}
