/** Both ways of src/send/write-pieces.ts, over a real connection. */
import { once } from 'node:events';
import net from 'node:net';
import t, { type Test } from 'tap';
import { writePieces } from '../../src/transport/write-pieces.js';
import { within } from '../support/within.js';

const WAIT_MS = 10_000;

/** A connected socket, and its peer, which keeps what it reads. */
async function connect(t: Test): Promise<{ socket: net.Socket; peer: net.Socket; read: Buffer[] }> {
  const server = net.createServer({ allowHalfOpen: true });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const accepted = once(server, 'connection') as Promise<[net.Socket]>;
  const socket = net.connect({ port: (server.address() as net.AddressInfo).port, host: '127.0.0.1' });
  socket.on('error', () => {});
  const [[peer]] = await within(Promise.all([accepted, once(socket, 'connect')]), WAIT_MS, 'connection');
  const read: Buffer[] = [];
  peer.on('data', (bytes) => read.push(bytes));
  t.teardown(() => {
    socket.destroy();
    peer.destroy();
    server.close();
  });
  return { socket, peer, read };
}

function pieces(): Uint8Array[] {
  const sizes = [1344, 524288, 1, 4096, 1_000_000];
  return sizes.map((size, i) => new Uint8Array(new SharedArrayBuffer(size)).fill(i + 1));
}

/** Calls of `written`, at the first of which the promise settles. */
function watch(): {
  done: Promise<Error | undefined>;
  calls: () => number;
  written: (e?: Error | null) => void;
} {
  let calls = 0;
  let settle!: (error: Error | undefined) => void;
  const done = new Promise<Error | undefined>((resolve) => (settle = resolve));
  const written = (error?: Error | null): void => {
    calls++;
    settle(error ?? undefined);
  };
  return { done, calls: () => calls, written };
}

for (const direct of [true, false]) {
  const way = direct ? "the socket's own writer" : 'a socket that shows none';
  t.test(`${way}: all pieces, in order, told once`, async (t) => {
    const { socket, peer, read } = await connect(t);
    t.type((socket as { _writev?: unknown })._writev, 'function', 'this Node has it');
    if (!direct) Object.defineProperty(socket, '_writev', { value: undefined });
    const ended = once(peer, 'end');
    for (let round = 0; round < 3; round++) {
      const { done, calls, written } = watch();
      writePieces(socket, pieces(), written);
      t.equal(await within(done, WAIT_MS, 'written'), undefined);
      t.equal(calls(), 1);
    }
    socket.end();
    await within(ended, WAIT_MS, 'end');
    t.ok(Buffer.concat(read).equals(Buffer.concat([...pieces(), ...pieces(), ...pieces()])), 'same bytes');
  });

  t.test(`${way}: a peer that is gone`, async (t) => {
    const { socket, peer } = await connect(t);
    if (!direct) Object.defineProperty(socket, '_writev', { value: undefined });
    const closed = new Promise<void>((resolve) => socket.once('close', () => resolve()));
    peer.resetAndDestroy();
    let error: Error | undefined;
    // The kernel takes some before it knows.
    for (let round = 0; error === undefined && round < 50; round++) {
      const { done, written } = watch();
      writePieces(socket, pieces(), written);
      error = await within(done, WAIT_MS, 'written, or not');
    }
    t.ok(error instanceof Error, String(error));
    socket.destroy();
    await within(closed, WAIT_MS, 'close');
  });
}
