/**
 * Against QEMU's own multifd (support/qemu-compare.ts): the cases with a bound, then the same ones with 1 and 4 channels
 * for scale. qemu-all.ts has all there are.
 */
import type { Compression } from '../src/index.js';
import type { Image } from './support/image.js';
import type { Row } from './support/measure.js';
import { compare, type Case } from './support/qemu-compare.js';

/** Rows with a bound. */
const PAIRS = 5;
/** Rows for scale: a trend is to be seen, in ten minutes for all the benches. */
const SCALE_PAIRS = 1;
const FRESH_FLOOR = 1;
/** Ours with its RAM from allocateRam(). */
const HUGE_FLOOR = 1.5;

interface Bounds {
  compression: Compression;
  image: Image;
  /** Speed against QEMU with 2 channels, into memory that is there. */
  floor: number;
  wireCeiling?: number;
  limit?: Case['limit'];
}

const BOUNDS: readonly Bounds[] = [
  { compression: 'none', image: 'random', floor: 0.9, limit: { of: 'sockets', floor: 0.8 } },
  { compression: 'none', image: 'mixed', floor: 1 },
  { compression: 'none', image: 'zero', floor: 2, limit: { of: 'memcmp', floor: 0.4 } },
  { compression: 'zstd', image: 'mixed', floor: 1.1, wireCeiling: 1 },
  { compression: 'zlib', image: 'mixed', floor: 1.2, wireCeiling: 1.05 },
];

function cases(): Case[] {
  return [
    ...BOUNDS.map((it) => ({ ...it, channels: 2, prefault: true, pairs: PAIRS })),
    ...BOUNDS.map(({ compression, image }) => {
      return { compression, image, channels: 2, prefault: false, pairs: PAIRS, floor: FRESH_FLOOR };
    }),
    ...BOUNDS.filter(({ compression }) => compression === 'none').map(({ compression, image }) => {
      const how = { channels: 2, prefault: false, hugePages: true, pairs: PAIRS, floor: HUGE_FLOOR };
      return { compression, image, ...how };
    }),
    ...BOUNDS.flatMap(({ compression, image }) =>
      [1, 4].map((channels) => {
        return { compression, image, channels, prefault: true, pairs: SCALE_PAIRS };
      }),
    ),
  ];
}

export const run = (): AsyncGenerator<Row> => compare('qemu', cases());
