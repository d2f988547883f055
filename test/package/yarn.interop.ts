/**
 * Yarn's Plug'n'Play, which keeps packages in archives: the packed package, installed by Yarn, migrates. Yarn takes every
 * dependency from this checkout's node_modules and asks no registry, whose address and reach are the machine's own matter.
 */
import { execFile } from 'node:child_process';
import fs from 'node:fs';
import { createRequire } from 'node:module';
import os from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import t from 'tap';

const run = promisify(execFile);
const root = fileURLToPath(new URL('../../../', import.meta.url));
const yarn = createRequire(import.meta.url).resolve('@yarnpkg/cli-dist/bin/yarn.js');

interface Manifest {
  version: string;
  dependencies?: Record<string, string>;
  optionalDependencies?: Record<string, string>;
}

/** Where each package that the one in `folder` needs lies; those for other machines, which are not installed, are empty. */
function installed(
  folder: string,
  stubs: string,
  found: Record<string, string> = {},
): Record<string, string> {
  const read = (at: string) => JSON.parse(fs.readFileSync(path.join(at, 'package.json'), 'utf8')) as Manifest;
  const { dependencies, optionalDependencies } = read(folder);
  for (const [name, range] of Object.entries({ ...dependencies, ...optionalDependencies })) {
    if (found[name] !== undefined) continue;
    const at = path.join(root, 'node_modules', name);
    found[name] = `file:${at}`;
    if (fs.existsSync(at)) {
      installed(at, stubs, found);
      continue;
    }
    const stub = path.join(stubs, name.replace('/', '-'));
    fs.mkdirSync(stub, { recursive: true });
    fs.writeFileSync(path.join(stub, 'package.json'), JSON.stringify({ name, version: range }));
    found[name] = `file:${stub}`;
  }
  return found;
}

const USE = `
import { createRequire } from 'node:module';
import { createReceiver, createSender } from 'multifd';
const memory = new SharedArrayBuffer(2 ** 20);
const target = new SharedArrayBuffer(2 ** 20);
new Uint32Array(memory).forEach((_, i, words) => (words[i] = i));
for (const compression of ['none', 'zlib', 'zstd']) {
  const blocks = (memory) => [{ name: 'pc.ram', memory }];
  const receiver = await createReceiver({ address: { port: 0 }, compression, blocks: blocks(target) });
  const sender = await createSender({ address: receiver.address, compression, blocks: blocks(memory) });
  await sender.queueRange('pc.ram', 0, 2 ** 20);
  await Promise.all([sender.sync(), receiver.sync()]);
  await Promise.all([sender.end(), receiver.end()]);
  console.log(compression, Buffer.from(memory).equals(Buffer.from(target)));
  Buffer.from(target).fill(0);
}
try {
  const require = createRequire(createRequire(import.meta.url).resolve('multifd'));
  console.log('koffi', require('koffi').version);
} catch {
  console.log('koffi absent');
}
`;

t.test("under Yarn's Plug'n'Play each method migrates", { timeout: 120_000 }, async (t) => {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'multifd-yarn-'));
  t.teardown(() => fs.rmSync(folder, { recursive: true, force: true }));
  const project = path.join(folder, 'project');
  fs.mkdirSync(project);
  const env = { ...process.env, NODE_OPTIONS: '', YARN_GLOBAL_FOLDER: path.join(folder, 'yarn') };
  const limit = { timeout: 100_000, env };
  const pack = ['pack', '--json', '--ignore-scripts', '--pack-destination', folder];
  const { stdout } = await run('npm', pack, { cwd: root, ...limit });
  const [{ filename }] = JSON.parse(stdout) as [{ filename: string }];
  fs.writeFileSync(
    path.join(project, '.yarnrc.yml'),
    'nodeLinker: pnp\nenableTelemetry: false\nenableNetwork: false\nenableScripts: false\n',
  );
  fs.writeFileSync(
    path.join(project, 'package.json'),
    JSON.stringify({
      name: 'user',
      private: true,
      type: 'module',
      dependencies: { multifd: `file:${path.join(folder, filename)}` },
      resolutions: installed(root, path.join(folder, 'stubs')),
    }),
  );
  fs.writeFileSync(path.join(project, 'use.js'), USE);
  // Yarn says what is wrong on standard output, which the error that execFile gives leaves out.
  const under = (args: string[]) =>
    run(process.execPath, [yarn, ...args], { cwd: project, ...limit }).catch((cause: { stdout?: string }) => {
      throw new Error(`yarn ${args.join(' ')}: ${cause.stdout ?? ''}`, { cause });
    });
  await under(['install', '--no-immutable']);
  t.notOk(fs.existsSync(path.join(project, 'node_modules/multifd')), 'it lies in an archive');
  const used = await under(['node', 'use.js']);
  // An optional dependency: with its addon, or not at all.
  const koffi = path.join(root, 'node_modules/koffi/package.json');
  const version = fs.existsSync(koffi)
    ? (JSON.parse(fs.readFileSync(koffi, 'utf8')) as Manifest).version
    : 'absent';
  t.equal(used.stdout, `none true\nzlib true\nzstd true\nkoffi ${version}\n`);
});
