import t from 'tap';
import { didYouMean, similarTo } from '../src/did-you-mean.js';
import { SENDER_KEYS } from '../src/options.js';

t.test('a name that is misspelt, or is one of QEMU, has one that was meant', async (t) => {
  const cases: [given: string, meant: string[]][] = [
    ['chanels', ['channels']],
    ['Channels', ['channels']],
    ['cahnnels', ['channels']],
    ['maxBandwith', ['maxBandwidth']],
    ['zstdlevle', ['zstdLevel']],
    ['multifd-channels', ['channels']],
    ['multifdCompression', ['compression']],
    ['multifd-zlib-level', ['zlibLevel']],
    ['--zero-page-detection', ['zeroPageDetection']],
    ['page_size', ['pageSize']],
    ['level', ['zlibLevel', 'zstdLevel']],
    ['timeout', ['stallTimeoutMs', 'connectTimeoutMs']],
    ['numChannels', ['channels']],
  ];
  for (const [given, meant] of cases) t.strictSame(similarTo(given, SENDER_KEYS), meant, given);
  t.strictSame(similarTo('zst', ['none', 'zlib', 'zstd']), ['zstd']);
  t.strictSame(similarTo('multifd', ['none', 'multifd']), ['multifd']);
});

t.test('what is another word has none', async (t) => {
  for (const given of ['', '-', 'x', 'toString', 'colour', 'x'.repeat(1e6), undefined, 7, null, {}]) {
    t.strictSame(similarTo(given, SENDER_KEYS), []);
    t.equal(didYouMean(given, SENDER_KEYS), '');
  }
  t.strictSame(similarTo('gzip', ['none', 'zlib', 'zstd']), []);
});

t.test('it ends a message', async (t) => {
  t.equal(didYouMean('chanels', SENDER_KEYS), '; did you mean channels?');
  t.equal(didYouMean('level', SENDER_KEYS), '; did you mean zlibLevel or zstdLevel?');
});
