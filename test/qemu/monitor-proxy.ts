/** A proxy of QEMU's monitor that holds back what it says, and breaks: states that pass too fast, and a tunnel that is lost. */
import fs from 'node:fs';
import net from 'node:net';
import path from 'node:path';
import type { Test } from 'tap';

let proxies = 0;

export interface MonitorProxy {
  /** To be given to `multifd`. */
  qmp: string;
  /** What is held back has been said. */
  reached: Promise<void>;
  /** It is said now. */
  release: () => void;
  /** Breaks its connections. */
  cut: () => void;
  /** The same, and nobody listens any more. */
  end: () => void;
}

interface ProxyOptions {
  /** The answer to this command; `greeting` for that. */
  hold?: string;
  /** The unix socket that QEMU is told to migrate to, in the place of the one given. */
  migrateTo?: (given: string) => string;
}

/** @param qmp the address of QEMU's own */
export async function monitorProxy(
  t: Test,
  folder: string,
  qmp: string,
  options: ProxyOptions = {},
): Promise<MonitorProxy> {
  const at = path.join(folder, `proxy${proxies++}.qmp`);
  const sockets = new Set<net.Socket>();
  const held: (() => void)[] = [];
  let reach!: () => void;
  let { hold } = options;
  const server = net.createServer((client) => {
    const upstream = net.connect(qmp.slice('unix:'.length));
    for (const [socket, other] of [
      [client, upstream],
      [upstream, client],
    ]) {
      sockets.add(socket);
      socket.on('error', () => {});
      socket.on('close', () => other.destroy());
    }
    let heldId: unknown = hold === 'greeting' ? 'greeting' : undefined;
    eachLine(client, (line) => {
      const {
        execute,
        arguments: args,
        id,
      } = JSON.parse(line) as { execute: string; arguments: { uri?: string }; id: number };
      if (execute === hold) heldId = id;
      let said = line;
      if (execute === 'migrate' && options.migrateTo !== undefined && args.uri !== undefined)
        said = line.replace(args.uri, `unix:${options.migrateTo(args.uri.slice('unix:'.length))}`);
      upstream.write(`${said}\n`);
    });
    eachLine(upstream, (line) => {
      const { id = 'QMP' in (JSON.parse(line) as object) ? 'greeting' : undefined } = JSON.parse(line) as {
        id?: unknown;
      };
      const pass = (): void => void client.write(`${line}\n`);
      if (id === undefined || id !== heldId) return pass();
      held.push(pass);
      reach();
    });
  });
  const proxy: MonitorProxy = {
    qmp: `unix:${at}`,
    reached: new Promise((resolve) => (reach = resolve)),
    release: () => {
      hold = undefined;
      for (const pass of held.splice(0)) pass();
    },
    cut: () => {
      for (const socket of sockets) socket.destroy();
    },
    end: () => {
      server.close();
      proxy.cut();
    },
  };
  await new Promise<void>((resolve) => server.listen(at, resolve));
  t.teardown(() => proxy.end());
  return proxy;
}

function eachLine(socket: net.Socket, take: (line: string) => void): void {
  let text = '';
  socket.setEncoding('utf8').on('data', (piece: string) => {
    const lines = (text + piece).split('\n');
    text = lines.pop() as string;
    for (const line of lines) if (line.trim() !== '') take(line);
  });
}

/**
 * A socket between QEMU and the receiver on which nothing passes: with TLS, QEMU stays in state `setup`. It ends when the receiver
 * does.
 *
 * @returns migrateTo, and when it has been connected to
 */
export async function silentSocket(
  t: Test,
  folder: string,
): Promise<{ migrateTo: (given: string) => string; reached: Promise<void> }> {
  const at = path.join(folder, `silent${proxies++}.sock`);
  let to = '';
  let reach!: () => void;
  const reached = new Promise<void>((resolve) => (reach = resolve));
  const sockets = new Set<net.Socket>();
  const server = net.createServer((client) => {
    const upstream = net.connect(to);
    for (const [socket, other] of [
      [client, upstream],
      [upstream, client],
    ]) {
      sockets.add(socket);
      socket.on('error', () => {});
      socket.on('close', () => other.destroy());
      socket.resume();
    }
    reach();
  });
  await new Promise<void>((resolve) => server.listen(at, resolve));
  t.teardown(() => {
    for (const socket of sockets) socket.destroy();
    server.close();
    fs.rmSync(at, { force: true });
  });
  return {
    migrateTo: (given) => {
      to = given;
      return at;
    },
    reached,
  };
}
