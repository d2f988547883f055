/**
 * Which side of a relay an error came from. A relay stands between two peers that know nothing of each other: whose fault
 * it was is the first thing to be told, and cannot be seen from a code such as ERR_MULTIFD_CONNECTION.
 *
 * An error is marked where it comes into being and stays the same object, since sessions compare it; its text gets the
 * side's name at the very end.
 */
import { MultifdError, type ErrorCode } from '../errors.js';

export type Side = 'source' | 'destination';

/** A receiver's errors with one of these are not its peer's. */
const OURS: ReadonlySet<ErrorCode> = new Set<ErrorCode>([
  'ERR_MULTIFD_ABORTED',
  'ERR_MULTIFD_CLOSED',
  'ERR_MULTIFD_CONNECT',
  'ERR_MULTIFD_HOOK',
  'ERR_MULTIFD_LISTEN',
  'ERR_MULTIFD_OPTION',
  'ERR_MULTIFD_STATE',
  'ERR_MULTIFD_WORKER',
]);

export class SideErrors {
  readonly #sides = new WeakMap<MultifdError, Side | undefined>();

  /** The first mark counts. */
  mark(side: Side, thrown: unknown): MultifdError {
    const error = MultifdError.wrap(thrown, 'ERR_MULTIFD_CONNECTION', side);
    if (!this.#sides.has(error)) this.#sides.set(error, side);
    return error;
  }

  /** The first error of all: the other side's session ends with it as well, and must not seem to be where it began. */
  settle(error: MultifdError): void {
    this.#sides.set(error, this.sideOf(error));
  }

  /** `wait`, with its error marked. */
  async of<T>(side: Side, wait: Promise<T>): Promise<T> {
    try {
      return await wait;
    } catch (thrown) {
      throw this.mark(side, thrown);
    }
  }

  /** `all`, with its error marked. */
  async *each<T>(side: Side, all: AsyncIterable<T>): AsyncGenerator<T, void, undefined> {
    try {
      yield* all;
    } catch (thrown) {
      throw this.mark(side, thrown);
    }
  }

  /** What is not marked comes from a receiver, whose peer is the source, or is nobody's fault but ours. */
  sideOf(error: MultifdError): Side | undefined {
    if (this.#sides.has(error)) return this.#sides.get(error);
    return OURS.has(error.code) ? undefined : 'source';
  }

  /** The same error with its side in the text. */
  named(error: MultifdError): MultifdError {
    const side = this.sideOf(error);
    if (side === undefined || error.message.startsWith(`the ${side}`)) return error;
    return error.reworded(`${side}: ${error.message}`);
  }
}
