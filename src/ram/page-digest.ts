/**
 * Digests of pages: XXH64 with seed 0, in WebAssembly, since JavaScript has no product of 64 bits that is quick. A page has to
 * lie in the kernel's own memory, whose rest is for whoever makes one: he copies pages there, hashes them where they lie and
 * sends the same bytes.
 *
 *     memory    0            8       DATA_AT
 *               | the digest |  ...  | staging of the caller ... |
 *
 * Two pages that differ have the same digest in one of 2^64 cases, unless somebody has looked for such a pair: it is no
 * cryptographic digest. It is quicker than those by far (bench verify).
 *
 * A table of digests has one for each page of a block; both words 0 where there is none.
 *
 * There is no assembler here: the module's bytes are put together below, in the order of the specification's binary format
 * (https://webassembly.github.io/spec/core/binary/), with a name for each opcode that is used.
 */

import { MultifdError } from '../errors.js';

/** As much of WebAssembly as is used: no library of TypeScript's for Node knows it. */
interface Kernel {
  exports: { memory: { buffer: ArrayBuffer }; digest: (at: number, bytes: number) => void };
}
const { WebAssembly } = globalThis as unknown as {
  WebAssembly: {
    Module: new (bytes: Uint8Array) => object;
    Instance: new (module: object) => Kernel;
  };
};

/** A digest has 64 bits. */
export const DIGEST_WORDS = 2;
const MEMORY_PAGE_BYTES = 65536;
/** Where the caller's part of the memory begins. */
const DATA_AT = MEMORY_PAGE_BYTES;

/**
 * Tables without a digest, for threads to share: 8 bytes a page. As slot data they are growable for one reason only: the kernel
 * gives memory for what is written (shared/layout.ts).
 *
 * @throws MultifdError ERR_MULTIFD_OPTION
 */
export function digestTables(pageCounts: readonly number[]): SharedArrayBuffer[] {
  return pageCounts.map((count) => {
    const bytes = count * DIGEST_WORDS * Int32Array.BYTES_PER_ELEMENT;
    try {
      return new SharedArrayBuffer(bytes, { maxByteLength: bytes });
    } catch (cause) {
      const message = `option dirty: given none, for which ${bytes} bytes of digests are needed, allowed what memory can be had for`;
      throw new MultifdError('ERR_MULTIFD_OPTION', message, { cause });
    }
  });
}

export function viewDigests(table: SharedArrayBuffer): Int32Array {
  return new Int32Array(table, 0, table.byteLength / Int32Array.BYTES_PER_ELEMENT);
}

export class PageDigests {
  /** Pages are hashed in here. */
  readonly memory: Buffer;
  readonly #digest: (at: number, bytes: number) => void;
  readonly #result: Int32Array;

  /** @param memoryBytes that the caller needs */
  constructor(memoryBytes: number) {
    const pages = Math.ceil((DATA_AT + memoryBytes) / MEMORY_PAGE_BYTES);
    const { memory, digest } = new WebAssembly.Instance(new WebAssembly.Module(moduleOf(pages))).exports;
    this.memory = Buffer.from(memory.buffer, DATA_AT, memoryBytes);
    this.#digest = digest;
    this.#result = new Int32Array(memory.buffer, 0, DIGEST_WORDS);
  }

  /**
   * Digests `bytes` bytes, a multiple of 32, from byte `at` of `memory` on.
   *
   * @returns its two halves; valid until the next call
   */
  of(at: number, bytes: number): Int32Array {
    this.#digest(DATA_AT + at, bytes);
    return this.#result;
  }
}

// ---- XXH64 ----

const P1 = 0x9e3779b185ebca87n;
const P2 = 0xc2b2ae3d27d4eb4fn;
const P3 = 0x165667b19e3779f9n;
const P4 = 0x85ebca77c2b2ae63n;
const LANES = [P1 + P2, P2, 0n, -P1];
const LANE_BYTES = 8;
const STRIPE_BYTES = LANE_BYTES * LANES.length;

// Locals: the two parameters, then those of 64 bits.
const AT = 0;
const BYTES = 1;
const END = 2;
const FIRST_LANE = 3;
const HASH = FIRST_LANE + LANES.length;

function bodyOf(): number[] {
  const lane = (i: number): number => FIRST_LANE + i;
  const multiply = (factor: bigint): number[] => [...constant(factor), I64_MUL];
  const rotate = (bits: bigint): number[] => [...constant(bits), I64_ROTL];
  /** What lies on the stack, a word of the bytes added to a lane or to nothing. */
  const round = (sum: number[]): number[] => [...multiply(P2), ...sum, ...rotate(31n), ...multiply(P1)];
  const shiftedIn = (bits: bigint): number[] => [
    ...[LOCAL_GET, HASH, LOCAL_GET, HASH],
    ...[...constant(bits), I64_SHR_U, I64_XOR],
  ];
  return [
    ...LANES.flatMap((begin, i) => [...constant(begin), LOCAL_SET, lane(i)]),
    ...[LOCAL_GET, AT, LOCAL_GET, BYTES, I32_ADD, LOCAL_SET, END],
    ...[LOOP, NO_RESULT],
    ...LANES.flatMap((_, i) => [
      ...[LOCAL_GET, AT, I64_LOAD, ALIGN_8, i * LANE_BYTES],
      ...round([LOCAL_GET, lane(i), I64_ADD]),
      ...[LOCAL_SET, lane(i)],
    ]),
    ...[LOCAL_GET, AT, I32_CONST, STRIPE_BYTES, I32_ADD, LOCAL_TEE, AT],
    ...[LOCAL_GET, END, I32_LT_U, BR_IF, 0, BLOCK_END],
    ...[1n, 7n, 12n, 18n].flatMap((bits, i) => [
      ...[LOCAL_GET, lane(i), ...rotate(bits)],
      ...(i === 0 ? [] : [I64_ADD]),
    ]),
    ...[LOCAL_SET, HASH],
    ...LANES.flatMap((_, i) => [
      ...[LOCAL_GET, HASH, LOCAL_GET, lane(i), ...round([]), I64_XOR],
      ...[...multiply(P1), ...constant(P4), I64_ADD, LOCAL_SET, HASH],
    ]),
    ...[LOCAL_GET, HASH, LOCAL_GET, BYTES, I64_EXTEND_I32_U, I64_ADD, LOCAL_SET, HASH],
    ...[...shiftedIn(33n), ...multiply(P2), LOCAL_SET, HASH],
    ...[...shiftedIn(29n), ...multiply(P3), LOCAL_SET, HASH],
    ...[I32_CONST, 0, ...shiftedIn(32n), I64_STORE, ALIGN_8, 0],
    BLOCK_END,
  ];
}

// ---- the binary format ----

const LOOP = 0x03;
const NO_RESULT = 0x40;
const BLOCK_END = 0x0b;
const BR_IF = 0x0d;
const LOCAL_GET = 0x20;
const LOCAL_SET = 0x21;
const LOCAL_TEE = 0x22;
const I64_LOAD = 0x29;
const I64_STORE = 0x37;
const ALIGN_8 = 3;
const I32_CONST = 0x41;
const I64_CONST = 0x42;
const I32_LT_U = 0x49;
const I32_ADD = 0x6a;
const I64_ADD = 0x7c;
const I64_MUL = 0x7e;
const I64_XOR = 0x85;
const I64_SHR_U = 0x88;
const I64_ROTL = 0x89;
const I64_EXTEND_I32_U = 0xad;

const TYPE_I32 = 0x7f;
const TYPE_I64 = 0x7e;
const TYPE_FUNC = 0x60;
const EXPORT_FUNC = 0;
const EXPORT_MEMORY = 2;
const LIMITS_MIN_MAX = 1;
const SECTION_TYPE = 1;
const SECTION_FUNCTION = 3;
const SECTION_MEMORY = 5;
const SECTION_EXPORT = 7;
const SECTION_CODE = 10;

/** @param pages of its memory, which never grows */
function moduleOf(pages: number): Uint8Array {
  const locals = [1, TYPE_I32, LANES.length + 1, TYPE_I64];
  const code = [2, ...locals, ...bodyOf()];
  return Uint8Array.from([
    ...[0x00, 0x61, 0x73, 0x6d, 0x01, 0x00, 0x00, 0x00],
    ...section(SECTION_TYPE, [TYPE_FUNC, 2, TYPE_I32, TYPE_I32, 0]),
    ...section(SECTION_FUNCTION, [0]),
    ...section(SECTION_MEMORY, [LIMITS_MIN_MAX, ...unsigned(pages), ...unsigned(pages)]),
    ...section(SECTION_EXPORT, [...name('memory'), EXPORT_MEMORY, 0], [...name('digest'), EXPORT_FUNC, 0]),
    ...section(SECTION_CODE, [...unsigned(code.length), ...code]),
  ]);
}

function section(id: number, ...entries: number[][]): number[] {
  const bytes = [entries.length, ...entries.flat()];
  return [id, ...unsigned(bytes.length), ...bytes];
}

function name(text: string): number[] {
  return [text.length, ...Buffer.from(text)];
}

function constant(value: bigint): number[] {
  return [I64_CONST, ...signed(BigInt.asIntN(64, value))];
}

/** LEB128. */
function unsigned(value: number): number[] {
  return value < 128 ? [value] : [(value & 127) | 128, ...unsigned(value >>> 7)];
}

function signed(value: bigint): number[] {
  const low = Number(value & 127n);
  const rest = value >> 7n;
  const isLast = (rest === 0n && low < 64) || (rest === -1n && low >= 64);
  return isLast ? [low] : [low | 128, ...signed(rest)];
}
