/** src/transport/write-portions.ts over a real TLS connection. */
import crypto from 'node:crypto';
import { once } from 'node:events';
import type net from 'node:net';
import tls from 'node:tls';
import t, { type Test } from 'tap';
import { PortionWriter } from '../../src/transport/write-portions.js';
import { within } from '../support/within.js';

const WAIT_MS = 10_000;
const PSK = { psk: Buffer.alloc(32, 7), identity: 'qemu' };
const CIPHERS = { ciphers: 'TLS_AES_128_GCM_SHA256' };

async function connect(t: Test): Promise<{ socket: tls.TLSSocket; peer: tls.TLSSocket; read: Buffer[] }> {
  const server = tls.createServer({ ...CIPHERS, pskCallback: () => PSK.psk });
  server.on('tlsClientError', () => {});
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const accepted = once(server, 'secureConnection') as Promise<[tls.TLSSocket]>;
  const socket = tls.connect({
    ...CIPHERS,
    port: (server.address() as net.AddressInfo).port,
    host: '127.0.0.1',
    pskCallback: () => PSK,
    checkServerIdentity: () => undefined,
  });
  socket.on('error', () => {});
  const [[peer]] = await within(Promise.all([accepted, once(socket, 'secureConnect')]), WAIT_MS, 'handshake');
  const read: Buffer[] = [];
  peer.on('data', (bytes: Buffer) => read.push(bytes));
  peer.on('error', () => {});
  t.teardown(() => {
    socket.destroy();
    peer.destroy();
    server.close();
  });
  return { socket, peer, read };
}

function random(sizes: readonly number[]): Uint8Array[] {
  return sizes.map((size) => {
    const piece = new Uint8Array(new SharedArrayBuffer(size));
    piece.set(crypto.randomBytes(size));
    return piece;
  });
}

const RECORD = 2 ** 14;
const PAGES = new Array<number>(300).fill(4096);
const CASES: Record<string, number[]> = {
  'one small piece': [64],
  'one large piece': [4 * RECORD],
  'what is just not large': [4 * RECORD - 1],
  'a header and a payload': [1344, 524288],
  'headers and payloads': [1344, 524288, 1344, 524288, 1344, 1_000_000],
  'a full record before a payload': [RECORD, 524288],
  'all that is joined, full, before a payload': [...PAGES.slice(0, 32), 524288],
  'pages far apart': [1344, ...PAGES, 1344, ...PAGES],
  'pages and payloads': [1344, 4096, 70_000, 4096, 65_536, 1, 524_289],
  'a piece of no bytes among others': [1344, 0, 4096],
};

for (const [name, sizes] of Object.entries(CASES)) {
  t.test(`${name}: all bytes, in order, told once`, async (t) => {
    const { socket, peer, read } = await connect(t);
    const writer = new PortionWriter(socket);
    const ended = once(peer, 'end');
    const sent: Uint8Array[] = [];
    let calls = 0;
    for (let round = 0; round < 2; round++) {
      const pieces = random(sizes);
      sent.push(...pieces);
      const done = new Promise<Error | undefined>((resolve) => {
        writer.write(pieces, (error) => {
          calls++;
          resolve(error ?? undefined);
        });
      });
      // A channel's list is the next write's as soon as this one is under way.
      pieces.length = 0;
      t.equal(await within(done, WAIT_MS, 'written'), undefined);
    }
    socket.end();
    await within(ended, WAIT_MS, 'end');
    t.equal(calls, 2);
    t.ok(Buffer.concat(read).equals(Buffer.concat(sent)), 'same bytes');
  });
}

t.test('a connection that breaks between two portions: told once, and no more is written', async (t) => {
  const { socket } = await connect(t);
  const writer = new PortionWriter(socket);
  const errors: unknown[] = [];
  const done = new Promise<void>((resolve) => {
    writer.write(random([2 ** 25]), (error) => {
      errors.push(error);
      resolve();
    });
  });
  socket.destroy();
  await within(done, WAIT_MS, 'written, or not');
  t.equal(errors.length, 1);
  t.ok(errors[0] instanceof Error, String(errors[0]));
});

t.test('a peer that is gone: the write fails', async (t) => {
  const { socket, peer } = await connect(t);
  const writer = new PortionWriter(socket);
  peer.destroy();
  let error: Error | undefined;
  // The kernel takes some before it knows.
  for (let round = 0; error === undefined && round < 50; round++) {
    const done = new Promise<Error | undefined>((resolve) => {
      writer.write(random([2 ** 22]), (failed) => resolve(failed ?? undefined));
    });
    error = await within(done, WAIT_MS, 'written, or not');
  }
  t.ok(error instanceof Error, String(error));
});
