/**
 * The memory of a RAM block, as it is given, and the calling thread's way to its bytes.
 *
 *     given                                     kind, once and for all     asked again
 *     SharedArrayBuffer, Uint8Array over one    shared                     no: shared memory never moves, also as it grows
 *     ArrayBuffer, Uint8Array over one          private                    no, but looked at before each touch
 *     a function that returns one of these      by what it returns first   private: called before each touch; shared: no
 *     { wasm, offset, size }                    the same, of wasm.buffer   the same
 *
 * Private memory may be taken away under a session: an ArrayBuffer is transferred, a resizable one shrunk, and that of a
 * WebAssembly.Memory is detached whenever it grows, and another one put in its place. So nothing of it is kept from one
 * touch to the next: what is given is asked each time, and what it says must be of the same kind and no shorter. What is
 * not is an error, and whoever touches ends the session with it.
 *
 * By internal slots, not by `instanceof`: memory may come from another realm (a vm context, jest's).
 */
import { types } from 'node:util';
import { didYouMean } from '../did-you-mean.js';
import { MultifdError, describeThrown } from '../errors.js';
import { Windows } from './windows.js';

/** Memory that stays where it is as long as the session lives. */
export type FixedMemory = SharedArrayBuffer | ArrayBuffer | Uint8Array;

/** What is used of a WebAssembly.Memory, of which no library of TypeScript's for Node knows. */
export interface WasmMemory {
  readonly buffer: SharedArrayBuffer | ArrayBuffer;
  grow(delta: number): number;
}

/** A part of a WebAssembly.Memory, which may grow under the session. */
export interface WasmMemoryRange {
  wasm: WasmMemory;
  /** Where the block begins in it, in bytes (default 0). */
  offset?: number;
  /** In bytes (default: to the end that it has when the session is opened). */
  size?: number;
}

/** All forms of a block's `memory`. */
export type BlockMemory = FixedMemory | (() => FixedMemory) | WasmMemoryRange;

const RANGE_KEYS = ['wasm', 'offset', 'size'];
const FORMS = 'a SharedArrayBuffer, an ArrayBuffer or a Uint8Array';
const MOVES = 'give memory that moves as a function, or as { wasm }';

/** Where the bytes are now. */
interface Place {
  readonly buffer: SharedArrayBuffer | ArrayBuffer;
  readonly base: number;
  /** How many there are from `base` on. */
  readonly length: number;
}

/** A block's memory on the calling thread. */
export class MemorySource {
  readonly kind: 'shared' | 'private';
  /** The block's bytes; only then that many are asked for. */
  readonly size: number;
  /** When the session was opened; for kind shared for good. */
  readonly buffer: SharedArrayBuffer | ArrayBuffer;
  readonly base: number;
  readonly #block: string;
  /** How the memory is called in messages. */
  readonly #called: string;
  readonly #ask: () => Place;
  readonly #mayMove: boolean;
  #windows: Windows;

  /**
   * @param block its name
   * @param size as it was given; of a memory that is no function and no `wasm` it must be the whole of it
   * @throws MultifdError ERR_MULTIFD_BLOCK, ERR_MULTIFD_HOOK
   */
  constructor(block: string, memory: BlockMemory, size: number | undefined) {
    this.#block = block;
    this.#called =
      typeof memory === 'function' ? 'memory()' : isWasmRange(memory) ? 'memory.wasm.buffer' : 'memory';
    this.#ask = this.#asker(memory);
    const place = this.#ask();
    this.buffer = place.buffer;
    this.base = place.base;
    this.kind = types.isSharedArrayBuffer(place.buffer) ? 'shared' : 'private';
    const given = isWasmRange(memory) ? this.#rangeSize(memory, size) : size;
    this.size = given ?? place.length;
    const fits = this.#called === 'memory' ? this.size === place.length : this.size <= place.length;
    if (!fits) throw this.#bad(`size is ${this.size}, but ${this.#called} has ${place.length} bytes`);
    this.#windows = new Windows(this.buffer, this.base, this.size);
    this.#mayMove = this.kind === 'private' && this.#called !== 'memory';
  }

  /**
   * The window that holds byte `offset`, of where the memory is now; not to be kept.
   *
   * @throws MultifdError ERR_MULTIFD_BLOCK, ERR_MULTIFD_HOOK
   */
  windowAt(offset: number): Buffer {
    if (!this.#mayMove) {
      const window = this.#windows.windowAt(offset);
      if (window.length > 0) return window;
    }
    this.#follow();
    return this.#windows.windowAt(offset);
  }

  /** Makes the windows anew where the memory has moved. */
  #follow(): void {
    const { buffer, base, length } = this.#ask();
    if (types.isSharedArrayBuffer(buffer))
      throw this.#bad(`${this.#called}: received shared memory, expected private memory as before`);
    if (length < this.size) {
      const why = length === 0 && buffer.byteLength === 0 ? 'it was detached' : 'it has become shorter';
      const expected = `expected at least ${this.size}`;
      throw this.#bad(`${this.#called}: received ${length} bytes, ${expected}: ${why}; ${MOVES}`);
    }
    if (this.#windows.isOf(buffer, base)) return;
    this.#windows = new Windows(buffer, base, this.size);
  }

  #asker(memory: BlockMemory): () => Place {
    if (typeof memory === 'function') {
      return () => {
        let returned: unknown;
        try {
          returned = memory();
        } catch (cause) {
          throw this.#threw(cause);
        }
        return this.#place(returned, `memory() must return ${FORMS}`);
      };
    }
    if (isWasmRange(memory)) {
      const { wasm } = memory;
      const offset = this.#rangeOffset(memory);
      return () => {
        let buffer: unknown;
        try {
          ({ buffer } = wasm);
        } catch (cause) {
          throw this.#threw(cause);
        }
        if (!types.isAnyArrayBuffer(buffer)) throw this.#bad('memory.wasm must be a WebAssembly.Memory');
        return { buffer, base: offset, length: Math.max(0, buffer.byteLength - offset) };
      };
    }
    return () => this.#place(memory, `memory must be ${FORMS}, a function that returns one, or { wasm }`);
  }

  #place(memory: unknown, otherwise: string): Place {
    if (types.isAnyArrayBuffer(memory)) return { buffer: memory, base: 0, length: memory.byteLength };
    if (!types.isUint8Array(memory)) throw this.#bad(otherwise);
    return { buffer: memory.buffer, base: memory.byteOffset, length: memory.byteLength };
  }

  #rangeOffset(range: WasmMemoryRange): number {
    const { wasm, offset = 0 } = range;
    const unknown = Object.keys(range).find((key) => !RANGE_KEYS.includes(key));
    if (unknown !== undefined) {
      const allowed = RANGE_KEYS.join(', ');
      throw this.#bad(
        `memory: unknown property ${unknown}, allowed ${allowed}${didYouMean(unknown, RANGE_KEYS)}`,
      );
    }
    if (wasm === null || typeof wasm !== 'object' || types.isUint8Array(wasm))
      throw this.#bad('memory.wasm must be a WebAssembly.Memory');
    if (!Number.isSafeInteger(offset) || offset < 0)
      throw this.#bad(`memory.offset must be an integer of 0 or more, not ${offset}`);
    return offset;
  }

  #rangeSize(memory: WasmMemoryRange, size: number | undefined): number | undefined {
    if (size !== undefined && memory.size !== undefined)
      throw this.#bad('give the size once: size, or memory.size');
    return size ?? memory.size;
  }

  #threw(cause: unknown): MultifdError {
    const what = `RAM block ${JSON.stringify(this.#block)}: ${this.#called} threw: ${describeThrown(cause)}`;
    return new MultifdError('ERR_MULTIFD_HOOK', what, { cause });
  }

  #bad(why: string): MultifdError {
    return new MultifdError('ERR_MULTIFD_BLOCK', `RAM block ${JSON.stringify(this.#block)}: ${why}`);
  }
}

function isWasmRange(memory: unknown): memory is WasmMemoryRange {
  return typeof memory === 'object' && memory !== null && 'wasm' in memory;
}
