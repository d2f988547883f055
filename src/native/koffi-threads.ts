/**
 * In how many threads of this process koffi has been. Its 3.3.4, the newest, leaves in each that has loaded a library and ended
 * what it had for it: three mappings, its stack and heap, and some 40 KiB. A process may have 65,530 mappings, and koffi ends it
 * where there is no other: so threads that come later do without, and with what is there in its place.
 *
 *     Nodes with a zstd of their own     no thread has it but for zeroCopySend
 *     Node 20, zstd                      each channel's thread, of a sender and of a receiver
 *
 * The count is the calling thread's; who starts threads hands it to them by their workerData.
 */
import { isMainThread, workerData } from 'node:worker_threads';

/** 12,288 mappings, some 160 MiB of memory; by choice. */
export const MAX_KOFFI_THREADS = 4096;

/** Part of a thread's workerData. */
export interface KoffiThreads {
  koffiThreads: SharedArrayBuffer;
}

const given = isMainThread ? undefined : (workerData as Partial<KoffiThreads> | null)?.koffiThreads;
const buffer =
  given instanceof SharedArrayBuffer ? given : new SharedArrayBuffer(Int32Array.BYTES_PER_ELEMENT);
/** Is it one that was started here? Any other lives as long as its maker likes, and has koffi's settings from him. */
export const isKoffiThread = given === buffer;

/** For the workerData of a thread that is started here. */
export function koffiThreads(): KoffiThreads {
  return { koffiThreads: buffer };
}

/** To be asked once in a thread, before it loads koffi; it is counted then. */
export function mayHaveKoffi(): boolean {
  if (!isKoffiThread) return true;
  const words = new Int32Array(buffer);
  if (Atomics.add(words, 0, 1) < MAX_KOFFI_THREADS) return true;
  Atomics.sub(words, 0, 1);
  return false;
}
