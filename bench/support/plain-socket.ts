/**
 * The limit in Node: a plain socket in a worker, 512 KiB writes from shared memory, onread into shared memory, nothing
 * else. Run by plain.ts, one worker for each end of a connection.
 */
import net from 'node:net';
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
}

const { role, memory, port, base, bytes, pieceBytes } = workerData as PlainTask;

if (role === 'receive') {
  const server = net.createServer({ pauseOnConnect: true }, (accepted) => {
    server.close();
    let have = 0;
    // The accepted socket has no onread; a second object over its descriptor has.
    const fd = (accepted as unknown as { _handle: { fd: number } })._handle.fd;
    const socket = new net.Socket({
      fd,
      onread: {
        buffer: () =>
          new Uint8Array(memory, base + (have % bytes), Math.min(pieceBytes, bytes - (have % bytes))),
        callback: (count) => {
          have += count;
          if (have === bytes) {
            have = 0;
            parentPort?.postMessage({ receivedMs: monotonicMs() });
          }
          return true;
        },
      },
    });
    socket.on('error', () => process.exit());
    parentPort?.on('message', () => process.exit());
  });
  server.listen(0, '127.0.0.1', () =>
    parentPort?.postMessage({ port: (server.address() as net.AddressInfo).port }),
  );
} else {
  const socket = net.connect({ port, host: '127.0.0.1', noDelay: true });
  socket.on('connect', () => parentPort?.postMessage('connected'));
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
