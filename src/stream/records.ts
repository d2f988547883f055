/**
 * What the main stream is made of, after the file header and the configuration: sections, commands, and the records
 * in the body of section `ram`. All integers big-endian. This file holds the numbers and the types of the items; they
 * are read in main-stream.ts and written in main-writer.ts.
 *
 *     byte  section                       then
 *      01   START   (FULL is 04)          u32 section_id, u8 n, n bytes idstr, u32 instance_id, u32 version_id, body
 *      02   PART    (END is 03)           u32 section_id, body
 *      08   COMMAND                       u16 command, u16 n, n bytes; no footer
 *      7e   FOOTER                        u32 section_id; after each body, unless the machine sends none
 *      00   EOF, 06 VMDESCRIPTION         after ram's END: part of the tail
 *
 * Sections of others than ram before ram's END are in other-sections.ts.
 *
 * The body of a ram section is a row of records, each a u64 of address | flags (the address is a multiple of the page
 * size, so its low bits are free), up to EOS:
 *
 *     flags  record          then
 *     0x004  MEM_SIZE        the block list (block-list.ts); address = the sum of its used lengths
 *     0x002  ZERO            [block id], u8 0
 *     0x008  PAGE            [block id], one page
 *     0x010  EOS             nothing: the end of this body
 *     0x020  CONTINUE        with ZERO or PAGE: no block id, the block of the record before
 *     0x200  MULTIFD_FLUSH   nothing; QEMU >= 8.1
 *
 * [block id] is u8 n, n bytes. XBZRLE 0x040, HOOK 0x080 and COMPRESS_PAGE 0x100 are refused by name.
 *
 * An item's bytes (`raw`, `data`) are the consumer's, and views of the chunk that they came in: what is to be kept for
 * long is better copied, as a few bytes keep 64 KiB alive.
 */
import type { StreamBlock } from './block-list.js';
import type { Configuration } from './configuration.js';

export const QEMU_VM_EOF = 0x00;
export const QEMU_VM_SECTION_START = 0x01;
export const QEMU_VM_SECTION_PART = 0x02;
export const QEMU_VM_SECTION_END = 0x03;
export const QEMU_VM_SECTION_FULL = 0x04;
export const QEMU_VM_VMDESCRIPTION = 0x06;
export const QEMU_VM_COMMAND = 0x08;
export const QEMU_VM_SECTION_FOOTER = 0x7e;

export const RAM_SAVE_FLAG_ZERO = 0x002;
export const RAM_SAVE_FLAG_MEM_SIZE = 0x004;
export const RAM_SAVE_FLAG_PAGE = 0x008;
export const RAM_SAVE_FLAG_EOS = 0x010;
export const RAM_SAVE_FLAG_CONTINUE = 0x020;
export const RAM_SAVE_FLAG_XBZRLE = 0x040;
export const RAM_SAVE_FLAG_HOOK = 0x080;
export const RAM_SAVE_FLAG_COMPRESS_PAGE = 0x100;
export const RAM_SAVE_FLAG_MULTIFD_FLUSH = 0x200;

export const RAM_IDSTR = 'ram';
export const RAM_INSTANCE_ID = 0;
export const RAM_VERSION_ID = 4;

export const COMMAND_OPEN_RETURN_PATH = 1;
export const COMMAND_PING = 2;
export const COMMAND_POSTCOPY_ADVISE = 3;
export const COMMAND_POSTCOPY_LISTEN = 4;
export const COMMAND_POSTCOPY_RUN = 5;
export const COMMAND_POSTCOPY_RAM_DISCARD = 6;
export const COMMAND_PACKAGED = 7;
export const COMMAND_POSTCOPY_RESUME = 9;
export const COMMAND_RECV_BITMAP = 10;
export const COMMAND_SWITCHOVER_START = 11;

export type SectionType = 'start' | 'part' | 'end';
/** FULL is START and END in one. */
export type OtherSectionType = SectionType | 'full';
/** Which record of a ram section is the sync point on the main stream: each EOS (`eos`), or MULTIFD_FLUSH. */
export type MarkerMode = 'eos' | 'flush';

interface Raw {
  /** Position of the item's first byte in the stream. */
  at: number;
  /** The bytes that it was made of; in a mapped-ram file without the pages and bitmaps between them. */
  raw: Buffer;
}

export interface HeaderItem extends Raw {
  kind: 'header';
}

export interface ConfigurationItem extends Raw {
  kind: 'configuration';
  configuration: Configuration;
}

export interface CommandItem extends Raw {
  kind: 'command';
  command: number;
  data: Buffer;
}

/** The head of a ram section; its records follow as items of their own, up to `eos`. */
export interface SectionItem extends Raw {
  kind: 'section';
  section: SectionType;
  sectionId: number;
}

/** The head of another section before ram's END; its body follows in pieces, then its footer. */
export interface OtherSectionItem extends Raw {
  kind: 'other-section';
  section: OtherSectionType;
  sectionId: number;
  /** In a PART and an END those of the START. */
  idstr: string;
  instanceId: number;
  versionId: number;
}

/** A piece of another section's body, to be kept as it is. */
export interface OtherDataItem extends Raw {
  kind: 'other-data';
}

export interface MemSizeItem extends Raw {
  kind: 'mem-size';
  /** The sum of all used lengths. */
  total: number;
  blocks: StreamBlock[];
}

/**
 * The host page size of the block list's last entry, where there is one: an item of its own, since nothing in the list
 * says whether it comes. The list's block has it from here on.
 */
export interface PageSizeItem extends Raw {
  kind: 'page-size';
  hostPageSize: number;
}

/** One ZERO record, or a row of them in one block: all but the first have CONTINUE. */
export interface ZeroItem extends Raw {
  kind: 'zero';
  /** Name of the block. */
  block: string;
  /** Byte offsets in the block, one for each record. */
  offsets: number[];
  /** Does the first record have CONTINUE too? */
  continued: boolean;
}

export interface PageItem extends Raw {
  kind: 'page';
  block: string;
  offset: number;
  /** The page, a part of `raw`. */
  data: Buffer;
  continued: boolean;
}

export interface FlushItem extends Raw {
  kind: 'flush';
  /** Always a sync point: one SYNC packet on each channel belongs to it. */
  sync: true;
}

export interface EosItem extends Raw {
  kind: 'eos';
  section: SectionType;
  /** Is it a sync point? In marker mode `eos`. */
  sync: boolean;
}

export interface FooterItem extends Raw {
  kind: 'footer';
  sectionId: number;
}

/** A piece of what comes after ram's END, to be kept as it is. */
export interface TailItem extends Raw {
  kind: 'tail';
}

export type MainItem =
  | HeaderItem
  | ConfigurationItem
  | CommandItem
  | SectionItem
  | OtherSectionItem
  | OtherDataItem
  | MemSizeItem
  | PageSizeItem
  | ZeroItem
  | PageItem
  | FlushItem
  | EosItem
  | FooterItem
  | TailItem;
