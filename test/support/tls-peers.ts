/** Both ends of TLS with a PSK by hand, from Node's own `tls` and nothing of src: what misbehaves in tests. */
import { once } from 'node:events';
import net from 'node:net';
import tls from 'node:tls';
import type { Test } from 'tap';
import type { Address } from '../../src/index.js';
import { PROMPT_MS } from './raw-channel.js';
import { within } from './within.js';

export const KEY = Buffer.from('a5c0ffee00112233445566778899aabbccddeeff', 'hex');
export const WRONG_KEY = Buffer.alloc(20, 7);
/** The `tls` option of either side. */
export const CREDENTIALS = { psk: KEY, identity: 'qemu' };

const CIPHERS =
  'TLS_AES_128_GCM_SHA256:TLS_CHACHA20_POLY1305_SHA256:ECDHE-PSK-CHACHA20-POLY1305:ECDHE-PSK-AES128-CBC-SHA256';

export interface PeerOptions {
  key?: Buffer;
  identity?: string;
  version?: tls.SecureVersion;
}

export async function connectPlain(t: Test, address: Address): Promise<net.Socket> {
  const socket = net.connect({ ...address, noDelay: true } as net.NetConnectOpts);
  t.teardown(() => void socket.destroy());
  socket.on('error', () => {});
  await within(once(socket, 'connect'), PROMPT_MS, 'a raw peer connects');
  return socket;
}

/** Begins a handshake on a connection; the other end's bytes are read and thrown away. */
export function beginTls(socket: net.Socket, options: PeerOptions = {}): tls.TLSSocket {
  const { key = KEY, identity = 'qemu', version } = options;
  const secure = tls.connect({
    socket,
    ca: [],
    ciphers: CIPHERS,
    ...(version && { minVersion: version, maxVersion: version }),
    pskCallback: () => ({ psk: key, identity }),
    checkServerIdentity: () => undefined,
    rejectUnauthorized: false,
  });
  secure.on('error', () => {});
  secure.resume();
  return secure;
}

export interface SecurePeer {
  secure: tls.TLSSocket;
  raw: net.Socket;
  gone: Promise<unknown>;
}

/** Connected, its handshake done as far as this end knows. */
export async function connectTls(t: Test, address: Address, options?: PeerOptions): Promise<SecurePeer> {
  const raw = await connectPlain(t, address);
  const secure = beginTls(raw, options);
  await within(once(secure, 'secureConnect'), PROMPT_MS, 'the handshake of a raw peer');
  return { secure, raw, gone: new Promise((resolve) => raw.once('close', resolve)) };
}

/** A ClientHello as such a peer sends it, in one record. */
export async function clientHello(): Promise<Buffer> {
  const server = net.createServer();
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const client = net.connect((server.address() as net.AddressInfo).port, '127.0.0.1');
  beginTls(client);
  const [socket] = (await once(server, 'connection')) as [net.Socket];
  const [bytes] = (await once(socket, 'data')) as [Buffer];
  client.destroy();
  socket.destroy();
  server.close();
  return bytes;
}

export interface TlsDestination {
  address: Address;
  sockets: net.Socket[];
  close(): Promise<void>;
}

/** A TLS server that leaves what it has accepted to `behave`. */
export async function listenTls(t: Test, behave: (secure: tls.TLSSocket) => void): Promise<TlsDestination> {
  const server = tls.createServer({ ciphers: CIPHERS, pskCallback: () => KEY });
  const sockets: net.Socket[] = [];
  server.on('connection', (socket: net.Socket) => void sockets.push(socket.on('error', () => {})));
  server.on('secureConnection', (secure) => {
    secure.on('error', () => {});
    behave(secure);
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as net.AddressInfo;
  const close = async (): Promise<void> => {
    for (const socket of sockets) socket.destroy();
    if (!server.listening) return;
    await within(new Promise((resolve) => server.close(resolve)), PROMPT_MS, 'a TLS destination closes');
  };
  t.teardown(close);
  return { address: { host: '127.0.0.1', port }, sockets, close };
}
