/**
 * Reads what a mapped-ram file is, without its pages: for a sender, which then reads the pages in place, and for
 * people who want to know what is in it.
 *
 *     1  the stream up to ram's END        main-stream.ts, jumping from entry to entry
 *     2  the bitmaps, a piece at a time    present and zero pages, bits behind the last page
 *     3  the tail, a piece at a time       where it ends (tail-end.ts), the VM description
 *     4  all regions, sorted               overlaps, regions outside the file
 *
 * The file is not trusted: it may be cut, hostile, or no such file at all. What is wrong is listed in `problems`, and
 * the description (description.ts) holds what could be read; only reading itself, and a file that is no migration stream,
 * throws. A sender calls `requireSound()`, and reads on with pages.ts.
 *
 * Runs on the calling thread; a file that was given open stays the caller's.
 *
 * Bounds: those of bounds.ts, 2^32 pages, a bitmap's piece of 256 KiB, one VM description, 100 problems; the file's own size
 * for the time that it takes.
 */
import { MultifdError, receivedExpected } from '../errors.js';
import { checkKeys, fileName } from '../option-checks.js';
import { MigrationFile } from '../packed/open.js';
import { isZeroRange } from '../ram/zero-page.js';
import { type StreamBlock, encodeBlock } from '../stream/block-list.js';
import { BOUND_KEYS, type BoundOptions, type Bounds, atMost, checkBounds } from '../stream/bounds.js';
import { ByteReader } from '../stream/byte-reader.js';
import { STREAM_ERRORS, quote, refusal } from '../stream/codes.js';
import { MainStreamReader } from '../stream/main-stream.js';
import { FileSource, type ReadableFile, sizeOf } from '../stream/positioned-file.js';
import { COMMAND_SWITCHOVER_START, type MainItem } from '../stream/records.js';
import { TailEndFinder } from '../stream/tail-end.js';
import type {
  MappedRamBlockDescription,
  MappedRamDescription,
  MappedRamProblem,
  MappedRamProblemKind,
} from './description.js';
import { countBits, mappedBlock } from './layout.js';
import { readBitmap } from './pages.js';

const MAX_PROBLEMS = 100;
/** Sections and commands in the stream, by choice: QEMU writes one each 50 ms or so, which makes 14 hours. */
const MAX_SECTIONS = 2 ** 20;

export interface ReadMappedRamOptions extends BoundOptions {
  /** Where the stream begins in the file, in bytes (default 0; QEMU's `file:PATH,offset=N`). */
  offset?: number;
  /** Target page size where the stream does not tell it (default 4096). */
  pageSize?: number;
  /** The most sections and commands that the stream may have up to ram's END (default 1048576). */
  maxSections?: number;
}

const OPTIONS: Record<keyof ReadMappedRamOptions, true> = {
  ...BOUND_KEYS,
  offset: true,
  pageSize: true,
  maxSections: true,
};

/**
 * @param file a path, or a file that is open; it stays open
 * @throws MultifdError STREAM_ERRORS.io, .magic, .eof; STREAM_ERRORS.file for a stream that is no mapped-ram file's
 */
export async function readMappedRam(
  file: string | ReadableFile,
  options: ReadMappedRamOptions = {},
): Promise<MappedRamDescription> {
  checkKeys(options, Object.keys(OPTIONS));
  if (typeof (file as Partial<ReadableFile>)?.read === 'function') {
    return new MappedRamFile(file as ReadableFile, options).read();
  }
  await using opened = await MigrationFile.open(fileName('file', file));
  return await new MappedRamFile(opened.content, options).read();
}

class MappedRamFile {
  readonly #file: ReadableFile;
  readonly #offset: number;
  readonly #maxSections: number;
  readonly #bounds: Bounds;
  readonly #reader: ByteReader;
  readonly #stream: MainStreamReader;
  readonly #blocks: MappedRamBlockDescription[] = [];
  readonly #problems: MappedRamProblem[] = [];
  /** What the file's bytes are used for. */
  readonly #regions: { from: number; to: number; what: string }[] = [];

  constructor(file: ReadableFile, options: ReadMappedRamOptions) {
    const { offset = 0, pageSize, maxSections = MAX_SECTIONS } = options;
    this.#file = file;
    this.#maxSections = maxSections;
    this.#bounds = checkBounds(options);
    this.#offset = offset;
    this.#reader = new ByteReader(new FileSource(file, offset), { name: 'mapped-ram file', start: offset });
    this.#stream = new MainStreamReader(this.#reader, {
      ...(pageSize !== undefined && { pageSize }),
      bounds: this.#bounds,
      onProblem: (problem) => this.#add('header', true, problem.message),
      onBlock: (block, at) => this.#addBlock(block, at),
    });
  }

  async read(): Promise<MappedRamDescription> {
    const fileSize = await this.#size();
    await this.#stream.next();
    const description: MappedRamDescription = {
      fileSize,
      offset: this.#offset,
      configuration: undefined,
      machine: '',
      capabilities: [],
      pageSize: this.#stream.pageSize,
      sectionId: 0,
      footers: true,
      blocks: this.#blocks,
      presentPages: 0,
      zeroPages: 0,
      sectionsBeforeRam: [],
      sectionsBesideRam: [],
      switchoverStart: false,
      problems: this.#problems,
    };
    await this.#readStream(description);
    for (const block of description.blocks) await this.#readBitmap(block, description);
    if (this.#stream.inTail) await this.#readTail(description);
    this.#compareRegions(fileSize);
    return description;
  }

  async #size(): Promise<number> {
    try {
      return await sizeOf(this.#file);
    } catch (error) {
      throw MultifdError.wrap(error, STREAM_ERRORS.io, 'size of the mapped-ram file');
    }
  }

  /** Up to the footer of ram's END, or to where the stream cannot be read any more. */
  async #readStream(description: MappedRamDescription): Promise<void> {
    const stream = this.#stream;
    try {
      let sections = 0;
      while (!stream.inTail) {
        const item = await stream.next();
        if (item?.kind === 'configuration') {
          description.configuration = item.configuration;
          description.machine = item.configuration.machine;
          description.capabilities = item.configuration.capabilities ?? [];
          description.pageSize = stream.pageSize;
        }
        if (!stream.mappedRam) break;
        if (item?.kind === 'command' || item?.kind === 'section' || item?.kind === 'other-section')
          sections++;
        if (item !== undefined) this.#addOther(description, item);
        if (sections > this.#maxSections) throw this.#tooManySections();
        if (item?.kind === 'command')
          description.switchoverStart ||= item.command === COMMAND_SWITCHOVER_START;
        if (item?.kind === 'mem-size') description.streamOffset = this.#reader.position;
      }
    } catch (error) {
      const isProblem = error instanceof MultifdError && error.code !== STREAM_ERRORS.io;
      if (!isProblem || description.configuration === undefined) throw error;
      this.#add('stream', true, error.message);
    }
    // The first block's header has told it.
    description.pageSize = stream.pageSize;
    description.sectionId = stream.sectionId ?? 0;
    description.footers = stream.footers ?? true;
    if (!stream.mappedRam) throw notMappedRam(description.machine);
  }

  /** Neighbours become one, so that a bitmap of many pieces takes no more room than one of few. */
  #addOther(description: MappedRamDescription, item: MainItem): void {
    const ram = this.#stream.sectionId;
    const isOthers =
      item.kind === 'other-section' ||
      item.kind === 'other-data' ||
      (item.kind === 'footer' && item.sectionId !== ram);
    if (!isOthers) return;
    const list = ram === undefined ? description.sectionsBeforeRam : description.sectionsBesideRam;
    const last = list.at(-1);
    if (last !== undefined && last.offset + last.bytes === item.at) last.bytes += item.raw.length;
    else list.push({ offset: item.at, bytes: item.raw.length });
  }

  #tooManySections(): MultifdError {
    const most = this.#maxSections;
    return refusal('limit', 'mapped-ram file: sections', `more than ${most}`, `at most ${most}`);
  }

  #addBlock(block: StreamBlock, at: number): void {
    if (block.mapped === undefined) return;
    const mapped = mappedBlock({ ...block, mapped: block.mapped }, this.#stream.pageSize);
    const { pagesOffset, bitmapOffset } = mapped;
    const { address } = block;
    if (this.#blocks.length === 0) this.#addRegion(this.#offset, at, 'the stream');
    this.#blocks.push({
      ...mapped,
      ...(address !== undefined && { address }),
      presentPages: 0,
      zeroPages: 0,
    });
    const what = quote(block.name);
    this.#addRegion(at, at + encodeBlock(block).length, `the entry of ${what}`);
    this.#addRegion(bitmapOffset, bitmapOffset + mapped.bitmapBytes, `the bitmap of ${what}`);
    this.#addRegion(pagesOffset, pagesOffset + block.usedLength, `pages of ${what}`);
  }

  #addRegion(from: number, to: number, what: string): void {
    this.#regions.push({ from, to, what });
  }

  async #readBitmap(block: MappedRamBlockDescription, description: MappedRamDescription): Promise<void> {
    const { name, pageCount } = block;
    const { fileSize } = description;
    if (block.pagesOffset + block.usedLength > fileSize) {
      this.#addOutside(`pages of ${quote(name)}`, block.pagesOffset + block.usedLength, fileSize, name);
    }
    if (block.bitmapOffset + block.bitmapBytes > fileSize) {
      this.#addOutside(
        `the bitmap of ${quote(name)}`,
        block.bitmapOffset + block.bitmapBytes,
        fileSize,
        name,
      );
      return;
    }
    let behind = 0;
    for await (const { bytes, page } of readBitmap(this.#file, block)) {
      // Most of a large one.
      if (isZeroRange(bytes, 0, bytes.length)) continue;
      const all = 8 * bytes.length;
      const bits = Math.min(pageCount - page, all);
      const present = countBits(bytes, bits);
      block.presentPages += present;
      if (bits < all) behind += countBits(bytes, all) - present;
    }
    if (behind !== 0) {
      const message = `mapped-ram file: bitmap of ${quote(name)}: received ${behind} bits behind the last page, expected none`;
      this.#add('trailing-bits', false, message, name);
    }
    block.zeroPages = pageCount - block.presentPages;
    description.presentPages += block.presentPages;
    description.zeroPages += block.zeroPages;
  }

  async #readTail(description: MappedRamDescription): Promise<void> {
    const finder = new TailEndFinder(this.#bounds.maxDescription);
    const tailOffset = this.#reader.position;
    for await (const chunk of this.#reader.rest()) if (finder.push(chunk)) break;
    const { bytes, description: vmDescription, tooLong, isWhole } = finder.end(description.footers);
    const end = tailOffset + bytes;
    description.tailOffset = tailOffset;
    description.tailBytes = bytes;
    description.unreadBytes = Math.max(description.fileSize - end, 0);
    if (vmDescription !== undefined) description.vmDescription = vmDescription;
    else if (tooLong !== undefined) {
      const expected = atMost('maxDescription', this.#bounds.maxDescription);
      const received = receivedExpected('bytes of the VM description', tooLong, expected);
      // Nobody needs it to load the file.
      this.#add('tail', false, `mapped-ram file: ${received}: its devices are not listed`);
    } else {
      // A machine with suppress-vmdesc=on ends with EOF, but so does many a tail that is cut: state is full of zeros.
      const received = isWhole ? 'EOF at the most' : 'neither a VM description nor EOF';
      const message = `mapped-ram file: end at byte ${end}: received ${received}, expected a VM description: the file may be cut`;
      this.#add('tail', !isWhole, message);
    }
    const { streamOffset = tailOffset } = description;
    this.#addRegion(streamOffset, end, 'the stream behind RAM');
  }

  /** Regions must not lie over each other: sorted by their begin, each is held against the one that ends last. */
  #compareRegions(fileSize: number): void {
    const regions = this.#regions.filter(({ from, to }) => to > from && from < fileSize);
    regions.sort((a, b) => a.from - b.from || a.to - b.to);
    let last = regions[0];
    for (const region of regions.slice(1)) {
      if (region.from < last.to) {
        const message = `mapped-ram file: ${region.what}: received ${region.from} to ${region.to}, over ${last.what} (${last.from} to ${last.to}), expected a place of its own`;
        this.#add('overlap', true, message);
      }
      if (region.to > last.to) last = region;
    }
  }

  #addOutside(what: string, end: number, fileSize: number, block: string): void {
    const message = `mapped-ram file: end of ${what}: received ${end}, expected at most ${fileSize}, the file's size`;
    this.#add('outside', true, message, block);
  }

  #add(kind: MappedRamProblemKind, fatal: boolean, message: string, block?: string): void {
    if (this.#problems.length >= MAX_PROBLEMS) return;
    this.#problems.push({ kind, fatal, message, ...(block !== undefined && { block }) });
  }
}

/** @param machine of the stream's configuration; empty if it has none */
export function notMappedRam(machine: string): MultifdError {
  const what = machine === '' ? 'no configuration' : 'a migration stream without capability mapped-ram';
  return new MultifdError(STREAM_ERRORS.file, `mapped-ram file: received ${what}, expected mapped-ram`);
}
