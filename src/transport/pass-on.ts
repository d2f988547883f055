/**
 * Passes connections on to another address, and lets whoever asked for it spoil them: `multifd stress` puts it between two ends of
 * a migration.
 *
 *     source --> near | towards: filter, shape, hold |--> far --> destination
 *            <--      | back:    filter, shape, hold |<--
 *
 * Each direction ends by itself, as on a wire, and takes no more from one side than the other has taken: back-pressure goes
 * through. A side that is reset is one that the other side sees reset.
 */
import { once } from 'node:events';
import fs from 'node:fs';
import net from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Address } from './address.js';

/** How a direction passes its bytes on; what is left out does not limit. */
export interface Shape {
  /** Bytes that are written at once. */
  pieceBytes?: number;
  bytesPerSecond?: number;
}

/** Makes of what has come what goes on: the same, more, less, something else. */
export type Filter = (chunk: Buffer) => readonly Buffer[];

/** One direction of a connection. */
export class Direction {
  /** What has come from one side. */
  bytes = 0;
  shape: Shape = {};
  filter: Filter | undefined;
  readonly #from: net.Socket;
  readonly #to: net.Socket;
  readonly #onBytes: (bytes: number) => void;
  #held: Promise<void> | undefined;
  #release: () => void = () => {};
  #work: Promise<void> = Promise.resolve();
  #ended = false;

  constructor(from: net.Socket, to: net.Socket, onBytes: (bytes: number) => void) {
    this.#from = from;
    this.#to = to;
    this.#onBytes = onBytes;
  }

  begin(): void {
    this.#from.on('data', (chunk: Buffer) => {
      this.#from.pause();
      this.bytes += chunk.length;
      this.#work = this.#pass(chunk).then(() => void this.#from.resume());
      this.#onBytes(chunk.length);
    });
    this.#from.on('end', () => void this.#work.then(() => this.#held).then(() => this.#to.end()));
    this.#from.resume();
  }

  /** Nothing is passed on until release(). */
  hold(): void {
    this.#held ??= new Promise((resolve) => (this.#release = resolve));
  }

  release(): void {
    this.#release();
    this.#held = undefined;
  }

  /** The other side sees an end, and nothing that still comes. */
  end(): void {
    this.#ended = true;
    this.#to.end();
  }

  async #pass(chunk: Buffer): Promise<void> {
    for (const bytes of this.filter?.(chunk) ?? [chunk]) {
      for (let at = 0; at < bytes.length;) {
        await this.#held;
        const { pieceBytes = Infinity, bytesPerSecond = Infinity } = this.shape;
        // In pieces of 20 ms or so.
        const length = Math.min(bytes.length - at, pieceBytes, Math.max(1, Math.ceil(bytesPerSecond / 50)));
        await this.#write(bytes.subarray(at, at + length));
        at += length;
        if (bytesPerSecond !== Infinity) await sleep((1000 * length) / bytesPerSecond);
        else if (pieceBytes !== Infinity) await sleep(1);
      }
    }
  }

  async #write(bytes: Buffer): Promise<void> {
    if (this.#ended || this.#to.destroyed || this.#to.writableEnded || this.#to.write(bytes)) return;
    await new Promise<void>((resolve) => {
      const done = (): void => {
        this.#to.off('drain', done).off('close', done);
        resolve();
      };
      this.#to.on('drain', done).on('close', done);
    });
  }
}

/** A connection that has come in, and its other half. */
export class PassedConnection {
  /** In the order in which they came. */
  readonly index: number;
  readonly towards: Direction;
  readonly back: Direction;
  readonly #near: net.Socket;
  readonly #far: net.Socket;
  readonly #to: Address;
  /** Has the other side been reached? Undefined: not yet. */
  hasReached: boolean | undefined;
  /** Why not. */
  refused: Error | undefined;
  readonly #resetNear: () => void;
  readonly #resetFar: () => void;

  constructor(index: number, near: net.Socket, to: Address, onBytes: (bytes: number) => void) {
    this.index = index;
    this.#near = near;
    this.#to = to;
    this.#far = new net.Socket({ allowHalfOpen: true });
    this.towards = new Direction(near, this.#far, onBytes);
    this.back = new Direction(this.#far, near, () => {});
    // As it is now: of a socket that is connecting, or closed, Node does not know.
    const isTcp = near.remoteAddress !== undefined;
    this.#resetNear = () => reset(near, isTcp);
    this.#resetFar = () => reset(this.#far, to.path === undefined);
    near.on('error', this.#resetFar).on('close', () => this.release());
    this.#far.on('connect', () => (this.hasReached = true));
    this.#far.on('error', (error) => {
      if (this.hasReached !== true) this.refused = error;
      this.#resetNear();
    });
    this.#far.on('close', () => {
      this.hasReached ??= false;
      this.release();
    });
  }

  /** Has the other side ended or closed it? */
  get farHasEnded(): boolean {
    return this.#far.readableEnded || this.#far.destroyed;
  }

  get isOpen(): boolean {
    return !this.#near.destroyed || !this.#far.destroyed;
  }

  /** Goes on to the other side, and begins to pass on. */
  connect(): void {
    if (this.#near.destroyed) return;
    this.#far.connect(this.#to as net.NetConnectOpts);
    this.towards.begin();
    this.back.begin();
  }

  hold(): void {
    this.towards.hold();
    this.back.hold();
  }

  release(): void {
    this.towards.release();
    this.back.release();
  }

  /** Both sides see a reset; on a unix socket, which has none, an end or a broken pipe. */
  reset(): void {
    this.#resetNear();
    this.#resetFar();
  }

  /** Both sides see an end, and a broken pipe if they go on. */
  cut(): void {
    this.#near.destroy();
    this.#far.destroy();
  }
}

function reset(socket: net.Socket, isTcp: boolean): void {
  if (socket.destroyed) return;
  // Behind an end that is under way libuv refuses it, and the handle would be left.
  if (isTcp && !socket.writableEnded) socket.resetAndDestroy();
  else socket.destroy();
}

export interface PassOnEvents {
  /** It is to be connected by who is told, at once or later. */
  connection(connection: PassedConnection): void;
  /** So many more have come from the source's side, on all connections. */
  bytes?(bytes: number): void;
}

export class PassOn {
  readonly connections: PassedConnection[] = [];
  /** What has come from the source's side, on all connections. */
  bytes = 0;
  readonly address: Address;
  readonly #server: net.Server;

  private constructor(server: net.Server, address: Address) {
    this.#server = server;
    this.address = address;
  }

  /** @param listen port 0: one that the system chooses; a unix socket in a folder of the caller's own */
  static async listen(listen: Address, to: Address, events: PassOnEvents): Promise<PassOn> {
    const server = net.createServer({ allowHalfOpen: true, pauseOnConnect: true });
    if (listen.path === undefined) server.listen(listen.port, listen.host ?? '127.0.0.1');
    else {
      fs.rmSync(listen.path, { force: true });
      server.listen(listen.path);
    }
    await once(server, 'listening');
    const bound = server.address();
    const address =
      bound === null || typeof bound === 'string' ? listen : { host: bound.address, port: bound.port };
    const passOn = new PassOn(server, address);
    server.on('connection', (near) => {
      const connection = new PassedConnection(passOn.connections.length, near, to, (bytes) => {
        passOn.bytes += bytes;
        events.bytes?.(bytes);
      });
      passOn.connections.push(connection);
      events.connection(connection);
    });
    return passOn;
  }

  /** Resolves when nothing of it is left. */
  async close(): Promise<void> {
    const closed = once(this.#server, 'close');
    this.#server.close();
    for (const connection of this.connections) connection.cut();
    await closed;
  }
}
