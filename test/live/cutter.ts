/** Passes connections through, until it is told to cut: at once, or behind so many bytes towards the destination. */
import { once } from 'node:events';
import net from 'node:net';
import type { Test } from 'tap';
import type { Address } from '../../src/index.js';

export class Cutter {
  /** Towards the destination, on the main stream alone, and on all connections. */
  mainBytes = 0;
  bytes = 0;
  /** Connections that were cut, or have ended, do not count. */
  readonly #sockets = new Set<net.Socket>();
  readonly #near = new Set<net.Socket>();
  readonly #server: net.Server;
  #cutAt = Infinity;
  #mainCutAt = Infinity;
  /** Chunks of the main stream until the one that is cut in its middle. */
  #mainChunks = Infinity;
  #isFirst = true;

  private constructor(t: Test, to: Address) {
    this.#server = net.createServer({ allowHalfOpen: true, pauseOnConnect: true }, (near) => {
      const isMain = this.#isFirst;
      this.#isFirst = false;
      const far = net.connect({ ...(to as net.NetConnectOpts), allowHalfOpen: true } as net.NetConnectOpts);
      for (const socket of [near, far]) {
        this.#sockets.add(socket);
        socket.on('error', () => socket.destroy());
        socket.on('close', () => this.#sockets.delete(socket));
      }
      this.#near.add(near);
      near.on('close', () => far.destroy());
      far.on('close', () => {
        this.#near.delete(near);
        near.destroy();
      });
      near.on('data', (chunk: Buffer) => this.#pass(chunk, isMain, near, far));
      near.on('end', () => far.end());
      far.on('data', (chunk: Buffer) => near.destroyed || near.write(chunk)).on('end', () => near.end());
      near.resume();
      if (this.#cutAt === 0) this.cut();
    });
    t.teardown(() => this.close());
  }

  static async listen(t: Test, to: Address): Promise<Cutter> {
    const cutter = new Cutter(t, to);
    cutter.#server.listen(0, '127.0.0.1');
    await once(cutter.#server, 'listening');
    return cutter;
  }

  get address(): Address {
    return { host: '127.0.0.1', port: (this.#server.address() as net.AddressInfo).port };
  }

  #pass(chunk: Buffer, isMain: boolean, near: net.Socket, far: net.Socket): void {
    if (isMain && --this.#mainChunks === 0) this.#mainCutAt = this.mainBytes + (chunk.length >> 1);
    const left = Math.min(
      this.#cutAt - this.bytes,
      isMain ? this.#mainCutAt - this.mainBytes : Infinity,
      chunk.length,
    );
    this.bytes += left;
    if (isMain) this.mainBytes += left;
    const room = far.write(chunk.subarray(0, left));
    if (left < chunk.length) {
      near.pause();
      // What is due before the cut still goes out.
      far.write('', () => this.cut());
    } else if (!room) {
      near.pause();
      far.once('drain', () => near.resume());
    }
  }

  /** The next connection is the main stream of a new try, which is cut so far on. */
  next(cut: { bytes?: number; mainBytes?: number; mainChunk?: number } = {}): void {
    this.bytes = this.mainBytes = 0;
    this.#cutAt = cut.bytes ?? Infinity;
    this.#mainCutAt = cut.mainBytes ?? Infinity;
    this.#mainChunks = cut.mainChunk ?? Infinity;
    this.#isFirst = true;
  }

  /** So many bytes from now on. */
  cutAfter(bytes: number): void {
    this.#cutAt = this.bytes + bytes;
  }

  /** The source is cut off, and the destination sees nothing of it. */
  cutSilently(): void {
    for (const near of this.#near) {
      near.removeAllListeners('close');
      near.destroy();
    }
  }

  close(): void {
    this.#server.close();
    this.cut();
  }

  cut(): void {
    for (const socket of this.#sockets) socket.destroy();
  }
}
