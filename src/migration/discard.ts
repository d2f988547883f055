/**
 * In place of a file that is made: a sink, for throughput tests of a source. All is read, decoded, checked and counted as for
 * a file, and written to /dev/null.
 *
 * A source that hears SHUT 0 gives its guest up, and so does one without return path when it has sent all. Nobody has a
 * guest that was discarded, so by default neither happens:
 *
 *     discard    return path    behind the last byte           the source's guest
 *     refuse     on             SHUT 1: its migration failed   runs on
 *     refuse     off            refused at the block list      runs on
 *     accept     on             SHUT 0                         is given up: for a guest that is made for the test
 *     accept     off            nothing                        is given up
 *
 * Called on the calling thread by receive.ts and incoming-migration.ts, which have it for OutputFile and WholeFile.
 */
import { open, type FileHandle } from 'node:fs/promises';
import { devNull } from 'node:os';
import { setImmediate as turnEventLoop } from 'node:timers/promises';
import { MultifdError, receivedExpected } from '../errors.js';
import { wrong } from '../option-checks.js';
import type { Receiver } from '../recv/receiver.js';
import type { WritableFile } from '../stream/positioned-file.js';
import { encodeShut } from '../stream/return-path.js';
import type { MainConnection } from '../transport/main-connection.js';
import { closedUntold } from './blame.js';
import { settles } from './limits.js';
import type { SourceEnd } from './whole-file.js';

/** What the source is told in the end. */
export const DISCARDS = ['refuse', 'accept'] as const;
export type Discard = (typeof DISCARDS)[number];

/** @throws MultifdError ERR_MULTIFD_OPTION */
export function checkDiscard(value: unknown): Discard | undefined {
  if (value === undefined || value === false) return undefined;
  if (value === true) return 'refuse';
  if (DISCARDS.includes(value as Discard)) return value as Discard;
  throw wrong('discard', value, `true or one of ${DISCARDS.join(', ')}`);
}

export class DiscardedFile {
  /** There is no file. */
  readonly out = '';
  readonly handle: FileHandle;
  readonly direct = undefined;
  /** For who cuts what he has written to its length, which a device does not know. */
  readonly stream: WritableFile;
  readonly #answer: Discard;
  #isDecided = false;

  private constructor(handle: FileHandle, answer: Discard) {
    this.handle = handle;
    this.#answer = answer;
    this.stream = {
      write: (buffer, offset, length, position) => handle.write(buffer, offset, length, position),
      truncate: async () => {},
    };
  }

  static async make(answer: Discard): Promise<DiscardedFile> {
    try {
      return new DiscardedFile(await open(devNull, 'r+'), answer);
    } catch (error) {
      throw MultifdError.wrap(error, 'ERR_MULTIFD_IO', devNull);
    }
  }

  /** Has it been decided what the source is told? */
  get named(): boolean {
    return this.#isDecided;
  }

  /** Before any RAM comes. @throws MultifdError ERR_MULTIFD_STREAM where the source could not be kept from completing */
  begin(returnPath: boolean): void {
    if (returnPath || this.#answer === 'accept') return;
    const expected =
      'on: without it a source takes its migration as done, and its guest, which is discarded, would be lost (option discard "accept", --discard accept, takes it all the same)';
    throw new MultifdError('ERR_MULTIFD_STREAM', receivedExpected('capability return-path', 'off', expected));
  }

  /** All has come; as WholeFile. */
  async keep(receiver: Receiver, main: MainConnection, { returnPath, waiting }: SourceEnd): Promise<void> {
    if (returnPath && (!waiting || main.ended)) throw closedUntold();
    if (!receiver.isRunning) await receiver.orStopped(Promise.resolve());
    this.#isDecided = true;
  }

  async tell(main: MainConnection): Promise<void> {
    // Its end may lie there unread.
    await turnEventLoop();
    const isRefused = this.#answer === 'refuse';
    try {
      if (main.ended) throw closedUntold();
      await main.write(encodeShut(isRefused ? 1 : 0));
      await settles(main.end());
      if (main.broken !== undefined) throw main.broken;
    } catch (error) {
      // One that is refused has failed anyhow.
      if (!isRefused) throw error;
    }
  }

  async giveUp(): Promise<void> {
    await this.close();
  }

  async close(): Promise<void> {
    await this.handle.close().catch(() => {});
  }
}
