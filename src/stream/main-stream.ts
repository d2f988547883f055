/**
 * Reads QEMU's main migration stream item by item; what the items are, and the wire, is in records.ts,
 * configuration.ts and block-list.ts.
 *
 *     state     reads                                        goes on to
 *     HEADER    magic, version                               CONFIG
 *     CONFIG    the configuration, where there is one        SECTION
 *     SECTION   COMMAND                                      SECTION
 *               head of START, PART or END of `ram`          BODY
 *               head of another section that is known        OTHER
 *     BODY      MEM_SIZE, ZERO, PAGE, MULTIFD_FLUSH          BODY
 *               page_size of the block list's last entry     BODY
 *               EOS                                          FOOTER
 *     OTHER     that section's body, uninterpreted           FOOTER
 *     FOOTER    the footer, where the machine sends them     SECTION; after ram's END: TAIL
 *     TAIL      all there is, uninterpreted                  TAIL, at the end: DONE
 *
 * Sections have no length, so before ram's END those are refused whose end cannot be found (other-sections.ts has the
 * others). After it only the devices' state comes, which nobody needs to understand: bytes to the end of the connection.
 *
 * In a mapped-ram file (capability `mapped-ram`; the source must be able to seek) the block list is scattered over
 * the file and RAM lies between its entries; sections hold EOS alone.
 *
 * An item is given out when its last byte is here: who sends it may hold back what follows until it is answered, as our
 * relay and our sender do behind the block list. What can only be told by a later byte is therefore told by the next item.
 * The configuration alone waits for the byte behind it: that does not depend on an answer, since no source has asked for
 * one yet.
 *
 * Runs on the calling thread. The peer is not trusted: every count and length has a bound, an address is held against
 * its block, and an error names the byte.
 */
import type { MultifdError } from '../errors.js';
import { type StreamBlock, checkHostPageSize, decodeBlockList, requirePageSize } from './block-list.js';
import type { Bounds } from './bounds.js';
import type { ByteReader } from './byte-reader.js';
import { type StreamError, quote, refusal } from './codes.js';
import {
  CAPABILITY_IGNORE_SHARED,
  CAPABILITY_MAPPED_RAM,
  type Configuration,
  QEMU_VM_CONFIGURATION,
  QEMU_VM_SUBSECTION,
  decodeConfiguration,
  decodeFileHeader,
  hasCapability,
} from './configuration.js';
import { OTHER_SECTIONS, type OtherSection, otherSection } from './other-sections.js';
import { DEFAULT_PAGE_SIZE, toldPageSize } from './machine.js';
import {
  COMMAND_OPEN_RETURN_PATH,
  COMMAND_PING,
  COMMAND_POSTCOPY_ADVISE,
  COMMAND_RECV_BITMAP,
  COMMAND_SWITCHOVER_START,
  type CommandItem,
  type EosItem,
  type FooterItem,
  type MainItem,
  type MarkerMode,
  type OtherSectionItem,
  QEMU_VM_COMMAND,
  QEMU_VM_EOF,
  QEMU_VM_SECTION_END,
  QEMU_VM_SECTION_FOOTER,
  QEMU_VM_SECTION_FULL,
  QEMU_VM_SECTION_PART,
  QEMU_VM_SECTION_START,
  QEMU_VM_VMDESCRIPTION,
  RAM_IDSTR,
  RAM_INSTANCE_ID,
  RAM_SAVE_FLAG_COMPRESS_PAGE,
  RAM_SAVE_FLAG_CONTINUE,
  RAM_SAVE_FLAG_EOS,
  RAM_SAVE_FLAG_HOOK,
  RAM_SAVE_FLAG_MEM_SIZE,
  RAM_SAVE_FLAG_MULTIFD_FLUSH,
  RAM_SAVE_FLAG_PAGE,
  RAM_SAVE_FLAG_XBZRLE,
  RAM_SAVE_FLAG_ZERO,
  RAM_VERSION_ID,
  type SectionItem,
  type SectionType,
} from './records.js';

const TWO_32 = 2 ** 32;
/** ZERO records in one item at the most: with 9 bytes each they are what one read of a socket brings. */
const MAX_ZERO_RECORDS = 8192;
/** Sections that iterate beside ram; each kind has one, and there are three kinds. */
const MAX_OTHERS = 16;
const ZERO_CONTINUED = RAM_SAVE_FLAG_ZERO | RAM_SAVE_FLAG_CONTINUE;
const NO_FLAGS = 0;
const PAGE_CONTINUED = RAM_SAVE_FLAG_PAGE | RAM_SAVE_FLAG_CONTINUE;
/** u64, u8 fill */
const ZERO_CONTINUED_BYTES = 9;

/** Bytes of data that the commands have whose length is known. */
const COMMAND_BYTES: Record<number, number> = {
  [COMMAND_OPEN_RETURN_PATH]: 0,
  [COMMAND_PING]: 4,
  [COMMAND_SWITCHOVER_START]: 0,
};

export interface MainStreamOptions {
  /** Target page size where the stream does not tell it; in bytes, default 4096. */
  pageSize?: number;
  /** What the block list may claim at the most (default: DEFAULT_BOUNDS). */
  bounds?: Pick<Bounds, 'maxRam' | 'maxBlocks'>;
  /**
   * What to do with what is wrong in a mapped-ram header, but does not keep the stream from being read: a version or
   * a page size that is not known, pages that are not aligned. Default: throw it.
   */
  onProblem?: (problem: Error) => void;
  /** Called with each entry of the block list as it is read: in a file that is cut, all that there is of the list. */
  onBlock?: (block: StreamBlock, at: number) => void;
}

type State = 'HEADER' | 'CONFIG' | 'SECTION' | 'BODY' | 'OTHER' | 'FOOTER' | 'TAIL' | 'DONE';

/** Another section that has had its START. */
interface Iterating {
  idstr: string;
  instanceId: number;
  section: OtherSection;
}

export class MainStreamReader {
  readonly #reader: ByteReader;
  readonly #onProblem: (problem: Error) => void;
  readonly #onBlock: MainStreamOptions['onBlock'];
  readonly #bounds: MainStreamOptions['bounds'];
  #state: State = 'HEADER';
  #pageSize: number;
  #configuration: Configuration | undefined;
  #mapped = false;
  #section: SectionType = 'start';
  /** Of ram; undefined before its START. */
  #sectionId: number | undefined;
  #blocks: readonly StreamBlock[] = [];
  #byName = new Map<string, StreamBlock>();
  /** May the block list's last entry go on with its page_size? */
  #lastIsOpen = false;
  /** The block of the last record with a page: CONTINUE means this one, across sections. */
  #last: StreamBlock | undefined;
  /** By section id. */
  readonly #others = new Map<number, Iterating>();
  /** The rest of the body of another section. */
  #body: AsyncGenerator<void, void, undefined> | undefined;
  /** Whose footer is due, and what comes then. */
  #footerId = 0;
  #afterFooter: State = 'SECTION';
  #footers: boolean | undefined;
  #marker: MarkerMode | undefined;
  #tail: AsyncGenerator<Buffer, void, undefined> | undefined;
  #at = 0;

  constructor(reader: ByteReader, options: MainStreamOptions = {}) {
    const { pageSize = DEFAULT_PAGE_SIZE } = options;
    requirePageSize(pageSize);
    this.#reader = reader;
    this.#pageSize = pageSize;
    this.#onBlock = options.onBlock;
    this.#bounds = options.bounds;
    this.#onProblem =
      options.onProblem ??
      ((problem) => {
        throw problem;
      });
  }

  /** Of the target, in bytes; final once the configuration has been read, in a mapped-ram file the first block. */
  get pageSize(): number {
    return this.#pageSize;
  }

  get configuration(): Configuration | undefined {
    return this.#configuration;
  }

  /** Is this the stream of a mapped-ram file? */
  get mappedRam(): boolean {
    return this.#mapped;
  }

  /** ram's section id, once its START has been read. */
  get sectionId(): number | undefined {
    return this.#sectionId;
  }

  /** Known after the block list. */
  get blocks(): readonly StreamBlock[] {
    return this.#blocks;
  }

  /**
   * How sync points are marked, known at the EOS of ram's START: with a MULTIFD_FLUSH before it, or by it. Undefined
   * for a file, which has none.
   */
  get marker(): MarkerMode | undefined {
    return this.#marker;
  }

  /** Do sections end with a footer? Known after the first. */
  get footers(): boolean | undefined {
    return this.#footers;
  }

  /** Has ram's END been read, so that all the rest is tail? */
  get inTail(): boolean {
    return this.#state === 'TAIL' || this.#state === 'DONE';
  }

  /**
   * The next item; undefined at the end of the stream. After an error nothing more can be read.
   *
   * @throws MultifdError STREAM_ERRORS.eof, .magic, .format, .unsupported, .limit, .block, .offset, .pageSize, .file
   */
  async next(): Promise<MainItem | undefined> {
    if (this.#state === 'DONE') return undefined;
    if (this.#state === 'TAIL') return this.#readTail();
    // What is read between here and #raw() are the item's bytes.
    this.#reader.record();
    this.#at = this.#reader.position;
    switch (this.#state) {
      case 'HEADER':
        await decodeFileHeader(this.#reader);
        this.#state = 'CONFIG';
        return { kind: 'header', ...this.#raw() };
      case 'CONFIG':
        this.#state = 'SECTION';
        if ((await this.#reader.peek(1))[0] === QEMU_VM_CONFIGURATION) return this.#readConfiguration();
        return this.#readSection();
      case 'SECTION':
        return this.#readSection();
      case 'BODY':
        return this.#readRecord();
      case 'OTHER':
        return this.#readOther();
      case 'FOOTER':
        return this.#readFooter();
    }
  }

  #raw(): { at: number; raw: Buffer } {
    return { at: this.#at, raw: this.#reader.recorded() };
  }

  /** A refusal of the item that is being read. */
  #refusal(error: StreamError, what: string, received: unknown, expected: unknown): MultifdError {
    return refusal(error, `${this.#reader.name} at byte ${this.#at}: ${what}`, received, expected);
  }

  async #readConfiguration(): Promise<MainItem> {
    const configuration = await decodeConfiguration(this.#reader);
    this.#configuration = configuration;
    this.#pageSize = toldPageSize(configuration) ?? this.#pageSize;
    this.#mapped = hasCapability(configuration, CAPABILITY_MAPPED_RAM);
    if (this.#mapped && !this.#reader.canSeek) {
      throw this.#refusal('unsupported', 'capability mapped-ram', 'on, on a connection', 'off, or a file');
    }
    return { kind: 'configuration', configuration, ...this.#raw() };
  }

  async #readSection(): Promise<MainItem> {
    const type = await this.#reader.u8('the type of a section');
    switch (type) {
      case QEMU_VM_COMMAND:
        return this.#readCommand();
      case QEMU_VM_SECTION_START:
      case QEMU_VM_SECTION_FULL:
        return this.#readStart(type);
      case QEMU_VM_SECTION_PART:
        return this.#readPart('part');
      case QEMU_VM_SECTION_END:
        return this.#readPart('end');
      default:
        throw this.#refusal('format', 'section', sectionName(type), 'COMMAND, or a section of ram');
    }
  }

  async #readCommand(): Promise<CommandItem> {
    const command = await this.#reader.u16('a command');
    const length = await this.#reader.u16("a command's length");
    if (command > COMMAND_POSTCOPY_ADVISE && command <= COMMAND_RECV_BITMAP) {
      throw this.#refusal('unsupported', 'command', commandName(command), 'no postcopy and no COLO');
    }
    const expected = COMMAND_BYTES[command];
    if (expected !== undefined && length !== expected) {
      throw this.#refusal('format', `bytes of command ${commandName(command)}`, length, expected);
    }
    const data = await this.#reader.exactly(length, "a command's data");
    return { kind: 'command', command, data, ...this.#raw() };
  }

  async #readStart(type: number): Promise<SectionItem | OtherSectionItem> {
    const sectionId = await this.#reader.u32('a section id');
    const idBytes = await this.#reader.exactly(await this.#reader.u8('an idstr'), 'an idstr');
    const idstr = idBytes.toString('latin1');
    const instanceId = await this.#reader.u32('an instance id');
    const versionId = await this.#reader.u32('a version id');
    if (type !== QEMU_VM_SECTION_START || idstr !== RAM_IDSTR || instanceId !== RAM_INSTANCE_ID) {
      const section = type === QEMU_VM_SECTION_FULL ? 'full' : 'start';
      return this.#readOtherStart({ section, sectionId, idstr, instanceId, versionId });
    }
    if (this.#sectionId !== undefined) {
      throw this.#refusal('format', 'section', 'a second START of ram', 'PART or END');
    }
    this.#mustBeNew(sectionId);
    if (versionId !== RAM_VERSION_ID) {
      throw this.#refusal('unsupported', 'version of section ram', versionId, RAM_VERSION_ID);
    }
    this.#sectionId = sectionId;
    this.#section = 'start';
    this.#state = 'BODY';
    return { kind: 'section', section: 'start', sectionId, ...this.#raw() };
  }

  #readOtherStart(head: Omit<OtherSectionItem, 'kind' | 'at' | 'raw'>): OtherSectionItem {
    const { section, sectionId, idstr, instanceId, versionId } = head;
    const known = otherSection(idstr, section);
    if (known === undefined) {
      throw this.#refusal(
        'unsupported',
        "section before ram's END",
        `${section.toUpperCase()} of ${quote(idstr)} ${instanceId}`,
        `START of "${RAM_IDSTR}" ${RAM_INSTANCE_ID}, or one of ${OTHER_SECTIONS}`,
      );
    }
    if (versionId !== known.versionId) {
      throw this.#refusal('unsupported', `version of section ${quote(idstr)}`, versionId, known.versionId);
    }
    this.#mustBeNew(sectionId);
    if (known.iterates) {
      if (this.#others.size === MAX_OTHERS) {
        throw this.#refusal(
          'limit',
          'sections beside ram',
          `more than ${MAX_OTHERS}`,
          `at most ${MAX_OTHERS}`,
        );
      }
      this.#others.set(sectionId, { idstr, instanceId, section: known });
    }
    return this.#enterOther(known, head);
  }

  #enterOther(known: OtherSection, head: Omit<OtherSectionItem, 'kind' | 'at' | 'raw'>): OtherSectionItem {
    this.#body = known.readBody(this.#reader);
    this.#footerId = head.sectionId;
    this.#afterFooter = 'SECTION';
    this.#state = 'OTHER';
    return { kind: 'other-section', ...head, ...this.#raw() };
  }

  /** Of sections that iterate, as the id is all that their PARTs have. */
  #mustBeNew(sectionId: number): void {
    if (sectionId !== this.#sectionId && !this.#others.has(sectionId)) return;
    throw this.#refusal('format', 'section id', `${sectionId} again`, 'one that no other section has');
  }

  async #readOther(): Promise<MainItem> {
    const { done } = await (this.#body as AsyncGenerator<void, void, undefined>).next();
    if (done !== true) return { kind: 'other-data', ...this.#raw() };
    this.#body = undefined;
    return this.#footers === false ? this.#skipFooter() : this.#readFooter();
  }

  async #readPart(section: 'part' | 'end'): Promise<SectionItem | OtherSectionItem> {
    const sectionId = await this.#reader.u32('a section id');
    const other = this.#others.get(sectionId);
    if (other !== undefined) {
      if (section === 'end') this.#others.delete(sectionId);
      const { idstr, instanceId } = other;
      const { versionId } = other.section;
      return this.#enterOther(other.section, { section, sectionId, idstr, instanceId, versionId });
    }
    if (this.#sectionId === undefined) {
      throw this.#refusal('format', 'section', `${section.toUpperCase()} of ${sectionId}`, 'START of ram');
    }
    if (sectionId !== this.#sectionId) {
      throw this.#refusal(
        'unsupported',
        `section id of ${section.toUpperCase()}`,
        sectionId,
        this.#sectionId,
      );
    }
    this.#section = section;
    this.#state = 'BODY';
    return { kind: 'section', section, sectionId, ...this.#raw() };
  }

  async #readRecord(): Promise<MainItem> {
    const word = await this.#reader.exactly(8, 'a record');
    const low = word.readUInt32BE(4);
    const flags = low & (this.#pageSize - 1);
    if (flags !== NO_FLAGS) this.#lastIsOpen = false;
    // Above 2^53 this rounds, and is still far above any block.
    const address = word.readUInt32BE(0) * TWO_32 + (low - flags);
    if (this.#blocks.length === 0 && flags !== RAM_SAVE_FLAG_MEM_SIZE) {
      throw this.#refusal('format', 'first record of ram', recordName(flags), 'MEM_SIZE');
    }
    if (this.#mapped && flags !== RAM_SAVE_FLAG_MEM_SIZE && flags !== RAM_SAVE_FLAG_EOS) {
      throw this.#refusal('format', 'record in a mapped-ram file', recordName(flags), 'EOS');
    }
    switch (flags) {
      case RAM_SAVE_FLAG_MEM_SIZE:
        return this.#readMemSize(address);
      case NO_FLAGS:
        if (this.#lastIsOpen) return this.#pageSizeOfLast(address);
        throw this.#refusal('format', 'record', recordName(flags), 'ZERO, PAGE, MULTIFD_FLUSH or EOS');
      case RAM_SAVE_FLAG_ZERO:
      case ZERO_CONTINUED:
        return this.#readZero(address, flags === ZERO_CONTINUED);
      case RAM_SAVE_FLAG_PAGE:
      case PAGE_CONTINUED:
        return this.#readPage(address, flags === PAGE_CONTINUED);
      case RAM_SAVE_FLAG_MULTIFD_FLUSH:
        this.#mustHaveNoAddress('MULTIFD_FLUSH', address);
        if (this.#section === 'start') this.#marker = 'flush';
        return { kind: 'flush', sync: true, ...this.#raw() };
      case RAM_SAVE_FLAG_EOS:
        this.#mustHaveNoAddress('EOS', address);
        return this.#eos();
      case RAM_SAVE_FLAG_XBZRLE:
      case RAM_SAVE_FLAG_XBZRLE | RAM_SAVE_FLAG_CONTINUE:
      case RAM_SAVE_FLAG_COMPRESS_PAGE:
      case RAM_SAVE_FLAG_COMPRESS_PAGE | RAM_SAVE_FLAG_CONTINUE:
      case RAM_SAVE_FLAG_HOOK:
        throw this.#refusal('unsupported', 'record', recordName(flags), 'a record that goes with multifd');
      default:
        throw this.#refusal('format', 'record', recordName(flags), 'ZERO, PAGE, MULTIFD_FLUSH or EOS');
    }
  }

  async #readMemSize(total: number): Promise<MainItem> {
    if (this.#blocks.length > 0) {
      throw this.#refusal('format', 'record', 'a second MEM_SIZE', 'ZERO, PAGE, MULTIFD_FLUSH or EOS');
    }
    const blocks = await decodeBlockList(this.#reader, total, {
      pageSize: this.#pageSize,
      ignoreShared: hasCapability(this.#configuration, CAPABILITY_IGNORE_SHARED),
      mappedRam: this.#mapped,
      ...(this.#bounds !== undefined && { bounds: this.#bounds }),
      ...(toldPageSize(this.#configuration) === undefined && {
        onPageSize: (pageSize: number) => (this.#pageSize = pageSize),
      }),
      onProblem: this.#onProblem,
      onBlock: this.#onBlock,
    });
    this.#blocks = blocks;
    for (const block of blocks) this.#byName.set(block.name, block);
    this.#lastIsOpen = !this.#mapped && blocks[blocks.length - 1].address === undefined;
    return { kind: 'mem-size', total, blocks, ...this.#raw() };
  }

  /** What has no flags is no record: the block list's last entry goes on. */
  #pageSizeOfLast(size: number): MainItem {
    this.#lastIsOpen = false;
    const last = this.#blocks[this.#blocks.length - 1];
    const where = `${this.#reader.name} at byte ${this.#at}: RAM block ${quote(last.name)}`;
    const hostPageSize = checkHostPageSize(size, where, this.#pageSize);
    last.hostPageSize = hostPageSize;
    return { kind: 'page-size', hostPageSize, ...this.#raw() };
  }

  async #readZero(address: number, continued: boolean): Promise<MainItem> {
    const block = await this.#blockOf(continued);
    this.#mustLieIn(block, address);
    const fill = await this.#reader.u8("a ZERO record's fill");
    if (fill !== 0) throw this.#refusal('format', 'fill of a ZERO record', fill, 0);
    const offsets = [address];
    this.#takeZeroRow(block, offsets);
    return { kind: 'zero', block: block.name, offsets, continued, ...this.#raw() };
  }

  /**
   * ZERO records come in rows of hundreds of thousands: those that are here already and go on in the same block are
   * taken without a wait for each. Whatever is not right ends the row, and is refused as the next record.
   */
  #takeZeroRow(block: StreamBlock, offsets: number[]): void {
    const bytes = this.#reader.buffered;
    const mask = this.#pageSize - 1;
    const limit = block.usedLength - this.#pageSize;
    let at = 0;
    for (; at + ZERO_CONTINUED_BYTES <= bytes.length; at += ZERO_CONTINUED_BYTES) {
      const low = bytes.readUInt32BE(at + 4);
      if ((low & mask) !== ZERO_CONTINUED || bytes[at + 8] !== 0) break;
      const address = bytes.readUInt32BE(at) * TWO_32 + (low - ZERO_CONTINUED);
      if (address > limit || offsets.length === MAX_ZERO_RECORDS) break;
      offsets.push(address);
    }
    this.#reader.skipBuffered(at);
  }

  async #readPage(address: number, continued: boolean): Promise<MainItem> {
    const block = await this.#blockOf(continued);
    this.#mustLieIn(block, address);
    await this.#reader.exactly(this.#pageSize, "a PAGE record's page");
    const { at, raw } = this.#raw();
    const data = raw.subarray(raw.length - this.#pageSize);
    return { kind: 'page', block: block.name, offset: address, data, continued, at, raw };
  }

  #eos(): EosItem {
    if (this.#section === 'start' && !this.#mapped) this.#marker ??= 'eos';
    this.#footerId = this.#sectionId as number;
    this.#afterFooter = this.#section === 'end' ? 'TAIL' : 'SECTION';
    this.#state = this.#footers === false ? this.#afterFooter : 'FOOTER';
    return { kind: 'eos', section: this.#section, sync: this.#marker === 'eos', ...this.#raw() };
  }

  async #readFooter(): Promise<MainItem> {
    // Machines with send-section-footer=off have none at all: the first section tells.
    this.#footers ??= (await this.#reader.peek(1))[0] === QEMU_VM_SECTION_FOOTER;
    if (!this.#footers) return this.#skipFooter();
    this.#state = this.#afterFooter;
    const type = await this.#reader.u8('a footer');
    if (type !== QEMU_VM_SECTION_FOOTER) {
      throw this.#refusal('format', 'end of a section', sectionName(type), 'its footer');
    }
    const sectionId = await this.#reader.u32('a footer');
    if (sectionId !== this.#footerId) {
      throw this.#refusal('format', 'section id of a footer', sectionId, this.#footerId);
    }
    const item: FooterItem = { kind: 'footer', sectionId, ...this.#raw() };
    return item;
  }

  async #skipFooter(): Promise<MainItem> {
    this.#state = this.#afterFooter;
    return this.#readSection();
  }

  async #readTail(): Promise<MainItem | undefined> {
    this.#tail ??= this.#reader.rest();
    const at = this.#reader.position;
    const { value } = await this.#tail.next();
    if (value !== undefined) return { kind: 'tail', at, raw: value };
    this.#state = 'DONE';
    return undefined;
  }

  /** The block that a record with a page is about. */
  async #blockOf(continued: boolean): Promise<StreamBlock> {
    if (continued) {
      if (this.#last !== undefined) return this.#last;
      throw this.#refusal('block', 'block of a record', 'CONTINUE', 'a name: no block has been named yet');
    }
    const length = await this.#reader.u8('a block id');
    const name = (await this.#reader.exactly(length, 'a block id')).toString('latin1');
    const block = this.#byName.get(name);
    if (block === undefined) {
      throw this.#refusal('block', 'block of a record', quote(name), 'a block of the block list');
    }
    this.#last = block;
    return block;
  }

  #mustLieIn(block: StreamBlock, address: number): void {
    const limit = block.usedLength - this.#pageSize;
    if (address <= limit) return;
    throw this.#refusal('offset', `address in ${quote(block.name)}`, address, `at most ${limit}`);
  }

  #mustHaveNoAddress(record: string, address: number): void {
    if (address !== 0) throw this.#refusal('format', `address of ${record}`, address, 0);
  }
}

/**
 * All items of a main stream, in order. An end before ram's END is an error, an end after it is the stream's.
 *
 * @throws MultifdError as `MainStreamReader.next()`
 */
export async function* readMainStream(
  reader: ByteReader,
  options: MainStreamOptions = {},
): AsyncGenerator<MainItem, void, undefined> {
  const stream = new MainStreamReader(reader, options);
  for (let item = await stream.next(); item !== undefined; item = await stream.next()) yield item;
}

const SECTION_NAMES: Record<number, string> = {
  [QEMU_VM_EOF]: 'EOF',
  [QEMU_VM_SECTION_START]: 'START',
  [QEMU_VM_SECTION_PART]: 'PART',
  [QEMU_VM_SECTION_END]: 'END',
  [QEMU_VM_SECTION_FULL]: 'FULL',
  [QEMU_VM_SUBSECTION]: 'SUBSECTION',
  [QEMU_VM_VMDESCRIPTION]: 'VMDESCRIPTION',
  [QEMU_VM_CONFIGURATION]: 'CONFIGURATION',
  [QEMU_VM_COMMAND]: 'COMMAND',
  [QEMU_VM_SECTION_FOOTER]: 'FOOTER',
};

function sectionName(type: number): string {
  return SECTION_NAMES[type] ?? `0x${type.toString(16).padStart(2, '0')}`;
}

const COMMAND_NAMES: Record<number, string> = {
  1: 'OPEN_RETURN_PATH',
  2: 'PING',
  3: 'POSTCOPY_ADVISE',
  4: 'POSTCOPY_LISTEN',
  5: 'POSTCOPY_RUN',
  6: 'POSTCOPY_RAM_DISCARD',
  7: 'PACKAGED',
  8: 'ENABLE_COLO',
  9: 'POSTCOPY_RESUME',
  10: 'RECV_BITMAP',
  11: 'SWITCHOVER_START',
};

export function commandName(command: number): string {
  return COMMAND_NAMES[command] ?? `${command}`;
}

const FLAG_NAMES: [flag: number, name: string][] = [
  [RAM_SAVE_FLAG_ZERO, 'ZERO'],
  [RAM_SAVE_FLAG_MEM_SIZE, 'MEM_SIZE'],
  [RAM_SAVE_FLAG_PAGE, 'PAGE'],
  [RAM_SAVE_FLAG_EOS, 'EOS'],
  [RAM_SAVE_FLAG_CONTINUE, 'CONTINUE'],
  [RAM_SAVE_FLAG_XBZRLE, 'XBZRLE'],
  [RAM_SAVE_FLAG_HOOK, 'HOOK'],
  [RAM_SAVE_FLAG_COMPRESS_PAGE, 'COMPRESS_PAGE'],
  [RAM_SAVE_FLAG_MULTIFD_FLUSH, 'MULTIFD_FLUSH'],
];

/** `0x022 (ZERO | CONTINUE)` */
function recordName(flags: number): string {
  const names = FLAG_NAMES.filter(([flag]) => (flags & flag) !== 0).map(([, name]) => name);
  const hex = `flags 0x${flags.toString(16).padStart(3, '0')}`;
  return names.length === 0 ? hex : `${hex} (${names.join(' | ')})`;
}
