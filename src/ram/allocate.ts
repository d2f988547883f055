/**
 * Memory for a guest's RAM, in huge pages where the system has them: a SharedArrayBuffer comes in pages of 4 KiB, and making
 * these, one after the other as they are touched, is most of what a migration into fresh memory costs. QEMU asks for huge pages
 * by itself.
 *
 * Nothing here does it without being asked (`multifd demo --huge-pages`; bench: rows `huge pages`). In a virtual machine whose
 * balloon reports free memory to its host (Linux does, in pieces as large as a huge page), each huge page that was free for some
 * seconds is one that the host has taken and must give anew, while single pages are mostly those that somebody has just freed:
 * there 512 MiB were touched in 1.5 s, and in 0.2 s plain; in 0.03 s where the host had left them (bench: kernels).
 */
import { types } from 'node:util';
import { MultifdError, receivedExpected } from '../errors.js';
import { adviseHugePages as advise } from '../native/memory.js';
import type { SystemCalls } from '../native/system-calls.js';

/**
 * Shared memory of zeroes, for a block's `memory`. Nothing of it is touched: the kernel makes its pages as they are used, huge
 * ones with the package koffi and a kernel that takes the advice (`transparent_hugepage` is `madvise` or `always`), else plain
 * ones. A huge page, 2 MiB on x64, is taken as a whole with the first of its bytes.
 *
 * @param bytes from 1
 * @throws MultifdError ERR_MULTIFD_OPTION: no such size, or no memory for it
 */
export function allocateRam(bytes: number): SharedArrayBuffer {
  return allocateAdvised(bytes);
}

/** @internal @param calls for a test */
export function allocateAdvised(bytes: number, calls?: SystemCalls): SharedArrayBuffer {
  if (!Number.isSafeInteger(bytes) || bytes < 1) {
    const given = typeof bytes === 'number' ? bytes : `${typeof bytes} ${String(bytes)}`;
    throw new MultifdError('ERR_MULTIFD_OPTION', receivedExpected('bytes', given, 'a whole number from 1'));
  }
  let memory: SharedArrayBuffer;
  try {
    memory = new SharedArrayBuffer(bytes);
  } catch (cause) {
    throw new MultifdError('ERR_MULTIFD_OPTION', `no memory for ${bytes} bytes of RAM`, { cause });
  }
  try {
    advise({ buffer: memory, byteOffset: 0, byteLength: bytes }, calls);
  } catch {
    // It is advice: the memory is as good without.
  }
  return memory;
}

/**
 * The same advice for memory that you have made yourself, if it has not been touched yet: pages that are there stay as they are.
 *
 * @returns has the kernel taken it? False without koffi, for less than a page, and on kernels without huge pages
 * @throws MultifdError ERR_MULTIFD_OPTION: it is no memory; ERR_MULTIFD_RUNTIME: the kernel refused, `cause` says why
 */
export function adviseHugePages(memory: SharedArrayBuffer | ArrayBuffer | Uint8Array): boolean {
  // Of other realms as well. What is detached has no bytes.
  if (types.isUint8Array(memory)) return advise(memory);
  if (types.isAnyArrayBuffer(memory))
    return advise({ buffer: memory, byteOffset: 0, byteLength: memory.byteLength });
  const expected = 'a SharedArrayBuffer, an ArrayBuffer, or a Uint8Array over one';
  const given = Object.prototype.toString.call(memory).slice(8, -1);
  throw new MultifdError('ERR_MULTIFD_OPTION', receivedExpected('memory', given, expected));
}
