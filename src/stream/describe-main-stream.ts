/**
 * Says what a capture of a main stream holds, for people: everything is read and counted, nothing is kept. A capture
 * that breaks off, or breaks the format, is described up to there.
 */
import { type ErrorCode, MultifdError } from '../errors.js';
import type { StreamBlock } from './block-list.js';
import type { ByteReader } from './byte-reader.js';
import { type BoundOptions, atMost, checkBounds } from './bounds.js';
import { STREAM_ERRORS, refusal } from './codes.js';
import type { Configuration } from './configuration.js';
import { type MainStreamOptions, MainStreamReader } from './main-stream.js';
import type { MainItem, MarkerMode } from './records.js';
import { TailEndFinder } from './tail-end.js';
import type { VmDescription } from './vm-description.js';

export interface MainStreamDescription {
  configuration: Configuration | undefined;
  /** The machine type's name; empty without configuration. */
  machine: string;
  capabilities: string[];
  /** Target page size, in bytes. */
  pageSize: number;
  blocks: readonly StreamBlock[];
  /** Undefined before the EOS of ram's START. */
  marker: MarkerMode | undefined;
  /** Commands in order, by number; the first 1000. */
  commands: number[];
  /** START, PARTs and END of ram. */
  sections: number;
  zeroRecords: number;
  pageRecords: number;
  flushRecords: number;
  /** SYNC packets that each channel of this migration has. */
  syncPoints: number;
  /** Undefined if ram's END could not be found. */
  tailBytes?: number;
  /** Does it end as one does, with a VM description or EOF? */
  tailIsWhole?: boolean;
  /** Does a VM description begin behind that EOF, which is none? */
  tailBreaks?: true;
  /** Undefined if the tail ends without one. */
  vmDescription?: VmDescription;
  /** Where the stream breaks off, or what is wrong in it. */
  problem?: MultifdError;
}

const MAX_COMMANDS = 1000;
/** What ends the reading and says nothing of what is read. */
const NOT_OF_THE_STREAM: ErrorCode[] = [STREAM_ERRORS.io, 'ERR_MULTIFD_ABORTED', 'ERR_MULTIFD_STALL'];

/** @throws MultifdError STREAM_ERRORS.magic, .eof if it is no migration stream; what the reader's source throws */
export async function describeMainStream(
  reader: ByteReader,
  options: Omit<MainStreamOptions, 'bounds'> & BoundOptions = {},
): Promise<MainStreamDescription> {
  const bounds = checkBounds(options);
  const stream = new MainStreamReader(reader, { ...options, bounds });
  await stream.next();
  const description: MainStreamDescription = {
    configuration: undefined,
    machine: '',
    capabilities: [],
    pageSize: stream.pageSize,
    blocks: [],
    marker: undefined,
    commands: [],
    sections: 0,
    zeroRecords: 0,
    pageRecords: 0,
    flushRecords: 0,
    syncPoints: 0,
  };
  let finder: TailEndFinder | undefined;
  try {
    for (let item = await stream.next(); item !== undefined; item = await stream.next()) {
      addItem(description, item);
      if (!stream.inTail) continue;
      finder ??= new TailEndFinder(bounds.maxDescription);
      if (item.kind === 'tail' && finder.push(item.raw)) break;
    }
  } catch (error) {
    if (!(error instanceof MultifdError) || NOT_OF_THE_STREAM.includes(error.code)) throw error;
    description.problem = error;
  }
  description.configuration = stream.configuration;
  description.machine = stream.configuration?.machine ?? '';
  description.capabilities = stream.configuration?.capabilities ?? [];
  description.pageSize = stream.pageSize;
  description.blocks = stream.blocks;
  description.marker = stream.marker;
  const tail = finder?.end(stream.footers ?? true);
  if (tail !== undefined) {
    description.tailBytes = tail.bytes;
    description.tailIsWhole = tail.isWhole;
    if (tail.breaks === true) description.tailBreaks = true;
  }
  if (tail?.description !== undefined) description.vmDescription = tail.description;
  if (tail?.tooLong !== undefined) {
    const expected = atMost('maxDescription', bounds.maxDescription);
    description.problem ??= refusal(
      'limit',
      `${reader.name}: bytes of the VM description`,
      tail.tooLong,
      expected,
    );
  }
  return description;
}

function addItem(description: MainStreamDescription, item: MainItem): void {
  switch (item.kind) {
    case 'command':
      if (description.commands.length < MAX_COMMANDS) description.commands.push(item.command);
      break;
    case 'section':
      description.sections += 1;
      break;
    case 'zero':
      description.zeroRecords += item.offsets.length;
      break;
    case 'page':
      description.pageRecords += 1;
      break;
    case 'flush':
      description.flushRecords += 1;
      description.syncPoints += 1;
      break;
    case 'eos':
      if (item.sync) description.syncPoints += 1;
      break;
  }
}
