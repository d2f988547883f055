/** The unix socket that is listened on: who may connect, what is taken over, and what is left alone. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import fs from 'node:fs';
import net from 'node:net';
import os from 'node:os';
import path from 'node:path';
import t, { type Test } from 'tap';
import { createReceiver, type Receiver } from '../../src/index.js';
import { WITHOUT_TAP } from '../cli/cli.js';
import { eventually } from '../support/raw-channel.js';

function socketPath(t: Test, name = 'vm.sock'): string {
  const directory = fs.mkdtempSync(path.join(os.tmpdir(), 'multifd-socket-'));
  t.teardown(() => fs.rmSync(directory, { recursive: true, force: true }));
  return path.join(directory, name);
}

async function listen(address: string, listenMode?: number): Promise<Receiver> {
  const blocks = [{ name: 'a', memory: new SharedArrayBuffer(4096) }];
  return createReceiver({ address: `unix:${address}`, channels: 1, blocks, listenMode });
}

t.test("a socket is its owner's alone, whatever the umask, unless another mode is asked for", async (t) => {
  const before = process.umask(0);
  t.teardown(() => process.umask(before));
  for (const mode of [undefined, 0o660]) {
    const file = socketPath(t);
    const receiver = await listen(file, mode);
    t.equal(fs.statSync(file).mode & 0o777, mode ?? 0o600);
    t.same(fs.readdirSync(path.dirname(file)), ['vm.sock'], 'nothing beside it');
    const socket = net.connect(file);
    await once(socket, 'connect');
    socket.destroy();
    await receiver.close();
    t.same(fs.readdirSync(path.dirname(file)), []);
  }
});

t.test('a path with no room for more has the mode as well', async (t) => {
  const short = socketPath(t, '');
  const file = path.join(short, 's'.repeat(105 - Buffer.byteLength(short)));
  const receiver = await listen(file, 0o640);
  t.equal(fs.statSync(file).mode & 0o777, 0o640);
  await receiver.close();
  t.same(fs.readdirSync(short), []);
});

t.test('a socket that a killed process left is taken over', async (t) => {
  const file = socketPath(t);
  const script = `require('net').createServer().listen(${JSON.stringify(file)}, () => console.log('there'))`;
  const child = spawn(process.execPath, ['-e', script], { stdio: ['ignore', 'pipe', 'inherit'] });
  await once(child.stdout, 'data');
  await t.rejects(listen(file), { code: 'ERR_MULTIFD_LISTEN', message: /EADDRINUSE/ }, 'it lives');
  const gone = once(child, 'exit');
  child.kill('SIGKILL');
  await gone;
  t.ok(fs.existsSync(file), 'left over');
  const receiver = await listen(file);
  const socket = net.connect(file);
  await once(socket, 'connect');
  socket.destroy();
  await receiver.close();
  t.notOk(fs.existsSync(file));
});

t.test('what is no socket is not removed, nor what took its place', async (t) => {
  const file = socketPath(t);
  fs.writeFileSync(file, 'precious');
  await t.rejects(listen(file), { code: 'ERR_MULTIFD_LISTEN', message: /EADDRINUSE/ });
  t.equal(fs.readFileSync(file, 'utf8'), 'precious');
  fs.rmSync(file);
  const receiver = await listen(file);
  fs.rmSync(file);
  fs.writeFileSync(file, 'precious');
  await receiver.close();
  t.equal(fs.readFileSync(file, 'utf8'), 'precious');
});

t.test('of two that take over the same socket one gets it, and keeps it', async (t) => {
  const file = socketPath(t);
  for (let round = 0; round < 5; round++) {
    const server = net.createServer().listen(`${file}.away`);
    await once(server, 'listening');
    fs.renameSync(`${file}.away`, file);
    server.close();
    await once(server, 'close');
    const both = await Promise.allSettled([listen(file), listen(file)]);
    const got = both.filter((one) => one.status === 'fulfilled');
    t.equal(got.length, 1, `round ${round}`);
    const socket = net.connect(file);
    await once(socket, 'connect');
    socket.destroy();
    for (const one of got) await one.value.close();
    t.same(fs.readdirSync(path.dirname(file)), []);
  }
});

t.test(
  'an umask that takes bits from the owner as well is no hindrance',
  { skip: process.getuid?.() === 0 ? false : 'root may become another user' },
  async (t) => {
    const file = socketPath(t);
    fs.chmodSync(path.dirname(file), 0o777);
    const script = `
      process.umask(0o777);
      import('${new URL('../../src/transport/unix-socket.js', import.meta.url).href}').then(async (it) => {
        const server = require('net').createServer();
        const remove = await it.listenOnUnixSocket(server, ${JSON.stringify(file)}, { mode: 0o600, backlog: 1 });
        console.log((require('fs').statSync(${JSON.stringify(file)}).mode & 0o777).toString(8));
        remove();
        server.close();
      });`;
    const child = spawn('env', [...WITHOUT_TAP, process.execPath, '-e', script], { uid: 65534, gid: 65534 });
    const [out] = (await once(child.stdout, 'data')) as [Buffer];
    t.equal(out.toString().trim(), '600');
  },
);

t.test('an abort while it is being made leaves nothing', async (t) => {
  const file = socketPath(t);
  const blocks = [{ name: 'a', memory: new SharedArrayBuffer(4096) }];
  const abort = new AbortController();
  const opening = createReceiver({ address: `unix:${file}`, channels: 1, blocks, signal: abort.signal });
  abort.abort(new Error('enough'));
  await t.rejects(opening, { code: 'ERR_MULTIFD_ABORTED' });
  await eventually(() => fs.readdirSync(path.dirname(file)).length === 0, 'nothing is left');
});
