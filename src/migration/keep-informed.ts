/**
 * Behind the last byte a source waits for its answer. While this side is busy there, with a hook or with packing, it is told
 * that somebody is here, by a PONG that it asked for nowhere; and that it has gone itself is noticed.
 */
import type { MultifdError } from '../errors.js';
import { encodePong } from '../stream/return-path.js';
import type { MainConnection } from '../transport/main-connection.js';
import { closedUntold } from './blame.js';

/** By choice, short beside whatever a source may have as its stallTimeoutMs. */
const KEEP_INFORMED_MS = 100;
/** The value of a PONG that answers no PING: those begin with 1. */
const BUSY = 0;

/** @param onGone called, again and again, when the source has gone. @returns what comes of `busy` */
export async function keepInformed<T>(
  main: MainConnection,
  busy: Promise<T>,
  onGone: (error: MultifdError) => void,
): Promise<T> {
  const timer = setInterval(() => {
    if (main.ended) onGone(main.broken ?? closedUntold());
    else main.write(encodePong(BUSY)).catch(() => {});
  }, KEEP_INFORMED_MS);
  try {
    return await busy;
  } finally {
    clearInterval(timer);
  }
}
