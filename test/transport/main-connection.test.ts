/** The main stream's socket over a real connection (src/transport/main-connection.ts). */
import { once } from 'node:events';
import net from 'node:net';
import t, { type Test } from 'tap';
import { MainConnection } from '../../src/transport/main-connection.js';
import { eventually } from '../support/raw-channel.js';
import { Random } from '../support/random.js';
import { within } from '../support/within.js';

const WAIT_MS = 30_000;
const MiB = 2 ** 20;
/** More than is read ahead and the kernel holds of a loopback connection together. */
const BYTES = 64 * MiB;
/** Read ahead at most, and a read that was on its way. */
const MOST = 2 * MiB;

async function makePair(t: Test): Promise<{ main: MainConnection; peer: net.Socket }> {
  const server = net.createServer({ allowHalfOpen: true });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const peer = net.connect((server.address() as net.AddressInfo).port, '127.0.0.1');
  const [socket] = (await within(once(server, 'connection'), WAIT_MS, 'connection')) as [net.Socket];
  t.teardown(() => {
    peer.destroy();
    socket.destroy();
    server.close();
  });
  return { main: new MainConnection({ socket, raw: socket, tls: undefined }, Buffer.alloc(0)), peer };
}

t.test('it is read ahead as far as it says, and all of it arrives when it is asked for', async (t) => {
  const { main, peer } = await makePair(t);
  const bytes = Buffer.alloc(BYTES);
  new Random(3).bytes(bytes.subarray(0, MiB));
  for (let at = MiB; at < BYTES; at += MiB) bytes.copyWithin(at, 0, MiB);
  peer.end(bytes);
  await eventually(() => main.moved > MiB, 'a megabyte', WAIT_MS);
  // Until nothing has moved for a while.
  for (let moved = -1; main.moved !== moved;) {
    moved = main.moved;
    await new Promise((resolve) => setTimeout(resolve, 200));
  }
  t.ok(main.moved <= MOST, `${main.moved} bytes read ahead`);
  for (let at = 0; at < BYTES; at += MiB) {
    const piece = await within(main.reader.exactly(MiB), WAIT_MS, 'a piece');
    if (!piece.equals(bytes.subarray(at, at + MiB))) t.fail(`piece at ${at}`);
  }
});

t.test('what is broken off is a reset for the peer, not an end', async (t) => {
  const { main, peer } = await makePair(t);
  const broken = new Promise<NodeJS.ErrnoException | undefined>((resolve) => {
    peer.once('error', resolve);
    peer.once('end', () => resolve(undefined));
  });
  peer.resume();
  main.breakOff();
  t.equal((await within(broken, WAIT_MS, 'the end'))?.code, 'ECONNRESET');
});
