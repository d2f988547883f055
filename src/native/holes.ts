/** Where a sparse file has data, by lseek(2) with SEEK_DATA: a hole of terabytes need not be read. */
import { findSystemCalls } from './system-calls.js';

const SEEK_DATA = 3;
const ENXIO = 6;

/**
 * The first position from `position` on at which the file may have data; `position` itself where nobody knows, and undefined
 * where there is only a hole up to its end. Moves the descriptor's cursor, which nobody here uses.
 */
export function nextData(fd: number, position: number): number | undefined {
  const calls = findSystemCalls();
  if (calls === undefined) return position;
  const found = Number(calls.lseek(fd, position, SEEK_DATA));
  if (found >= position) return found;
  return calls.errno() === ENXIO ? undefined : position;
}
