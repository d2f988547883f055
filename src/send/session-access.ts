/**
 * What the pieces of the queueing side may ask of their session: its waits, which all end when it stops, and its
 * first error. `Sender` (sender.ts) hands it to each piece; no piece knows the Sender itself.
 *
 * Nothing here lies on the way of a page that is queued without waiting; that one uses `control` alone.
 */
import type { BlockFiles } from '../ram/file-block.js';
import type { MultifdError, ErrorCode } from '../errors.js';
import type { Control } from '../shared/control.js';

/** The methods of the same name in src/session.ts. */
export interface SessionAccess {
  readonly control: Control;
  /** Throws if the session has failed or is closed. */
  check(): Promise<void>;
  /** Until `condition` holds, looking again on every READY. @returns whether it slept */
  until(condition: () => boolean, spin: number): Promise<boolean>;
  sleep(ms: number): Promise<void>;
  orStopped<T>(wait: Promise<T>): Promise<T>;
  /** Ends the session with an error, if it is the first. */
  fail(error: MultifdError): void;
  /** For what was thrown inside a call that had begun: the session ends with it. */
  broken(thrown: unknown, code: ErrorCode, what: string): Promise<never>;
  /** Bytes on the wire so far, all channels together. */
  wireBytes(): number;
  /** As BlockFiles.read(). */
  readFile: BlockFiles['read'];
}
