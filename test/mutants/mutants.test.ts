/** The mutants themselves, without running them: that is `npm run mutants`. */
import { spawnSync } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import t, { type Test } from 'tap';
import { temporaryDirectory } from '../support/raw-channel.js';
import { applyPatch, readMutants, selectMutants, type Mutant } from './mutant.js';
import { runTest } from './run-test.js';

const ROOT = fileURLToPath(new URL('../../../', import.meta.url));
const PATCHES = path.join(ROOT, 'test/mutants');
const LIMIT_MS = 60_000;
const noGit = spawnSync('git', ['--version']).status === 0 ? false : 'no git';

t.test('each patch breaks one thing in src, and names a test that there is', async (t) => {
  const mutants = readMutants(PATCHES);
  t.ok(mutants.length >= 40, `${mutants.length} mutants`);
  for (const { name, patch, test } of mutants) {
    const changed = [...patch.matchAll(/^\+\+\+ b\/(\S+)$/gm)].map(([, file]) => file);
    t.ok(changed.length === 1 && changed[0].startsWith('src/'), `${name} changes ${changed.join(', ')}`);
    t.ok(fs.existsSync(path.join(ROOT, `test/${test}.test.ts`)), `${name}: test/${test}.test.ts`);
  }
  const numbers = mutants.map(({ name }) => name.split('-', 1)[0]);
  t.same([...new Set(numbers)], numbers, 'each has a number of its own');
});

t.test('each patch applies to the code as it is', { skip: noGit }, async (t) => {
  for (const mutant of readMutants(PATCHES)) applyPatch(ROOT, mutant, 'check');
  t.pass();
});

const PATCH = `Breaks: the sign
Killed by: test/a/sum.test.ts: one and one is two

diff --git a/src/sum.js b/src/sum.js
--- a/src/sum.js
+++ b/src/sum.js
@@ -1,3 +1,3 @@
 export function sum(a, b) {
-  return a + b;
+  return a - b;
 }
`;

/** A package with one file, one mutant of it and one test, which is given. */
function makeTree(t: Test, test: string): { tree: string; mutant: Mutant } {
  const tree = temporaryDirectory(t);
  for (const folder of ['src', 'dist/test/a']) fs.mkdirSync(path.join(tree, folder), { recursive: true });
  fs.writeFileSync(path.join(tree, 'package.json'), '{ "type": "module" }');
  fs.writeFileSync(path.join(tree, 'src/sum.js'), 'export function sum(a, b) {\n  return a + b;\n}\n');
  fs.symlinkSync(path.join(ROOT, 'node_modules'), path.join(tree, 'node_modules'));
  fs.writeFileSync(
    path.join(tree, 'dist/test/a/sum.test.js'),
    `import t from 'tap';\nimport { sum } from '../../../src/sum.js';\n${test}\n`,
  );
  fs.writeFileSync(path.join(tree, '07-sign.patch'), PATCH);
  return { tree, mutant: readMutants(tree)[0] };
}

t.test(
  'a mutant is put in and taken out, and one that does not fit is told by name',
  { skip: noGit },
  async (t) => {
    const { tree, mutant } = makeTree(t, '');
    const file = path.join(tree, 'src/sum.js');
    t.same(mutant, {
      name: '07-sign',
      patch: PATCH,
      breaks: 'the sign',
      test: 'a/sum',
      sentence: 'one and one is two',
    });
    const plain = fs.readFileSync(file, 'utf8');
    applyPatch(tree, mutant, 'check');
    t.equal(fs.readFileSync(file, 'utf8'), plain);
    applyPatch(tree, mutant, 'apply');
    t.equal(fs.readFileSync(file, 'utf8'), plain.replace('+', '-'));
    t.throws(() => applyPatch(tree, mutant, 'apply'), {
      message: /^07-sign\.patch does not apply: make it anew/,
    });
    applyPatch(tree, mutant, 'reverse');
    t.equal(fs.readFileSync(file, 'utf8'), plain);
  },
);

t.test('mutants are chosen by name, by number, or all', async (t) => {
  const { tree, mutant } = makeTree(t, '');
  const other = path.join(tree, '12-other.patch');
  fs.writeFileSync(other, PATCH);
  const mutants = readMutants(tree);
  t.same(selectMutants(mutants, []), mutants);
  for (const name of ['07-sign', '07', 'sign', '07-sign.patch'])
    t.same(selectMutants(mutants, [name]), [mutant]);
  t.throws(() => selectMutants(mutants, ['sing']), { message: 'no mutant sing; did you mean sign?' });
  fs.writeFileSync(other, PATCH.slice(PATCH.indexOf('diff')));
  t.throws(() => readMutants(tree), { message: /12-other\.patch: expected 'Breaks: WHAT' and 'Killed by: / });
});

t.test('one test is run, by its whole name, and is told from one that is not there', async (t) => {
  const { tree } = makeTree(
    t,
    `t.test('one and one is two', async (t) => t.equal(sum(1, 1), 2));
     t.test('one and one is two (or not)', async (t) => t.equal(sum(1, 1), 3));
     t.test('is skipped', { skip: 'why' }, async () => {});
     t.test('dies', async () => process.exit(3));
     t.test('hangs', () => { for (;;); });
     t.test('waits', () => new Promise(() => setInterval(() => {}, 1000)));`,
  );
  const outcomes: [string, RegExp, number][] = [
    ['one and one is two', /passed/, LIMIT_MS],
    ['one and one is two (or not)', /failed/, LIMIT_MS],
    ['one and one', /absent/, LIMIT_MS],
    ['is skipped', /absent/, LIMIT_MS],
    ['dies', /died/, LIMIT_MS],
    ['hangs', /hung/, 1000],
    // The one or the other, as slow as the day is.
    ['waits', /failed|hung/, 1000],
  ];
  await Promise.all(
    outcomes.map(async ([sentence, outcome, limitMs]) => {
      const run = await runTest(tree, 'a/sum', sentence, limitMs);
      t.match(run.outcome, outcome, `${sentence}: ${run.said}`);
    }),
  );
});
