/** The README's second example: all that it takes to move a PC of v86, run as it stands; its class is the demo's own. */
import { execFile } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { format } from 'prettier';
import t from 'tap';
import ts from 'typescript';

const RUN_MS = 60_000;
const MAX_LINES = 120;
const root = fileURLToPath(new URL('../../../', import.meta.url));
const readme = fs.readFileSync(path.join(root, 'README.md'), 'utf8');
const [, chapter = ''] = /^### A PC of v86, moved\n([\s\S]*?)^## /m.exec(readme) ?? [];
const [, example = ''] = /```js\n([\s\S]*?)```/.exec(chapter) ?? [];

t.test('it has at most 120 lines, and moves a PC that counts, without losing a number', async (t) => {
  const lines = example.trimEnd().split('\n').length;
  t.ok(lines > 20 && lines <= MAX_LINES, String(lines));
  // Inside the package, so that it finds it by its name.
  const folder = fs.mkdtempSync(path.join(root, 'dist/v86-readme-'));
  t.teardown(() => fs.rmSync(folder, { recursive: true }));
  const file = path.join(folder, 'example.mjs');
  fs.writeFileSync(file, example);
  const { stdout } = await promisify(execFile)(process.execPath, [file], { timeout: RUN_MS });
  t.match(stdout, /^setup 16777216$/m);
  t.match(stdout, /^completed 0$/m);
  const [, counted = '0', dots] = /^stopped for \d+ ms; counted to (\d+), (\d+) dots$/m.exec(stdout) ?? [];
  t.ok(Number(counted) > 1, stdout);
  // It counts first, and says so then.
  t.ok([0, 1].includes(Number(counted) - Number(dots)), stdout);
});

t.test("its class is the demo's, without its types", async (t) => {
  const source = fs.readFileSync(path.join(root, 'src/cli/demo/v86/pc.ts'), 'utf8');
  const { ESNext } = ts.ScriptTarget;
  const compilerOptions = { target: ESNext, module: ts.ModuleKind.ESNext };
  const { outputText } = ts.transpileModule(source, { compilerOptions });
  const [, ofDemo = ''] = /^export (class Pc {[\s\S]*?^})/m.exec(outputText) ?? [];
  const [, ofReadme = ''] = /^(class Pc {[\s\S]*?^})/m.exec(example) ?? [];
  const { prettier } = JSON.parse(fs.readFileSync(path.join(root, 'package.json'), 'utf8')) as {
    prettier: object;
  };
  t.equal(ofReadme, (await format(ofDemo, { ...prettier, parser: 'babel' })).trimEnd());
  t.not(ofReadme, '');
});
