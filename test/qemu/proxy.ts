/**
 * Between the two ends of a migration: passes every connection on, and may cut one after so many bytes, or keep all that
 * it has passed on.
 */
import net from 'node:net';
import type { Test } from 'tap';

/** "QEVM" */
const MAIN_MAGIC = 0x5145564d;

export interface ProxyOptions {
  /** Cuts the first connection of this kind in both directions once so many bytes have passed to the target. */
  cut?: { kind: 'main' | 'channel'; afterBytes: number };
  /** Keep the bytes? */
  record?: boolean;
}

export interface Passed {
  kind: 'main' | 'channel';
  bytes: number;
  /** Only with `record`. */
  chunks: Buffer[];
}

export class Proxy {
  readonly passed: Passed[] = [];
  /** Settles when a connection has been cut. */
  readonly cut: Promise<void>;
  #wasCut!: () => void;
  readonly #options: ProxyOptions;
  readonly #target: string;
  readonly #server: net.Server;
  readonly #sockets = new Set<net.Socket>();

  private constructor(target: string, options: ProxyOptions) {
    this.#target = target;
    this.#options = options;
    this.cut = new Promise((resolve) => (this.#wasCut = resolve));
    this.#server = net.createServer({ allowHalfOpen: true, pauseOnConnect: true }, (socket) =>
      this.#accept(socket),
    );
  }

  /** Both addresses are paths of unix sockets. */
  static async open(t: Test, listen: string, target: string, options: ProxyOptions = {}): Promise<Proxy> {
    const proxy = new Proxy(target, options);
    await new Promise<void>((resolve, reject) => {
      proxy.#server.once('error', reject);
      proxy.#server.listen(listen, resolve);
    });
    t.teardown(() => proxy.close());
    return proxy;
  }

  #accept(near: net.Socket): void {
    const far = net.connect({ path: this.#target, allowHalfOpen: true });
    const passed: Passed = { kind: 'channel', bytes: 0, chunks: [] };
    const end = (): void => {
      near.destroy();
      far.destroy();
    };
    for (const socket of [near, far]) {
      this.#sockets.add(socket);
      socket.on('error', end);
      socket.on('close', () => this.#sockets.delete(socket));
    }
    near.on('data', (chunk: Buffer) => {
      // The magic comes in one piece: it is the first that a peer writes.
      if (passed.bytes === 0) {
        passed.kind = chunk.length >= 4 && chunk.readUInt32BE(0) === MAIN_MAGIC ? 'main' : 'channel';
        this.passed.push(passed);
      }
      passed.bytes += chunk.length;
      if (this.#options.record === true) passed.chunks.push(chunk);
      const surplus = this.#surplus(passed);
      if (surplus !== undefined) {
        near.pause();
        // What is due before the cut still goes out.
        far.end(chunk.subarray(0, chunk.length - surplus), () => {
          end();
          this.#wasCut();
        });
      } else if (!far.write(chunk)) {
        near.pause();
        far.once('drain', () => near.resume());
      }
    });
    near.on('end', () => far.end());
    far.on('data', (chunk: Buffer) => near.write(chunk));
    far.on('end', () => near.end());
    near.resume();
  }

  /** Of what has come on a connection that is to be cut now, the bytes beyond the cut. */
  #surplus(passed: Passed): number | undefined {
    const { cut } = this.#options;
    if (cut === undefined || cut.kind !== passed.kind || passed.bytes < cut.afterBytes) return undefined;
    if (this.passed.find(({ kind }) => kind === cut.kind) !== passed) return undefined;
    return passed.bytes - cut.afterBytes;
  }

  close(): void {
    this.#server.close();
    for (const socket of this.#sockets) socket.destroy();
  }
}
