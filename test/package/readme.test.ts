/** The README says what the code says: error codes, options, bench names. */
import fs from 'node:fs';
import t from 'tap';
import { ERROR_CODES } from '../../src/errors.js';
import { RECEIVER_KEYS, SENDER_KEYS } from '../../src/options.js';
import { DEFAULT_BOUNDS } from '../../src/stream/bounds.js';

const readme = fs.readFileSync(new URL('../../../README.md', import.meta.url), 'utf8');

t.test('every error code has its line in the README, with the meaning of the table', async (t) => {
  for (const [code, meaning] of Object.entries(ERROR_CODES)) {
    const line = readme.split('\n').find((text) => text.startsWith(`| \`${code}\``));
    t.ok(line?.replaceAll(/\s+/g, ' ').includes(meaning.replaceAll(/\s+/g, ' ')), code);
  }
  const listed = [...readme.matchAll(/^\| `(ERR_MULTIFD_\w+)`/gm)].map((match) => match[1]);
  t.same(listed.sort(), Object.keys(ERROR_CODES).sort(), 'and no other');
});

t.test('every option has its line in the README', async (t) => {
  for (const key of new Set([...SENDER_KEYS, ...RECEIVER_KEYS])) {
    t.match(readme, new RegExp(`^\\| (sender: |receiver: )?\`${key}\``, 'm'), key);
  }
  for (const key of Object.keys(DEFAULT_BOUNDS)) {
    t.match(readme, new RegExp(`^\\| stream: \`${key}\``, 'm'), key);
  }
});

t.test('the example has at most 15 lines of code', async (t) => {
  const example = /```js\n([\s\S]*?)```/.exec(readme)?.[1] ?? '';
  const lines = example.split('\n').filter((line) => line.trim() !== '');
  t.ok(lines.length > 5 && lines.length <= 15, String(lines.length));
});
