/**
 * Writes QEMU's main migration stream: the mirror of main-stream.ts, item by item, and the order of a whole stream.
 *
 * Three users:
 * - `encodeItem` gives a parsed item's bytes again, from its fields alone;
 * - `toFileStream` and `toSocketStream` translate items between a socket migration and a mapped-ram file:
 *
 *       item                  socket -> file                     file -> socket
 *       configuration         capability mapped-ram added        taken out
 *       command 1 2 3         left out (return path, postcopy)   left out
 *       other commands        kept                               kept; SWITCHOVER_START as the rules say
 *       mem-size              the writer's, block by block       entries without mapped-ram headers
 *       zero page flush       left out: they are RAM             (there are none)
 *       eos                   kept                               FLUSH before it in marker mode `flush`
 *       section footer tail   kept                               kept
 *       other sections        kept                               kept
 *
 * - `MainStreamBuilder` makes a socket migration's stream anew, for a sender that has the blocks and the tail.
 *
 * Everything here is bytes: nobody waits, nothing is written anywhere.
 */
import { MultifdError } from '../errors.js';
import { type StreamBlock, encodeBlock, encodeU64 } from './block-list.js';
import { STREAM_ERRORS, quote } from './codes.js';
import {
  CAPABILITY_MAPPED_RAM,
  type Configuration,
  encodeConfiguration,
  encodeFileHeader,
  encodeName,
  encodeU32,
} from './configuration.js';
import {
  COMMAND_POSTCOPY_ADVISE,
  COMMAND_SWITCHOVER_START,
  type MainItem,
  type MarkerMode,
  type OtherSectionItem,
  QEMU_VM_COMMAND,
  QEMU_VM_SECTION_END,
  QEMU_VM_SECTION_FOOTER,
  QEMU_VM_SECTION_FULL,
  QEMU_VM_SECTION_PART,
  QEMU_VM_SECTION_START,
  RAM_IDSTR,
  RAM_INSTANCE_ID,
  RAM_SAVE_FLAG_CONTINUE,
  RAM_SAVE_FLAG_EOS,
  RAM_SAVE_FLAG_MEM_SIZE,
  RAM_SAVE_FLAG_MULTIFD_FLUSH,
  RAM_SAVE_FLAG_PAGE,
  RAM_SAVE_FLAG_ZERO,
  RAM_VERSION_ID,
  type SectionType,
} from './records.js';

const TWO_32 = 2 ** 32;
const NOTHING = Buffer.alloc(0);

export function encodeCommand(command: number, data: Uint8Array = NOTHING): Buffer {
  const head = Buffer.allocUnsafe(5);
  head.writeUInt8(QEMU_VM_COMMAND, 0);
  head.writeUInt16BE(command, 1);
  head.writeUInt16BE(data.length, 3);
  return Buffer.concat([head, data]);
}

/** The head of a ram section; its records follow. */
export function encodeSection(section: SectionType, sectionId: number): Buffer {
  if (section !== 'start') {
    const type = section === 'part' ? QEMU_VM_SECTION_PART : QEMU_VM_SECTION_END;
    return Buffer.concat([Buffer.of(type), encodeU32(sectionId)]);
  }
  return Buffer.concat([
    Buffer.of(QEMU_VM_SECTION_START),
    encodeU32(sectionId),
    encodeName(RAM_IDSTR),
    encodeU32(RAM_INSTANCE_ID),
    encodeU32(RAM_VERSION_ID),
  ]);
}

/** The head of another section before ram's END; its body follows. */
export function encodeOtherSection(head: Omit<OtherSectionItem, 'kind' | 'at' | 'raw'>): Buffer {
  const { section, sectionId, idstr, instanceId, versionId } = head;
  if (section === 'part' || section === 'end') return encodeSection(section, sectionId);
  return Buffer.concat([
    Buffer.of(section === 'full' ? QEMU_VM_SECTION_FULL : QEMU_VM_SECTION_START),
    encodeU32(sectionId),
    encodeName(idstr),
    encodeU32(instanceId),
    encodeU32(versionId),
  ]);
}

export function encodeFooter(sectionId: number): Buffer {
  return Buffer.concat([Buffer.of(QEMU_VM_SECTION_FOOTER), encodeU32(sectionId)]);
}

/** The record alone: the block list follows. */
export function encodeMemSizeRecord(blocks: readonly StreamBlock[]): Buffer {
  const total = blocks.reduce((sum, block) => sum + block.usedLength, 0);
  return encodeU64(total + RAM_SAVE_FLAG_MEM_SIZE);
}

/** MEM_SIZE with its block list, in one piece. */
export function encodeMemSize(blocks: readonly StreamBlock[]): Buffer {
  return Buffer.concat([encodeMemSizeRecord(blocks), ...blocks.map(encodeBlock)]);
}

/**
 * ZERO records for pages of one block.
 *
 * @param offsets byte offsets in the block
 * @param continued is the block that of the record before, so that even the first record names none?
 */
export function encodeZeroRecords(block: string, offsets: readonly number[], continued: boolean): Buffer {
  if (offsets.length === 0) return NOTHING;
  const id = continued ? NOTHING : encodeName(block);
  const bytes = Buffer.alloc(9 * offsets.length + id.length);
  let at = 0;
  for (const [i, offset] of offsets.entries()) {
    const first = i === 0 && !continued;
    at = writeRecord(
      bytes,
      at,
      offset,
      first ? RAM_SAVE_FLAG_ZERO : RAM_SAVE_FLAG_ZERO | RAM_SAVE_FLAG_CONTINUE,
    );
    if (first) at += id.copy(bytes, at);
    // The fill, which alloc() has left 0.
    at += 1;
  }
  return bytes;
}

/** A PAGE record up to the page, which follows. */
export function encodePageRecord(block: string, offset: number, continued: boolean): Buffer {
  const head = Buffer.allocUnsafe(8);
  writeRecord(head, 0, offset, continued ? RAM_SAVE_FLAG_PAGE | RAM_SAVE_FLAG_CONTINUE : RAM_SAVE_FLAG_PAGE);
  return continued ? head : Buffer.concat([head, encodeName(block)]);
}

export function encodeFlush(): Buffer {
  return encodeU64(RAM_SAVE_FLAG_MULTIFD_FLUSH);
}

export function encodeEos(): Buffer {
  return encodeU64(RAM_SAVE_FLAG_EOS);
}

function writeRecord(bytes: Buffer, at: number, address: number, flags: number): number {
  const high = Math.floor(address / TWO_32);
  bytes.writeUInt32BE(high, at);
  bytes.writeUInt32BE(address - high * TWO_32 + flags, at + 4);
  return at + 8;
}

/** An item's bytes, made of its fields; equal to its `raw`. */
export function encodeItem(item: MainItem): Buffer {
  switch (item.kind) {
    case 'header':
      return encodeFileHeader();
    case 'configuration':
      return encodeConfiguration(item.configuration);
    case 'command':
      return encodeCommand(item.command, item.data);
    case 'section':
      return encodeSection(item.section, item.sectionId);
    case 'other-section':
      return encodeOtherSection(item);
    case 'other-data':
      return item.raw;
    case 'mem-size':
      return encodeMemSize(withoutLastPageSize(item.blocks));
    case 'page-size':
      return encodeU64(item.hostPageSize);
    case 'zero':
      return encodeZeroRecords(item.block, item.offsets, item.continued);
    case 'page':
      return Buffer.concat([encodePageRecord(item.block, item.offset, item.continued), item.data]);
    case 'flush':
      return encodeFlush();
    case 'eos':
      return encodeEos();
    case 'footer':
      return encodeFooter(item.sectionId);
    case 'tail':
      return item.raw;
  }
}

/** The last entry's page_size is an item of its own. */
function withoutLastPageSize(blocks: readonly StreamBlock[]): StreamBlock[] {
  const last = { ...blocks[blocks.length - 1] };
  delete last.hostPageSize;
  return [...blocks.slice(0, -1), last];
}

/**
 * The configuration of a mapped-ram file.
 *
 * @throws MultifdError STREAM_ERRORS.unsupported without one: then nothing could announce the file's layout
 */
export function fileConfiguration(configuration: Configuration | undefined): Configuration {
  if (configuration === undefined) {
    throw new MultifdError(
      STREAM_ERRORS.unsupported,
      'main stream without configuration (send-configuration=off): a mapped-ram file needs one',
    );
  }
  const others = (configuration.capabilities ?? []).filter((name) => name !== CAPABILITY_MAPPED_RAM);
  return { ...configuration, capabilities: [...others, CAPABILITY_MAPPED_RAM] };
}

/** The configuration of a socket migration: the subsection goes when it announces nothing else. */
export function socketConfiguration(configuration: Configuration): Configuration {
  const { capabilities, ...rest } = configuration;
  const others = (capabilities ?? []).filter((name) => name !== CAPABILITY_MAPPED_RAM);
  return others.length === 0 ? rest : { ...rest, capabilities: others };
}

/** A block's entry in a socket migration. */
export function socketBlock(block: StreamBlock): StreamBlock {
  const entry = { ...block };
  delete entry.mapped;
  return entry;
}

/**
 * Return path and postcopy are agreements of one connection: a file has nobody to answer, and who sends it on makes
 * agreements of its own.
 */
function isOfConnection(command: number): boolean {
  return command <= COMMAND_POSTCOPY_ADVISE;
}

/**
 * What a socket migration's item becomes in the stream of a mapped-ram file; nothing for RAM and sync points.
 *
 * @throws MultifdError STREAM_ERRORS.state for the block list, whose entries must be laid out (MappedRamWriter)
 */
export function toFileStream(item: MainItem): Buffer {
  switch (item.kind) {
    case 'configuration':
      return encodeConfiguration(fileConfiguration(item.configuration));
    case 'command':
      return isOfConnection(item.command) ? NOTHING : item.raw;
    case 'mem-size':
      throw new MultifdError(STREAM_ERRORS.state, 'the block list of a file is written by its layout');
    case 'page-size':
    case 'zero':
    case 'page':
    case 'flush':
      return NOTHING;
    default:
      return item.raw;
  }
}

/** What a destination expects of the main stream; `machineRules()` knows it. */
export interface SocketStreamRules {
  marker: MarkerMode;
  /** QEMU < 10.0 refuses SWITCHOVER_START. */
  switchoverStart: boolean;
}

/**
 * What an item of a mapped-ram file's stream becomes in a socket migration whose pages all go over the channels. One
 * sync point a section; where `switchoverStart` holds and the file has no such command, none is made up.
 */
export function toSocketStream(item: MainItem, rules: SocketStreamRules): Buffer {
  switch (item.kind) {
    case 'configuration':
      return encodeConfiguration(socketConfiguration(item.configuration));
    case 'command':
      if (isOfConnection(item.command)) return NOTHING;
      return item.command === COMMAND_SWITCHOVER_START && !rules.switchoverStart ? NOTHING : item.raw;
    case 'mem-size':
      return encodeMemSize(item.blocks.map(socketBlock));
    case 'eos':
      return rules.marker === 'flush' ? Buffer.concat([encodeFlush(), item.raw]) : item.raw;
    default:
      return item.raw;
  }
}

/** What a stream is built of; a mapped-ram description has it all. */
export interface SocketStreamParts {
  /** Undefined for a source that sends none. With or without mapped-ram. */
  configuration: Configuration | undefined;
  blocks: readonly StreamBlock[];
  sectionId: number;
  footers: boolean;
}

/**
 * A socket migration's main stream, call by call, each giving bytes to write:
 *
 *     setup()            header, configuration, START, MEM_SIZE   then SYNC on all channels
 *     endSection()       marker, EOS, footer                      here the caller's other sections
 *     part()             PART                                     pages over the channels
 *     zeros(...)         ZERO records (zero-page mode legacy)     then SYNC on all channels
 *     endSection()       marker, EOS, footer
 *     end()              [SWITCHOVER_START] END                   then SYNC on all channels
 *     endSection()       marker, EOS, footer                      then the tail
 *
 * Each endSection() holds exactly one marker in either mode, so exactly one SYNC on every channel belongs to it.
 */
export class MainStreamBuilder {
  readonly #parts: SocketStreamParts;
  readonly #rules: SocketStreamRules;
  /** Is a section's body open? */
  #open = false;
  /** SWITCHOVER_START has been given. */
  #switched = false;
  #last: string | undefined;

  constructor(parts: SocketStreamParts, rules: SocketStreamRules) {
    this.#parts = parts;
    this.#rules = rules;
  }

  /** @param commands what comes between configuration and START: OPEN_RETURN_PATH and PING, see encodeCommand */
  setup(commands: readonly Buffer[] = []): Buffer {
    return Buffer.concat([this.begin(commands), this.start()]);
  }

  /** setup() up to START, for a caller that has other sections to put before it. */
  begin(commands: readonly Buffer[] = []): Buffer {
    const { configuration } = this.#parts;
    return Buffer.concat([
      encodeFileHeader(),
      configuration === undefined ? NOTHING : encodeConfiguration(socketConfiguration(configuration)),
      ...commands,
    ]);
  }

  /** The rest of setup(). */
  start(): Buffer {
    const { blocks, sectionId } = this.#parts;
    this.#enter('start');
    return Buffer.concat([encodeSection('start', sectionId), encodeMemSize(blocks.map(socketBlock))]);
  }

  part(): Buffer {
    this.#enter('part');
    return encodeSection('part', this.#parts.sectionId);
  }

  /** CONTINUE is used wherever the block is that of the record before. */
  zeros(block: string, offsets: readonly number[]): Buffer {
    if (!this.#open)
      throw new MultifdError(STREAM_ERRORS.state, `ZERO records of ${quote(block)} in no section`);
    if (offsets.length === 0) return NOTHING;
    const continued = block === this.#last;
    this.#last = block;
    return encodeZeroRecords(block, offsets, continued);
  }

  /** What else end() begins with, for a caller that has something to send before it. */
  switchover(): Buffer {
    if (this.#open || this.#switched || !this.#rules.switchoverStart) return NOTHING;
    this.#switched = true;
    return encodeCommand(COMMAND_SWITCHOVER_START);
  }

  end(): Buffer {
    const switchover = this.switchover();
    this.#enter('end');
    return Buffer.concat([switchover, encodeSection('end', this.#parts.sectionId)]);
  }

  endSection(): Buffer {
    if (!this.#open) throw new MultifdError(STREAM_ERRORS.state, 'EOS in no section');
    this.#open = false;
    return Buffer.concat([
      this.#rules.marker === 'flush' ? encodeFlush() : NOTHING,
      encodeEos(),
      this.#parts.footers ? encodeFooter(this.#parts.sectionId) : NOTHING,
    ]);
  }

  #enter(section: SectionType): void {
    if (this.#open) throw new MultifdError(STREAM_ERRORS.state, `${section.toUpperCase()} inside a section`);
    this.#open = true;
  }
}
