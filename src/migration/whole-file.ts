/**
 * The end of a migration into a file: all has arrived, and the file gets its name and the source is told, in this order.
 *
 * The file has its name only when it is whole and on disk: the source of a migration gives its guest up when it is
 * told that it succeeded. The rename is the moment that decides; what is told, and what lies there, by what fails:
 *
 *     fails, is aborted or broken                 the source (return path)   the call    on disk
 *     before the rename                           not told: runs on          rejects     nothing; OUT.part: `keepPartial`
 *     before, the source broke off behind all     not told                   rejects     whole, as OUT.part
 *     fsync, rename, abort; no return path        has given its guest up     rejects     whole, as OUT.part
 *     an abort, a channel after the rename        SHUT 0                     resolves    OUT
 *     the folder's fsync (a disk that fails)      not told                   rejects     whole, as OUT.part
 *     SHUT: the source is gone, or resets it      not told                   rejects     whole, as OUT.part
 *     killed before / after the rename            not told / may be told     -           OUT.part / OUT
 *
 * A source without return path is told nothing, and is done when it has sent all.
 *
 * Called on the calling thread by incoming-migration.ts, once each.
 */
import { setImmediate as turnEventLoop } from 'node:timers/promises';
import { MultifdError, type ErrorCode } from '../errors.js';
import type { Receiver } from '../recv/receiver.js';
import { encodeShut } from '../stream/return-path.js';
import type { MainConnection } from '../transport/main-connection.js';
import { closedUntold } from './blame.js';
import { settles } from './limits.js';
import type { OutputFile } from './output-file.js';
import type { PackedOutput } from './packed-output.js';

/** How the source has left its main stream. */
export interface SourceEnd {
  returnPath: boolean;
  /** It has sent all and left the stream open, to be told. */
  waiting: boolean;
  /** It has gone while the file was made. */
  gone?: boolean;
}

/** What a message says of a file that is kept; the error's `kept` says it to programs. */
export function keptWords(part: string): string {
  return `; the whole file is kept as ${part}`;
}

export class WholeFile {
  /** Why a whole file has not got its name. */
  kept: MultifdError | undefined;
  readonly #file: OutputFile | PackedOutput;

  constructor(file: OutputFile | PackedOutput) {
    this.#file = file;
  }

  /** Whole and on disk, then under its name. */
  async keep(receiver: Receiver, main: MainConnection, end: SourceEnd): Promise<void> {
    const file = this.#file;
    const { returnPath, waiting } = end;
    try {
      await receiver.orStopped(file.sync());
      if (returnPath && (!waiting || main.ended)) {
        // It has died, or given up: its guest may run on, or this may be the only one there is.
        const { code, message } = closedUntold();
        throw this.#untold(code, message);
      }
      // The last look, and the name: nothing comes in between.
      if (receiver.isRunning) file.name();
      // Throws why it is not.
      else await receiver.orStopped(Promise.resolve());
    } catch (error) {
      // Without the return path the source has given its guest up: what is whole is the only one there is; as above with one.
      if ((returnPath && end.gone !== true) || this.kept !== undefined) throw error;
      const { code, message } = MultifdError.wrap(error, 'ERR_MULTIFD_IO', 'fsync');
      throw this.#untold(code, message, error);
    }
    try {
      await file.onDisk();
    } catch (error) {
      await this.#unname('ERR_MULTIFD_IO', 'the folder could not be written to disk', error);
    }
  }

  /** A source that cannot be told takes its migration as failed: its guest may run on, and this file must not seem valid. */
  async tell(main: MainConnection): Promise<void> {
    // Its end may lie there unread; what is written behind it the kernel takes all the same.
    await turnEventLoop();
    if (main.ended) {
      const { code, message } = closedUntold();
      await this.#unname(code, message, main.broken);
    }
    try {
      await main.write(encodeShut(0));
      await settles(main.end());
      // A reset: the source's end of the connection was closed when the SHUT came.
      if (main.broken !== undefined) throw main.broken;
    } catch (error) {
      const why = 'the source could not be told that all has arrived';
      await this.#unname('ERR_MULTIFD_CONNECTION', why, error);
    }
  }

  /** The file is whole, so it is not thrown away. */
  async #unname(code: ErrorCode, why: string, cause: unknown): Promise<never> {
    await this.#file.unname();
    throw this.#untold(code, why, cause);
  }

  #untold(code: ErrorCode, why: string, cause?: unknown): MultifdError {
    const { part } = this.#file;
    const kept = this.#file.keep() ? part : undefined;
    const fate =
      kept === undefined ? `; the whole file is lost: what is ${part} now is not it` : keptWords(part);
    this.kept = new MultifdError(code, `${why}${fate}`, { kept, cause });
    return this.kept;
  }
}
