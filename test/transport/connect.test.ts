/** What src/transport/connect.ts leaves behind, whatever became of the connection. */
import { EventEmitter, getEventListeners, once } from 'node:events';
import net from 'node:net';
import t, { type Test } from 'tap';
import { connect } from '../../src/transport/connect.js';
import { failure } from '../support/raw-channel.js';

const FAR_MS = 3_600_000;

async function listen(t: Test): Promise<{ host: string; port: number }> {
  const server = net.createServer((socket) => socket.on('error', () => {}).resume());
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  t.teardown(() => server.close());
  return { host: '127.0.0.1', port: (server.address() as net.AddressInfo).port };
}

/** Timers that keep the process alive. */
function timers(): number {
  return process.getActiveResourcesInfo().filter((resource) => resource === 'Timeout').length;
}

t.test('a connection that stands has no timer, and no listener on the signal', async (t) => {
  const address = await listen(t);
  const { signal } = new AbortController();
  const before = timers();
  const { socket } = await connect({ address, timeoutMs: FAR_MS, signal, tls: undefined });
  t.equal(timers(), before);
  t.equal(getEventListeners(signal, 'abort').length, 0);
  t.equal((socket as EventEmitter).listenerCount('close'), 0);
  socket.destroy();
});

t.test('nor has one that was refused, or aborted', async (t) => {
  const { host, port } = await listen(t);
  const before = timers();
  const controller = new AbortController();
  const { signal } = controller;
  const address = { path: '/nowhere/at/all' };
  const refused = await failure(connect({ address, timeoutMs: FAR_MS, signal, tls: undefined }), 'connect()');
  t.equal(refused.code, 'ERR_MULTIFD_CONNECT');
  t.equal(timers(), before);
  t.equal(getEventListeners(signal, 'abort').length, 0);
  let raw: net.Socket | undefined;
  const aborted = connect({ address: { host, port }, timeoutMs: FAR_MS, signal, tls: undefined }, (begun) => {
    raw = begun;
  });
  controller.abort();
  t.equal((await failure(aborted, 'connect()')).code, 'ERR_MULTIFD_ABORTED');
  t.equal(timers(), before);
  t.equal(getEventListeners(signal, 'abort').length, 0);
  t.ok(raw?.destroyed);
});
