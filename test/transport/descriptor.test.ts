/**
 * Giving a connection's descriptor away (src/transport/descriptor.ts), with this thread in the place of a worker: it closes the
 * number, or does not.
 */
import { once } from 'node:events';
import fs from 'node:fs';
import net from 'node:net';
import os from 'node:os';
import path from 'node:path';
import t, { type Test } from 'tap';
import {
  freeHusks,
  pendingHusks,
  takeDescriptor,
  type TakenConnection,
} from '../../src/transport/descriptor.js';
import { within } from '../support/within.js';

const WAIT_MS = 10_000;

async function listen(t: Test): Promise<() => Promise<{ accepted: net.Socket; peer: net.Socket }>> {
  const server = net.createServer();
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  t.teardown(() => server.close());
  const { port } = server.address() as net.AddressInfo;
  return async () => {
    const peer = net.connect(port, '127.0.0.1').on('error', () => {});
    const [accepted] = (await within(once(server, 'connection'), WAIT_MS, 'connection')) as [net.Socket];
    t.teardown(() => peer.destroy());
    return { accepted, peer };
  };
}

function take(socket: net.Socket): TakenConnection {
  const taken = takeDescriptor(socket);
  if (taken === undefined) throw new Error('the connection is gone');
  return taken;
}

t.test('what was read of it and nobody has taken comes along, and nothing more is read', async (t) => {
  const connection = await listen(t);
  const { accepted, peer } = await connection();
  peer.write('read ahead');
  await within(once(accepted, 'readable'), WAIT_MS, 'the bytes');
  const { surplus, fd, husk } = take(accepted);
  t.equal(surplus.toString(), 'read ahead');
  peer.write('left in the kernel');
  const there = Buffer.alloc(64);
  let count = 0;
  for (const late = Date.now() + WAIT_MS; count === 0 && Date.now() < late;) {
    await new Promise(setImmediate);
    try {
      count = fs.readSync(fd, there);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EAGAIN') throw error;
    }
  }
  t.equal(there.toString('utf8', 0, count), 'left in the kernel');
  freeHusks([husk]);
});

t.test('one that no worker has taken is closed', async (t) => {
  const connection = await listen(t);
  const { accepted, peer } = await connection();
  const before = pendingHusks();
  const { husk } = take(accepted);
  freeHusks([husk]);
  peer.resume();
  await within(once(peer, 'close'), WAIT_MS, 'end of the connection');
  t.equal(pendingHusks(), before);
});

t.test('a number that is somebody else by now stays open, and the husk waits for it', async (t) => {
  const connection = await listen(t);
  const { accepted } = await connection();
  const before = pendingHusks();
  const { fd, husk } = take(accepted);
  // As the worker does.
  fs.closeSync(fd);
  const files: number[] = [];
  const stranger = fs.mkdtempSync(path.join(os.tmpdir(), 'multifd-descriptor-'));
  t.teardown(() => fs.rmSync(stranger, { recursive: true, force: true }));
  while (files.at(-1) !== fd) files.push(fs.openSync(stranger, 'r'));
  freeHusks([husk]);
  t.equal(pendingHusks(), before + 1);
  t.ok(fs.fstatSync(fd).isDirectory(), 'it is still open');
  for (const file of files) fs.closeSync(file);
  freeHusks([]);
  t.equal(pendingHusks(), before);
});

t.test('nor is another connection under the same number taken for it', async (t) => {
  const connection = await listen(t);
  const { accepted } = await connection();
  const before = pendingHusks();
  const { fd, husk } = take(accepted);
  fs.closeSync(fd);
  // The lowest free number: one end of the next connection has it.
  const { accepted: other, peer } = await connection();
  const numbers = [other, peer].map(
    (socket) => (socket as unknown as { _handle: { fd: number } })._handle.fd,
  );
  t.ok(numbers.includes(fd), `${fd} is one of ${numbers.join(' and ')}`);
  freeHusks([husk]);
  t.equal(pendingHusks(), before + 1);
  peer.write('hello');
  const [bytes] = (await within(once(other, 'data'), WAIT_MS, 'bytes')) as [Buffer];
  t.equal(bytes.toString(), 'hello');
  const ended = [once(other, 'close'), once(peer, 'close')];
  other.destroy();
  peer.destroy();
  await within(Promise.all(ended), WAIT_MS, 'end of the other');
  freeHusks([]);
  t.equal(pendingHusks(), before);
});
