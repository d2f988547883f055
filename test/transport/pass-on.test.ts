/** What lies between the two ends of a stressed migration: passes on what comes, and spoils it as it is told. */
import { once } from 'node:events';
import fs from 'node:fs';
import net from 'node:net';
import os from 'node:os';
import path from 'node:path';
import t, { type Test } from 'tap';
import { PassOn, type PassedConnection } from '../../src/transport/pass-on.js';
import { PROMPT_MS, eventually } from '../support/raw-channel.js';
import { within } from '../support/within.js';

interface Pair {
  here: net.Socket;
  there: net.Socket;
  passed: PassedConnection;
  passOn: PassOn;
}

/** A connection through it, at both ends; `connects` decides when it goes on. */
async function through(t: Test): Promise<Pair> {
  const server = net.createServer({ allowHalfOpen: true });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as net.AddressInfo;
  const passOn = await PassOn.listen(
    { host: '127.0.0.1', port: 0 },
    { host: '127.0.0.1', port },
    { connection: (connection) => connection.connect() },
  );
  const came = once(server, 'connection') as Promise<[net.Socket]>;
  const here = net.connect({ ...(passOn.address as net.TcpNetConnectOpts), allowHalfOpen: true });
  const [there] = await within(came, PROMPT_MS, 'the connection');
  for (const socket of [here, there]) socket.on('error', () => {});
  t.teardown(async () => {
    here.destroy();
    there.destroy();
    await passOn.close();
    server.close();
  });
  return { here, there, passed: passOn.connections[0], passOn };
}

/** All that comes, as it has come by now. */
function gathered(socket: net.Socket): { bytes: Buffer; chunks: number; ended: boolean } {
  const all = { bytes: Buffer.alloc(0), chunks: 0, ended: false };
  socket.on('data', (chunk: Buffer) => {
    all.bytes = Buffer.concat([all.bytes, chunk]);
    all.chunks++;
  });
  socket.on('end', () => (all.ended = true));
  return all;
}

t.test('passes all on in both directions, and each end by itself', async (t) => {
  const { here, there, passOn } = await through(t);
  const [back, forth] = [gathered(here), gathered(there)];
  const large = Buffer.alloc(3_000_000, 'abc');
  here.end(large);
  await eventually(() => forth.ended, 'the end');
  t.ok(forth.bytes.equals(large));
  t.equal(passOn.bytes, large.length);
  there.end('answer');
  await eventually(() => back.ended, 'the answer');
  t.equal(back.bytes.toString(), 'answer');
});

t.test('a reset is one at both sides, a cut an end', async (t) => {
  for (const [how, code] of [
    ['reset', 'ECONNRESET'],
    ['cut', undefined],
  ] as const) {
    const { here, there, passed } = await through(t);
    const errors: (string | undefined)[] = [];
    for (const socket of [here, there]) {
      socket.resume().on('error', (error: NodeJS.ErrnoException) => errors.push(error.code));
      socket.on('end', () => errors.push(undefined));
    }
    passed[how]();
    await eventually(() => errors.length === 2, how);
    t.same(errors, [code, code], how);
    t.notOk(passed.isOpen);
  }
});

t.test('half closed, one side sees an end, and the other can go on', async (t) => {
  const { here, there, passed } = await through(t);
  const [back, forth] = [gathered(here), gathered(there)];
  passed.towards.end();
  await eventually(() => forth.ended, 'an end');
  here.write('lost');
  there.write('heard');
  await eventually(() => back.bytes.toString() === 'heard', 'the other direction');
  t.notOk(back.ended);
  t.equal(forth.bytes.length, 0);
});

t.test('held, nothing comes; let go, all does, in its order', async (t) => {
  const { here, there, passed } = await through(t);
  const forth = gathered(there);
  passed.hold();
  here.write('one');
  await eventually(() => passed.towards.bytes === 3, 'it has come in');
  here.end('two');
  // As many turns as it would take.
  for (let i = 0; i < 50; i++) await new Promise((resolve) => setImmediate(resolve));
  t.equal(forth.bytes.length, 0);
  t.notOk(forth.ended);
  passed.release();
  await eventually(() => forth.ended, 'the end');
  t.equal(forth.bytes.toString(), 'onetwo');
});

t.test('in pieces, at a rate, or made into something else', async (t) => {
  const { here, there, passed } = await through(t);
  here.setNoDelay(true);
  const forth = gathered(there);
  passed.towards.shape = { pieceBytes: 3 };
  here.write('0123456789');
  await eventually(() => forth.bytes.length === 10, 'trickled');
  t.equal(forth.bytes.toString(), '0123456789');
  passed.towards.shape = { bytesPerSecond: 1000 };
  here.write(Buffer.alloc(50, '.'));
  await eventually(() => forth.bytes.length === 60, 'throttled');
  passed.towards.shape = {};
  passed.towards.filter = (chunk) => [chunk, Buffer.from('!'), chunk];
  here.write('x');
  await eventually(() => forth.bytes.length === 63, 'filtered');
  t.equal(forth.bytes.subarray(60).toString(), 'x!x');
});

t.test('on unix sockets as well, and connections go on when they are told to, in any order', async (t) => {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'multifd-test-'));
  t.teardown(() => fs.rmSync(folder, { recursive: true }));
  const order: string[] = [];
  const here: net.Socket[] = [];
  const server = net.createServer((socket) =>
    socket.on('data', (chunk) => void order.push(chunk.toString())),
  );
  const to = { path: path.join(folder, 'to') };
  server.listen(to.path);
  await once(server, 'listening');
  const came: PassedConnection[] = [];
  const passOn = await PassOn.listen({ path: path.join(folder, 'in') }, to, {
    connection: (connection) => void came.push(connection),
  });
  t.teardown(async () => {
    for (const socket of here) socket.destroy();
    await passOn.close();
    server.close();
  });
  for (const name of ['a', 'b']) {
    const socket = net.connect(passOn.address.path as string);
    socket.write(name);
    here.push(socket);
    await eventually(() => came.length === here.length, name);
  }
  came[1].connect();
  await eventually(() => order.length === 1, 'the second');
  came[0].connect();
  await eventually(() => order.length === 2, 'the first');
  t.same(order, ['b', 'a']);
});
