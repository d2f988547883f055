/** The README's chapter for embedders: its example runs as it stands, and every option of either end has its line. */
import { execFile } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import t from 'tap';
import { DESTINATION_KEYS } from '../../src/live/destination-options.js';
import { SOURCE_KEYS } from '../../src/live/source-options.js';
import { RECEIVER_KEYS, SENDER_KEYS } from '../../src/options.js';
import { DEFAULT_BOUNDS } from '../../src/stream/bounds.js';

const RUN_MS = 60_000;
const readme = fs.readFileSync(new URL('../../../README.md', import.meta.url), 'utf8');
const [, chapter = ''] = /^## Migrate a VM of your own\n([\s\S]*?)^## /m.exec(readme) ?? [];
const [, example = ''] = /```js\n([\s\S]*?)```/.exec(chapter) ?? [];

t.test('the example has at most 60 lines, and moves a guest that counts', async (t) => {
  const lines = example.split('\n').filter((line) => line.trim() !== '');
  t.ok(lines.length > 20 && lines.length <= 60, String(lines.length));
  // Inside the package, so that it finds it by its name.
  const folder = fs.mkdtempSync(fileURLToPath(new URL('../../live-readme-', import.meta.url)));
  t.teardown(() => fs.rmSync(folder, { recursive: true }));
  const file = path.join(folder, 'example.mjs');
  fs.writeFileSync(file, example);
  const { stdout } = await promisify(execFile)(process.execPath, [file], { timeout: RUN_MS });
  const printed = stdout.trim().split('\n');
  t.match(printed[0], /^setup 16777216$/);
  t.ok(printed.includes('completed 0'), stdout);
  t.equal(printed.at(-1), 'true');
});

t.test('every option that only these have is in its table', async (t) => {
  const shared = [...SENDER_KEYS, ...RECEIVER_KEYS, ...Object.keys(DEFAULT_BOUNDS)];
  for (const key of new Set([...SOURCE_KEYS, ...DESTINATION_KEYS])) {
    if (shared.includes(key) && key !== 'devices') continue;
    t.match(chapter, new RegExp(`^\\| (source|destination|both): .*\`${key}\``, 'm'), key);
  }
});
