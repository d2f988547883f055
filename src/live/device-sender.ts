/**
 * Sends a device's state over the channels, in pieces (device-pieces.ts): one that is too large for the main stream, or one that
 * its device gives part by part since all of it at once would be too much.
 *
 *     save()'s iterator: next() --> a part, copied into the piece --> full: queueDeviceState() --> an idle channel
 *
 * Back-pressure: the next part is asked for when there is room for it, so that this side holds one piece, and the channels one
 * each. Called between two sections, so that the destination can be pinged while an iterator takes its time.
 *
 * Who owns the bytes: a part is the migration's until the next one is asked for.
 */
import { types } from 'node:util';
import { MultifdError, receivedExpected } from '../errors.js';
import { awaitHook } from '../migration/options.js';
import { PIECE_BYTES, PIECE_HEAD_BYTES, fillPieceHead } from './device-pieces.js';
import { type DeviceId, type StateSize, nameOf } from './device-sections.js';
import type { SourceSession } from './source-session.js';

/** What save() may give. */
export type SavedState = Uint8Array | Iterable<Uint8Array> | AsyncIterable<Uint8Array>;

type Parts = AsyncIterator<unknown, unknown> | Iterator<unknown, unknown>;
type Part = IteratorResult<unknown, unknown>;

/** @throws MultifdError ERR_MULTIFD_HOOK for what is neither bytes nor can be iterated */
export function requireState(device: DeviceId, saved: unknown): SavedState {
  if (types.isUint8Array(saved)) return saved;
  const given = typeof saved === 'object' && saved !== null ? saved : {};
  if (Symbol.asyncIterator in given || Symbol.iterator in given) return saved as SavedState;
  throw badPart(device, 'save()', saved, 'a Uint8Array, or an iterable of them');
}

export class DeviceSender {
  readonly #source: SourceSession;
  readonly #device: DeviceId;
  readonly #payload = Buffer.allocUnsafeSlow(PIECE_HEAD_BYTES + PIECE_BYTES);
  #filled = PIECE_HEAD_BYTES;
  readonly #size: StateSize = { bytes: 0, pieces: 0 };

  constructor(source: SourceSession, device: DeviceId) {
    this.#source = source;
    this.#device = device;
  }

  /** @returns when channels have taken all of it */
  async send(saved: SavedState): Promise<StateSize> {
    if (types.isUint8Array(saved)) await this.#take(saved);
    else await this.#iterate(saved);
    if (this.#filled > PIECE_HEAD_BYTES) await this.#flush();
    return this.#size;
  }

  async #iterate(saved: Iterable<unknown> | AsyncIterable<unknown>): Promise<void> {
    const hook = <T>(call: () => T | PromiseLike<T>): Promise<T> => this.#source.hook(this.#hookName, call);
    const parts = await hook(() => iteratorOf(saved));
    /** The last next(). */
    let last: Promise<Part> | undefined;
    const next = (): Promise<Part> => (last = (async () => parts.next())());
    try {
      for (;;) {
        const { done, value } = await hook(next);
        if (done === true) return;
        if (!types.isUint8Array(value))
          throw badPart(this.#device, 'a part of save()', value, 'a Uint8Array');
        await this.#take(value);
      }
    } catch (thrown) {
      const error = MultifdError.wrap(thrown, 'ERR_MULTIFD_HOOK', this.#hookName);
      this.#abandon(parts, last, error);
      throw error;
    }
  }

  /** Its finally is the embedder's code as well: waited for as a hook is, when the next() that is under way has returned. */
  #abandon(parts: Parts, last: Promise<Part> | undefined, error: MultifdError): void {
    const close = async (): Promise<void> => {
      const ended = await last?.then(
        ({ done }) => done === true,
        () => true,
      );
      if (ended !== true) await parts.return?.();
    };
    const closing = awaitHook(this.#hookName, close);
    closing.catch((later: MultifdError) => error.suppressed.push(later));
    this.#source.life.duringHook(this.#hookName, closing).catch(() => {});
  }

  get #hookName(): string {
    return `device ${nameOf(this.#device)}: save`;
  }

  async #take(part: Uint8Array): Promise<void> {
    const { length } = part;
    for (let at = 0; at < length;) {
      const room = this.#payload.length - this.#filled;
      const taken = part.subarray(at, at + room);
      this.#payload.set(taken, this.#filled);
      this.#filled += taken.length;
      at += taken.length;
      if (this.#filled === this.#payload.length) await this.#flush();
      // Taken away, or cut, while channels were waited for: what is missing would be missing in silence.
      if (part.length !== length)
        throw badPart(this.#device, 'save(): bytes of what it gave', part.length, `${length}, as at first`);
    }
  }

  async #flush(): Promise<void> {
    const { sender, life } = this.#source;
    const { idstr, instanceId } = this.#device;
    fillPieceHead(this.#payload, this.#size.pieces);
    const payload = this.#payload.subarray(0, this.#filled);
    await life.orFailed(sender.queueDeviceState(idstr, instanceId, payload));
    this.#size.pieces++;
    this.#size.bytes += this.#filled - PIECE_HEAD_BYTES;
    this.#filled = PIECE_HEAD_BYTES;
  }
}

function iteratorOf(saved: Iterable<unknown> | AsyncIterable<unknown>): Parts {
  return Symbol.asyncIterator in saved ? saved[Symbol.asyncIterator]() : saved[Symbol.iterator]();
}

function badPart(device: DeviceId, what: string, given: unknown, expected: string): MultifdError {
  const received = typeof given === 'number' ? given : typeof given;
  const message = receivedExpected(`device ${nameOf(device)}: ${what}`, received, expected);
  return new MultifdError('ERR_MULTIFD_HOOK', message);
}
