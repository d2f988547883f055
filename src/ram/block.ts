/**
 * RAM blocks: named pieces of guest RAM, and where their bytes live.
 *
 *     kind     bytes live in                      a channel thread reaches them by
 *     shared   a SharedArrayBuffer                the same memory, no copy
 *     file     a file (also /dev/shm, hugetlbfs)  pread and pwrite in place
 *     private  memory of the embedder's thread    a copy in the slot, made by the embedder's thread
 *     stream   nowhere: pages pass through        the slot's data (a relay between two migrations)
 *
 * Built on the calling thread; `BlockDescription` is what crosses to the channel threads.
 */
import { didYouMean } from '../did-you-mean.js';
import { MultifdError, describeThrown } from '../errors.js';
import { MemorySource, type BlockMemory } from './memory.js';

export { MAX_PAGE_SIZE, MIN_PAGE_SIZE } from '../wire/packet.js';
/** A page index must fit 32 bits: 16 TiB of 4 KiB pages. */
const MAX_PAGES = 2 ** 32;
/** Name bytes on the wire, without the NUL. */
const MAX_NAME_BYTES = 255;
/** A peer may have thousands. */
const MAX_NAMES_SAID = 20;

interface AnyBlockOptions {
  /** QEMU's idstr, for instance `pc.ram`: 1 to 255 printable ASCII characters, unique in the session. */
  name: string;
  /**
   * Receiving: all of it is zero when the session is opened (memory just allocated, a file just truncated to its size;
   * not checked). A page that comes in for the first time as a zero page is then neither read nor written: it stays
   * without memory, or a hole in the file. Default false.
   */
  fresh?: boolean;
}

/** A RAM block in memory. */
export interface MemoryBlockOptions extends AnyBlockOptions {
  /**
   * The block's bytes. A SharedArrayBuffer, or a Uint8Array over one, is used in place. An ArrayBuffer, or a
   * Uint8Array over one, is private memory: its pages are copied through the slots on the calling thread.
   *
   * Memory that moves: a function that returns one of these, called whenever private memory is to be touched, at any
   * moment, so that it is to do nothing else; or `{ wasm, offset, size }` for a part of a WebAssembly.Memory, which may
   * grow. Shared memory never moves, also as it grows, and is asked for once.
   */
  memory: BlockMemory;
  /**
   * Length in bytes, a multiple of the page size. That of the memory, which may be longer where it is a function or a
   * WebAssembly.Memory's.
   */
  size?: number;
  file?: undefined;
  offset?: undefined;
}

/** A RAM block in a file. */
export interface FileBlockOptions extends AnyBlockOptions {
  /**
   * The channel threads read or write it in place. A path is opened once, when the session is; an open FileHandle, or
   * whatever has a descriptor `fd`, stays yours, and must stay open until the session has ended.
   */
  file: string | { readonly fd: number };
  /** Where the block begins in the file, in bytes (default 0). */
  offset?: number;
  /** Length in bytes, a multiple of the page size. */
  size: number;
  memory?: undefined;
}

/** For the migrations' own files, with option directIo. */
export const DIRECT = Symbol('direct');

/** A RAM block in a file whose pages go by a second descriptor of it, opened with O_DIRECT (direct-io.ts). */
export interface DirectBlockOptions extends FileBlockOptions {
  [DIRECT]: { readonly fd: number } | undefined;
}

/** For the migrations' own files: a file that is packed (packed/seek-table.ts), its descriptors, and its table. */
export const PACKED = Symbol('packed');
export interface PackedRam {
  table: SharedArrayBuffer;
  fd: number;
  directFd: number | undefined;
}

/** How a migration's file, plain or packed, has a block's pages. */
export type InFile = Pick<FileBlockOptions, 'file'> & {
  [DIRECT]?: { readonly fd: number } | undefined;
  [PACKED]?: PackedRam;
};

/** A RAM block in a migration's file; its places are those of the plain one. */
export type MigrationBlockOptions = FileBlockOptions & InFile;

/** A RAM block as the embedder describes it: `memory`, or `file` and `size`. */
export type RAMBlockOptions = MemoryBlockOptions | FileBlockOptions;

/** For relays, and nobody else can say it. */
export const STREAM = Symbol('stream');

/** A block without memory, for relays. */
export interface StreamBlockOptions {
  name: string;
  size: number;
  stream: typeof STREAM;
}

/** What may be given at run time, whatever the types say. */
type GivenBlock = AnyBlockOptions &
  Partial<{
    memory: BlockMemory;
    file: string | { readonly fd: number };
    offset: number;
    size: number;
    stream: unknown;
    [DIRECT]: { readonly fd: number } | undefined;
    [PACKED]: PackedRam;
  }>;

const BLOCK_KEYS = ['name', 'memory', 'file', 'offset', 'size', 'fresh'];

export type BlockKind = 'shared' | 'file' | 'private' | 'stream';

/** What a channel thread is told of a block. */
export interface BlockDescription {
  name: string;
  size: number;
  kind: BlockKind;
  /** kind shared */
  buffer?: SharedArrayBuffer;
  /** kind file: its descriptor, which the calling thread has opened and closes. */
  fd?: number;
  /** kind file, with option directIo: its second descriptor, for the pages. */
  directFd?: number;
  /** kind file: it is packed, and `base` is a place in the plain one. */
  packed?: PackedRam;
  /** Where the block begins in its buffer or file, in bytes. */
  base: number;
  /** All of it was zero when the session was opened. */
  fresh?: true;
}

/** A RAM block of a session, as its embedder sees it. */
export interface SessionBlock {
  readonly name: string;
  /** Position in the session's list of blocks. */
  readonly index: number;
  /** used_length, in bytes. */
  readonly size: number;
  readonly pageCount: number;
  readonly kind: BlockKind;
  /** All of it was zero when the session was opened. */
  readonly fresh: boolean;
}

export class RAMBlock implements SessionBlock {
  readonly name: string;
  readonly index: number;
  readonly size: number;
  readonly pageCount: number;
  readonly kind: BlockKind;
  /** Kinds shared and private: its bytes on the calling thread. */
  readonly memory: MemorySource | undefined;
  readonly path: string | undefined;
  /** Given, or opened by openBlockFiles(). */
  fd: number | undefined;
  readonly directFd: number | undefined;
  readonly packed: PackedRam | undefined;
  readonly base: number;
  /** Until a session has begun to write, where others go on with what it has left. */
  fresh: boolean;

  /** @throws MultifdError ERR_MULTIFD_BLOCK */
  constructor(given: RAMBlockOptions | StreamBlockOptions, index: number, pageSize: number) {
    const options = given as GivenBlock;
    const { name, memory, file } = options;
    const bad = (why: string): MultifdError =>
      new MultifdError('ERR_MULTIFD_BLOCK', `RAM block ${JSON.stringify(describeThrown(name))}: ${why}`);
    if (typeof name !== 'string' || !/^[\x20-\x7e]+$/.test(name) || name.length > MAX_NAME_BYTES) {
      throw bad(`name must be 1 to ${MAX_NAME_BYTES} printable ASCII characters`);
    }
    const isStream = options.stream === STREAM;
    for (const key of Object.keys(options)) {
      if (BLOCK_KEYS.includes(key) || (isStream && key === 'stream')) continue;
      const allowed = BLOCK_KEYS.join(', ');
      throw bad(`unknown property ${key}, allowed ${allowed}${didYouMean(key, BLOCK_KEYS)}`);
    }
    if (options.fresh !== undefined && typeof options.fresh !== 'boolean')
      throw bad('fresh must be true or false');
    this.fresh = options.fresh === true;
    if (!isStream && (memory === undefined) === (file === undefined)) throw bad('give either memory or file');
    let base = 0;
    let size: number;
    if (memory !== undefined) {
      if (options.offset !== undefined)
        throw bad(
          'offset goes with file; pass a Uint8Array for a part of a buffer, or { wasm, offset, size }',
        );
      this.memory = new MemorySource(name, memory, options.size);
      ({ base, size } = this.memory);
      this.kind = this.memory.kind;
    } else if (isStream) {
      size = options.size as number;
      this.kind = 'stream';
    } else {
      const fd = typeof file === 'object' && file !== null ? file.fd : undefined;
      if (fd !== undefined ? !Number.isInteger(fd) || fd < 0 : typeof file !== 'string' || file === '')
        throw bad('file must be a path, or an open FileHandle');
      if (options.size === undefined) throw bad('size is needed with file');
      base = options.offset ?? 0;
      if (!Number.isSafeInteger(base) || base < 0)
        throw bad(`offset must be an integer of 0 or more, not ${base}`);
      size = options.size;
      if (fd === undefined) this.path = file as string;
      else this.fd = fd;
      this.directFd = options[DIRECT]?.fd;
      this.packed = options[PACKED];
      this.kind = 'file';
    }
    if (!Number.isSafeInteger(size) || size <= 0 || size % pageSize !== 0) {
      throw bad(`size must be a positive multiple of the page size ${pageSize}, not ${size}`);
    }
    if (size / pageSize > MAX_PAGES) throw bad(`size must be at most ${MAX_PAGES} pages`);
    this.name = name;
    this.index = index;
    this.size = size;
    this.pageCount = size / pageSize;
    this.base = base;
  }

  describe(): BlockDescription {
    const description: BlockDescription = {
      name: this.name,
      size: this.size,
      kind: this.kind,
      base: this.base,
    };
    if (this.fresh) description.fresh = true;
    if (this.kind === 'shared') description.buffer = this.memory?.buffer as SharedArrayBuffer;
    if (this.fd !== undefined) description.fd = this.fd;
    if (this.directFd !== undefined) description.directFd = this.directFd;
    if (this.packed !== undefined) description.packed = this.packed;
    return description;
  }
}

/**
 * The session's blocks, checked together.
 *
 * @throws MultifdError ERR_MULTIFD_BLOCK
 */
export function makeBlocks(
  options: readonly (RAMBlockOptions | StreamBlockOptions | DirectBlockOptions | MigrationBlockOptions)[],
  pageSize: number,
): RAMBlock[] {
  if (!Array.isArray(options) || options.length === 0) {
    throw new MultifdError('ERR_MULTIFD_BLOCK', 'blocks must be an array of at least one RAM block');
  }
  const names = new Set<string>();
  return options.map((option: RAMBlockOptions | StreamBlockOptions, index) => {
    if (option === null || typeof option !== 'object') {
      throw new MultifdError('ERR_MULTIFD_BLOCK', `blocks[${index}] must be an object`);
    }
    const block = new RAMBlock(option, index, pageSize);
    if (names.has(block.name)) {
      throw new MultifdError('ERR_MULTIFD_BLOCK', `RAM block ${JSON.stringify(block.name)} is there twice`);
    }
    names.add(block.name);
    return block;
  });
}

/** What one side keeps of each block, found by the block or, once a page, by its name. */
export class BlockStates<S extends { block: RAMBlock }> {
  readonly #states: readonly S[];
  readonly #byName: Map<string, S>;

  /** @param states in the order of the session's blocks */
  constructor(states: readonly S[]) {
    this.#states = states;
    this.#byName = new Map(states.map((state) => [state.block.name, state]));
  }

  /** @throws MultifdError ERR_MULTIFD_BLOCK */
  find(block: SessionBlock | string): S {
    const state = typeof block === 'string' ? this.#byName.get(block) : this.#states[block?.index];
    if (state === undefined || (typeof block !== 'string' && state.block !== block)) {
      const names = this.#states.slice(0, MAX_NAMES_SAID).map((known) => known.block.name);
      const more = this.#states.length - names.length;
      const allowed = `allowed ${names.join(', ')}${more > 0 ? ` and ${more} more` : ''}`;
      const given =
        block instanceof RAMBlock
          ? `one of another session, ${JSON.stringify(block.name)}`
          : typeof block === 'string'
            ? JSON.stringify(block)
            : describeThrown(block);
      throw new MultifdError('ERR_MULTIFD_BLOCK', `no such RAM block: given ${given}, ${allowed}`);
    }
    return state;
  }
}

/**
 * @returns the index of the first page
 * @throws MultifdError ERR_MULTIFD_RANGE
 */
export function checkPageRange(block: RAMBlock, pageSize: number, offset: number, length: number): number {
  const whole = Number.isSafeInteger(offset) && Number.isSafeInteger(length);
  if (!whole || offset < 0 || length < 0 || offset % pageSize !== 0 || length % pageSize !== 0) {
    throw new MultifdError(
      'ERR_MULTIFD_RANGE',
      `RAM block ${block.name}: given offset ${offset}, length ${length}, allowed multiples of ${pageSize} from 0 on`,
    );
  }
  if (offset + length > block.size) {
    throw new MultifdError(
      'ERR_MULTIFD_RANGE',
      `RAM block ${block.name}: given offset ${offset} + length ${length}, allowed at most ${block.size}`,
    );
  }
  return offset / pageSize;
}
