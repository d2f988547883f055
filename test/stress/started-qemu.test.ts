/** The QEMU of `multifd stress qemu --start`: it is ended with all of its group, and no process outside of it holds anything up. */
import fs from 'node:fs';
import net from 'node:net';
import os from 'node:os';
import path from 'node:path';
import t from 'tap';
import { StartedQemu } from '../../src/stress/started-qemu.js';
import { gone } from '../cli/cli.js';

const never = new AbortController().signal;

async function pidIn(file: string): Promise<number> {
  for (;;) {
    const pid = fs.existsSync(file) ? Number(fs.readFileSync(file, 'utf8')) : 0;
    if (pid > 0) return pid;
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}

t.test('what it has started is ended with it', async (t) => {
  const file = path.join(t.testdir({}), 'pid');
  const qemu = new StartedQemu(`sh -c 'echo $$ >${file}; exec sleep 100'; sleep 100`);
  const pid = await pidIn(file);
  t.equal(await qemu.end(), undefined);
  await gone(pid);
});

t.test('a process outside of its group that holds its stderr is told, and not waited for', async (t) => {
  const file = path.join(t.testdir({}), 'pid');
  const qemu = new StartedQemu(`setsid sh -c 'echo $$ >${file}; exec sleep 100'; sleep 100`, 100);
  const pid = await pidIn(file);
  t.teardown(() => process.kill(pid, 'SIGKILL'));
  t.match(
    await qemu.end(),
    /holds its stderr 100 ms behind SIGKILL; expected .* without setsid or -daemonize/,
  );
  t.equal(qemu.ending, 'crashed');
});

t.test('one that listens before it is started is not taken for it', async (t) => {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'multifd-test-'));
  t.teardown(() => fs.rmSync(folder, { recursive: true, force: true }));
  const socket = path.join(folder, 's');
  const server = net.createServer().listen(socket);
  await new Promise((resolve) => server.once('listening', resolve));
  t.throws(() => StartedQemu.start('exec sleep 100', { path: socket }), {
    code: 'ERR_MULTIFD_CONNECT',
    message: /listens at .*s already, expected nobody/,
  });
  // As with -daemonize: the command has ended, and somebody listens.
  const qemu = new StartedQemu('exit 0');
  await t.rejects(
    (async () => {
      while (!qemu.hasEnded) await new Promise((resolve) => setTimeout(resolve, 10));
      await qemu.listens({ path: socket }, never);
    })(),
    { code: 'ERR_MULTIFD_CONNECT', message: /its command has ended; expected a command that stays/ },
  );
  t.equal(await qemu.end(), undefined);
  await new Promise((resolve) => server.close(resolve));
});
