/**
 * `--ram FILE`: any file's bytes as the guest's RAM, one block, padded with zeroes to a whole page.
 *
 * The user's file is only ever opened for reading.
 */
import fs from 'node:fs';
import { UsageError } from '../cli-error.js';
import { readFully, type BlockPlan, type GuestRam } from './guest-ram.js';

/** Checks the file; its size in bytes. @throws UsageError */
export function checkRamFile(file: string): number {
  const wrong = (why: string): UsageError =>
    new UsageError(`option '--ram <file>' argument '${file}' is invalid. ${why}`);
  let stats: fs.Stats;
  try {
    stats = fs.statSync(file);
    fs.accessSync(file, fs.constants.R_OK);
  } catch (error) {
    throw wrong(`Allowed is a file that can be read: ${(error as Error).message}`);
  }
  if (!stats.isFile()) throw wrong('Allowed is a regular file.');
  if (stats.size === 0) throw wrong('Allowed is a file of 1 byte or more; it has none.');
  return stats.size;
}

export function ramFileBlocks(bytes: number, pageSize: number): BlockPlan[] {
  return [{ name: 'pc.ram', size: Math.ceil(bytes / pageSize) * pageSize }];
}

/** Copies the file's first `bytes` bytes into the one block of `ram`, and zeroes behind them. */
export async function loadRamFile(
  ram: GuestRam,
  file: string,
  bytes: number,
  signal: AbortSignal,
): Promise<void> {
  const fd = fs.openSync(file, 'r');
  try {
    const block = ram.blocks[0];
    await ram.eachPiece(block, signal, (offset, length) => {
      ram.write(block, offset, length, (into) => {
        const data = Math.min(length, bytes - offset);
        readFully(fd, into.subarray(0, data), offset, file);
        into.fill(0, data);
      });
    });
  } finally {
    fs.closeSync(fd);
  }
}
