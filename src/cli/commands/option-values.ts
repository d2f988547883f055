/**
 * Parsers for option values, shared by the commands. Each refuses with what is allowed; commander puts what was
 * given in front: "error: option '--channels <n>' argument '0' is invalid. Allowed is an integer from 1 to 255."
 *
 * The ranges are the engine's own; test/cli/option-values.test.ts holds them against src/options.ts.
 */
import { InvalidArgumentError } from 'commander';
import { similarTo } from '../../did-you-mean.js';
import type { Compression, ZeroPageDetection } from '../../index.js';
import { parseSize } from './sizes.js';

export const COMPRESSIONS: readonly Compression[] = ['none', 'zlib', 'zstd'];
export const ZERO_PAGE_DETECTIONS: readonly ZeroPageDetection[] = ['none', 'legacy', 'multifd'];
export const MAX_CHANNELS = 255;
export const LEVELS = { zlib: { min: 0, max: 9 }, zstd: { min: 1, max: 20 } } as const;
const MIN_PAGE_SIZE = 4096;
const MAX_PAGE_SIZE = 65536;

/** For an option with choices(): says which of them may have been meant, as commander does for options and commands. */
export function choiceOf<T extends string>(allowed: readonly T[]): (text: string) => T {
  return (text) => {
    const choice = allowed.find((known) => known === text);
    if (choice !== undefined) return choice;
    const meant = similarTo(text, allowed);
    const hint = meant.length === 0 ? '' : `\n(Did you mean ${meant.join(' or ')}?)`;
    throw new InvalidArgumentError(`Allowed choices are ${allowed.join(', ')}.${hint}`);
  };
}

export function filePath(text: string): string {
  if (text !== '' && !text.includes('\0')) return text;
  throw new InvalidArgumentError('Allowed is the path of a file.');
}

export function integerFrom(min: number, max: number): (text: string) => number {
  return (text) => {
    const value = /^\d+$/.test(text) ? Number(text) : NaN;
    if (value >= min && value <= max) return value;
    throw new InvalidArgumentError(`Allowed is an integer from ${min} to ${max}.`);
  };
}

/** @param min in bytes, 0 or more */
export function sizeFrom(
  min: number,
  what = 'bytes',
  max = Number.MAX_SAFE_INTEGER,
): (text: string) => number {
  return (text) => {
    const value = parseSize(text);
    if (value !== undefined && value >= min && value <= max) return value;
    if (value !== undefined && value > max)
      throw new InvalidArgumentError(`Allowed are ${what}, ${max} at the most.`);
    throw new InvalidArgumentError(
      `Allowed are ${what}, ${min} or more, also with K, M, G or T, or KiB to TiB: 65536, 64K, 1.5G, 64MiB.`,
    );
  };
}

export function pageSize(text: string): number {
  const value = parseSize(text) ?? NaN;
  if (value >= MIN_PAGE_SIZE && value <= MAX_PAGE_SIZE && (value & (value - 1)) === 0) return value;
  throw new InvalidArgumentError('Allowed are 4K, 8K, 16K, 32K and 64K.');
}
