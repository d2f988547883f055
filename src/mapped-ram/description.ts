/**
 * What a mapped-ram file is, without its pages: the description that read.ts makes, by which pages.ts finds what a
 * sender passes on and verify.ts compares, and which `multifd inspect` prints. Plain data on the calling thread; it
 * holds no file open.
 */
import { MultifdError } from '../errors.js';
import { STREAM_ERRORS } from '../stream/codes.js';
import type { Configuration } from '../stream/configuration.js';
import type { VmDescription } from '../stream/vm-description.js';
import type { MappedRamBlock } from './layout.js';

export type MappedRamProblemKind =
  /** The stream breaks off, or breaks the format. */
  | 'stream'
  /** A mapped-ram header has a version, a page size or an offset that QEMU refuses. */
  | 'header'
  /** A bitmap or pages lie outside the file. */
  | 'outside'
  /** Two regions lie over each other. */
  | 'overlap'
  /** Bits behind a block's last page are set. */
  | 'trailing-bits'
  /**
   * The tail ends without VM description: it may be cut, and is where it does not even end with EOF (fatal). Or it ends
   * with one above `maxDescription`.
   */
  | 'tail';

export interface MappedRamProblem {
  kind: MappedRamProblemKind;
  /** Does it keep the file from being loaded or sent? */
  fatal: boolean;
  message: string;
  /** The block concerned, where there is one. */
  block?: string;
}

export interface MappedRamBlockDescription extends MappedRamBlock {
  /** Pages whose bit is set. */
  presentPages: number;
  zeroPages: number;
  /** The guest address, with x-ignore-shared. */
  address?: bigint;
}

/** Where sections beside ram lie in the file, as they are to be passed on. */
export interface OtherSections {
  offset: number;
  bytes: number;
}

export interface MappedRamDescription {
  fileSize: number;
  /** Where the stream begins in the file. */
  offset: number;
  /** Undefined if the stream has none. */
  configuration: Configuration | undefined;
  /** The machine type's name; empty without configuration. */
  machine: string;
  capabilities: string[];
  /** Target page size, in bytes. */
  pageSize: number;
  /** ram's section id. */
  sectionId: number;
  footers: boolean;
  blocks: MappedRamBlockDescription[];
  presentPages: number;
  zeroPages: number;
  /** Other sections before ram's START, and between it and ram's END. */
  sectionsBeforeRam: OtherSections[];
  sectionsBesideRam: OtherSections[];
  /** Does the stream have the command SWITCHOVER_START? */
  switchoverStart: boolean;
  /** Where the stream goes on behind the last block's pages; undefined if the block list could not be read. */
  streamOffset?: number;
  /** Where the tail begins, and its length; undefined if ram's END could not be found. */
  tailOffset?: number;
  tailBytes?: number;
  /** Behind the tail: padding, the rest of a block device. QEMU does not read it. */
  unreadBytes?: number;
  /** Undefined if the tail ends without one. */
  vmDescription?: VmDescription;
  problems: MappedRamProblem[];
}

/**
 * Throws the first problem that keeps a file from being loaded or sent.
 *
 * @throws MultifdError STREAM_ERRORS.file
 */
export function requireSound(description: MappedRamDescription): void {
  const problem = description.problems.find(({ fatal }) => fatal);
  if (problem !== undefined) throw new MultifdError(STREAM_ERRORS.file, problem.message);
}
