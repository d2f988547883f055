/**
 * The system's libzstd, for Nodes that have no zstd of their own: packets from buffer to buffer, in the calling thread, with
 * contexts that live as long as a channel. Source: zstd.h, the part of it that is stable; 64-bit systems.
 *
 *     ZstdCompressor     compress()        one packet, one complete frame
 *     ZstdDecompressor   run()             a stretch of a frame
 *
 * Who owns the bytes: input and output are the caller's and private to the thread; they are libzstd's for the time of the call.
 * It writes nothing but the output's bytes, whatever the input is. The contexts are libzstd's own memory, which no collector
 * sees: close() frees it, after a failure too, and nothing is called with it afterwards. A thread that is terminated because
 * it does not come back loses it, a few MiB.
 */
import { MultifdError } from '../errors.js';
import { loadAddon } from './addon-gate.js';
import { declareAll, findKoffi, whyNoKoffi, type Koffi } from './koffi.js';
import { addressOf } from './system-calls.js';

/** By its name alone: where it lies is the dynamic loader's matter. */
const LIBRARY = 'libzstd.so.1';
/**
 * The oldest that was tried and answers to corrupt blocks nearly as 1.5.7 does, which is Node's: of 2000 mutants 11 are taken
 * by the one and refused by the other (test/methods/zstd-answers.test.ts). With 1.4.8 it is every tenth. The functions are
 * there and stable since 1.4.0.
 */
const MIN_VERSION = 10504;

// zstd.h
const ZSTD_C_COMPRESSION_LEVEL = 100;
const ZSTD_C_CHECKSUM_FLAG = 201;
// ZSTD_inBuffer and ZSTD_outBuffer: address, size, position.
const BUFFER_WORDS = 3;
const ADDRESS = 0;
const SIZE = 1;
const POSITION = 2;

/** Contexts are addresses: `uintptr_t` keeps koffi from looking at what is there. */
const DECLARATIONS = {
  ZSTD_versionNumber: 'unsigned int ZSTD_versionNumber()',
  ZSTD_isError: 'unsigned int ZSTD_isError(size_t result)',
  ZSTD_getErrorName: 'const char *ZSTD_getErrorName(size_t result)',
  ZSTD_createCCtx: 'uintptr_t ZSTD_createCCtx()',
  ZSTD_freeCCtx: 'size_t ZSTD_freeCCtx(uintptr_t context)',
  ZSTD_CCtx_setParameter: 'size_t ZSTD_CCtx_setParameter(uintptr_t context, int parameter, int value)',
  ZSTD_compress2:
    'size_t ZSTD_compress2(uintptr_t context, void *to, size_t room, const void *from, size_t length)',
  ZSTD_createDCtx: 'uintptr_t ZSTD_createDCtx()',
  ZSTD_freeDCtx: 'size_t ZSTD_freeDCtx(uintptr_t context)',
  ZSTD_decompressStream: 'size_t ZSTD_decompressStream(uintptr_t context, void *output, void *input)',
} as const;

export type LibzstdName = keyof typeof DECLARATIONS;
type Call = (...args: (number | bigint | Uint8Array)[]) => number | bigint;

/** Its functions as they are. A test gives some of its own. */
export type Libzstd = Record<Exclude<LibzstdName, 'ZSTD_getErrorName'>, Call> & {
  ZSTD_getErrorName(result: number | bigint): string;
  address(view: Uint8Array): bigint;
};

let found: Libzstd | undefined;
let missing: string | undefined;

/** Undefined where there is none that fits: whyNoLibzstd() says why. Looked for once a thread. */
export function findLibzstd(): Libzstd | undefined {
  if (found !== undefined || missing !== undefined) return found;
  const koffi = findKoffi();
  if (koffi === undefined) return undefined;
  try {
    found = loadAddon(() => openLibzstd(koffi));
  } catch (error) {
    missing = `${LIBRARY} cannot be used: ${(error as Error).message}`;
  }
  return found;
}

/** In one sentence, for a message that names what it is needed for. */
export function whyNoLibzstd(): string {
  return missing ?? whyNoKoffi();
}

/** @throws Error: it is not there, or too old */
export function openLibzstd(koffi: Pick<Koffi, 'load' | 'address'>): Libzstd {
  // Deep: its calls of its own functions must not end in those of another version that the program has loaded, Node's say.
  const library = koffi.load(LIBRARY, { deep: true });
  const calls = declareAll(library, DECLARATIONS) as unknown as Libzstd;
  const version = Number(calls.ZSTD_versionNumber());
  if (version < MIN_VERSION) {
    throw new Error(
      `received version ${versionText(version)}, expected at least ${versionText(MIN_VERSION)}`,
    );
  }
  return { ...calls, address: (view) => koffi.address(view) };
}

function versionText(version: number): string {
  return `${Math.floor(version / 10000)}.${Math.floor(version / 100) % 100}.${version % 100}`;
}

/** The words of libzstd for a result that is an error; undefined if it is none. */
function failureOf(library: Libzstd, result: number | bigint): string | undefined {
  return library.ZSTD_isError(result) === 0 ? undefined : library.ZSTD_getErrorName(result);
}

/** A context that is freed once, and used no more. */
class Context {
  readonly #free: Call;
  #address: number | bigint;

  constructor(address: number | bigint, free: Call, what: string) {
    if (BigInt(address) === 0n) {
      throw new MultifdError('ERR_MULTIFD_RUNTIME', `libzstd has no memory for a context that ${what}`);
    }
    this.#address = address;
    this.#free = free;
  }

  /** @throws MultifdError ERR_MULTIFD_STATE: it is closed */
  get address(): number | bigint {
    if (this.#address === 0) throw new MultifdError('ERR_MULTIFD_STATE', 'the zstd context is closed');
    return this.#address;
  }

  close(): void {
    const address = this.#address;
    if (address === 0) return;
    this.#address = 0;
    this.#free(address);
  }
}

export class ZstdCompressor {
  readonly #library: Libzstd;
  readonly #context: Context;

  /**
   * @param checksum does each frame end with one of its content?
   * @throws MultifdError ERR_MULTIFD_COMPRESS: the level is none; ERR_MULTIFD_RUNTIME: no memory
   */
  constructor(library: Libzstd, level: number, checksum = false) {
    this.#library = library;
    this.#context = new Context(library.ZSTD_createCCtx(), library.ZSTD_freeCCtx, 'compresses');
    const set = (parameter: number, value: number): string | undefined =>
      failureOf(library, library.ZSTD_CCtx_setParameter(this.#context.address, parameter, value));
    const failure =
      set(ZSTD_C_COMPRESSION_LEVEL, level) ?? (checksum ? set(ZSTD_C_CHECKSUM_FLAG, 1) : undefined);
    if (failure === undefined) return;
    this.close();
    throw new MultifdError('ERR_MULTIFD_COMPRESS', `zstd: level ${level}: ${failure}`);
  }

  /**
   * One complete frame of `input`.
   *
   * @returns its bytes in `output`
   * @throws MultifdError ERR_MULTIFD_COMPRESS, also if it does not fit
   */
  compress(input: Uint8Array, output: Uint8Array): number {
    const library = this.#library;
    const { address } = this.#context;
    const result = library.ZSTD_compress2(address, output, output.length, input, input.length);
    const failure = failureOf(library, result);
    if (failure === undefined) return Number(result);
    throw new MultifdError(
      'ERR_MULTIFD_COMPRESS',
      `zstd: ${input.length} bytes into ${output.length}: ${failure}`,
    );
  }

  close(): void {
    this.#context.close();
  }
}

export class ZstdDecompressor {
  /** Bytes of the last call's output space that were left over. */
  outputLeft = 0;
  /** Bytes of the last call's input that were left over. */
  inputLeft = 0;
  /** Message of the last call's failure; undefined if it went well. */
  failure: string | undefined;
  readonly #library: Libzstd;
  readonly #context: Context;
  readonly #input = new BigUint64Array(BUFFER_WORDS);
  readonly #output = new BigUint64Array(BUFFER_WORDS);
  readonly #inputBytes = new Uint8Array(this.#input.buffer);
  readonly #outputBytes = new Uint8Array(this.#output.buffer);

  /** @throws MultifdError ERR_MULTIFD_RUNTIME: no memory */
  constructor(library: Libzstd) {
    this.#library = library;
    this.#context = new Context(library.ZSTD_createDCtx(), library.ZSTD_freeDCtx, 'decompresses');
  }

  /**
   * A stretch of a frame; true if it did not fail. The results are in the fields: not all of the input may be read yet.
   *
   * A stretch's first byte goes alone. A frame that is there as a whole and says its size would be decoded in one go, by which
   * 1.5.4 does not see blocks that come to more than a block may.
   */
  run(input: Uint8Array, inputOffset: number, output: Uint8Array, outputOffset: number): boolean {
    const library = this.#library;
    const { address } = this.#context;
    describe(library, this.#input, input, inputOffset);
    describe(library, this.#output, output, outputOffset);
    if (inputOffset === 0 && input.length > 0) this.#input[SIZE] = 1n;
    this.failure = failureOf(
      library,
      library.ZSTD_decompressStream(address, this.#outputBytes, this.#inputBytes),
    );
    if (this.failure !== undefined) return false;
    this.inputLeft = input.length - Number(this.#input[POSITION]);
    this.outputLeft = output.length - Number(this.#output[POSITION]);
    return true;
  }

  close(): void {
    this.#context.close();
  }
}

function describe(library: Libzstd, words: BigUint64Array, view: Uint8Array, position: number): void {
  words[ADDRESS] = view.length === 0 ? 0n : addressOf(library, view);
  words[SIZE] = BigInt(view.length);
  words[POSITION] = BigInt(position);
}
