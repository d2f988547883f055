/**
 * Memory that begins at a page of the system's, as O_DIRECT wants it: the kernel lets a device read and write it in place,
 * and refuses (EINVAL) what does not lie at a multiple of the device's block.
 *
 * Node aligns to 16 bytes and tells nobody where a buffer lies. The memory of a WebAssembly.Memory is mapped, so it begins
 * at a page. It costs address space, some 10 GiB of the 128 TiB that a process has, and memory only where it is written: so
 * a thread asks once for all that it needs at a time.
 */
import { MultifdError } from '../errors.js';

/** What every device's block divides, but for those that no page of a guest's would suit either. */
export const ALIGNMENT = 4096;

/** WebAssembly's pages. */
const WASM_PAGE_BYTES = 65536;

/** What is used of it; no library of TypeScript's for Node knows it. */
interface Wasm {
  Memory: new (pages: { initial: number; maximum: number }) => { readonly buffer: ArrayBuffer };
}

/** Told apart by identity: nothing else says that memory is aligned. */
const aligned = new WeakSet<ArrayBufferLike>();

/**
 * Zeros, at a multiple of ALIGNMENT.
 *
 * @throws MultifdError ERR_MULTIFD_RUNTIME where no address space is left, or no WebAssembly is
 */
export function alignedBuffer(bytes: number): Buffer {
  const { WebAssembly: wasm } = globalThis as { WebAssembly?: Wasm };
  if (wasm === undefined) {
    const message =
      'option directIo needs WebAssembly for aligned memory, and this Node has none (--jitless)';
    throw new MultifdError('ERR_MULTIFD_RUNTIME', message);
  }
  const pages = Math.ceil(bytes / WASM_PAGE_BYTES);
  try {
    const { buffer } = new wasm.Memory({ initial: pages, maximum: pages });
    aligned.add(buffer);
    return Buffer.from(buffer, 0, bytes);
  } catch (cause) {
    const message =
      'option directIo: no address space is left for aligned memory, expected 10 GiB twice a channel (ulimit -v)';
    throw new MultifdError('ERR_MULTIFD_RUNTIME', message, { cause });
  }
}

/** Do the bytes from `at` on lie as O_DIRECT wants them? */
export function isAligned(bytes: Uint8Array, at: number): boolean {
  return aligned.has(bytes.buffer) && (bytes.byteOffset + at) % ALIGNMENT === 0;
}
