/**
 * The limit in Node: a plain socket in a worker, 512 KiB writes from shared memory, onread into shared memory, nothing
 * else. With TLS, 'data' in place of onread, which a TLS server has not: each record is copied into shared memory. Run by plain.ts, one worker for each end of a connection.
 */
import fs from 'node:fs';
import net from 'node:net';
import path from 'node:path';
import tls from 'node:tls';
import { parentPort, workerData } from 'node:worker_threads';
import { monotonicMs } from './measure.js';

export interface PlainTask {
  role: 'send' | 'receive';
  memory: SharedArrayBuffer;
  /** Of the receiver; 0 there. */
  port: number;
  base: number;
  bytes: number;
  pieceBytes: number;
  /** The folder with credentials of both roles, for TLS. */
  tlsFolder?: string;
}

const { role, memory, port, base, bytes, pieceBytes, tlsFolder } = workerData as PlainTask;

let have = 0;
if (role === 'receive') receive();
else send();

function receive(): void {
  const server = tlsFolder === undefined ? plainServer() : tlsServer(tlsFolder);
  server.listen(0, '127.0.0.1', () =>
    parentPort?.postMessage({ port: (server.address() as net.AddressInfo).port }),
  );
}

function plainServer(): net.Server {
  const server = net.createServer({ pauseOnConnect: true }, (accepted) => {
    server.close();
    // The accepted socket has no onread; a second object over its descriptor has.
    const fd = (accepted as unknown as { _handle: { fd: number } })._handle.fd;
    const socket = new net.Socket({
      fd,
      onread: {
        buffer: () => new Uint8Array(memory, base + have, Math.min(pieceBytes, bytes - have)),
        callback: (count) => {
          took(count);
          return true;
        },
      },
    });
    untilEnd(socket);
  });
  return server;
}

function tlsServer(folder: string): net.Server {
  const all = new Uint8Array(memory, base, bytes);
  const server = tls.createServer(pem(folder, 'server'), (socket) => {
    server.close();
    socket.on('data', (record: Buffer) => {
      for (let at = 0; at < record.length;) {
        const part = record.subarray(at, at + bytes - have);
        all.set(part, have);
        at += part.length;
        took(part.length);
      }
    });
    untilEnd(socket);
  });
  return server;
}

function took(count: number): void {
  have += count;
  if (have < bytes) return;
  have = 0;
  parentPort?.postMessage({ receivedMs: monotonicMs() });
}

function untilEnd(socket: net.Socket): void {
  socket.on('error', () => process.exit());
  parentPort?.on('message', () => process.exit());
}

function send(): void {
  const connected = (): void => parentPort?.postMessage('connected');
  const to = { port, host: '127.0.0.1', noDelay: true };
  const socket =
    tlsFolder === undefined
      ? net.connect(to, connected)
      : tls.connect({ ...to, ...pem(tlsFolder, 'client') }, connected);
  parentPort?.on('message', (message) => {
    if (message === 'end') process.exit();
    let sent = 0;
    const next = (): void => {
      if (sent === bytes) return;
      const piece = Buffer.from(memory, base + sent, Math.min(pieceBytes, bytes - sent));
      sent += piece.length;
      socket.write(piece, next);
    };
    next();
  });
}

function pem(folder: string, owner: 'server' | 'client'): tls.SecureContextOptions {
  const read = (name: string): Buffer => fs.readFileSync(path.join(folder, name));
  return { ca: read('ca-cert.pem'), cert: read(`${owner}-cert.pem`), key: read(`${owner}-key.pem`) };
}
