/** What precopy.ts and switch-over.ts need of the source that they are the parts of. */
import type { Sender } from '../send/sender.js';
import type { Configuration } from '../stream/configuration.js';
import type { MainStreamBuilder } from '../stream/main-writer.js';
import type { MainConnection } from '../transport/main-connection.js';
import type { Answer } from '../migration/answer.js';
import type { Life } from './life.js';
import type { Figures, MigrationProgress } from './progress.js';
import type { Resumption } from './resumption.js';
import type { CheckedSource } from './source-options.js';
import type { SourceState } from './states.js';

export interface SourceSession {
  readonly options: CheckedSource;
  readonly life: Life<SourceState, MigrationProgress>;
  readonly figures: Figures;
  readonly builder: MainStreamBuilder;
  readonly configuration: Configuration;
  readonly downtimeLimitMs: number;
  readonly sender: Sender;
  readonly main: MainConnection;
  readonly answer: Answer;
  /** With option resumable. */
  readonly resumption: Resumption | undefined;
  /** pause() has been called. */
  paused: boolean;
  /** The last bytes are on their way, or out: the destination may answer. */
  asked: boolean;
  /** On the main stream; not beyond the first error. */
  write(bytes: Buffer): Promise<void>;
  /** SYNC on every channel, then the marker. */
  endSection(): Promise<void>;
  /**
   * The same behind a round, and a PING, until its PONG: the destination has all of it in place. What the kernel has taken is not
   * that yet: it holds megabytes, and the guest would stand still until the destination has worked them off.
   */
  endRound(): Promise<void>;
  /**
   * Calls a hook of the embedder's, between two sections. Meanwhile the destination is pinged: it must not take a hook that
   * takes its time for a source that is gone.
   */
  hook<T>(name: string, call: () => T | PromiseLike<T>): Promise<T>;
  /** The same for one that has been called. */
  during<T>(name: string, hook: Promise<T>): Promise<T>;
  /** State pre-switchover, until switchover() is called. */
  released(): Promise<void>;
}
