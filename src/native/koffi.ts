/**
 * The door to C: the only file that loads `koffi`, an optional dependency. Whoever wants a library of the system asks here,
 * and hears in one sentence why there is none.
 *
 *     koffi.ts            loads it, once a thread
 *     koffi-threads.ts    in how many threads, since it leaves something in each
 *     system-calls.ts     the C library's calls, as they are: numbers, and -1 with an errno
 *     sockets.ts  memory.ts  files.ts      what is done with them: units, checks, errors
 *     libzstd.ts          the system's libzstd
 *
 * What is loaded runs in the process itself: a wrong address ends it. So addresses are only ever those of memory that a
 * typed array has, lengths are taken from the same array, and nothing keeps one behind the call, but for pages that are
 * sent without a copy (src/transport/zero-copy.ts says until when).
 */
import { createRequire } from 'node:module';
import { MultifdError } from '../errors.js';
import { loadAddon } from './addon-gate.js';
import { MAX_KOFFI_THREADS, isKoffiThread, mayHaveKoffi } from './koffi-threads.js';

/** A function of C's. Pointers are typed arrays, addresses, or null. */
export type CFunction = (...args: (number | bigint | Uint8Array | null)[]) => number | bigint;

/** What is used of koffi 3. */
export interface Koffi {
  /** Before a library is loaded; bytes. */
  config(sizes: { sync_stack_size: number; sync_heap_size: number }): unknown;
  /**
   * @param file null: the program itself, and with it the C library
   * @param options `deep`: what the library calls of its own is its own, whatever else is loaded (RTLD_DEEPBIND)
   */
  load(file: string | null, options?: { deep?: boolean }): { func(declaration: string): CFunction };
  address(view: Uint8Array): bigint;
  /** The C library's own, of the last call in this thread. */
  errno(): number;
}

/** All functions of a library that are declared, by their names. @throws koffi's error: it has no such function */
export function declareAll<K extends string>(
  library: ReturnType<Koffi['load']>,
  declarations: Readonly<Record<K, string>>,
): Record<K, CFunction> {
  const functions = Object.entries<string>(declarations).map(([name, text]) => [name, library.func(text)]);
  return Object.fromEntries(functions) as Record<K, CFunction>;
}

/** What libzstd needs in a thread of musl's, twice; koffi's own 3 MiB a thread stay behind. By choice. */
const SIZES = { sync_stack_size: 256 * 1024, sync_heap_size: 64 * 1024 };

/** Layouts of structures and values of constants are those of 64-bit little-endian Linux; these have no others. */
const ARCHITECTURES = ['x64', 'arm64', 'riscv64', 'loong64'];

let loaded: Koffi | undefined;
let missing: string | undefined;

/** Undefined where there is none: whyNoKoffi() says why. */
export function findKoffi(): Koffi | undefined {
  if (loaded !== undefined || missing !== undefined) return loaded;
  if (process.platform !== 'linux' || !ARCHITECTURES.includes(process.arch)) {
    missing = `it is for 64-bit Linux, not for ${process.platform} on ${process.arch}`;
    return undefined;
  }
  if (!mayHaveKoffi()) {
    missing = `${MAX_KOFFI_THREADS} threads of this process have had koffi, which leaves something behind in each: a new process may`;
    return undefined;
  }
  try {
    loaded = loadAddon(() => {
      const koffi = createRequire(import.meta.url)('koffi') as Koffi;
      if (isKoffiThread) koffi.config(SIZES);
      return koffi;
    });
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    missing =
      code === 'MODULE_NOT_FOUND'
        ? 'it needs the package koffi, which is not installed: npm install koffi (-g, where multifd is installed so)'
        : code === 'ERR_DLOPEN_DISABLED'
          ? 'it needs the package koffi, an addon, and this Node may load none: --allow-addons'
          : `it needs the package koffi with its part for this platform (npm install --include=optional koffi), which ` +
            `cannot be loaded: ${(error as Error).message.split('\n', 1)[0]}`;
  }
  return loaded;
}

/** In one sentence, for a message that names the option before it. */
export function whyNoKoffi(): string {
  return missing ?? '';
}

/**
 * @param option what it is needed for
 * @throws MultifdError ERR_MULTIFD_RUNTIME
 */
export function requireKoffi(option: string): Koffi {
  const koffi = findKoffi();
  if (koffi === undefined) throw new MultifdError('ERR_MULTIFD_RUNTIME', `${option}: ${whyNoKoffi()}`);
  return koffi;
}
