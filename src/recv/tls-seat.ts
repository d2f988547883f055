/**
 * With TLS a channel's thread does the handshake, and until that is done nobody knows which channel it is, or whether it
 * is one. A seat is what such a thread runs: it takes connections as they come and makes a channel of each that proves to
 * be one. As a rule that is one connection for each seat; where others come as well, a seat may get several, and two
 * channels too.
 *
 *     calling thread (tls-seats.ts)                      a seat, on a channel's thread (piscina task)
 *     { take: n, fd, surplus }            ------->       handshake, 64 bytes of hello
 *     asks the caller's authorize()       <-------       { ask: n, peer }           where there is one
 *     { consent: n, yes }                 ------->
 *     looks at the hello (Admission)      <-------       { hello: n, bytes }
 *     { channel: n, task }, or { refuse } ------->       runReceiveChannel()
 *     frees what is left of it here       <-------       { closed: n, error }       no channel: dropped, failed, refused
 *     { leave }: nobody else is expected  ------->       what is still under way is dropped; returns when its channels have
 *
 * Who owns the descriptor: from { take } on the seat, until it says { closed } or its channel has ended.
 */
import type { MessagePort } from 'node:worker_threads';
import type { ChannelOutcome, ChannelTask } from '../channel-thread.js';
import { MultifdError, type PlainError } from '../errors.js';
import { Control, STOP_RUN } from '../shared/control.js';
import type { Connection } from '../transport/connect.js';
import { destroyed, readAhead, reopen, type RawSocket } from '../transport/raw-socket.js';
import { TlsCredentials, type PlainTlsCredentials } from '../transport/tls/credentials.js';
import type { TlsPeer, TlsVersion } from '../transport/tls/options.js';
import { HELLO_BYTES } from '../wire/hello.js';
import { runReceiveChannel, type ReceiveChannelTask } from './channel.js';

export interface TlsSeatTask extends ChannelTask {
  tls: PlainTlsCredentials;
  port: MessagePort;
  /** For a handshake, and for the hello behind it. */
  helloMs: number;
}

export type ToSeat =
  | { kind: 'take'; n: number; fd: number; surplus: Uint8Array; maxVersion: TlsVersion | undefined }
  | { kind: 'consent'; n: number; yes: boolean }
  | { kind: 'channel'; n: number; task: ReceiveChannelTask }
  | { kind: 'drop'; n: number }
  | { kind: 'leave' };

export type FromSeat =
  | { kind: 'ask'; n: number; peer: TlsPeer }
  | { kind: 'hello'; n: number; bytes: Uint8Array }
  /** @param error what a handshake has failed with */
  | { kind: 'closed'; n: number; error: PlainError | undefined };

export async function runTlsSeat(task: TlsSeatTask): Promise<ChannelOutcome[]> {
  return new TlsSeat(task).run();
}

interface Candidate {
  raw: RawSocket;
  maxVersion: TlsVersion | undefined;
  /** By this side, and for no fault of its own. */
  dropped: boolean;
  consent?: (yes: boolean) => void;
  task?: (task: ReceiveChannelTask | undefined) => void;
}

class TlsSeat {
  readonly #port: MessagePort;
  readonly #control: Control;
  readonly #credentials: TlsCredentials;
  readonly #helloMs: number;
  /** Those that are no channels yet. */
  readonly #candidates = new Map<number, Candidate>();
  readonly #runs: Promise<ChannelOutcome | undefined>[] = [];
  #leave!: () => void;
  readonly #left: Promise<void>;
  #over = false;

  constructor({ shared, tls, port, helloMs }: TlsSeatTask) {
    this.#port = port;
    this.#control = Control.attach(shared);
    this.#credentials = TlsCredentials.fromPlain(tls);
    this.#helloMs = helloMs;
    this.#left = new Promise((resolve) => (this.#leave = resolve));
  }

  async run(): Promise<ChannelOutcome[]> {
    this.#port.on('message', (message: ToSeat) => this.#take(message));
    const stopped = this.#control.stopAbove(STOP_RUN).then(() => this.#end(true));
    await Promise.race([this.#left, stopped]);
    this.#end(false);
    const outcomes = await Promise.all(this.#runs);
    this.#port.close();
    return outcomes.filter((outcome) => outcome !== undefined);
  }

  /** @param all those as well whose hello is good, and which only wait to be told what to do */
  #end(all: boolean): void {
    this.#over = true;
    for (const [n, { task }] of this.#candidates) if (all || task === undefined) this.#drop(n);
  }

  #take(message: ToSeat): void {
    if (message.kind === 'leave') {
      this.#leave();
      return;
    }
    const { n } = message;
    if (message.kind === 'take') {
      const { fd, surplus, maxVersion } = message;
      const candidate: Candidate = { raw: reopen(fd, surplus), maxVersion, dropped: false };
      this.#candidates.set(n, candidate);
      if (this.#over) this.#drop(n);
      this.#runs.push(this.#run(n, candidate));
    } else if (message.kind === 'drop') this.#drop(n);
    else if (message.kind === 'consent') this.#candidates.get(n)?.consent?.(message.yes);
    else this.#candidates.get(n)?.task?.(message.task);
  }

  #drop(n: number): void {
    const candidate = this.#candidates.get(n);
    if (candidate === undefined) return;
    candidate.dropped = true;
    candidate.raw.destroy();
    candidate.consent?.(false);
    candidate.task?.(undefined);
  }

  /** One connection's whole life. */
  async #run(n: number, candidate: Candidate): Promise<ChannelOutcome | undefined> {
    const { raw } = candidate;
    let error: PlainError | undefined;
    try {
      const connection = await this.#secure(n, candidate);
      const bytes = await readAhead(connection.socket, HELLO_BYTES, this.#helloMs);
      const task = bytes && (await this.#askFor(n, candidate, bytes.subarray(0, HELLO_BYTES)));
      if (bytes !== undefined && task !== undefined) {
        this.#candidates.delete(n);
        return await runReceiveChannel({ ...task, surplus: bytes.subarray(HELLO_BYTES) }, connection);
      }
    } catch (thrown) {
      if (!candidate.dropped) error = MultifdError.wrap(thrown, 'ERR_MULTIFD_TLS', 'TLS as server').toPlain();
    }
    this.#candidates.delete(n);
    await destroyed(raw);
    this.#post({ kind: 'closed', n, error });
    return undefined;
  }

  async #secure(n: number, candidate: Candidate): Promise<Connection> {
    const { raw, maxVersion } = candidate;
    const tls = this.#credentials;
    const ask = (peer: TlsPeer): Promise<boolean> =>
      new Promise((resolve) => {
        candidate.consent = resolve;
        this.#post({ kind: 'ask', n, peer });
      });
    // As in connect().
    const { handshake } = await import('../transport/tls/handshake.js');
    const { socket } = await handshake(raw, tls, {
      timeoutMs: this.#helloMs,
      maxVersion,
      ...(tls.asks && { authorize: ask }),
    });
    socket.on('error', () => {});
    return { socket, raw, tls };
  }

  /** @returns undefined if it is no channel of this migration */
  #askFor(n: number, candidate: Candidate, bytes: Uint8Array): Promise<ReceiveChannelTask | undefined> {
    return new Promise((resolve) => {
      candidate.task = resolve;
      this.#post({ kind: 'hello', n, bytes });
      if (candidate.dropped) resolve(undefined);
    });
  }

  #post(message: FromSeat): void {
    this.#port.postMessage(message);
  }
}
