/**
 * The handshake of the main stream, on the thread that will own it. Through TLS nobody can see what a connection is before
 * its handshake: the first one whose handshake is done is main, as for QEMU, which connects its channels only then.
 *
 *     connections with a ClientHello, in the order they came
 *        the first     shakes hands; after PATIENCE_MS so does the next one beside it, since the first may be anybody; the
 *                      more are under way, the sooner, so that main is not behind hundreds that say nothing more
 *        authorize     is asked: nobody else begins meanwhile, since channels may wait here already
 *        one is done   it is main; those that have not begun are channels, and go to their threads as they are
 *
 * Of a listener that is kept (listener.ts) each one that is done may be main, and its owner judges: nothing ends with it.
 *
 * A connection that has begun here cannot go to another thread any more. A source's channels come when its main stream's
 * handshake is done, so none of them has, unless main's last message is on its way for longer than that patience.
 */
import type net from 'node:net';
import { MultifdError } from '../../errors.js';
import type { CheckedTls } from './check-options.js';
import { handshake } from './handshake.js';
import type { TlsPeer, TlsVersion } from './options.js';

const PATIENCE_MS = 1000;

/** A connection whose ClientHello is there. */
export interface PendingHandshake {
  /** What has been read of it lies in it again, and nobody reads it. */
  raw: net.Socket;
  /** See client-hello.ts. */
  maxVersion: TlsVersion | undefined;
}

export interface MainHandshakesEvents {
  main(secure: net.Socket, raw: net.Socket): void;
  /** Not begun when main came: a channel, or anybody. */
  rest(pending: PendingHandshake): void;
  /** A connection is given up, and destroyed. */
  failed(error: MultifdError): void;
}

export class MainHandshakes {
  readonly #tls: CheckedTls;
  readonly #timeoutMs: number;
  readonly #events: MainHandshakesEvents;
  readonly #keeps: boolean;
  readonly #waiting: PendingHandshake[] = [];
  /** Under way, oldest first. */
  readonly #begun = new Set<net.Socket>();
  #patience: NodeJS.Timeout | undefined;
  #over = false;

  /** @param keeps go on behind the first one that is done */
  constructor(tls: CheckedTls, timeoutMs: number, events: MainHandshakesEvents, keeps = false) {
    this.#keeps = keeps;
    this.#tls = tls;
    this.#timeoutMs = timeoutMs;
    this.#events = events;
  }

  /** Waiting or under way. */
  get count(): number {
    return this.#waiting.length + this.#begun.size;
  }

  add(pending: PendingHandshake): void {
    // One that is gone before its turn costs nothing.
    pending.raw.on('error', () => {});
    this.#waiting.push(pending);
    if (this.#patience === undefined) this.#next();
  }

  /** The oldest goes, for a newer one. */
  dropOldest(): void {
    const [begun] = this.#begun;
    const oldest = begun ?? this.#waiting.shift()?.raw;
    if (oldest === undefined) return;
    this.#begun.delete(oldest);
    oldest.destroy();
  }

  #next(): void {
    this.#patience = undefined;
    const pending = this.#waiting.shift();
    if (pending === undefined || this.#over) return;
    if (pending.raw.destroyed) {
      this.#next();
      return;
    }
    void this.#shake(pending);
    this.#patience = setTimeout(() => this.#next(), PATIENCE_MS / this.#begun.size ** 2);
  }

  async #shake({ raw, maxVersion }: PendingHandshake): Promise<void> {
    const { credentials, authorize: consent } = this.#tls;
    const authorize =
      consent &&
      ((peer: TlsPeer) => {
        clearTimeout(this.#patience);
        return consent(peer);
      });
    const options = { timeoutMs: this.#timeoutMs, maxVersion, ...(authorize && { authorize }) };
    this.#begun.add(raw);
    try {
      const { socket } = await handshake(raw, credentials, options);
      socket.on('error', () => {});
      if (this.#over) {
        socket.destroy();
        return;
      }
      this.#begun.delete(raw);
      if (this.#keeps) {
        clearTimeout(this.#patience);
        this.#events.main(socket, raw);
        this.#next();
        return;
      }
      const rest = this.#waiting.splice(0);
      this.close();
      this.#events.main(socket, raw);
      for (const other of rest) this.#events.rest(other);
    } catch (thrown) {
      if (this.#over) return;
      // Else it was dropped, for no fault that is known.
      if (this.#begun.has(raw))
        this.#events.failed(MultifdError.wrap(thrown, 'ERR_MULTIFD_TLS', 'TLS as server'));
      clearTimeout(this.#patience);
      this.#next();
    } finally {
      this.#begun.delete(raw);
    }
  }

  /** Main is in, or nobody is waited for any more. */
  close(): void {
    this.#over = true;
    clearTimeout(this.#patience);
    for (const { raw } of this.#waiting.splice(0)) raw.destroy();
    for (const raw of this.#begun) raw.destroy();
  }
}
