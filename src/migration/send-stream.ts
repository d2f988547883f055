/**
 * Sends a file that is a plain migration stream, as libvirt saves one, into a QEMU that waits with multifd: RAM in PAGE and
 * ZERO records on the main stream, in the file's order, so that a page that comes twice ends as it came last. The channels
 * have their SYNCs and nothing else: what is unpacked comes in one order, and faster than it can be unpacked one connection
 * takes it.
 *
 *     of the file                to the destination
 *     header                     the same; where there is no configuration, OPEN_RETURN_PATH and PING behind it
 *     configuration              the same, OPEN_RETURN_PATH, PING
 *     commands 1 2 3             nothing: return path and postcopy are one connection's
 *     SWITCHOVER_START           nothing, where the destination refuses it
 *     block list                 the same; now the channels connect            <- PONG: all its channels are in
 *     MULTIFD_FLUSH              nothing (some QEMUs write it without multifd as well)
 *     EOS                        where it is a sync point: SYNC on each channel, marker, EOS. With marker `eos` each is one,
 *                                with `flush` those of START and END
 *     all else                   the same
 *     tail, up to its end        the same                                      <- SHUT 0: the guest is there
 *
 * The file is read twice, the first time up to the block list: what is sent is told, and refused, before anybody is connected.
 * What decides is as in send.ts: SHUT 0 read, or not.
 *
 * Memory: a batch of records, and what is unpacked ahead (libvirt/unpack.ts).
 */
import type { FileHandle } from 'node:fs/promises';
import { MultifdError, receivedExpected } from '../errors.js';
import { ChannelThreads } from '../channel-pool.js';
import { type SaveImage, requireSparse } from '../libvirt/save-image.js';
import { UNPACKED_NAME, type UnpackedStream, unpack } from '../libvirt/unpack.js';
import type { Compression, SenderOptions } from '../options.js';
import { publicSender } from '../public-session.js';
import { createSender, type Sender } from '../send/sender.js';
import type { StreamBlock } from '../stream/block-list.js';
import type { Bounds } from '../stream/bounds.js';
import { ByteReader } from '../stream/byte-reader.js';
import { STREAM_ERRORS } from '../stream/codes.js';
import { CAPABILITY_IGNORE_SHARED, type Configuration, hasCapability } from '../stream/configuration.js';
import { MainStreamReader } from '../stream/main-stream.js';
import { encodeCommand, encodeFlush, toSocketStream } from '../stream/main-writer.js';
import { machineRules, toldPageSize, type MachineRules, type QemuVersion } from '../stream/machine.js';
import { COMMAND_OPEN_RETURN_PATH, COMMAND_PING, type MainItem } from '../stream/records.js';
import { TailEndFinder, cutTail } from '../stream/tail-end.js';
import type { Address } from '../transport/address.js';
import type { MainConnection } from '../transport/main-connection.js';
import type { CheckedTls } from '../transport/tls/check-options.js';
import { Answer, refusedBy } from './answer.js';
import { PING_VALUE, allChannelsIn, connectMain, explain, sentOf } from './destination.js';
import { settles } from './limits.js';
import { callHook, requirePageSizeTold } from './options.js';
import type { OutgoingStart, SendMigrationOptions, SentMigration, StreamRecords } from './send.js';
import { STALL_TIMEOUT_MS, watchMigration, whileMoving } from './watch.js';

/** Written at once. */
const BATCH_BYTES = 2 ** 18;
const ASK = [encodeCommand(COMMAND_OPEN_RETURN_PATH), encodeCommand(COMMAND_PING, PING_VALUE)];

/** What sendMigration() has checked and opened; the file stays its own. */
export interface StreamToSend {
  handle: FileHandle;
  image: SaveImage;
  options: SendMigrationOptions;
  address: Address;
  tls: CheckedTls | undefined;
  version: QemuVersion | undefined;
  bounds: Bounds;
  connectTimeoutMs: number;
  /** Of the options those that are a sender's. */
  senderOptions: Omit<SenderOptions, 'address' | 'blocks'>;
  onRecords: SendMigrationOptions['onRecords'];
  channels: number;
  compression: Compression;
}

/** What the stream says before its RAM. */
export interface StreamHead {
  configuration: Configuration | undefined;
  pageSize: number;
  blocks: readonly StreamBlock[];
}

/** @throws MultifdError as sendMigration() */
export async function sendStream(to: StreamToSend): Promise<SentMigration> {
  const { handle, image, options, address, tls, bounds, connectTimeoutMs } = to;
  const { stallTimeoutMs = STALL_TIMEOUT_MS, uuid = image.uuid } = options;
  const { pageSize, directIo } = options;
  const head = await readHead(handle, image, { directIo, bounds, pageSize, stallTimeoutMs });
  const machine = head.configuration?.machine ?? '';
  const start: OutgoingStart = {
    machine,
    blocks: head.blocks.map(({ name, usedLength }) => ({ name, size: usedLength })),
    zeroPageDetection: 'legacy',
    channelBytes: 0,
    libvirt: image,
  };
  const main = await connectMain(address, connectTimeoutMs, options.signal, tls);
  const threads = new ChannelThreads('send-channel', to.channels, to.compression);
  const source = unpack(handle, image, stallTimeoutMs);
  let sender: Sender | undefined;
  let outgoing: OutgoingStream | undefined;
  let laidOut: Promise<void> | undefined;
  try {
    callHook('onStart', () => options.onStart?.(start));
    const rules = machineRules(head.configuration?.machine, to.version);
    outgoing = new OutgoingStream({
      ...{ main, source, rules, bounds },
      pageSize: head.pageSize,
      isPacked: image.format !== 'raw',
      onRecords: to.onRecords,
    });
    await outgoing.ask();
    // Beside the channels: a QEMU reads its main stream when they are there, and this may be more than a socket holds.
    laidOut = outgoing.begin();
    laidOut.catch(() => {});
    sender = await createSender(
      {
        ...to.senderOptions,
        ...(uuid !== null && { uuid }),
        address,
        connectTimeoutMs,
        pageSize: head.pageSize,
        zeroPageDetection: 'none',
        // A sender has one; no page of it is ever queued.
        blocks: [{ name: head.blocks[0].name, memory: new SharedArrayBuffer(head.pageSize) }],
      },
      true,
      tls,
      threads,
    );
    const session = sender;
    callHook('onSession', () => options.onSession?.(publicSender(session)));
    const { answer } = outgoing;
    outgoing.watch(session);
    await allChannelsIn(session.orStopped(outgoing.answer.pong), connectTimeoutMs);
    const unwatch = watchMigration(
      stallTimeoutMs,
      () => session.stats().bytes + answer.moved(main),
      (error) => void session.abandon(error),
    );
    try {
      await session.orStopped(laidOut);
      await outgoing.run(session, stallTimeoutMs);
    } catch (error) {
      if (!outgoing.answer.isLoaded) throw error;
    } finally {
      unwatch();
    }
    await Promise.all([session.end().catch(() => session.close()), settles(main.end())]);
    return { ...start, records: outgoing.records, stats: session.stats() };
  } catch (thrown) {
    const error = MultifdError.wrap(thrown, 'ERR_MULTIFD_CONNECTION', 'migration');
    outgoing?.answer.ignore();
    main.destroy();
    await sender?.abandon(error);
    throw explain(sender?.error ?? error, sentOf(machine, options, uuid), main.earlyEnd);
  } finally {
    main.destroy();
    await source.close();
    await laidOut?.catch(() => {});
    if (sender === undefined) await threads.destroy();
  }
}

interface HowToRead {
  directIo: boolean | undefined;
  bounds: Bounds;
  pageSize: number | undefined;
  stallTimeoutMs: number | undefined;
}

/**
 * Reads the stream up to its block list. Also for who has more to do before it is sent.
 *
 * @throws MultifdError as sendStream() before it connects
 */
export async function readHead(handle: FileHandle, image: SaveImage, how: HowToRead): Promise<StreamHead> {
  const { directIo, bounds, pageSize, stallTimeoutMs = STALL_TIMEOUT_MS } = how;
  if (directIo === true) requireSparse(image, 'option directIo');
  const source = unpack(handle, image, stallTimeoutMs);
  try {
    const stream = streamReader(source, pageSize, bounds);
    for (;;) {
      const item = await stream.next();
      if (item?.kind === 'configuration') {
        requirePageSizeTold(toldPageSize(item.configuration), pageSize);
        if (hasCapability(item.configuration, CAPABILITY_IGNORE_SHARED)) throw sharedIsMissing();
      }
      if (item?.kind !== 'mem-size') continue;
      return { configuration: stream.configuration, pageSize: stream.pageSize, blocks: item.blocks };
    }
  } finally {
    await source.close();
  }
}

function streamReader(
  source: UnpackedStream,
  pageSize: number | undefined,
  bounds: Bounds,
): MainStreamReader {
  const reader = new ByteReader(source, { name: UNPACKED_NAME });
  return new MainStreamReader(reader, { ...(pageSize !== undefined && { pageSize }), bounds });
}

function sharedIsMissing(): MultifdError {
  const message = receivedExpected('capability x-ignore-shared', 'on', 'off: shared RAM would be missing');
  return new MultifdError(STREAM_ERRORS.unsupported, message);
}

interface Outgoing {
  main: MainConnection;
  source: UnpackedStream;
  rules: MachineRules;
  bounds: Bounds;
  pageSize: number;
  isPacked: boolean;
  onRecords: SendMigrationOptions['onRecords'];
}

class OutgoingStream {
  readonly answer: Answer;
  /** Sent so far. */
  readonly records: StreamRecords = { pages: 0, zeroPages: 0, bytes: 0 };
  readonly #parts: Outgoing;
  readonly #stream: MainStreamReader;
  #batch: Buffer[] = [];
  #batchBytes = 0;
  /** Of a stream without configuration: what stands in its place. */
  #first: MainItem | undefined;

  constructor(parts: Outgoing) {
    this.#parts = parts;
    this.#stream = streamReader(parts.source, parts.pageSize, parts.bounds);
    this.answer = new Answer(parts.main.reader);
  }

  /** While records are sent, a destination that is gone is noticed here first. */
  watch(sender: Sender): void {
    this.answer.shut.catch((error: unknown) => {
      void sender.abandon(MultifdError.wrap(error, 'ERR_MULTIFD_CONNECTION', 'main stream'));
    });
  }

  /** Header and configuration, and our own questions. */
  async ask(): Promise<void> {
    let item = await this.#next();
    for (; item.kind === 'header'; item = await this.#next()) this.#add(item.raw);
    const isConfigured = item.kind === 'configuration';
    if (isConfigured) this.#add(toSocketStream(item, this.#parts.rules));
    else this.#first = item;
    this.#add(...ASK);
    await this.#write();
  }

  /** Up to the block list. */
  async begin(): Promise<void> {
    for (let item = this.#first ?? (await this.#next()); ; item = await this.#next()) {
      this.#add(toSocketStream(item, this.#parts.rules));
      if (item.kind === 'mem-size') break;
      if (this.#batchBytes >= BATCH_BYTES) await this.#write();
    }
    await this.#write();
  }

  /** The rest; resolves when the destination has loaded it. */
  async run(sender: Sender, stallTimeoutMs: number): Promise<void> {
    const { rules, onRecords } = this.#parts;
    while (!this.#stream.inTail) {
      const item = await sender.orStopped(this.#next());
      if (item.kind === 'eos' && (rules.marker === 'eos' || item.section !== 'part')) {
        await sender.orStopped(this.#write());
        await sender.sync();
        if (rules.marker === 'flush') this.#add(encodeFlush());
        this.#add(item.raw);
      } else if (item.kind === 'command') this.#add(toSocketStream(item, rules));
      else if (item.kind !== 'flush') this.#add(item.raw);
      if (item.kind === 'page') this.records.pages++;
      else if (item.kind === 'zero') this.records.zeroPages += item.offsets.length;
      if (this.#batchBytes < BATCH_BYTES) continue;
      await sender.orStopped(this.#write());
      callHook('onRecords', () => onRecords?.({ ...this.records }));
    }
    await sender.orStopped(this.#write());
    this.answer.expectShut();
    await this.#sendTail(sender);
    const late = `the destination has all, but has not said for ${stallTimeoutMs} ms that it is loaded, or being so`;
    const wait = sender.orStopped(this.answer.shut);
    const status = await whileMoving(wait, stallTimeoutMs, () => this.#parts.main.moved, late);
    if (status !== 0) throw refusedBy(status);
  }

  /**
   * Its last piece goes when the file's end has been seen: only there a codec says whether what came out of it, RAM
   * included, was what went in.
   */
  async #sendTail(sender: Sender): Promise<void> {
    const { bounds, isPacked } = this.#parts;
    const finder = new TailEndFinder(bounds.maxDescription);
    let held: Buffer = Buffer.alloc(0);
    let bytes = 0;
    let isDecided = false;
    for (;;) {
      const item = await sender.orStopped(this.#stream.next());
      if (item === undefined) break;
      // Behind its end there may be padding, which nobody sends.
      if (isDecided) continue;
      await sender.orStopped(this.#send(held));
      bytes += held.length;
      held = item.raw;
      isDecided = finder.push(held);
      if (isDecided && !isPacked) break;
    }
    const end = finder.end(this.#stream.footers ?? true);
    if (!end.isWhole) throw cutTail(UNPACKED_NAME, bytes + held.length);
    await sender.orStopped(this.#send(held.subarray(0, Math.max(end.bytes - bytes, 0))));
  }

  async #next(): Promise<MainItem> {
    const item = await this.#stream.next();
    if (item !== undefined) return item;
    throw new MultifdError(STREAM_ERRORS.eof, `${UNPACKED_NAME}: ended before ram's END`);
  }

  #add(...pieces: Buffer[]): void {
    for (const piece of pieces) {
      this.#batch.push(piece);
      this.#batchBytes += piece.length;
    }
  }

  async #write(): Promise<void> {
    const bytes = Buffer.concat(this.#batch);
    this.#batch = [];
    this.#batchBytes = 0;
    await this.#send(bytes);
  }

  async #send(bytes: Buffer): Promise<void> {
    await this.#parts.main.write(bytes);
    this.records.bytes += bytes.length;
  }
}
