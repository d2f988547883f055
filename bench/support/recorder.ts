/** A relay of bytes, on loopback, that keeps what a source sends: a file for each connection, in the order they come in. */
import { once } from 'node:events';
import fs from 'node:fs';
import net from 'node:net';
import path from 'node:path';
import { pipeline } from 'node:stream/promises';

const HOST = '127.0.0.1';

export interface Recording {
  /** Where to connect, as a URI. */
  address: string;
  /** Waits for all that has connected to end. @returns the files */
  end: () => Promise<string[]>;
}

/** @param to the destination's URI */
export async function record(to: string, folder: string): Promise<Recording> {
  const files: string[] = [];
  const ends: Promise<unknown>[] = [];
  const server = net.createServer({ allowHalfOpen: true }, (from) => {
    const file = path.join(folder, `connection-${files.length}`);
    files.push(file);
    const destination = net.connect({ host: HOST, port: portOf(to), allowHalfOpen: true });
    ends.push(
      pipeline(from, keep(file), destination).catch(() => {}),
      // A destination that has loaded all closes as it likes.
      pipeline(destination, from).catch(() => {}),
    );
  });
  server.listen(0, HOST);
  await once(server, 'listening');
  const { port } = server.address() as net.AddressInfo;
  return {
    address: `tcp:${HOST}:${port}`,
    end: async () => {
      server.close();
      await Promise.all(ends);
      return files;
    },
  };
}

export function portOf(uri: string): number {
  return Number(uri.slice(uri.lastIndexOf(':') + 1));
}

function keep(file: string): (source: AsyncIterable<Buffer>) => AsyncGenerator<Buffer> {
  return async function* (source) {
    const fd = fs.openSync(file, 'w');
    try {
      for await (const chunk of source) {
        fs.writeSync(fd, chunk);
        yield chunk;
      }
    } finally {
      fs.closeSync(fd);
    }
  };
}
