/** The packed tarball, installed into an empty project: the README's example runs, and type-checks; publint and attw. */
import { execFile } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import t from 'tap';

const run = promisify(execFile);
const root = fileURLToPath(new URL('../../../', import.meta.url));
const bin = (name: string): string => path.join(root, 'node_modules', '.bin', name);
const LIMIT = { timeout: 100_000, maxBuffer: 2 ** 24 };

const directory = fs.mkdtempSync(path.join(os.tmpdir(), 'multifd-pack-'));
t.teardown(() => fs.rmSync(directory, { recursive: true, force: true }));
const project = path.join(directory, 'project');
const readme = fs.readFileSync(path.join(root, 'README.md'), 'utf8');
const example = /```js\n([\s\S]*?)```/.exec(readme)?.[1] ?? '';

let tarball = '';

t.before(async () => {
  // Without scripts: prepack would build anew under the feet of the tests that run beside this one.
  const { stdout } = await run(
    'npm',
    ['pack', '--json', '--ignore-scripts', '--pack-destination', directory],
    {
      cwd: root,
      ...LIMIT,
    },
  );
  const [packed] = JSON.parse(stdout) as [{ filename: string }];
  tarball = path.join(directory, packed.filename);
  fs.mkdirSync(project);
  fs.writeFileSync(
    path.join(project, 'package.json'),
    '{ "name": "empty", "private": true, "type": "module" }',
  );
  await run('npm', ['install', '--no-audit', '--no-fund', '--prefer-offline', tarball], {
    cwd: project,
    ...LIMIT,
  });
});

t.test('the tarball holds the built library, its workers and the CLI, and no tests', async (t) => {
  const { stdout } = await run('tar', ['tzf', tarball], LIMIT);
  const files = stdout.split('\n');
  for (const file of [
    'README.md',
    'LICENSE',
    'CHANGELOG.md',
    'dist/lib/index.js',
    'dist/src/index.d.ts',
    'dist/cli/main.js',
    'dist/cli/demo-destination.js',
    'dist/cli/pc-process.js',
    'dist/workers/send-channel.cjs',
    'dist/workers/recv-channel.cjs',
  ]) {
    t.ok(files.includes(`package/${file}`), file);
  }
  t.notOk(
    files.some((file) => /^package\/(dist\/)?(test|bench|node_modules)\//.test(file)),
    'no tests or benches',
  );
});

t.test("the README's example runs from JavaScript", async (t) => {
  fs.writeFileSync(path.join(project, 'example.js'), example);
  const { stdout } = await run(process.execPath, ['example.js'], { cwd: project, ...LIMIT });
  const [equal, bytes] = stdout.trim().split(' ');
  t.equal(equal, 'true');
  t.ok(Number(bytes) > 0 && Number(bytes) < 1024 * 1024, bytes);
});

t.test("the README's example type-checks from TypeScript, strictly", async (t) => {
  const wrong = "\ncreateSender({ address: 'unix:/x', blocks: [], channels: 'two' });\n";
  fs.writeFileSync(path.join(project, 'example.ts'), example);
  fs.writeFileSync(path.join(project, 'wrong.ts'), example + wrong);
  const check = (file: string): Promise<unknown> =>
    run(
      bin('tsc'),
      ['--noEmit', '--strict', '--target', 'es2022', '--module', 'nodenext', '--types', 'node'].concat([
        '--typeRoots',
        path.join(root, 'node_modules', '@types'),
        file,
      ]),
      { cwd: project, ...LIMIT },
    );
  await t.resolves(check('example.ts'));
  await t.rejects(check('wrong.ts'), 'a wrong option does not');
});

t.test('the command of the package answers', async (t) => {
  const multifd = path.join(project, 'node_modules', '.bin', 'multifd');
  const { stdout } = await run(multifd, ['--help'], { cwd: project, ...LIMIT });
  t.match(stdout, /demo/);
});

t.test('publint finds nothing', async (t) => {
  const { stdout } = await run(bin('publint'), ['--strict', tarball], { cwd: root, ...LIMIT });
  t.match(stdout, /All good/);
});

t.test('arethetypeswrong finds nothing for a package of ES modules', async (t) => {
  const { stdout } = await run(bin('attw'), [tarball, '--profile', 'esm-only', '--no-emoji', '--no-color'], {
    cwd: root,
    ...LIMIT,
  });
  // It exits with 1 if it finds a problem.
  t.match(stdout, /node16 \(from ESM\)\s+│ OK \(ESM\)/);
});
