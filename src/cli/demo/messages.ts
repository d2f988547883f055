/**
 * What the demo's two processes say to each other over Node's IPC. It stands in for QEMU's main migration stream:
 * block names and sizes, ZERO records of zero-page detection `legacy`, and the sync points.
 *
 *     source (parent)                       destination (child)
 *     listen: blocks, channels, ...  --->   makes its RAM, listens; replies with the address
 *     ready                          --->   replies when all channels are in
 *     [zero: ranges]                 --->   zeroRange() of each
 *     sync                           --->   receiver.sync(); replies when every page before it is in place
 *     end                            --->   receiver.end()
 *     digest                         --->   replies with SHA-256 of each block
 *     (disconnects)                         exits; also when the source dies
 *
 * Every request has one reply, with its id. `failed` may come at any time, is said once, and is the last word.
 */
import type { Address, Compression } from '../../index.js';
import type { TlsFolderOptions } from '../../transport/tls/options.js';
import type { Failure } from '../cli-error.js';
import type { Digests } from './digest.js';
import type { BlockPlan } from './guest-ram.js';

export interface DestinationSetup {
  blocks: readonly BlockPlan[];
  /** Where to make the RAM file; shared memory without it. */
  file: string | undefined;
  /** To be removed if the source dies. */
  tempDirectory: string | undefined;
  prefault: boolean;
  hugePages: boolean;
  channels: number;
  compression: Compression;
  pageSize: number;
  tls: TlsFolderOptions | undefined;
}

export type Request =
  | { type: 'listen'; setup: DestinationSetup }
  | { type: 'ready' }
  /** Pairs of offset and length, in bytes. */
  | { type: 'zero'; block: string; ranges: number[] }
  | { type: 'sync' }
  | { type: 'end' }
  | { type: 'digest' };

/** What each request is answered with. */
export interface Replies {
  listen: Address;
  ready: null;
  zero: null;
  sync: null;
  end: null;
  digest: Digests;
}

export type ToDestination = Request & { id: number };
export type ToSource =
  { type: 'reply'; id: number; value: Replies[keyof Replies] } | { type: 'failed'; failure: Failure };
