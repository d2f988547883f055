/** What stands in the way when the kernel keeps no more pages for sends without a copy. Source: msg_zerocopy, getrlimit(2). */
import fs from 'node:fs';
import { MultifdError } from '../errors.js';

const PAGE_BYTES = 4096;
/** Of each send the kernel counts two pages more than it has. */
const MORE_PAGES = 2;

/** @param bytes of the smallest send that was tried, all others being done */
export function tooLittleLockedMemory(bytes: number): MultifdError {
  const need = (Math.ceil(bytes / PAGE_BYTES) + MORE_PAGES) * PAGE_BYTES;
  const optmem = read('/proc/sys/net/core/optmem_max')?.trim() ?? 'unknown';
  return new MultifdError(
    'ERR_MULTIFD_RUNTIME',
    `zeroCopySend: the kernel may keep no more pages of this process: ${need} bytes are needed for a send, and for ` +
      `full speed 8 MiB a channel; RLIMIT_MEMLOCK is ${memoryLock()} (ulimit -l says it in KiB), ` +
      `net.core.optmem_max ${optmem}. Raise what is too low, or leave zeroCopySend off`,
  );
}

/** The soft limit, as the system writes it. */
function memoryLock(): string {
  const limit = /^Max locked memory\s+(\S+)/m.exec(read('/proc/self/limits') ?? '')?.[1];
  return limit === undefined || limit === 'unlimited' ? (limit ?? 'unknown') : `${limit} bytes`;
}

function read(file: string): string | undefined {
  try {
    return fs.readFileSync(file, 'latin1');
  } catch {
    return undefined;
  }
}
