/**
 * Passes a live migration on while it runs, with other channels, another method or level on the other side, and nothing
 * stored.
 *
 *     source                     calling thread                                  destination
 *     main stream    -->  item by item, every byte as it is        -->  main stream
 *     channels       -->  decoded; pages copied from slot to slot  -->  channels, encoded anew; device state as it is
 *     SYNC + marker  -->  receiver.sync(), sender.sync(), marker   -->  SYNC + marker
 *                    <--  messages of the return path as they are  <--   opened here if the source has not
 *
 * The main stream's way forth is in relay-forth.ts, the way back in relay-back.ts, the options in relay-options.ts. Here
 * are the sessions of both sides, and who is told what at the end.
 *
 * Pages are handed to the sender before the receiving channel reads on, so all that came before a SYNC goes out before
 * the SYNC of the other side.
 *
 * One moment decides, on this thread: the destination's SHUT 0 is read (#loaded), or something fails before (fail).
 *
 *     verdict   until                           a failure, an abort, a closed connection   source            the call
 *     OPEN      one of the two                  breaks all connections of both sides, at   fails, and keeps  rejects
 *                                               once; the verdict is BROKEN                its guest
 *     LOADED    the connections are closed      changes nothing any more                   is told SHUT 0    resolves
 *     BROKEN    nothing is left of the session  is attached to the first error             fails             rejects
 *
 * A SHUT 0 that comes when all is BROKEN is not passed on, nor is one that comes before the devices' state. The order when
 * all is LOADED: SHUT 0 to the source, the ends of the destination's connections, the source's own end (2 s at the
 * most), the ends of the source's connections. A source without return path is not told anything: it takes its migration as
 * completed when it has written its last byte, so a failure has to reach it before that.
 */
import { setImmediate as turnEventLoop } from 'node:timers/promises';
import { MultifdError } from '../errors.js';
import { STREAM, makeBlocks, type StreamBlockOptions } from '../ram/block.js';
import { Receiver, type ReceiverHooks } from '../recv/receiver.js';
import { createSender, type Sender } from '../send/sender.js';
import { publicReceiver, publicSender } from '../public-session.js';
import type { Slot } from '../shared/control.js';
import { brokenOff } from './blame.js';
import { allChannelsIn, connectMain, explain, sentOf } from './destination.js';
import { settles } from './limits.js';
import type { Connection } from '../transport/connect.js';
import { loadTls } from '../transport/tls/loaded.js';
import { MainConnection } from '../transport/main-connection.js';
import { callHook } from './options.js';
import { MainBack } from './relay-back.js';
import { MainForth, type ForthRelay } from './relay-forth.js';
import {
  checkRelay,
  type CheckedRelay,
  type RelayMigrationOptions,
  type RelayedMigration,
} from './relay-options.js';
import { SideErrors, type Side } from './side-errors.js';
import { watchMigration } from './watch.js';

export type { RelayMigrationOptions, RelayedMigration, RelaySide } from './relay-options.js';

/**
 * @throws MultifdError with all codes of a receiver and a sender, and ERR_MULTIFD_STREAM for a main stream that is
 *   refused, here or by the destination
 */
export async function relayMigration(options: RelayMigrationOptions): Promise<RelayedMigration> {
  await loadTls(options?.in?.tls, options?.out?.tls);
  const relay = new Relay(checkRelay(options));
  try {
    await relay.receiver.open();
    callHook('onListening', () => options.onListening?.(relay.receiver.address));
    return await relay.run();
  } catch (thrown) {
    throw await relay.failed(MultifdError.wrap(thrown, 'ERR_MULTIFD_CONNECTION', 'relay'));
  } finally {
    relay.destroy();
  }
}

type Verdict = 'OPEN' | 'LOADED' | 'BROKEN';

class Relay implements ReceiverHooks, ForthRelay {
  readonly receiver: Receiver;
  readonly #options: CheckedRelay;
  #sourceIn!: (connection: MainConnection) => void;
  readonly #mainIn: Promise<MainConnection>;
  #source: MainConnection | undefined;
  #sink: MainConnection | undefined;
  #sender: Sender | undefined;
  /** What is being opened when all breaks has to be closed as well. */
  #connecting: Promise<MainConnection> | undefined;
  #creating: Promise<Sender> | undefined;
  readonly #stop = new AbortController();
  #verdict: Verdict = 'OPEN';
  /** The destination's SHUT 0. */
  #shut: Buffer | undefined;
  readonly #errors = new SideErrors();
  readonly #forth: MainForth;
  readonly #back: MainBack;
  #sourceTold = false;
  /** Who is waited for, should nothing move any more. */
  #owing: Side = 'source';
  /** Slots of the source's channels that the destination's have no room for yet. */
  #queueing = 0;
  #uuid: string | undefined;

  constructor(options: CheckedRelay) {
    const { bounds, switchoverAck, incoming, outgoing } = options;
    const { stallTimeoutMs } = incoming;
    const { pageSize } = outgoing;
    this.#options = options;
    this.#forth = new MainForth({ bounds, switchoverAck, pageSize, stallTimeoutMs }, this.#errors, this);
    this.#back = new MainBack(this.#forth, this.#errors, switchoverAck);
    this.#mainIn = new Promise((resolve) => (this.#sourceIn = resolve));
    this.receiver = new Receiver(options.incoming, this);
  }

  // ---- ReceiverHooks ----

  get anyUuid(): boolean {
    return this.#options.uuid === undefined;
  }

  main(connection: Connection, begun: Buffer): void {
    this.#source = new MainConnection(connection, begun);
    this.#sourceIn(this.#source);
  }

  async pages(slot: Slot): Promise<void> {
    const sender = this.#sender as Sender;
    const queued = sender.queuePages(
      sender.blocks[slot.block],
      slot.pages,
      slot.normalNum,
      slot.num,
      slot.data,
    );
    await this.#queued(queued);
  }

  async deviceState(idstr: string, instanceId: number, payload: Buffer): Promise<void> {
    await this.#queued((this.#sender as Sender).queueDeviceState(idstr, instanceId, payload));
  }

  async #queued(wait: Promise<void>): Promise<void> {
    this.#queueing++;
    await this.#errors.of('destination', wait);
    this.#queueing--;
  }

  // ---- from the source's connection to the verdict ----

  async run(): Promise<RelayedMigration> {
    const { receiver } = this;
    const { incoming, outgoing, connectTimeoutMs } = this.#options;
    receiver.done.catch((error: MultifdError) => this.fail(error));
    const source = await receiver.orStopped(this.#mainIn);
    const connecting = connectMain(outgoing.address, connectTimeoutMs, this.#stop.signal, outgoing.tls);
    this.#connecting = this.#errors.of('destination', connecting);
    const sink = (this.#sink = await receiver.orStopped(this.#connecting));
    const unwatch = watchMigration(
      incoming.stallTimeoutMs,
      () => receiver.stats().bytes + (this.#sender?.stats().bytes ?? 0) + source.moved + sink.moved,
      (error) => this.fail(this.#errors.mark(this.#awaited, error)),
    );
    try {
      const back = this.#back.copy(sink, source, (shut) => this.#loaded(shut));
      const forth = this.#forth.copy(receiver, source, sink);
      forth.catch(() => {});
      try {
        await receiver.orStopped(Promise.race([back, forth.then(() => back)]));
      } catch (error) {
        if (this.#verdict !== 'LOADED') throw error;
      }
      await this.#finish(source, sink, forth);
      return {
        machine: this.#forth.machine,
        blocks: receiver.blocks.map(({ name, size }) => ({ name, size })),
        pageSize: receiver.pageBytes,
        uuid: receiver.uuid ?? null,
        received: receiver.stats(),
        sent: (this.#sender as Sender).stats(),
        sourceTold: this.#sourceTold,
      };
    } finally {
      unwatch();
    }
  }

  /** Who keeps the others waiting. */
  get #awaited(): Side {
    // When all of the source's bytes are there, only the SHUT is due.
    return this.#queueing > 0 || this.#forth.tail.complete ? 'destination' : this.#owing;
  }

  // ---- ForthRelay ----

  get isLoaded(): boolean {
    return this.#verdict === 'LOADED';
  }

  async owed(wait: Promise<void>): Promise<void> {
    this.#owing = 'destination';
    await this.receiver.orStopped(this.#errors.of('destination', wait));
    this.#owing = 'source';
  }

  async sync(): Promise<void> {
    await this.receiver.sync();
    const sender = this.#sender as Sender;
    // By this `multifd receive` at the other end sees whether the source's program is an old one.
    sender.syncPagesAlloc = this.receiver.syncPagesAlloc;
    await this.owed(sender.sync());
  }

  /** The channels of both sides may start. */
  async start(named: readonly { name: string; usedLength: number }[], pageSize: number): Promise<void> {
    const { receiver } = this;
    const blocks: StreamBlockOptions[] = named.map(({ name, usedLength }) => ({
      name,
      size: usedLength,
      stream: STREAM,
    }));
    // The destination's channels say the uuid that the source's have said.
    await receiver.firstChannel();
    const { tls, ...outgoing } = this.#options.outgoing;
    const uuid = (this.#uuid = outgoing.uuid ?? receiver.uuid ?? undefined);
    const { signal } = this.#stop;
    this.#creating = this.#errors.of(
      'destination',
      createSender({ ...outgoing, signal, blocks, pageSize, uuid }, true, tls),
    );
    const sender = (this.#sender = await receiver.orStopped(this.#creating));
    // Whichever side fails takes the other with it, and does not wait for its own threads before.
    this.#errors
      .of('destination', sender.orStopped(new Promise<never>(() => {})))
      .catch((error: MultifdError) => this.fail(error));
    receiver.setBlocks(makeBlocks(blocks, pageSize), pageSize);
    const { hooks } = this.#options;
    const { machine } = this.#forth;
    const start = { machine, blocks: blocks.map(({ name, size }) => ({ name, size })) };
    callHook('onStart', () => hooks.onStart?.(start));
    callHook('onSession', () => hooks.onSession?.(publicReceiver(receiver), publicSender(sender)));
    if (!this.#forth.pinged) return;
    await this.owed(allChannelsIn(receiver.orStopped(this.#back.pong), this.#options.connectTimeoutMs));
  }

  // ---- the verdict ----

  #loaded(shut: Buffer): void {
    if (this.#verdict === 'BROKEN') throw new MultifdError('ERR_MULTIFD_CLOSED', 'broken off before SHUT 0');
    this.#verdict = 'LOADED';
    this.#shut = shut;
  }

  /** Ends every connection of both sides now, unless all is loaded. */
  fail(error: MultifdError): void {
    if (this.#verdict !== 'OPEN') return;
    this.#verdict = 'BROKEN';
    this.#errors.settle(error);
    // The source first: it is the one whose guest is at stake.
    this.#source?.breakOff();
    this.destroy();
    void this.receiver.abandon(error);
    if (this.#sender !== undefined) void this.#sender.abandon(error);
    this.#stop.abort(error);
  }

  /** All is loaded: nothing that fails from here on is of any account. */
  async #finish(source: MainConnection, sink: MainConnection, forth: Promise<void>): Promise<void> {
    const { receiver } = this;
    const sender = this.#sender as Sender;
    // Its end may lie there unread; what is written behind it the kernel takes all the same.
    await turnEventLoop();
    if (this.#forth.returnPath && !source.ended) {
      this.#sourceTold = await settles(source.write(this.#shut as Buffer));
    }
    const ends = [settles(sink.end()), sender.end().catch(() => sender.close())];
    // A socket that is closed with bytes unread takes back what it has sent last.
    await settles(forth);
    ends.push(
      settles(source.end()),
      receiver.end().catch(() => receiver.close()),
    );
    await Promise.all(ends);
    // A reset: the source's end of the connection was closed when the SHUT came.
    if (source.broken !== undefined) this.#sourceTold = false;
  }

  async failed(thrown: MultifdError): Promise<MultifdError> {
    const { receiver } = this;
    const first = receiver.error ?? thrown;
    this.fail(first);
    await receiver.abandon(first);
    // What was still being opened comes to its end here, and belongs to nobody afterwards.
    await this.#connecting?.then(
      (sink) => sink.destroy(),
      () => {},
    );
    await this.#creating?.then(
      (sender) => sender.abandon(first),
      () => {},
    );
    return this.#explained(receiver.error ?? first);
  }

  #explained(error: MultifdError): MultifdError {
    const side = this.#errors.sideOf(error);
    if (side === 'source' && !this.#forth.inTail) return this.#errors.named(brokenOff(error));
    const named = this.#errors.named(error);
    if (side !== 'destination') return named;
    const sent = sentOf(this.#forth.machine, this.#options.outgoing, this.#uuid);
    return explain(named, sent, this.#sink?.earlyEnd);
  }

  destroy(): void {
    this.#source?.destroy();
    this.#sink?.destroy();
  }
}
