/**
 * Reads QEMU's main migration stream item by item: the frame of sections, while the records in those of ram are read by
 * ram-records.ts. What the items are, and the wire, is in records.ts, configuration.ts and block-list.ts.
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
 * Runs on the calling thread. The peer is not trusted: every count and length has a bound, and an error names
 * the byte.
 */
import type { StreamBlock } from './block-list.js';
import type { ByteReader } from './byte-reader.js';
import { quote } from './codes.js';
import {
  type Configuration,
  QEMU_VM_CONFIGURATION,
  decodeConfiguration,
  decodeFileHeader,
} from './configuration.js';
import { ItemBytes } from './item-bytes.js';
import { commandName, sectionName } from './names.js';
import { OTHER_SECTIONS, type OtherSection, otherSection } from './other-sections.js';
import { type MainStreamOptions, RamRecords } from './ram-records.js';
import {
  COMMAND_OPEN_RETURN_PATH,
  COMMAND_PING,
  COMMAND_POSTCOPY_ADVISE,
  COMMAND_RECV_BITMAP,
  COMMAND_SWITCHOVER_START,
  QEMU_VM_COMMAND,
  QEMU_VM_SECTION_END,
  QEMU_VM_SECTION_FOOTER,
  QEMU_VM_SECTION_FULL,
  QEMU_VM_SECTION_PART,
  QEMU_VM_SECTION_START,
  RAM_IDSTR,
  RAM_INSTANCE_ID,
  RAM_VERSION_ID,
  type CommandItem,
  type FooterItem,
  type MainItem,
  type MarkerMode,
  type OtherSectionItem,
  type SectionItem,
  type SectionType,
} from './records.js';
import { RESUME_IDSTR, resumeSection } from './resume-section.js';

export type { MainStreamOptions } from './ram-records.js';

/** Sections that iterate beside ram; each kind has one, and there are three kinds. */
const MAX_OTHERS = 16;
/** Bytes of data that the commands have whose length is known. */
const COMMAND_BYTES: Record<number, number> = {
  [COMMAND_OPEN_RETURN_PATH]: 0,
  [COMMAND_PING]: 4,
  [COMMAND_SWITCHOVER_START]: 0,
};

type State = 'HEADER' | 'CONFIG' | 'SECTION' | 'BODY' | 'OTHER' | 'FOOTER' | 'TAIL' | 'DONE';

/** Another section that has had its START. */
interface Iterating {
  idstr: string;
  instanceId: number;
  section: OtherSection;
}

export class MainStreamReader {
  readonly #reader: ByteReader;
  readonly #item: ItemBytes;
  readonly #records: RamRecords;
  readonly #takesResume: boolean;
  #state: State = 'HEADER';
  #configuration: Configuration | undefined;
  #section: SectionType = 'start';
  /** Of ram; undefined before its START. */
  #sectionId: number | undefined;
  /** By section id. */
  readonly #others = new Map<number, Iterating>();
  /** The rest of the body of another section. */
  #body: AsyncGenerator<void, void, undefined> | undefined;
  /** Whose footer is due, and what comes then. */
  #footerId = 0;
  #afterFooter: State = 'SECTION';
  #footers: boolean | undefined;
  #tail: AsyncGenerator<Buffer, void, undefined> | undefined;

  constructor(reader: ByteReader, options: MainStreamOptions = {}) {
    this.#reader = reader;
    this.#item = new ItemBytes(reader);
    this.#records = new RamRecords(reader, this.#item, options);
    this.#takesResume = options.takesResume === true;
  }

  /** Of the target, in bytes; final once the configuration has been read, in a mapped-ram file the first block. */
  get pageSize(): number {
    return this.#records.pageSize;
  }

  get configuration(): Configuration | undefined {
    return this.#configuration;
  }

  /** Is this the stream of a mapped-ram file? */
  get mappedRam(): boolean {
    return this.#records.mapped;
  }

  /** ram's section id, once its START has been read. */
  get sectionId(): number | undefined {
    return this.#sectionId;
  }

  /** Known after the block list. */
  get blocks(): readonly StreamBlock[] {
    return this.#records.blocks;
  }

  /**
   * How sync points are marked, known at the EOS of ram's START: with a MULTIFD_FLUSH before it, or by it. Undefined
   * for a file, which has none.
   */
  get marker(): MarkerMode | undefined {
    return this.#records.marker;
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
    this.#item.begin();
    switch (this.#state) {
      case 'HEADER':
        await decodeFileHeader(this.#reader);
        this.#state = 'CONFIG';
        return { kind: 'header', ...this.#item.raw() };
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

  async #readConfiguration(): Promise<MainItem> {
    const configuration = await decodeConfiguration(this.#reader);
    this.#configuration = configuration;
    this.#records.configure(configuration);
    if (this.#records.mapped && !this.#reader.canSeek) {
      throw this.#item.refusal(
        'unsupported',
        'capability mapped-ram',
        'on, on a connection',
        'off, or a file',
      );
    }
    return { kind: 'configuration', configuration, ...this.#item.raw() };
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
        throw this.#item.refusal('format', 'section', sectionName(type), 'COMMAND, or a section of ram');
    }
  }

  async #readCommand(): Promise<CommandItem> {
    const command = await this.#reader.u16('a command');
    const length = await this.#reader.u16("a command's length");
    if (command > COMMAND_POSTCOPY_ADVISE && command <= COMMAND_RECV_BITMAP) {
      throw this.#item.refusal('unsupported', 'command', commandName(command), 'no postcopy and no COLO');
    }
    const expected = COMMAND_BYTES[command];
    if (expected !== undefined && length !== expected) {
      throw this.#item.refusal('format', `bytes of command ${commandName(command)}`, length, expected);
    }
    const data = await this.#reader.exactly(length, "a command's data");
    return { kind: 'command', command, data, ...this.#item.raw() };
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
      throw this.#item.refusal('format', 'section', 'a second START of ram', 'PART or END');
    }
    this.#mustBeNew(sectionId);
    if (versionId !== RAM_VERSION_ID) {
      throw this.#item.refusal('unsupported', 'version of section ram', versionId, RAM_VERSION_ID);
    }
    this.#sectionId = sectionId;
    this.#section = 'start';
    this.#state = 'BODY';
    return { kind: 'section', section: 'start', sectionId, ...this.#item.raw() };
  }

  #readOtherStart(head: Omit<OtherSectionItem, 'kind' | 'at' | 'raw'>): OtherSectionItem {
    const { section, sectionId, idstr, instanceId, versionId } = head;
    const known =
      (this.#takesResume ? resumeSection(idstr, section) : undefined) ?? otherSection(idstr, section);
    if (known === undefined) {
      throw this.#item.refusal(
        'unsupported',
        "section before ram's END",
        `${section.toUpperCase()} of ${quote(idstr)} ${instanceId}`,
        idstr === RESUME_IDSTR
          ? 'none: the source has option resumable, which only createMigrationDestination({ resumable: true }) can take'
          : `START of "${RAM_IDSTR}" ${RAM_INSTANCE_ID}, or one of ${OTHER_SECTIONS}`,
      );
    }
    if (versionId !== known.versionId) {
      throw this.#item.refusal(
        'unsupported',
        `version of section ${quote(idstr)}`,
        versionId,
        known.versionId,
      );
    }
    this.#mustBeNew(sectionId);
    if (known.iterates) {
      if (this.#others.size === MAX_OTHERS) {
        throw this.#item.refusal(
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
    return { kind: 'other-section', ...head, ...this.#item.raw() };
  }

  /** Of sections that iterate, as the id is all that their PARTs have. */
  #mustBeNew(sectionId: number): void {
    if (sectionId !== this.#sectionId && !this.#others.has(sectionId)) return;
    throw this.#item.refusal('format', 'section id', `${sectionId} again`, 'one that no other section has');
  }

  async #readOther(): Promise<MainItem> {
    const { done } = await (this.#body as AsyncGenerator<void, void, undefined>).next();
    if (done !== true) return { kind: 'other-data', ...this.#item.raw() };
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
      throw this.#item.refusal(
        'format',
        'section',
        `${section.toUpperCase()} of ${sectionId}`,
        'START of ram',
      );
    }
    if (sectionId !== this.#sectionId) {
      throw this.#item.refusal(
        'unsupported',
        `section id of ${section.toUpperCase()}`,
        sectionId,
        this.#sectionId,
      );
    }
    this.#section = section;
    this.#state = 'BODY';
    return { kind: 'section', section, sectionId, ...this.#item.raw() };
  }

  async #readRecord(): Promise<MainItem> {
    const item = await this.#records.read(this.#section);
    if (item.kind !== 'eos') return item;
    this.#footerId = this.#sectionId as number;
    this.#afterFooter = this.#section === 'end' ? 'TAIL' : 'SECTION';
    this.#state = this.#footers === false ? this.#afterFooter : 'FOOTER';
    return item;
  }

  async #readFooter(): Promise<MainItem> {
    // Machines with send-section-footer=off have none at all: the first section tells.
    this.#footers ??= (await this.#reader.peek(1))[0] === QEMU_VM_SECTION_FOOTER;
    if (!this.#footers) return this.#skipFooter();
    this.#state = this.#afterFooter;
    const type = await this.#reader.u8('a footer');
    if (type !== QEMU_VM_SECTION_FOOTER) {
      throw this.#item.refusal('format', 'end of a section', sectionName(type), 'its footer');
    }
    const sectionId = await this.#reader.u32('a footer');
    if (sectionId !== this.#footerId) {
      throw this.#item.refusal('format', 'section id of a footer', sectionId, this.#footerId);
    }
    const item: FooterItem = { kind: 'footer', sectionId, ...this.#item.raw() };
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
