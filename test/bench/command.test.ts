/** The command line of `npm run bench`: what it refuses, and what it says of a bench that cannot run. */
import fs from 'node:fs';
import path from 'node:path';
import t from 'tap';
import { escape } from '../../bench/support/page-html.js';
import { Run } from '../cli/cli.js';
import { BENCH, LATER, MAIN, bench, ended, resultsIn } from './run-bench.js';

t.test('wrong usage: one line, exit code 2, and no file', async (t) => {
  const folder = t.testdir({ page: '', link: t.fixture('symlink', 'page') });
  const json = path.join(folder, 'json');
  for (const [what, args] of Object.entries({
    'no such bench': ['nosuch'],
    "the name of a bench's process": ['run-one'],
    'and a bench behind it': ['run-one', BENCH],
    'no such option': ['--nosuch'],
    'a folder that is not there': [BENCH, '--json', json, '--html', path.join(folder, 'none', 'page')],
    'one file twice': [BENCH, '--json', json, '--html', path.join(folder, '.', 'json')],
    'one file by two names': [
      BENCH,
      '--json',
      path.join(folder, 'page'),
      '--html',
      path.join(folder, 'link'),
    ],
  })) {
    const { code, stdout, stderr } = await ended(bench(t, ...args));
    t.equal(code, 2, what);
    t.match(stderr, /^bench: [^\n]+; --help lists all options\n$/, what);
    t.equal(stdout, '', what);
    t.same(fs.readdirSync(folder).sort(), ['link', 'page'], what);
  }
});

t.test('a bench that cannot run, or fails, says why: on stdout, in the figures, on the page', async (t) => {
  const folder = t.testdir({});
  const files = { json: path.join(folder, 'json'), html: path.join(folder, 'html') };
  const names = ['qemu', 'qemu-file', 'limit'];
  const run = new Run(t, [...names, '--json', files.json, '--html', files.html], {
    main: MAIN,
    // What `limit` compiles has no place.
    env: { MULTIFD_QEMU: '/no/such/qemu', TMPDIR: '/no/such/folder' },
  });
  const { code, stdout, stderr } = await ended(run);
  t.equal(code, 1);
  t.match(stderr, '\nbench: limit failed: ended with 1\n');
  const { benches, failed, rows, remarks } = resultsIn(files.json);
  t.same({ benches, failed, rows }, { benches: names, failed: ['limit'], rows: [] });
  t.match(remarks, [
    { bench: 'qemu', remark: 'skipped: it needs qemu-system-x86_64' },
    { bench: 'qemu-file', remark: 'skipped: it needs qemu-system-x86_64' },
    { bench: 'limit', remark: 'ENOENT: no such file or directory' },
    { bench: 'limit', remark: 'failed: ended with 1' },
  ]);
  const page = fs.readFileSync(files.html, 'utf8');
  for (const { bench, remark } of remarks) {
    if (!remark.startsWith('failed')) t.match(stdout, `\n${bench}: ${remark}\n`);
    t.ok(page.includes(`<li>${escape(remark)}</li>`), 'on the page');
  }
});

t.test('stdout that is closed, and no file: the end, without a stack trace', async (t) => {
  const run = bench(t, BENCH, LATER);
  run.child.stdout?.destroy();
  const { code, stderr } = await ended(run);
  t.equal(code, 1);
  t.equal(stderr, '');
});
