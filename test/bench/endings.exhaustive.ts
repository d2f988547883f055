/** What the files of `npm run bench` have however a run ends; with benches that run, half a minute of a core. */
import fs from 'node:fs';
import path from 'node:path';
import t from 'tap';
import { within } from '../support/within.js';
import { BENCH, LATER, WAIT_MS, bench, ended, resultsIn } from './run-bench.js';

t.test(
  'neither a stdout that is closed nor a file that cannot be written costs the other file',
  async (t) => {
    const html = path.join(t.testdir({}), 'page');
    const run = bench(t, BENCH, '--json', '/dev/full', '--html', html);
    run.child.stdout?.destroy();
    const { code, stderr } = await ended(run);
    t.equal(code, 1);
    t.match(stderr, /^bench: \/dev\/full could not be written: ENOSPC[^\n]*\n$/);
    const page = fs.readFileSync(html, 'utf8');
    t.match(page, /<\/html>\s*$/);
    t.ok(page.includes(BENCH), 'with its rows');
  },
);

t.test('Ctrl-C: the rows that there are, and what is missing', async (t) => {
  const json = path.join(t.testdir({}), 'json');
  const run = bench(t, BENCH, LATER, '--json', json);
  let shown = '';
  const row = new Promise<void>((resolve) => {
    run.child.stdout?.on('data', (text: string) => {
      shown += text;
      if (shown.includes(`\n${BENCH}: `)) resolve();
    });
  });
  await within(row, WAIT_MS, 'a row');
  run.child.kill('SIGINT');
  const { code, stderr } = await ended(run);
  t.equal(code, 130);
  t.equal(stderr, '');
  const { rows, failed } = resultsIn(json);
  t.ok(rows.length > 0 && rows.every((one) => one.bench === BENCH), `${rows.length} rows`);
  // The first may have come to its end in the meantime; the second has no row yet.
  t.same(
    failed.filter((name) => name !== BENCH),
    [LATER],
  );
});
