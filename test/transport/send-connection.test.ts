/** A channel's sending end by itself (src/transport/send-connection.ts): which reason is told, and to whom. */
import { once } from 'node:events';
import net from 'node:net';
import t from 'tap';
import { MultifdError } from '../../src/errors.js';
import { SendConnection } from '../../src/transport/send-connection.js';
import { failure } from '../support/raw-channel.js';

t.test('the first reason is the one that is told, once, to whoever waits then and later', async (t) => {
  const server = net.createServer((socket) => socket.on('error', () => {}));
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  t.teardown(() => server.close());
  const told: string[] = [];
  const connection = new SendConnection({
    address: { host: '127.0.0.1', port: (server.address() as net.AddressInfo).port },
    connectTimeoutMs: 10_000,
    stallTimeoutMs: 10_000,
    tls: undefined,
    zeroCopy: undefined,
    broke: (error) => {
      told.push(error.message);
      return error;
    },
  });
  await connection.connect();
  // More than the kernel takes: nobody reads.
  connection.write([Buffer.alloc(64 * 2 ** 20)], [true]);
  const waiting = failure(connection.flushed(), 'flushed()');
  connection.break(new MultifdError('ERR_MULTIFD_PROTOCOL', 'the first'));
  connection.break(new MultifdError('ERR_MULTIFD_CLOSED', 'the second'));
  t.equal((await waiting).message, 'the first');
  await connection.close();
  t.equal((await failure(connection.flushed(), 'flushed()')).message, 'the first');
  t.equal((await failure(connection.released(), 'released()')).message, 'the first');
  t.equal(connection.broken?.message, 'the first');
  t.same(told, ['the first']);
});
