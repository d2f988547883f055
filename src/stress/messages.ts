/**
 * What `multifd stress engine` and its two processes say to each other over Node's IPC.
 *
 *     stressing process                side process
 *     begin: plan, folder, ...  --->   looks at what it has; makes its memory
 *                               <---   listening: address (destination)
 *     connect: address          --->   (source) migrates
 *                               <---   reached: digests of the memory, the guest standing still (source)
 *     peer: anything            <-->   passed on to the other side: the main stream of a session
 *     strike: kind, id          --->   thread, abort, cancel
 *                               <---   struck: id, whether there was something to strike
 *     peer-gone                 --->   (session) the other side has failed: nobody else would say so
 *                               <---   outcome: completed, or the error
 *                               <---   left: what it has more than before, looked at when all is over
 */
import type { Address } from '../transport/address.js';
import type { TlsFolderOptions } from '../transport/tls/options.js';
import type { EnginePlan, SideName } from './engine-plan.js';

export interface Begin {
  side: SideName;
  plan: EnginePlan;
  /** For its files: memory, log, socket. */
  folder: string;
  tls: TlsFolderOptions | undefined;
}

/** Strikes that the process does to itself. */
export type Strike = 'thread' | 'abort' | 'cancel';

export type ToSide =
  | ({ type: 'begin' } & Begin)
  | { type: 'connect'; to: Address }
  | { type: 'peer'; said: PeerWord }
  | { type: 'peer-gone' }
  | { type: 'strike'; id: number; what: Strike };

/** Of a session. */
export type PeerWord =
  /** Zero pages of mode legacy, as pairs of offset and length by block; then sync(). */
  | { word: 'sync'; zeros: [block: string, offset: number, length: number][] }
  | { word: 'synced' }
  | { word: 'end' };

/** SHA-256 by the name of a block, and of a device. */
export type Digests = Record<string, string>;

export interface Outcome {
  completed: boolean;
  /** Of what the guest has there. */
  digests?: Digests;
  /** A file that is whole although it failed, and that it says it has kept: what is in it is in `digests`. */
  kept?: string;
  /** Of what it threw; a code that begins with ERR_MULTIFD_ is one of ours. */
  code?: string;
  message?: string;
  /** Codes of what came behind it. */
  suppressed?: string[];
  /** pause and resume, load and start, as they were called. */
  hooks: string[];
  /** Of guest RAM and devices, as counted by the engine; wire bytes. */
  bytes: number;
}

/** What a process has more than before the run; all is 0 where nothing was left behind. */
export interface LeftBehind {
  descriptors: string[];
  threads: number;
  /** Of what keeps the event loop alive. */
  resources: string[];
  /** Bytes of heap, buffers and resident memory, after a collection. */
  heapBytes: number;
  residentBytes: number;
}

export type FromSide =
  | { type: 'ready' }
  | { type: 'listening'; address: Address }
  | { type: 'reached'; digests: Digests }
  | { type: 'peer'; said: PeerWord }
  | { type: 'struck'; id: number; hit: boolean }
  | { type: 'outcome'; outcome: Outcome }
  | { type: 'left'; left: LeftBehind };
