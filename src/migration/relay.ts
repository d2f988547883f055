/**
 * Passes a live migration on while it runs, with other channels, another method or level on the other side, and nothing
 * stored.
 *
 *     source                     calling thread                                  destination
 *     main stream    -->  item by item, every byte as it is        -->  main stream
 *     channels       -->  decoded; pages copied from slot to slot  -->  channels, encoded anew
 *     SYNC + marker  -->  receiver.sync(), sender.sync(), marker   -->  SYNC + marker
 *                    <--  messages of the return path as they are  <--   opened here if the source has not
 *
 * Pages are handed to the sender before the receiving channel reads on, so all that came before a SYNC goes out before
 * the SYNC of the other side.
 *
 * One moment decides, on this thread: the destination's SHUT 0 is read (#copyBack), or something fails before (#break).
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
import { MultifdError, receivedExpected } from '../errors.js';
import { checkKeys } from '../option-checks.js';
import {
  checkReceiverOptions,
  type Compression,
  type SenderOptions,
  type ZeroPageDetection,
  checkTls,
} from '../options.js';
import { checkAddress, type Address, type AddressText } from '../transport/address.js';
import { STREAM, makeBlocks, type StreamBlockOptions } from '../ram/block.js';
import { Receiver, type ReceiverHooks, type ReceiverStats } from '../recv/receiver.js';
import { createSender, type Sender } from '../send/sender.js';
import {
  publicReceiver,
  publicSender,
  type Receiver as PublicReceiver,
  type Sender as PublicSender,
} from '../public-session.js';
import type { Stats } from '../session.js';
import { SET_UP } from '../set-up.js';
import type { Slot } from '../shared/control.js';
import { BOUND_KEYS, type BoundOptions, type Bounds, checkBounds } from '../stream/bounds.js';
import { MainStreamReader } from '../stream/main-stream.js';
import { toldPageSize } from '../stream/machine.js';
import { encodeCommand } from '../stream/main-writer.js';
import { COMMAND_OPEN_RETURN_PATH, COMMAND_PING } from '../stream/records.js';
import { encodeSwitchoverAck, readReturnPath } from '../stream/return-path.js';
import { TailScanner } from '../stream/vm-description.js';
import { brokenOff, closedUntold } from './blame.js';
import { ItemsAhead } from './items-ahead.js';
import { settles, withLimit } from './limits.js';
import type { Connection } from '../transport/connect.js';
import { MainConnection } from '../transport/main-connection.js';
import type { CheckedTls } from '../transport/tls/check-options.js';
import type { TlsOptions } from '../transport/tls/options.js';
import {
  CONNECT_TIMEOUT_MS,
  callHook,
  checkOutgoing,
  descriptionError,
  requireOptions,
  requirePageSizeTold,
} from './options.js';
import { SideErrors, type Side } from './side-errors.js';
import { PING_VALUE, connectMain, explain, sentOf } from './send.js';
import { checkSwitchoverAck, type SwitchoverAck } from './switchover-ack.js';
import { watchMigration } from './watch.js';

/** One side of a relay. */
export interface RelaySide {
  /** Default 2. */
  channels?: number;
  /** Default `none`. */
  compression?: Compression;
  /** Credentials for TLS on this side: a server's on `in`, a client's on `out`. */
  tls?: TlsOptions;
}

export interface RelayMigrationOptions extends BoundOptions {
  /** Where the source connects. */
  listen: Address | AddressText;
  /** Where the destination waits. */
  to: Address | AddressText;
  in?: RelaySide;
  out?: RelaySide & {
    zlibLevel?: number;
    zstdLevel?: number;
    /** For pages that come with data; `multifd` only to a QEMU from 9.0 on. Default `none`: the source has looked. */
    zeroPageDetection?: Exclude<ZeroPageDetection, 'legacy'>;
    maxBandwidth?: number;
  };
  /**
   * With the return path: the SWITCHOVER_ACK for which a source with capability switchover-ack waits. Default `auto`: the
   * destination's is passed on. `always`: one is sent in its place, at once; `never`: none is.
   */
  switchoverAck?: SwitchoverAck;
  pageSize?: number;
  /** The VM's uuid in text (default: what the source's first channel says). */
  uuid?: string;
  stallTimeoutMs?: number;
  /** Milliseconds for all connections to be there, once the first is (default 8000). */
  connectTimeoutMs?: number;
  acceptTimeoutMs?: number;
  /** Mode of the unix socket that is listened on (default 0o600). */
  listenMode?: number;
  /** Connections that have not said yet what they are (default 256); as a receiver's. */
  maxStrays?: number;
  signal?: AbortSignal;
  /** Called once the address is listened on. */
  onListening?: (address: Address) => void;
  /** Called when the source has told what it sends. */
  onStart?: (start: { machine: string; blocks: { name: string; size: number }[] }) => void;
  /** Called with both sessions, for progress() and stats(). */
  onSession?: (receiver: PublicReceiver, sender: PublicSender) => void;
}

const OPTIONS: Record<keyof RelayMigrationOptions, true> = {
  ...BOUND_KEYS,
  listen: true,
  to: true,
  in: true,
  out: true,
  switchoverAck: true,
  pageSize: true,
  uuid: true,
  stallTimeoutMs: true,
  connectTimeoutMs: true,
  acceptTimeoutMs: true,
  listenMode: true,
  maxStrays: true,
  signal: true,
  onListening: true,
  onStart: true,
  onSession: true,
};
const OPTIONS_IN: Record<keyof RelaySide, true> = { channels: true, compression: true, tls: true };
const OPTIONS_OUT: Record<keyof NonNullable<RelayMigrationOptions['out']>, true> = {
  ...OPTIONS_IN,
  zlibLevel: true,
  zstdLevel: true,
  zeroPageDetection: true,
  maxBandwidth: true,
};

export interface RelayedMigration {
  machine: string;
  blocks: { name: string; size: number }[];
  /** Target page size, in bytes. */
  pageSize: number;
  /** The VM's uuid in text, as its channels told it. */
  uuid: string | null;
  received: ReceiverStats;
  sent: Stats;
  /**
   * Has the source been told that the destination has loaded all? False without return path, and where its connection
   * broke in that moment: then it may take its migration as failed, and its guest must not run on.
   */
  sourceTold: boolean;
}

/**
 * @throws MultifdError with all codes of a receiver and a sender, and ERR_MULTIFD_STREAM for a main stream that is
 *   refused, here or by the destination
 */
export async function relayMigration(options: RelayMigrationOptions): Promise<RelayedMigration> {
  const { listen, to, in: input = {}, out = {}, pageSize, uuid, signal } = requireOptions(options);
  checkKeys(options, Object.keys(OPTIONS));
  checkKeys(input, Object.keys(OPTIONS_IN), 'in.');
  checkKeys(out, Object.keys(OPTIONS_OUT), 'out.');
  const {
    stallTimeoutMs,
    connectTimeoutMs = CONNECT_TIMEOUT_MS,
    acceptTimeoutMs,
    listenMode,
    maxStrays,
  } = options;
  const common = { pageSize, uuid, signal, stallTimeoutMs, connectTimeoutMs };
  const { tls: tlsIn, ...inOptions } = input;
  const { tls: tlsOut, ...outOptions } = out;
  const outgoing = {
    ...common,
    ...outOptions,
    zeroPageDetection: out.zeroPageDetection ?? 'none',
    address: checkAddress(to, 1, 'to'),
  };
  const address = checkAddress(listen, 0, 'listen');
  checkOutgoing(outgoing);
  checkSwitchoverAck(options.switchoverAck);
  const checked = checkReceiverOptions(
    {
      ...common,
      ...inOptions,
      acceptTimeoutMs,
      listenMode,
      maxStrays,
      address,
    },
    true,
    [],
    checkTls(tlsIn, 'server', 'in.tls', address),
  );
  const tls = checkTls(tlsOut, 'client', 'out.tls', outgoing.address);
  const relay = new Relay(options, { ...outgoing, tls }, connectTimeoutMs, checkBounds(options));
  const receiver = new Receiver(checked, relay);
  try {
    await receiver.open();
    callHook('onListening', () => options.onListening?.(receiver.address));
    return await relay.run(receiver, checked.stallTimeoutMs);
  } catch (thrown) {
    throw await relay.failed(receiver, MultifdError.wrap(thrown, 'ERR_MULTIFD_CONNECTION', 'relay'));
  } finally {
    relay.destroy();
  }
}

/** What the sender will be made with, once the source has named the blocks. */
type Outgoing = Omit<SenderOptions, 'blocks' | 'address' | 'tls'> & {
  address: Address;
  tls: CheckedTls | undefined;
};

type Verdict = 'OPEN' | 'LOADED' | 'BROKEN';

class Relay implements ReceiverHooks {
  readonly #options: RelayMigrationOptions;
  readonly #outgoing: Outgoing;
  readonly #connectTimeoutMs: number;
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
  #stream: MainStreamReader | undefined;
  readonly #bounds: Bounds;
  readonly #tail: TailScanner;
  /** Set when the source has ended its main stream inside the devices' state. */
  #cut: MultifdError | undefined;
  #sourceTold = false;
  /** Who is waited for, should nothing move any more. */
  #owing: Side = 'source';
  /** Slots of the source's channels that the destination's have no room for yet. */
  #queueing = 0;
  #machine = '';
  #uuid: string | undefined;
  /** Has the source opened a return path? Else it is opened here: how it ended is to be known in any case. */
  #returnPath = false;
  #pinged = false;
  #ponged!: () => void;
  readonly #pong: Promise<void>;

  constructor(options: RelayMigrationOptions, outgoing: Outgoing, connectTimeoutMs: number, bounds: Bounds) {
    this.#bounds = bounds;
    // Passed on as it is: nothing of the description is kept.
    this.#tail = new TailScanner({ maxBytes: bounds.maxDescription, keepJson: false });
    this.#options = options;
    this.#outgoing = outgoing;
    this.#connectTimeoutMs = connectTimeoutMs;
    this.#mainIn = new Promise((resolve) => (this.#sourceIn = resolve));
    this.#pong = new Promise((resolve) => (this.#ponged = resolve));
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
    this.#queueing++;
    await this.#errors.of('destination', queued);
    this.#queueing--;
  }

  // ---- the main stream ----

  async run(receiver: Receiver, stallTimeoutMs: number): Promise<RelayedMigration> {
    receiver.done.catch((error: MultifdError) => this.#break(receiver, error));
    const source = await receiver.orStopped(this.#mainIn);
    const { address, tls } = this.#outgoing;
    const connecting = connectMain(address, this.#connectTimeoutMs, this.#stop.signal, tls);
    this.#connecting = this.#errors.of('destination', connecting);
    const sink = (this.#sink = await receiver.orStopped(this.#connecting));
    const unwatch = watchMigration(
      stallTimeoutMs,
      () => receiver.stats().bytes + (this.#sender?.stats().bytes ?? 0) + source.moved + sink.moved,
      (error) => this.#break(receiver, this.#errors.mark(this.#awaited, error)),
    );
    try {
      const back = this.#copyBack(sink, source);
      const forth = this.#copyForth(receiver, source, sink);
      forth.catch(() => {});
      try {
        await receiver.orStopped(Promise.race([back, forth.then(() => back)]));
      } catch (error) {
        if (this.#verdict !== 'LOADED') throw error;
      }
      await this.#finish(receiver, source, sink, forth);
      return {
        machine: this.#machine,
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

  /** Item by item, every byte as it is, to the end of the source's stream. */
  async #copyForth(receiver: Receiver, source: MainConnection, sink: MainConnection): Promise<void> {
    const { pageBytes: pageSize } = receiver;
    const stream = new MainStreamReader(source.reader, { pageSize, bounds: this.#bounds });
    this.#stream = stream;
    const write = async (bytes: Buffer): Promise<void> => {
      // What a source sends when all is loaded is of no use to anybody.
      if (this.#verdict === 'LOADED') return;
      await this.#owed(receiver, sink.write(bytes));
    };
    const items = new ItemsAhead(stream);
    /**
     * Begins with the block list, since a relay before this one sends no more until the destination has answered; done at
     * the first sync point, which ends ram's START, where the items behind it are read meanwhile.
     */
    let started: Promise<void> | undefined;
    const sync = async (): Promise<void> => {
      await started;
      await receiver.sync();
      const sender = this.#sender as Sender;
      // By this `multifd receive` at the other end sees whether the source's program is an old one.
      sender.syncPagesAlloc = receiver.syncPagesAlloc;
      await this.#owed(receiver, sender.sync());
    };
    for (;;) {
      const item = await receiver.orStopped(this.#errors.of('source', items.next()));
      if (item === undefined) break;
      if (item.kind === 'configuration') {
        this.#machine = item.configuration.machine;
        requirePageSizeTold(toldPageSize(item.configuration), this.#outgoing.pageSize);
      }
      if (item.kind === 'command' && item.command === COMMAND_OPEN_RETURN_PATH) {
        this.#returnPath = true;
        if (this.#options.switchoverAck === 'always') {
          await receiver.orStopped(source.write(encodeSwitchoverAck()));
        }
      }
      if (item.kind === 'command' && item.command === COMMAND_PING) this.#pinged = true;
      const isSection = item.kind === 'section' || item.kind === 'other-section';
      if (isSection && !this.#returnPath && !this.#pinged) {
        this.#pinged = true;
        await write(
          Buffer.concat([encodeCommand(COMMAND_OPEN_RETURN_PATH), encodeCommand(COMMAND_PING, PING_VALUE)]),
        );
      }
      if ((item.kind === 'flush' || item.kind === 'eos') && item.sync) {
        await items.during(sync(), () => receiver.hasChannels);
      }
      // Before they go out: what answers them may come in at once.
      if (item.kind === 'tail') {
        this.#tail.push(item.raw);
        const wrong = descriptionError(this.#tail);
        if (wrong !== undefined) throw this.#errors.mark('source', wrong);
      }
      await write(item.raw);
      if (item.kind === 'mem-size') {
        started = this.#start(receiver, item.blocks, stream.pageSize);
        // Nothing else may come in until it is done.
        started.catch((thrown: unknown) =>
          this.#break(receiver, MultifdError.wrap(thrown, 'ERR_MULTIFD_CONNECTION', 'relay')),
        );
      }
    }
    if (source.broken !== undefined) throw this.#errors.mark('source', source.broken);
    const ended = (where: string): MultifdError =>
      this.#errors.mark('source', new MultifdError('ERR_MULTIFD_EOF', `main stream ended ${where}`));
    if (!stream.inTail) throw ended("before ram's END");
    if (this.#verdict === 'LOADED') return;
    if (this.#tail.complete || this.#tail.endsWithFooterAndEof) {
      // With the return path it waits to be told, unless it has died, or given up and let its guest run on.
      if (this.#returnPath) throw this.#errors.mark('source', closedUntold());
      return;
    }
    // The destination knows best whether something is missing: it is given the end, and its answer is waited for.
    this.#cut = ended("inside the devices' state, without VM description");
    await receiver.orStopped(sink.end());
  }

  /** Who keeps the others waiting. */
  get #awaited(): Side {
    // When all of the source's bytes are there, only the SHUT is due.
    return this.#queueing > 0 || this.#tail.complete ? 'destination' : this.#owing;
  }

  /** Waits for what the destination has to take. */
  async #owed(receiver: Receiver, wait: Promise<void>): Promise<void> {
    this.#owing = 'destination';
    await receiver.orStopped(this.#errors.of('destination', wait));
    this.#owing = 'source';
  }

  /** The source has named the blocks: the channels of both sides may start. */
  async #start(
    receiver: Receiver,
    named: readonly { name: string; usedLength: number }[],
    pageSize: number,
  ): Promise<void> {
    const blocks: StreamBlockOptions[] = named.map(({ name, usedLength }) => ({
      name,
      size: usedLength,
      stream: STREAM,
    }));
    // The destination's channels say the uuid that the source's have said.
    await receiver.firstChannel();
    const uuid = (this.#uuid = this.#outgoing.uuid ?? receiver.uuid ?? undefined);
    const { signal } = this.#stop;
    const { tls, ...outgoing } = this.#outgoing;
    this.#creating = this.#errors.of(
      'destination',
      createSender({ ...outgoing, signal, blocks, pageSize, uuid }, true, tls),
    );
    const sender = (this.#sender = await receiver.orStopped(this.#creating));
    // Whichever side fails takes the other with it, and does not wait for its own threads before.
    this.#errors
      .of('destination', sender.orStopped(new Promise<never>(() => {})))
      .catch((error: MultifdError) => this.#break(receiver, error));
    receiver.setBlocks(makeBlocks(blocks, pageSize), pageSize);
    const start = { machine: this.#machine, blocks: blocks.map(({ name, size }) => ({ name, size })) };
    callHook('onStart', () => this.#options.onStart?.(start));
    callHook('onSession', () => this.#options.onSession?.(publicReceiver(receiver), publicSender(sender)));
    await this.#waitReady(receiver);
  }

  /** A QEMU reads its main stream only when all the channels are there that it expects. */
  async #waitReady(receiver: Receiver): Promise<void> {
    if (!this.#pinged) return;
    const ms = this.#connectTimeoutMs;
    const late = `the destination has not answered the PING within ${ms} ms: does it expect more channels (${SET_UP.channels})?`;
    const ponged = withLimit(receiver.orStopped(this.#pong), ms, 'ERR_MULTIFD_TIMEOUT', late);
    await this.#owed(receiver, ponged);
  }

  /** The return path: to the source, if that has opened it. Resolves when the verdict is LOADED. */
  async #copyBack(sink: MainConnection, source: MainConnection): Promise<void> {
    const messages = this.#errors.each('destination', readReturnPath(sink.reader));
    for await (const message of messages) {
      if (message.kind === 'shut' && message.status === 0) {
        this.#loaded(message.raw);
        return;
      }
      const passed = message.kind !== 'switchover-ack' || (this.#options.switchoverAck ?? 'auto') === 'auto';
      if (this.#returnPath && passed) await this.#errors.of('source', source.write(message.raw));
      if (message.kind === 'pong') this.#ponged();
      if (message.kind === 'shut') throw this.#refused('SHUT', message.status, 0);
    }
    if (this.#cut !== undefined) throw this.#cut;
    const message = 'the destination closed the main stream before it had loaded all';
    throw this.#errors.mark('destination', new MultifdError('ERR_MULTIFD_CONNECTION', message));
  }

  #refused(what: string, received: unknown, expected: unknown): MultifdError {
    // A destination that got half a device says no more than that it failed.
    if (this.#cut !== undefined) return this.#cut;
    const message = receivedExpected(`the destination's ${what}`, received, expected);
    return this.#errors.mark('destination', new MultifdError('ERR_MULTIFD_STREAM', message));
  }

  // ---- the verdict ----

  #loaded(shut: Buffer): void {
    if (this.#tail.bytes === 0) throw this.#refused('SHUT 0', "before the devices' state", 'after it');
    if (this.#verdict === 'BROKEN') throw new MultifdError('ERR_MULTIFD_CLOSED', 'broken off before SHUT 0');
    this.#verdict = 'LOADED';
    this.#shut = shut;
  }

  /** Ends every connection of both sides now, unless all is loaded. */
  #break(receiver: Receiver, error: MultifdError): void {
    if (this.#verdict !== 'OPEN') return;
    this.#verdict = 'BROKEN';
    this.#errors.settle(error);
    // The source first: it is the one whose guest is at stake.
    this.#source?.breakOff();
    this.destroy();
    void receiver.abandon(error);
    if (this.#sender !== undefined) void this.#sender.abandon(error);
    this.#stop.abort(error);
  }

  /** All is loaded: nothing that fails from here on is of any account. */
  async #finish(
    receiver: Receiver,
    source: MainConnection,
    sink: MainConnection,
    forth: Promise<void>,
  ): Promise<void> {
    const sender = this.#sender as Sender;
    // Its end may lie there unread; what is written behind it the kernel takes all the same.
    await turnEventLoop();
    if (this.#returnPath && !source.ended) {
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

  async failed(receiver: Receiver, thrown: MultifdError): Promise<MultifdError> {
    const first = receiver.error ?? thrown;
    this.#break(receiver, first);
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
    if (side === 'source' && this.#stream?.inTail !== true) return this.#errors.named(brokenOff(error));
    const named = this.#errors.named(error);
    if (side !== 'destination') return named;
    return explain(named, sentOf(this.#machine, this.#outgoing, this.#uuid));
  }

  destroy(): void {
    this.#source?.destroy();
    this.#sink?.destroy();
  }
}
