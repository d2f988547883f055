/**
 * Reads the records in the sections of ram, MEM_SIZE to EOS, for main-stream.ts, which knows where those sections begin
 * and end; what the records are, is in records.ts. Here is what they share from section to section: the block list, the
 * target's page size, the block that CONTINUE means, and how sync points are marked.
 *
 * Runs on the calling thread. The bytes of an item are those that the byte reader has recorded: the consumer's. The
 * peer is not trusted: an address is held against its block, and an error names the byte.
 */
import { type StreamBlock, checkHostPageSize, decodeBlockList, requirePageSize } from './block-list.js';
import type { Bounds } from './bounds.js';
import type { ByteReader } from './byte-reader.js';
import { quote } from './codes.js';
import {
  CAPABILITY_IGNORE_SHARED,
  CAPABILITY_MAPPED_RAM,
  type Configuration,
  hasCapability,
} from './configuration.js';
import type { ItemBytes } from './item-bytes.js';
import { DEFAULT_PAGE_SIZE, toldPageSize } from './machine.js';
import { recordName } from './names.js';
import {
  RAM_SAVE_FLAG_COMPRESS_PAGE,
  RAM_SAVE_FLAG_CONTINUE,
  RAM_SAVE_FLAG_EOS,
  RAM_SAVE_FLAG_HOOK,
  RAM_SAVE_FLAG_MEM_SIZE,
  RAM_SAVE_FLAG_MULTIFD_FLUSH,
  RAM_SAVE_FLAG_PAGE,
  RAM_SAVE_FLAG_XBZRLE,
  RAM_SAVE_FLAG_ZERO,
  type EosItem,
  type MainItem,
  type MarkerMode,
  type SectionType,
} from './records.js';

const TWO_32 = 2 ** 32;
/** ZERO records in one item at the most: with 9 bytes each they are what one read of a socket brings. */
const MAX_ZERO_RECORDS = 8192;
const ZERO_CONTINUED = RAM_SAVE_FLAG_ZERO | RAM_SAVE_FLAG_CONTINUE;
const NO_FLAGS = 0;
const PAGE_CONTINUED = RAM_SAVE_FLAG_PAGE | RAM_SAVE_FLAG_CONTINUE;
/** u64, u8 fill */
const ZERO_CONTINUED_BYTES = 9;

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
  /** Take the section of a source that may be carried on (resume-section.ts)? */
  takesResume?: boolean;
  /** Called with each entry of the block list as it is read: in a file that is cut, all that there is of the list. */
  onBlock?: (block: StreamBlock, at: number) => void;
}

export class RamRecords {
  readonly #reader: ByteReader;
  readonly #item: ItemBytes;
  readonly #onProblem: (problem: Error) => void;
  readonly #onBlock: MainStreamOptions['onBlock'];
  readonly #bounds: MainStreamOptions['bounds'];
  #pageSize: number;
  #configuration: Configuration | undefined;
  #mapped = false;
  #blocks: readonly StreamBlock[] = [];
  #byName = new Map<string, StreamBlock>();
  /** May the block list's last entry go on with its page_size? */
  #lastIsOpen = false;
  /** The block of the last record with a page: CONTINUE means this one, across sections. */
  #last: StreamBlock | undefined;
  #marker: MarkerMode | undefined;

  constructor(reader: ByteReader, item: ItemBytes, options: MainStreamOptions) {
    const { pageSize = DEFAULT_PAGE_SIZE } = options;
    requirePageSize(pageSize);
    this.#reader = reader;
    this.#item = item;
    this.#pageSize = pageSize;
    this.#onBlock = options.onBlock;
    this.#bounds = options.bounds;
    this.#onProblem =
      options.onProblem ??
      ((problem) => {
        throw problem;
      });
  }

  /** Final once the configuration has been read, in a mapped-ram file the first block. */
  get pageSize(): number {
    return this.#pageSize;
  }

  /** Do they lie in a mapped-ram file? */
  get mapped(): boolean {
    return this.#mapped;
  }

  get blocks(): readonly StreamBlock[] {
    return this.#blocks;
  }

  get marker(): MarkerMode | undefined {
    return this.#marker;
  }

  /** What the stream's configuration says of them. */
  configure(configuration: Configuration): void {
    this.#configuration = configuration;
    this.#pageSize = toldPageSize(configuration) ?? this.#pageSize;
    this.#mapped = hasCapability(configuration, CAPABILITY_MAPPED_RAM);
  }

  /** The next record; `section` is the one whose body it is in. */
  async read(section: SectionType): Promise<MainItem> {
    const word = await this.#reader.exactly(8, 'a record');
    const low = word.readUInt32BE(4);
    const flags = low & (this.#pageSize - 1);
    if (flags !== NO_FLAGS) this.#lastIsOpen = false;
    // Above 2^53 this rounds, and is still far above any block.
    const address = word.readUInt32BE(0) * TWO_32 + (low - flags);
    if (this.#blocks.length === 0 && flags !== RAM_SAVE_FLAG_MEM_SIZE) {
      throw this.#item.refusal('format', 'first record of ram', recordName(flags), 'MEM_SIZE');
    }
    if (this.#mapped && flags !== RAM_SAVE_FLAG_MEM_SIZE && flags !== RAM_SAVE_FLAG_EOS) {
      throw this.#item.refusal('format', 'record in a mapped-ram file', recordName(flags), 'EOS');
    }
    switch (flags) {
      case RAM_SAVE_FLAG_MEM_SIZE:
        return this.#readMemSize(address);
      case NO_FLAGS:
        if (this.#lastIsOpen) return this.#pageSizeOfLast(address);
        throw this.#item.refusal('format', 'record', recordName(flags), 'ZERO, PAGE, MULTIFD_FLUSH or EOS');
      case RAM_SAVE_FLAG_ZERO:
      case ZERO_CONTINUED:
        return this.#readZero(address, flags === ZERO_CONTINUED);
      case RAM_SAVE_FLAG_PAGE:
      case PAGE_CONTINUED:
        return this.#readPage(address, flags === PAGE_CONTINUED);
      case RAM_SAVE_FLAG_MULTIFD_FLUSH:
        this.#mustHaveNoAddress('MULTIFD_FLUSH', address);
        if (section === 'start') this.#marker = 'flush';
        return { kind: 'flush', sync: true, ...this.#item.raw() };
      case RAM_SAVE_FLAG_EOS:
        this.#mustHaveNoAddress('EOS', address);
        return this.#eos(section);
      case RAM_SAVE_FLAG_XBZRLE:
      case RAM_SAVE_FLAG_XBZRLE | RAM_SAVE_FLAG_CONTINUE:
      case RAM_SAVE_FLAG_COMPRESS_PAGE:
      case RAM_SAVE_FLAG_COMPRESS_PAGE | RAM_SAVE_FLAG_CONTINUE:
      case RAM_SAVE_FLAG_HOOK:
        throw this.#item.refusal(
          'unsupported',
          'record',
          recordName(flags),
          'a record that goes with multifd',
        );
      default:
        throw this.#item.refusal('format', 'record', recordName(flags), 'ZERO, PAGE, MULTIFD_FLUSH or EOS');
    }
  }

  async #readMemSize(total: number): Promise<MainItem> {
    if (this.#blocks.length > 0) {
      throw this.#item.refusal('format', 'record', 'a second MEM_SIZE', 'ZERO, PAGE, MULTIFD_FLUSH or EOS');
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
    return { kind: 'mem-size', total, blocks, ...this.#item.raw() };
  }

  /** What has no flags is no record: the block list's last entry goes on. */
  #pageSizeOfLast(size: number): MainItem {
    this.#lastIsOpen = false;
    const last = this.#blocks[this.#blocks.length - 1];
    const where = `${this.#reader.name} at byte ${this.#item.at}: RAM block ${quote(last.name)}`;
    const hostPageSize = checkHostPageSize(size, where, this.#pageSize);
    last.hostPageSize = hostPageSize;
    return { kind: 'page-size', hostPageSize, ...this.#item.raw() };
  }

  async #readZero(address: number, continued: boolean): Promise<MainItem> {
    const block = await this.#blockOf(continued);
    this.#mustLieIn(block, address);
    const fill = await this.#reader.u8("a ZERO record's fill");
    if (fill !== 0) throw this.#item.refusal('format', 'fill of a ZERO record', fill, 0);
    const offsets = [address];
    this.#takeZeroRow(block, offsets);
    return { kind: 'zero', block: block.name, offsets, continued, ...this.#item.raw() };
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
    const { at, raw } = this.#item.raw();
    const data = raw.subarray(raw.length - this.#pageSize);
    return { kind: 'page', block: block.name, offset: address, data, continued, at, raw };
  }

  #eos(section: SectionType): EosItem {
    if (section === 'start' && !this.#mapped) this.#marker ??= 'eos';
    return { kind: 'eos', section, sync: this.#marker === 'eos', ...this.#item.raw() };
  }

  /** The block that a record with a page is about. */
  async #blockOf(continued: boolean): Promise<StreamBlock> {
    if (continued) {
      if (this.#last !== undefined) return this.#last;
      throw this.#item.refusal(
        'block',
        'block of a record',
        'CONTINUE',
        'a name: no block has been named yet',
      );
    }
    const length = await this.#reader.u8('a block id');
    const name = (await this.#reader.exactly(length, 'a block id')).toString('latin1');
    const block = this.#byName.get(name);
    if (block === undefined) {
      throw this.#item.refusal('block', 'block of a record', quote(name), 'a block of the block list');
    }
    this.#last = block;
    return block;
  }

  #mustLieIn(block: StreamBlock, address: number): void {
    const limit = block.usedLength - this.#pageSize;
    if (address <= limit) return;
    throw this.#item.refusal('offset', `address in ${quote(block.name)}`, address, `at most ${limit}`);
  }

  #mustHaveNoAddress(record: string, address: number): void {
    if (address !== 0) throw this.#item.refusal('format', `address of ${record}`, address, 0);
  }
}
