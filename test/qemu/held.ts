/**
 * A source in state `device`, for as long as a test wants it: everything has arrived but the devices, which are held back on
 * their way. Between `multifd park` and QEMU there are two proxies: of the monitor, which names another socket in `migrate`,
 * and of that socket.
 */
import net from 'node:net';
import path from 'node:path';
import type { Test } from 'tap';

const MAIN_MAGIC = Buffer.from('QEVM');
/** The name of the first section behind RAM, with its length. */
const FIRST_DEVICE = Buffer.from('\x05timer');

let held = 0;

/** @param qmp the address of QEMU's own. @returns the one to be given to `multifd park` */
export async function holdDevices(t: Test, folder: string, qmp: string): Promise<string> {
  const monitor = path.join(folder, `held${held}.qmp`);
  const migration = path.join(folder, `held${held++}.sock`);
  let receiver = '';
  await serve(t, monitor, qmp.slice('unix:'.length), (client, upstream) => {
    let text = '';
    client.setEncoding('utf8').on('data', (piece: string) => {
      const lines = (text + piece).split('\n');
      text = lines.pop() as string;
      for (const line of lines) {
        const found = /"execute":"migrate",.*"uri":"unix:([^"]+)"/.exec(line);
        if (found !== null) receiver = found[1];
        upstream.write(`${found === null ? line : line.replace(found[1], migration)}\n`);
      }
    });
  });
  await serve(
    t,
    migration,
    () => receiver,
    (client, upstream) => {
      let isMain: boolean | undefined;
      let isHeld = false;
      let before: Buffer = Buffer.alloc(0);
      client.on('data', (piece: Buffer) => {
        isMain ??= piece.subarray(0, MAIN_MAGIC.length).equals(MAIN_MAGIC);
        if (isHeld) return;
        if (isMain) {
          const at = Buffer.concat([before, piece]).indexOf(FIRST_DEVICE);
          isHeld = at >= 0;
          if (isHeld) return void upstream.write(piece.subarray(0, Math.max(0, at - before.length)));
          before = piece.subarray(-FIRST_DEVICE.length);
        }
        if (!upstream.write(piece)) {
          client.pause();
          upstream.once('drain', () => client.resume());
        }
      });
    },
  );
  return `unix:${monitor}`;
}

/** What comes back goes through; the end of either side is that of the other. */
async function serve(
  t: Test,
  at: string,
  to: string | (() => string),
  forth: (client: net.Socket, upstream: net.Socket) => void,
): Promise<void> {
  const sockets = new Set<net.Socket>();
  const server = net.createServer((client) => {
    const upstream = net.connect(typeof to === 'string' ? to : to());
    for (const [socket, other] of [
      [client, upstream],
      [upstream, client],
    ]) {
      sockets.add(socket);
      socket.on('error', () => {});
      socket.on('close', () => other.destroy());
    }
    upstream.pipe(client);
    forth(client, upstream);
  });
  await new Promise<void>((resolve) => server.listen(at, resolve));
  t.teardown(() => {
    for (const socket of sockets) socket.destroy();
    server.close();
  });
}
