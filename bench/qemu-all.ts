/**
 * Against QEMU's own multifd (support/qemu-compare.ts): every method, image, number of channels and kind of memory, without
 * bounds. Only when named, since it takes a quarter of an hour and more.
 */
import { COMPRESSIONS } from '../src/options.js';
import type { Row } from './support/measure.js';
import { compare, type Case } from './support/qemu-compare.js';

const PAIRS = 3;

function cases(): Case[] {
  return COMPRESSIONS.flatMap((compression) =>
    (['random', 'mixed', 'zero'] as const).flatMap((image) =>
      [1, 2, 4].flatMap((channels) =>
        [true, false].map((prefault) => ({ compression, image, channels, prefault, pairs: PAIRS })),
      ),
    ),
  );
}

export const run = (): AsyncGenerator<Row> => compare('qemu-all', cases());
