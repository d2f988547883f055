/** What a channel's receiving end leaves behind (src/transport/receive-connection.ts). */
import { once } from 'node:events';
import net from 'node:net';
import t from 'tap';
import { ReceiveConnection } from '../../src/transport/receive-connection.js';
import { within } from '../support/within.js';

const WAIT_MS = 10_000;
const FAR_MS = 3_600_000;

function timers(): number {
  return process.getActiveResourcesInfo().filter((resource) => resource === 'Timeout').length;
}

t.test('close() returns when the descriptor is closed, and its watch goes with it', async (t) => {
  const server = net.createServer();
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const peer = net.connect((server.address() as net.AddressInfo).port, '127.0.0.1');
  peer.on('error', () => {}).resume();
  const [socket] = (await within(once(server, 'connection'), WAIT_MS, 'connection')) as [net.Socket];
  t.teardown(() => {
    peer.destroy();
    server.close();
  });
  const before = timers();
  const connection = new ReceiveConnection({
    from: { socket, raw: socket, tls: undefined },
    intake: { view: () => Buffer.alloc(64), read: () => true, push: () => true },
    stallTimeoutMs: FAR_MS,
    moved: () => undefined,
    ended: () => {},
    broke: () => {},
    stalled: () => {},
  });
  t.equal(timers(), before + 1, 'it watches');
  await within(connection.close(), WAIT_MS, 'close()');
  t.equal(timers(), before);
  t.ok(socket.closed);
});
