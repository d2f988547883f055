/** What the three ways have in common in a side's process: what it is told, what it tells, and what strikes it. */
import fs from 'node:fs';
import path from 'node:path';
import { MultifdError, describeThrown } from '../errors.js';
import type { Address } from '../transport/address.js';
import type { Begin, FromSide, Outcome, PeerWord } from './messages.js';

/** Of one run. */
export class Side {
  readonly begin: Begin;
  readonly abort = new AbortController();
  readonly hooks: string[] = [];
  /** Ends what is under way in the way of its own that an embedder has; set by the way when there is something. */
  cancel: (() => unknown) | undefined;
  bytes = (): number => 0;
  readonly connect: Promise<Address>;
  onConnect!: (to: Address) => void;
  /** Rejects when the other side of a session has failed. */
  readonly peerGone: Promise<never>;
  onPeerGone!: () => void;
  readonly #words: PeerWord[] = [];
  #wake: () => void = () => {};
  readonly #log: string;
  readonly #started = performance.now();
  readonly #send: (message: FromSide) => void;

  constructor(begin: Begin, send: (message: FromSide) => void) {
    this.begin = begin;
    this.#send = send;
    this.#log = path.join(begin.folder, `${begin.side}.log`);
    this.connect = new Promise((resolve) => (this.onConnect = resolve));
    this.peerGone = new Promise<never>((_resolve, reject) => {
      this.onPeerGone = () => reject(new PeerGone());
    });
    this.peerGone.catch(() => {});
  }

  log(text: string): void {
    const ms = (performance.now() - this.#started).toFixed(1);
    try {
      fs.appendFileSync(this.#log, `${ms.padStart(9)} ${text}\n`);
    } catch {
      // A full disk is one of the faults.
    }
  }

  hook(name: string): void {
    this.hooks.push(name);
    this.log(`hook ${name}`);
  }

  send(message: FromSide): void {
    if (message.type !== 'peer') this.log(`says ${JSON.stringify(message)}`);
    this.#send(message);
  }

  say(said: PeerWord): void {
    this.#send({ type: 'peer', said });
  }

  onWord(word: PeerWord): void {
    this.#words.push(word);
    this.#wake();
  }

  /** What the other side of a session says next; not for ever, as no main stream is waited for. */
  async hear(): Promise<PeerWord> {
    const { stallTimeoutMs, connectTimeoutMs } = this.begin.plan;
    const late = setTimeout(this.onPeerGone, stallTimeoutMs + connectTimeoutMs);
    try {
      for (;;) {
        const word = this.#words.shift();
        if (word !== undefined) return word;
        await Promise.race([new Promise<void>((resolve) => (this.#wake = resolve)), this.peerGone]);
      }
    } finally {
      clearTimeout(late);
    }
  }

  failed(thrown: unknown): Outcome {
    const { stack } = (thrown ?? {}) as { stack?: string };
    this.log(`failed: ${stack ?? describeThrown(thrown)}`);
    return {
      completed: false,
      code: codeOf(thrown),
      message: describeThrown(thrown),
      ...(thrown instanceof MultifdError && { suppressed: thrown.suppressed.map(codeOf) }),
      hooks: this.hooks,
      bytes: this.bytes(),
    };
  }
}

function codeOf(thrown: unknown): string {
  const { code } = (thrown ?? {}) as { code?: unknown };
  return typeof code === 'string' ? code : 'no code';
}

/** The other side of a session has failed, which its main stream would have said. */
export class PeerGone extends Error {
  readonly code = 'ERR_MULTIFD_CLOSED';
  constructor() {
    super('the other side has failed, or says nothing');
  }
}
