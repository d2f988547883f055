import t from 'tap';
import { parseSize } from '../../src/cli/commands/sizes.js';

t.test('sizes are bytes, or binary multiples in either case', async (t) => {
  const cases: [string, number][] = [
    ['0', 0],
    ['4096', 4096],
    ['64K', 65536],
    ['64k', 65536],
    ['64M', 64 * 2 ** 20],
    ['1G', 2 ** 30],
    ['1.5G', 1.5 * 2 ** 30],
    ['2T', 2 * 2 ** 40],
    ['64MiB', 64 * 2 ** 20],
    ['1.5gib', 1.5 * 2 ** 30],
    ['4KiB', 4096],
    ['0x3000', 0x3000],
  ];
  for (const [text, bytes] of cases) t.equal(parseSize(text), bytes, text);
});

t.test('what is no whole number of bytes is refused', async (t) => {
  for (const text of [
    '',
    'G',
    '-1',
    '+1',
    '1.5',
    '0.0001K',
    '1KB',
    '1iB',
    '1MiBs',
    '1 M',
    '1e9',
    '0x',
    '0x10K',
    '0xfffffffffffffff',
    '9999999999T',
    'NaN',
  ]) {
    t.equal(parseSize(text), undefined, JSON.stringify(text));
  }
});
