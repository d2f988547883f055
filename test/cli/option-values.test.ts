/** The CLI's ranges against the engine's own checks: whatever one takes, the other takes, at each edge. */
import { InvalidArgumentError } from 'commander';
import t from 'tap';
import {
  COMPRESSIONS,
  LEVELS,
  MAX_CHANNELS,
  ZERO_PAGE_DETECTIONS,
  integerFrom,
  pageSize,
  sizeFrom,
} from '../../src/cli/commands/option-values.js';
import * as options from '../../src/options.js';
import { BOUND_RANGES, checkBounds } from '../../src/stream/bounds.js';

function engineTakes(given: Partial<options.SenderOptions>): boolean {
  const blocks = [{ name: 'pc.ram', memory: new SharedArrayBuffer(2 ** 20) }];
  try {
    options.checkSenderOptions({ address: 'tcp:127.0.0.1:1', blocks, ...given });
    return true;
  } catch {
    return false;
  }
}

function cliTakes(parse: (text: string) => number, value: number): boolean {
  try {
    return parse(String(value)) === value;
  } catch (error) {
    if (error instanceof InvalidArgumentError) return false;
    throw error;
  }
}

t.test('choices', async (t) => {
  t.strictSame(COMPRESSIONS, options.COMPRESSIONS);
  t.strictSame(ZERO_PAGE_DETECTIONS, options.ZERO_PAGE_DETECTIONS);
});

t.test('channels', async (t) => {
  for (const channels of [0, 1, MAX_CHANNELS, MAX_CHANNELS + 1]) {
    t.equal(cliTakes(integerFrom(1, MAX_CHANNELS), channels), engineTakes({ channels }), String(channels));
  }
});

t.test('levels', async (t) => {
  for (const [method, name] of [
    ['zlib', 'zlibLevel'],
    ['zstd', 'zstdLevel'],
  ] as const) {
    const { min, max } = LEVELS[method];
    for (const level of [min - 1, min, max, max + 1]) {
      t.equal(level >= min && level <= max, engineTakes({ [name]: level }), `${name} ${level}`);
    }
  }
});

t.test('page sizes', async (t) => {
  for (const size of [0, 2048, 4095, 4096, 6144, 8192, 16384, 32768, 65536, 131072]) {
    t.equal(cliTakes(pageSize, size), engineTakes({ pageSize: size }), String(size));
  }
});

t.test('a size has an upper end where the engine has one', async (t) => {
  const { min, max } = BOUND_RANGES.maxDescription;
  for (const maxDescription of [min - 1, min, max, max + 1]) {
    let taken = true;
    try {
      checkBounds({ maxDescription });
    } catch {
      taken = false;
    }
    t.equal(cliTakes(sizeFrom(min, 'bytes', max), maxDescription), taken, String(maxDescription));
  }
  t.equal(sizeFrom(0)('4T'), 2 ** 42);
});
