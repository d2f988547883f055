/** Waits that have an end: for the other side to notice one, and for an answer that is due. */
import { MultifdError, type ErrorCode } from '../errors.js';

/** By choice: how long the other side may take to notice an end. */
export const LINGER_MS = 2000;

/** Waits for `LINGER_MS` at the most, and never rejects. @returns whether it has come to pass */
export async function settles(wait: Promise<unknown>): Promise<boolean> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<false>((resolve) => (timer = setTimeout(() => resolve(false), LINGER_MS)));
  const done = wait.then(
    () => true,
    () => false,
  );
  return Promise.race([done, late]).finally(() => clearTimeout(timer));
}

export async function withLimit<T>(
  wait: Promise<T>,
  ms: number,
  code: ErrorCode,
  message: string,
): Promise<T> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new MultifdError(code, message)), ms);
  });
  try {
    return await Promise.race([wait, late]);
  } finally {
    clearTimeout(timer);
  }
}
