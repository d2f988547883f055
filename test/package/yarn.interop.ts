/** Yarn's Plug'n'Play, which keeps packages in archives: the packed package, installed by Yarn, migrates. Needs a registry. */
import { execFile } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import t from 'tap';

const run = promisify(execFile);
const root = fileURLToPath(new URL('../../../', import.meta.url));
const YARN = '@yarnpkg/cli-dist@4';

const USE = `
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
`;

t.test("under Yarn's Plug'n'Play each method migrates", { timeout: 120_000 }, async (t) => {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'multifd-yarn-'));
  t.teardown(() => fs.rmSync(folder, { recursive: true, force: true }));
  const [tool, project] = ['tool', 'project'].map((name) => path.join(folder, name));
  fs.mkdirSync(tool);
  fs.mkdirSync(project);
  const env = { ...process.env, NODE_OPTIONS: '' };
  const limit = { timeout: 100_000, env };
  const pack = ['pack', '--json', '--ignore-scripts', '--pack-destination', folder];
  const { stdout } = await run('npm', pack, { cwd: root, ...limit });
  const [{ filename }] = JSON.parse(stdout) as [{ filename: string }];
  fs.writeFileSync(path.join(tool, 'package.json'), '{ "private": true }');
  await run('npm', ['install', '--no-audit', '--no-fund', YARN], { cwd: tool, ...limit });
  fs.writeFileSync(path.join(project, '.yarnrc.yml'), 'nodeLinker: pnp\nenableTelemetry: false\n');
  fs.writeFileSync(
    path.join(project, 'package.json'),
    JSON.stringify({
      name: 'user',
      private: true,
      type: 'module',
      dependencies: { multifd: `file:${path.join(folder, filename)}` },
    }),
  );
  fs.writeFileSync(path.join(project, 'use.js'), USE);
  const yarn = path.join(tool, 'node_modules/@yarnpkg/cli-dist/bin/yarn.js');
  await run(process.execPath, [yarn, 'install'], { cwd: project, ...limit });
  t.notOk(fs.existsSync(path.join(project, 'node_modules/multifd')), 'it lies in an archive');
  const used = await run(process.execPath, [yarn, 'node', 'use.js'], { cwd: project, ...limit });
  t.equal(used.stdout, 'none true\nzlib true\nzstd true\n');
});
