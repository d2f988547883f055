/** A plain net server in place of a receiver: keeps what the send channels write, or does not read at all. */
import net from 'node:net';
import type { Test } from 'tap';
import { within } from './within.js';

const WAIT_MS = 30_000;

export interface CaptureServer {
  address: { host: string; port: number } | { path: string };
  /** Bytes that have come in, all connections together. */
  bytes(): number;
  connections(): number;
  /** From now on everything is read. */
  release(): void;
  /** Breaks every connection. */
  destroy(): void;
  /** Until `condition` holds; looked at whenever bytes come in or a connection ends. */
  until(condition: () => boolean, what: string): Promise<void>;
  /** Each channel's bytes once `channels` connections have ended, in the order of the ids in their hellos. */
  ended(channels: number): Promise<Buffer[]>;
}

/**
 * @param hold do not read before release()
 * @param keep false: bytes are only counted
 * @param path a unix socket instead of tcp
 */
export async function captureServer(
  t: Test,
  { hold = false, keep = true, path }: { hold?: boolean; keep?: boolean; path?: string } = {},
): Promise<CaptureServer> {
  const chunks: Buffer[][] = [];
  const sockets: net.Socket[] = [];
  const wakes = new Set<() => void>();
  let bytes = 0;
  let ends = 0;
  const wake = (): void => {
    for (const one of wakes) one();
  };
  const server = net.createServer({ pauseOnConnect: true }, (socket) => {
    const mine: Buffer[] = [];
    chunks.push(mine);
    sockets.push(socket);
    socket.on('data', (chunk) => {
      if (keep) mine.push(chunk);
      bytes += chunk.length;
      wake();
    });
    socket.on('error', () => {});
    socket.on('close', () => {
      ends++;
      wake();
    });
    if (hold) socket.pause();
    else socket.resume();
  });
  await new Promise<void>((resolve, reject) => {
    server.once('error', reject);
    server.listen(path === undefined ? { host: '127.0.0.1', port: 0 } : { path }, resolve);
  });
  t.teardown(() => {
    for (const socket of sockets) socket.destroy();
    server.close();
  });
  const until = async (condition: () => boolean, what: string): Promise<void> => {
    let wake = (): void => {};
    const met = new Promise<void>((resolve) => {
      wake = (): void => {
        if (condition()) resolve();
      };
      wakes.add(wake);
      wake();
    });
    try {
      await within(met, WAIT_MS, what);
    } finally {
      wakes.delete(wake);
    }
  };
  const bound = server.address();
  return {
    address:
      bound === null || typeof bound === 'string'
        ? { path: path as string }
        : { host: '127.0.0.1', port: bound.port },
    bytes: () => bytes,
    connections: () => sockets.length,
    release: () => {
      hold = false;
      for (const socket of sockets) socket.resume();
    },
    destroy: () => {
      for (const socket of sockets) socket.destroy();
    },
    until,
    ended: async (channels) => {
      await until(() => ends === channels, `end of ${channels} connections`);
      const captured = chunks.map((mine) => Buffer.concat(mine));
      return captured.sort((a, b) => (a[24] ?? 0) - (b[24] ?? 0));
    },
  };
}
