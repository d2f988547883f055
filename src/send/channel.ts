/**
 * A send channel: the whole life of one connection, in its own worker thread (piscina task, entry
 * workers/send-channel.ts).
 *
 *     connect -> hello -> RUNNING
 *       loop:  job?   RAM: page-packets.ts     device state: header | write
 *              sync?  wait for the last write | SYNC packet | write | wait until pages are released    then SYNC_DONE
 *              STOP?  END: finish the socket.  FAIL: drop it
 *              else   wait on SEM
 *
 * Its pieces, in the order that a page passes them: page-packets.ts (a slot's pages, packet by packet), page-source.ts (where
 * they are read from), partition.ts (normal and zero ones), compressing.ts (up to two packets with the codec), outgoing.ts
 * (headers, and what is held back for one write), and src/transport/send-connection.ts.
 *
 * Who owns the bytes: a job's slot is the channel's from pendingJob = 1 until it says done(); a device state's stays until
 * the kernel has it. The pieces say it of the others. Behind SYNC_DONE nothing reads the pages that came before: also with
 * zeroCopySend, where the kernel reads them in place until they are acknowledged.
 */
import { performance } from 'node:perf_hooks';
import { setTimeout as sleep } from 'node:timers/promises';
import {
  report,
  runChannel,
  type Channel,
  type ChannelOutcome,
  type ChannelTask,
} from '../channel-thread.js';
import { MultifdError } from '../errors.js';
import type { SendMethod } from '../methods/methods.js';
import { type ZeroPageDetection } from '../options.js';
import { proveWhenAsked } from '../proof-thread.js';
import type { Address } from '../transport/address.js';
import type { BlockDescription } from '../ram/block.js';
import {
  CHANNEL_RUNNING,
  type Control,
  PAYLOAD_DEVICE_STATE,
  PAYLOAD_RAM,
  STOP_END,
  STOP_FAIL,
  STOP_RUN,
  type Slot,
} from '../shared/control.js';
import { REFUSED_PERHAPS } from '../set-up.js';
import { ChannelClock } from '../shared/clock.js';
import { STAT_BYTES, STAT_ZERO_COPY_COPIED, STAT_ZERO_COPY_PACKETS } from '../shared/layout.js';
import type { TracePoint } from '../trace.js';
import { HELLO_BYTES, encodeHello } from '../wire/hello.js';
import { ChangedPages } from './changed-pages.js';
import { Compressing } from './compressing.js';
import { Outgoing } from './outgoing.js';
import { PagePackets, STAGINGS_COMPRESSED, WRITES_STAGED, WRITES_STAGED_ZERO_COPY } from './page-packets.js';
import { PageSource } from './page-source.js';
import { SendConnection, type ZeroCopyCounter } from '../transport/send-connection.js';
import { TlsCredentials, type PlainTlsCredentials } from '../transport/tls/credentials.js';
import { explainEarlyEnd } from '../transport/tls/explain.js';

/** What the calling thread gives to the worker. */
export interface SendChannelTask extends ChannelTask {
  address: Address;
  uuid: Uint8Array;
  /** Of a migration that may be carried on: for the hello. */
  key: Uint8Array | undefined;
  pageSize: number;
  blocks: BlockDescription[];
  level: number;
  zeroPageDetection: ZeroPageDetection;
  zeroCopySend: boolean;
  /** Where only pages that have changed are sent: the digests of each block's, as they were sent. */
  digests: readonly SharedArrayBuffer[] | undefined;
  /** With option verify: ProofTable. */
  proof: SharedArrayBuffer | undefined;
  connectTimeoutMs: number;
  stallTimeoutMs: number;
  /** Does the migration that it is a part of say what the destination may have refused? */
  explained: boolean;
  tls: PlainTlsCredentials | undefined;
}

/** How many looks at SEM before sleeping: about 10 µs. */
const SPIN = 400;
/** Until another channel's hello is known of. */
const SETTLE_MS = 20;
/** More than the kernel holds between two ends: behind that the peer has taken something. */
const EARLY_BYTES = 16 * 2 ** 20;

export function runSendChannel(task: SendChannelTask): Promise<ChannelOutcome> {
  return runChannel(
    task,
    'send channel',
    (codec) => codec.createSender(task.level),
    (control, method) => new SendChannel(task, control, method),
  );
}

class SendChannel implements Channel {
  readonly #task: SendChannelTask;
  readonly #control: Control;
  readonly #id: number;
  readonly #stats: Float64Array;
  readonly #clock: ChannelClock;
  readonly #outgoing: Outgoing;
  /** Undefined with method none. */
  readonly #compressing: Compressing | undefined;
  readonly #pages: PagePackets;
  readonly #source: PageSource | undefined;
  readonly #tls: TlsCredentials | undefined;
  readonly #connection: SendConnection;
  #lastProgress = 0;
  /** Something was sent since, too soon after it to be told. */
  #unposted = false;

  constructor(task: SendChannelTask, control: Control, method: SendMethod | undefined) {
    this.#task = task;
    const { address, connectTimeoutMs, stallTimeoutMs, zeroCopySend } = task;
    const broke = (error: MultifdError): MultifdError => this.#broke(error);
    this.#tls = task.tls === undefined ? undefined : TlsCredentials.fromPlain(task.tls);
    const tls = this.#tls;
    const stats = (this.#stats = control.stats(task.id));
    const zeroCopy: ZeroCopyCounter | undefined = zeroCopySend
      ? {
          sent: (packets) => (stats[STAT_ZERO_COPY_PACKETS] += packets),
          copied: (packets) => (stats[STAT_ZERO_COPY_COPIED] += packets),
        }
      : undefined;
    this.#connection = new SendConnection({
      address,
      connectTimeoutMs,
      stallTimeoutMs,
      tls,
      zeroCopy,
      broke,
    });
    this.#control = control;
    this.#id = task.id;
    this.#clock = new ChannelClock(this.#stats);
    this.#outgoing = new Outgoing(task, control);
    const write = (): Promise<void> => this.#startWrite();
    const released = (but: number): Promise<void> => this.#connection.released(but);
    if (method !== undefined) {
      const settled = (): void => control.postSem(task.id);
      this.#compressing = new Compressing(method, this.#outgoing, write, settled);
    }
    const writesStaged = zeroCopySend ? WRITES_STAGED_ZERO_COPY : WRITES_STAGED;
    const stagings = method === undefined ? writesStaged : STAGINGS_COMPRESSED;
    const { blocks, pageSize, digests } = task;
    const changed = digests && new ChangedPages(blocks, pageSize, stagings, digests);
    this.#source = changed === undefined ? new PageSource(blocks, pageSize, stagings) : undefined;
    this.#pages = new PagePackets(task, control, {
      source: changed ?? (this.#source as PageSource),
      changed,
      compressing: this.#compressing,
      outgoing: this.#outgoing,
      write,
      released,
      writesStaged,
    });
  }

  async run(): Promise<void> {
    void this.#guard();
    await this.#connection.connect().catch((thrown: unknown) => this.#notConnected(thrown));
    this.#outgoing.hold(encodeHello({ uuid: this.#task.uuid, id: this.#id }, this.#task.key));
    await this.#startWrite();
    await this.#connection.flushed();
    this.#control.setChannelState(this.#id, CHANNEL_RUNNING);
    this.#trace('multifd_send_thread_start', { ...this.#connection.secured });
    const { proof, blocks } = this.#task;
    proveWhenAsked(this.#control, proof, blocks).catch((thrown: unknown) =>
      this.#connection.break(MultifdError.wrap(thrown, 'ERR_MULTIFD_WORKER', 'option verify')),
    );
    await this.#loop();
    if (this.#control.stopped !== STOP_FAIL) await this.#connection.finish();
    this.#trace('multifd_send_thread_end', {});
  }

  async #loop(): Promise<void> {
    const control = this.#control;
    const id = this.#id;
    this.#clock.idle();
    for (;;) {
      const seen = control.semCount(id);
      // Before the job: what was published before STOP said END is seen then, or else STOP is seen the next time.
      const { stopped } = control;
      if (stopped === STOP_FAIL) return;
      // Before the job, so that every job published before this sync goes out before its SYNC packet.
      const sync = control.wantsSync(id);
      const job = control.hasJob(id);
      const compressed = this.#compressing?.settled === true;
      if (!job && !sync && !compressed) {
        if (stopped === STOP_END && this.#compressing?.any !== true) return;
        if (this.#connection.broken !== undefined) throw this.#connection.broken;
        const wait = control.waitSem(id, seen, SPIN);
        if (wait === undefined) continue;
        if (this.#unposted) this.#postProgress(performance.now());
        await wait;
        continue;
      }
      this.#clock.busy();
      if (job) await this.#sendJob();
      else await this.#compressing?.send();
      if (sync) await this.#sendSync();
      this.#clock.idle();
      const { progressMs } = control;
      if (progressMs > 0) {
        const now = performance.now();
        this.#unposted = now - this.#lastProgress < progressMs;
        if (!this.#unposted) this.#postProgress(now);
      }
    }
  }

  #postProgress(now: number): void {
    this.#unposted = false;
    this.#lastProgress = now;
    this.#control.postProgress();
  }

  async #sendJob(): Promise<void> {
    const slot = this.#control.slotOf(this.#id);
    if (slot.type === PAYLOAD_RAM) await this.#pages.send(slot);
    else if (slot.type === PAYLOAD_DEVICE_STATE) await this.#sendDeviceState(slot);
    else throw new MultifdError('ERR_MULTIFD_WORKER', `a job with payload type ${slot.type}`);
  }

  async #sendDeviceState(slot: Slot): Promise<void> {
    await this.#compressing?.send();
    this.#outgoing.holdDeviceState(slot);
    await this.#startWrite();
    await this.#connection.flushed();
    this.#control.done(this.#id);
  }

  async #sendSync(): Promise<void> {
    await this.#compressing?.send();
    this.#outgoing.holdSync();
    await this.#startWrite();
    await this.#connection.released();
    this.#control.syncDone(this.#id);
  }

  #trace(point: TracePoint, data: Record<string, unknown>): void {
    if (this.#control.trace) report(point, { id: this.#id, ...data });
  }

  // ---- the connection ----

  /** The loop may be asleep on SEM. */
  #broke(error: MultifdError): MultifdError {
    this.#control.postSem(this.#id);
    return this.#refusedPerhaps(error);
  }

  /** A receiver listens until it has all the channels that it expects, or has refused one. */
  async #notConnected(thrown: unknown): Promise<never> {
    const error = MultifdError.wrap(thrown, 'ERR_MULTIFD_CONNECT', 'connect');
    // It has a hello a moment before the channel says so here.
    if (this.#control.stopped === STOP_RUN && !this.#task.explained) await sleep(SETTLE_MS);
    for (let id = 0; id < this.#control.channels; id++) {
      if (this.#control.channelState(id) >= CHANNEL_RUNNING) throw this.#refusedPerhaps(error);
    }
    throw error;
  }

  /** A receiver that refuses says so by closing its channels; one that judges its client behind the handshake as well. */
  #refusedPerhaps(error: MultifdError): MultifdError {
    const sent = this.#stats[STAT_BYTES];
    const isClosed = error.code === 'ERR_MULTIFD_CONNECTION' || error.code === 'ERR_MULTIFD_CONNECT';
    if (!isClosed || sent > EARLY_BYTES || this.#task.explained) return error;
    const refused = this.#tls === undefined ? '' : `; ${explainEarlyEnd(this.#tls)}`;
    const code = this.#tls !== undefined && sent <= HELLO_BYTES ? 'ERR_MULTIFD_TLS' : error.code;
    return new MultifdError(code, `${error.message}; ${REFUSED_PERHAPS}${refused}`, {
      ...error,
      cause: error.cause,
    });
  }

  /** Hands all that is held to the connection, in one system call, as soon as nothing else is on its way. */
  async #startWrite(): Promise<void> {
    const connection = this.#connection;
    if (connection.writing || connection.broken !== undefined) await connection.flushed();
    if (connection.peerEnded) {
      const error = new MultifdError('ERR_MULTIFD_CONNECTION', 'the peer closed the channel');
      throw this.#refusedPerhaps(error);
    }
    this.#outgoing.writeTo(connection);
  }

  /** STOP = FAIL takes the socket away, whatever the loop is waiting for. */
  async #guard(): Promise<void> {
    let level = STOP_RUN;
    while (level < STOP_FAIL) level = await this.#control.stopAbove(level);
    this.#connection.break(new MultifdError('ERR_MULTIFD_CLOSED', 'stopped'));
  }

  /** Frees everything; waits until the descriptor is closed. */
  async close(): Promise<void> {
    this.#clock.stop();
    await this.#connection.close();
    this.#source?.close();
  }
}
