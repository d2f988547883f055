/** The README's commands for operators, run as they stand. */
import { execFileSync, spawn } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import t from 'tap';
import { within } from '../../src/qmp/within.js';
import { MAIN } from '../cli/cli.js';

const RUN_MS = 120_000;
const README = new URL('../../../README.md', import.meta.url);

t.test('a VM is parked, inspected, resumed by multifd and loaded by QEMU', { timeout: RUN_MS }, async (t) => {
  const script = /```bash\n([\s\S]*?)```/.exec(fs.readFileSync(README, 'utf8'))?.[1] ?? '';
  t.match(script, 'multifd park');
  t.match(script, 'multifd resume');
  execFileSync('socat', ['-V'], { stdio: 'ignore' });
  // `npm install --global .` makes this link.
  const bin = t.testdir({ multifd: t.fixture('symlink', MAIN) });
  fs.chmodSync(MAIN, 0o755);
  const env: NodeJS.ProcessEnv = { ...process.env, PATH: `${bin}:${process.env.PATH}` };
  delete env.NODE_OPTIONS;
  const shell = spawn('bash', ['-e', '-c', script], {
    env,
    detached: true,
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  t.teardown(() => {
    try {
      process.kill(-shell.pid!, 'SIGKILL');
    } catch {
      // It has ended with all its children.
    }
  });
  let stdout = '';
  let stderr = '';
  shell.stdout.on('data', (text: Buffer) => (stdout += text.toString()));
  shell.stderr.on('data', (text: Buffer) => (stderr += text.toString()));
  const code = await within(
    new Promise((resolve) => shell.on('close', resolve)),
    RUN_MS,
    'the commands',
  ).catch((error: Error) => `${error.message}: ${stdout}${stderr}`);
  t.equal(code, 0, stderr);
  t.match(stdout, /^problems +none$/m);
  t.match(stdout, /^verified +every page was read$/m);
  t.match(stdout, /^guest +running$/m, 'resumed by multifd');
  t.match(stdout, /"status": "running"/, 'loaded by QEMU itself');
  t.notOk(fs.existsSync(path.join(bin, 'vm.mig')));
});
