/** The main stream's connection at its end: nothing of it is left, however it comes. */
import { once } from 'node:events';
import net from 'node:net';
import t, { type Test } from 'tap';
import type { Address } from '../../src/index.js';
import { connect } from '../../src/transport/connect.js';
import { MainConnection } from '../../src/transport/main-connection.js';
import { checkTls } from '../../src/options.js';
import { loadTls } from '../../src/transport/tls/loaded.js';
import { eventually } from '../support/raw-channel.js';
import { CREDENTIALS, listenTls } from '../support/tls-peers.js';

const TIMES = 5;

async function listenPlain(t: Test): Promise<Address> {
  const server = net.createServer((socket) => {
    socket.on('error', () => {}).resume();
    t.teardown(() => void socket.destroy());
  });
  server.listen(0, '127.0.0.1');
  t.teardown(() => void server.close());
  await once(server, 'listening');
  return { host: '127.0.0.1', port: (server.address() as net.AddressInfo).port };
}

const connections = (): number =>
  process.getActiveResourcesInfo().filter((name) => name === 'TCPSocketWrap').length;

for (const [how, secure] of [
  ['plain', false],
  ['TLS', true],
] as const) {
  t.test(`${how}: broken off behind an end that is under way, it leaves no handle`, async (t) => {
    const before = connections();
    await t.test('some of them', async (t) => {
      const address = secure ? (await listenTls(t, (peer) => peer.resume())).address : await listenPlain(t);
      await loadTls(CREDENTIALS);
      const tls = secure ? checkTls(CREDENTIALS, 'client', 'tls', address)?.credentials : undefined;
      for (let i = 0; i < TIMES; i++) {
        const main = new MainConnection(await connect({ address, timeoutMs: 10_000, tls }), Buffer.alloc(0));
        void main.end();
        main.breakOff();
      }
    });
    await eventually(() => connections() <= before, 'all handles are gone');
    t.equal(connections(), before);
  });
}
