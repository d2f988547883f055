/**
 * Sends a mapped-ram file into a QEMU that waits with `-incoming`: its main stream rebuilt without the file's parts, its
 * RAM over the channels, straight from the file.
 *
 *     main stream                                        channels
 *     connect first (QEMU 7.2 takes the first for it)
 *     header, configuration, PING, block list            connect, hello
 *     <- PONG on the return path: all its channels are in
 *     marker, EOS, other sections                        SYNC
 *     PART [ZERO records in mode legacy or none]         present pages; absent pages as zero pages in mode multifd; SYNC
 *     marker, EOS
 *     END                                                SYNC
 *     marker, EOS, tail: the devices
 *     <- SHUT on the return path: 0, the guest is there
 *
 * What an absent page holds in the file is undefined, so it is never read. The return path is opened in any case: without
 * it nobody would know whether the destination has loaded what was sent.
 *
 * One moment decides: the destination's SHUT 0 is read. Whatever fails before it, and an abort, breaks the main stream at
 * once and rejects the call, and a SHUT 0 that comes later is not looked at; whatever fails after it changes nothing, since
 * the guest is there. A SHUT 0 before the devices' state is refused.
 */
import { MultifdError } from '../errors.js';
import { callback, checkKeys, fileName } from '../option-checks.js';
import {
  checkTls,
  type CheckedSenderOptions,
  type SenderOptions,
  type ZeroPageDetection,
} from '../options.js';
import { checkAddress, type Address, type AddressText } from '../transport/address.js';
import { MigrationFile } from '../packed/open.js';
import { checkDirectIo } from '../ram/direct-io.js';
import { publicSender, type Sender as PublicSender } from '../public-session.js';
import { ChannelThreads } from '../channel-pool.js';
import { createSender, type Sender } from '../send/sender.js';
import type { Stats } from '../session-stats.js';
import { BOUND_KEYS, type BoundOptions, type Bounds, checkBounds } from '../stream/bounds.js';
import { machineRules, type QemuVersion } from '../stream/machine.js';
import { MainStreamBuilder, encodeCommand } from '../stream/main-writer.js';
import { requireSound, type MappedRamDescription } from '../mapped-ram/description.js';
import { readOtherSections, readPageEdges, readTail } from '../mapped-ram/pages.js';
import { readMappedRam } from '../mapped-ram/read.js';
import { tryDirectReads } from '../mapped-ram/read-pages.js';
import type { ReadableFile } from '../stream/positioned-file.js';
import { refusePacked } from '../packed/packed-file.js';
import { type SaveImage, readSaveImage } from '../libvirt/save-image.js';
import { wrongMode, type PostcopyOptions } from '../postcopy/options.js';
import { sendPostcopy } from '../postcopy/send.js';
import type { PostcopyResult } from '../postcopy/session.js';
import { COMMAND_OPEN_RETURN_PATH, COMMAND_PING } from '../stream/records.js';
import { Answer, refusedBy } from './answer.js';
import { PING_VALUE, allChannelsIn, connectMain, explain, sentOf } from './destination.js';
import type { CheckedTls } from '../transport/tls/check-options.js';
import { loadTls } from '../transport/tls/loaded.js';
import { settles } from './limits.js';
import type { MainConnection } from '../transport/main-connection.js';
import {
  CONNECT_TIMEOUT_MS,
  OUTGOING_KEYS,
  callHook,
  checkOffset,
  checkOutgoing,
  checkPeer,
  requireOptions,
  requirePageSizeTold,
} from './options.js';
import { sendStream } from './send-stream.js';
import { STALL_TIMEOUT_MS, watchMigration, whileMoving } from './watch.js';

/** ZERO records in one write. */
const ZERO_RECORDS = 4096;
export interface SendMigrationOptions
  extends Omit<SenderOptions, 'address' | 'blocks' | 'onZeroPages' | 'uuid'>, BoundOptions {
  /** `precopy` (default): the guest runs when all is there. `postcopy` starts it at once: PostcopyOptions. */
  mode?: 'precopy';
  /** A mapped-ram file: from receiveMigration(), or from QEMU's `file:` migration. Or what libvirt saves a domain in. */
  file: string;
  /** Where the stream begins in the file, in bytes (default 0). */
  offset?: number;
  /** Read the pages past the page cache (O_DIRECT; default false). QEMU: direct-io. */
  directIo?: boolean;
  /** Where a QEMU waits: an object, `tcp:HOST:PORT`, `unix:PATH`. */
  to: Address | AddressText;
  /** The destination's program version, such as `7.2`, where it is older than the machine type asks for. */
  peer?: string;
  /** Milliseconds to connect, and for the destination to answer that all its channels are in (default 8000). */
  connectTimeoutMs?: number;
  /** The VM's uuid in text, if it has one: QEMU compares it in each channel's hello. Default: as a file of libvirt's has it. */
  uuid?: string;
  /** Default by the machine type. Pages that the file has are looked at again for zeros only where `multifd` is given. */
  zeroPageDetection?: ZeroPageDetection;
  /** Called when the file has been read and the destination is connected, before anything is sent. */
  onStart?: (start: OutgoingStart) => void;
  /** Called with the session, for progress() and stats(). */
  onSession?: (sender: PublicSender) => void;
  /** Of a file that is a stream: called with each batch of its records that has been sent. */
  onRecords?: (records: StreamRecords) => void;
}

/** Pages that went as records of the main stream, in the order of a file that is a stream. */
export interface StreamRecords {
  pages: number;
  zeroPages: number;
  /** Of the main stream, all that was sent on it. */
  bytes: number;
}

/** Those that are not a sender's. */
const OWN_OPTIONS: Record<Exclude<keyof SendMigrationOptions, keyof SenderOptions>, true> = {
  ...BOUND_KEYS,
  mode: true,
  file: true,
  offset: true,
  directIo: true,
  to: true,
  peer: true,
  onStart: true,
  onSession: true,
  onRecords: true,
};

/** What will be sent. */
export interface OutgoingStart {
  /** The machine type's full name; empty if the file has none. */
  machine: string;
  /** What pages a file that is a stream has, shows at its end. */
  blocks: { name: string; size: number; presentPages?: number }[];
  zeroPageDetection: ZeroPageDetection;
  /** What libvirt says of the domain, where it has made the file. */
  libvirt?: SaveImage;
  /** Page bytes that will go over the channels, zero pages included in mode `multifd`. */
  channelBytes: number;
}

export interface SentMigration extends OutgoingStart {
  /** Of a file that is a stream; its channels have no pages. */
  records?: StreamRecords;
  stats: Stats;
}

/**
 * Sends the file; resolves when the destination has said that it loaded it.
 *
 * @throws MultifdError with all codes of a sender, and ERR_MULTIFD_STREAM for a file that is not sound or a destination
 *   that refuses
 */
export async function sendMigration(options: SendMigrationOptions): Promise<SentMigration>;
export async function sendMigration(options: PostcopyOptions): Promise<PostcopyResult>;
export async function sendMigration(
  options: SendMigrationOptions | PostcopyOptions,
): Promise<SentMigration | PostcopyResult> {
  const { mode = 'precopy' } = requireOptions(options);
  if (mode === 'precopy') return sendAll(options as SendMigrationOptions);
  if (mode === 'postcopy') return sendPostcopy(options as PostcopyOptions);
  throw wrongMode(mode);
}

export interface CheckedSend {
  file: string;
  /** Where a mapped-ram file, or an image of libvirt's, begins. */
  offset: number;
  directIo: boolean;
  address: Address;
  version: QemuVersion | undefined;
  connectTimeoutMs: number;
  channels: number;
  compression: CheckedSenderOptions['compression'];
  bounds: Bounds;
  tls: CheckedTls | undefined;
  /** Of the options those that are a sender's, which has checked them. */
  senderOptions: Omit<SenderOptions, 'address' | 'blocks'>;
}

/**
 * All that can be said of the options without the file.
 *
 * @throws MultifdError ERR_MULTIFD_OPTION, ERR_MULTIFD_TLS, ERR_MULTIFD_RUNTIME
 */
export async function checkSend({ mode: _, ...options }: SendMigrationOptions): Promise<CheckedSend> {
  const { file, to, peer, onStart, onSession, onRecords, offset, ...others } = options;
  const { maxRam, maxBlocks, maxDescription, directIo, tls, ...senderOptions } = others;
  checkKeys(senderOptions, OUTGOING_KEYS, '', [...Object.keys(OWN_OPTIONS), 'tls']);
  const address = checkAddress(to, 1, 'to');
  const connectTimeoutMs = options.connectTimeoutMs ?? CONNECT_TIMEOUT_MS;
  const version = checkPeer(peer);
  for (const [name, hook] of Object.entries({ onStart, onSession, onRecords })) callback(name, hook);
  const { channels, compression } = checkOutgoing({ ...senderOptions, address }, tls);
  const checked = {
    file: fileName('file', file),
    offset: checkOffset(offset),
    directIo: checkDirectIo(directIo),
    ...{ address, version, connectTimeoutMs, channels, compression, senderOptions },
    bounds: checkBounds({ maxRam, maxBlocks, maxDescription }),
  };
  await loadTls(tls);
  return { ...checked, tls: checkTls(tls, 'client', 'tls', address) };
}

async function sendAll(options: SendMigrationOptions): Promise<SentMigration> {
  const checked = await checkSend(options);
  const { file, directIo, offset: imageOffset, address, version, connectTimeoutMs } = checked;
  const { channels, compression, bounds, tls, senderOptions } = checked;
  const { onStart, onSession, onRecords } = options;
  await using opened = await MigrationFile.open(file, directIo);
  const { content } = opened;
  const libvirt = await readSaveImage(content, imageOffset);
  if (libvirt !== undefined && libvirt.format !== 'sparse') {
    if (opened.packed !== undefined) refusePacked("libvirt's save image of a stream");
    const { handle } = opened;
    const stream = { handle, image: libvirt, options, senderOptions, address, tls, version, bounds };
    return await sendStream({ ...stream, onRecords, channels, compression, connectTimeoutMs });
  }
  const offset = libvirt?.streamOffset ?? imageOffset;
  const uuid = options.uuid ?? libvirt?.uuid ?? undefined;
  let description: MappedRamDescription;
  let main: MainConnection;
  let threads: ChannelThreads | undefined;
  try {
    // Beside reading: both take their time.
    threads = new ChannelThreads('send-channel', channels, compression);
    description = await readMappedRam(content, { offset, pageSize: options.pageSize, ...bounds });
    requireSound(description);
    requirePageSizeTold(description.pageSize, options.pageSize);
    if (opened.directPages !== undefined) await tryDirectReads(opened.directPages, description);
    main = await connectMain(address, connectTimeoutMs, options.signal, tls);
  } catch (error) {
    await threads?.destroy();
    throw error;
  }
  const rules = machineRules(description.configuration?.machine, version);
  const mode = options.zeroPageDetection ?? rules.zeroPageDetection;
  let sender: Sender | undefined;
  let outgoing: OutgoingMigration | undefined;
  let laidOut: Promise<void> | undefined;
  try {
    const start = { ...startOf(description, mode), ...(libvirt && { libvirt }) };
    callHook('onStart', () => onStart?.(start));
    const builder = new MainStreamBuilder(description, rules);
    await main.write(
      builder.begin([encodeCommand(COMMAND_OPEN_RETURN_PATH), encodeCommand(COMMAND_PING, PING_VALUE)]),
    );
    // Beside the channels: a QEMU reads its main stream when they are there, and this may be more than a socket holds.
    laidOut = writeUpToBlocks(main, builder, content, description);
    laidOut.catch(() => {});
    sender = await createSender(
      {
        ...senderOptions,
        uuid,
        address,
        connectTimeoutMs,
        pageSize: description.pageSize,
        // Absent pages are known, and whoever made the file has looked at the others; again only for who says so.
        zeroPageDetection: options.zeroPageDetection === 'multifd' ? 'multifd' : 'none',
        blocks: description.blocks.map((block) => ({
          name: block.name,
          ...opened.ram(),
          offset: block.pagesOffset,
          size: block.usedLength,
        })),
      },
      true,
      tls,
      threads,
    );
    const session = sender;
    callHook('onSession', () => onSession?.(publicSender(session)));
    const migration = (outgoing = new OutgoingMigration({ sender, main, builder, content, description }));
    await outgoing.ready(connectTimeoutMs);
    const { stallTimeoutMs = STALL_TIMEOUT_MS } = options;
    const unwatch = watchMigration(
      stallTimeoutMs,
      () => session.stats().bytes + migration.moved,
      (error) => void session.abandon(error),
    );
    try {
      await session.orStopped(laidOut);
      await outgoing.run(mode, stallTimeoutMs);
    } catch (error) {
      if (!outgoing.loaded) throw error;
    } finally {
      unwatch();
    }
    await Promise.all([session.end().catch(() => session.close()), settles(main.end())]);
    return { ...start, stats: sender.stats() };
  } catch (thrown) {
    const error = MultifdError.wrap(thrown, 'ERR_MULTIFD_CONNECTION', 'migration');
    outgoing?.breakOff();
    main.destroy();
    await sender?.abandon(error);
    const sent = sentOf(description.machine, options, uuid);
    throw explain(sender?.error ?? error, sent, main.earlyEnd);
  } finally {
    main.destroy();
    await laidOut?.catch(() => {});
    if (sender === undefined) await threads.destroy();
  }
}

/** What stands before RAM, and START with its block list. */
async function writeUpToBlocks(
  main: MainConnection,
  builder: MainStreamBuilder,
  content: ReadableFile,
  description: MappedRamDescription,
): Promise<void> {
  for await (const piece of readOtherSections(content, description.sectionsBeforeRam)) {
    await main.write(piece);
  }
  await main.write(builder.start());
}

function startOf(description: MappedRamDescription, zeroPageDetection: ZeroPageDetection): OutgoingStart {
  const blocks = description.blocks.map((block) => ({
    name: block.name,
    size: block.usedLength,
    presentPages: block.presentPages,
  }));
  // Elsewhere than in mode multifd absent pages go as ZERO records of the main stream.
  const channelBytes =
    zeroPageDetection === 'multifd'
      ? blocks.reduce((sum, block) => sum + block.size, 0)
      : description.presentPages * description.pageSize;
  return { machine: description.machine, blocks, zeroPageDetection, channelBytes };
}

interface Outgoing {
  sender: Sender;
  main: MainConnection;
  builder: MainStreamBuilder;
  content: ReadableFile;
  description: MappedRamDescription;
}

class OutgoingMigration {
  readonly #parts: Outgoing;
  readonly #answer: Answer;

  constructor(parts: Outgoing) {
    this.#parts = parts;
    this.#answer = new Answer(parts.main.reader);
    this.#answer.shut.catch((error: unknown) => {
      // While pages are sent, a destination that is gone is noticed here first.
      void this.#parts.sender.abandon(MultifdError.wrap(error, 'ERR_MULTIFD_CONNECTION', 'main stream'));
    });
  }

  /** Has the destination said that all is loaded? */
  get loaded(): boolean {
    return this.#answer.isLoaded;
  }

  /** On the main stream, in bytes: what shows that the destination gets on. */
  get moved(): number {
    return this.#answer.moved(this.#parts.main);
  }

  /** From here on nothing that the destination says counts. */
  breakOff(): void {
    this.#answer.ignore();
  }

  async ready(timeoutMs: number): Promise<void> {
    await allChannelsIn(this.#parts.sender.orStopped(this.#answer.pong), timeoutMs);
  }

  async run(mode: ZeroPageDetection, stallTimeoutMs: number): Promise<void> {
    const { sender, builder, content, description } = this.#parts;
    await this.#endSection();
    // Before any RAM, where virtio-mem's must be: the destination learns by it which memory is plugged in.
    for await (const piece of readOtherSections(content, description.sectionsBesideRam)) {
      await this.#write(piece);
    }
    await this.#write(builder.part());
    for (const block of description.blocks) {
      for await (const { edges, num, present } of readPageEdges(content, block)) {
        // Apart, since a packet whose pages need not be looked at is one of its own.
        for (const wanted of [true, false]) {
          for (let i = wanted === present ? 0 : 1; i + 1 < num; i += 2) {
            const offset = edges[i] * description.pageSize;
            const length = (edges[i + 1] - edges[i]) * description.pageSize;
            if (wanted) await sender.queueRange(block.name, offset, length);
            else if (mode === 'multifd') await sender.queueZeroRange(block.name, offset, length);
            else await this.#zeroRecords(block.name, offset, length);
          }
        }
      }
    }
    await this.#endSection();
    await this.#write(builder.end());
    await this.#endSection();
    this.#answer.expectShut();
    for await (const piece of readTail(content, description)) await this.#write(piece);
    const late = `the destination has all, but has not said for ${stallTimeoutMs} ms that it is loaded, or being so`;
    const wait = sender.orStopped(this.#answer.shut);
    const status = await whileMoving(wait, stallTimeoutMs, () => this.#parts.main.moved, late);
    if (status !== 0) throw refusedBy(status);
  }

  /** SYNC on every channel, then the marker. */
  async #endSection(): Promise<void> {
    await this.#parts.sender.sync();
    await this.#write(this.#parts.builder.endSection());
  }

  async #write(bytes: Buffer): Promise<void> {
    await this.#parts.sender.orStopped(this.#parts.main.write(bytes));
  }

  async #zeroRecords(name: string, offset: number, length: number): Promise<void> {
    const { builder, description } = this.#parts;
    for (let at = offset; at < offset + length;) {
      const offsets: number[] = [];
      for (; offsets.length < ZERO_RECORDS && at < offset + length; at += description.pageSize)
        offsets.push(at);
      await this.#write(builder.zeros(name, offsets));
    }
  }
}
