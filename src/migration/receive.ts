/**
 * Takes in a live migration from QEMU and keeps it as a mapped-ram file.
 *
 *     connections, any order       main stream (calling thread)             channels (workers)
 *     main, channels 0..C-1  -->   header, configuration, block list
 *                                  lays out OUT.part, a sparse file    -->  start: blocks are ranges of the file
 *                                  ZERO, PAGE records                       pages: pwrite in place, present bit set
 *                                  marker: FLUSH or EOS                     zero pages: present bit cleared
 *                                    waits for SYNC on each, releases  <->  SYNC
 *                                  large devices of our own VMs         <--  DEVICE_STATE (parked-devices.ts)
 *                                  ram's END: channels are frozen,      -->  nothing is taken in from here on
 *                                    all the rest is the tail
 *                                  bitmaps, fsync, rename to OUT, fsync of the folder
 *                                  SHUT 0, if the source opened the return path
 *                                  end of the session; the descriptor is closed
 *
 * What decides, and what is told by what fails at the end, is in whole-file.ts: the file has its name only when it is whole
 * and on disk. With option discard there is no file, and the source is told that it failed (discard.ts).
 */
import { MultifdError, codeOf, receivedExpected } from '../errors.js';
import { callback, fileName, flag, integer, wrong } from '../option-checks.js';
import { checkReceiverOptions, type ReceiverOptions } from '../options.js';
import { countWordsInTurns } from '../ram/bitmap.js';
import { checkDirectIo } from '../ram/direct-io.js';
import { publicReceiver, type Receiver as PublicReceiver } from '../public-session.js';
import { Receiver, type ReceiverStats } from '../recv/receiver.js';
import type { Address } from '../transport/address.js';
import { PACK_LEVEL } from '../packed/pack.js';
import { threadOptions } from '../runtime.js';
import { BOUND_KEYS, type BoundOptions, type Bounds, checkBounds } from '../stream/bounds.js';
import { CAPABILITY_IGNORE_SHARED, hasCapability } from '../stream/configuration.js';
import { toldPageSize } from '../stream/machine.js';
import { MainStreamReader } from '../stream/main-stream.js';
import { MappedRamWriter } from '../mapped-ram/writer.js';
import { COMMAND_OPEN_RETURN_PATH, type MainItem, type TailItem } from '../stream/records.js';
import { encodePong, encodeSwitchoverAck, pingValue } from '../stream/return-path.js';
import { TailScanner } from '../stream/vm-description.js';
import { brokenOff } from './blame.js';
import { FileRam } from './file-ram.js';
import { ItemsAhead, tailOf } from './items-ahead.js';
import { keepInformed } from './keep-informed.js';
import { settles } from './limits.js';
import type { Connection } from '../transport/connect.js';
import { loadTls } from '../transport/tls/loaded.js';
import { MainConnection } from '../transport/main-connection.js';
import {
  CONNECT_TIMEOUT_MS,
  callHook,
  descriptionError,
  requireOptions,
  requirePageSizeTold,
} from './options.js';
import { type Discard, DiscardedFile, checkDiscard } from './discard.js';
import { OutputFile } from './output-file.js';
import { PACKED_SUFFIX } from './pack.js';
import { PackedOutput, type PackedOutputOptions } from './packed-output.js';
import { ParkedDevices } from './parked-devices.js';
import { AckOwed, checkSwitchoverAck, type SwitchoverAck } from './switchover-ack.js';
import { watchMigration } from './watch.js';
import { WholeFile, type SourceEnd } from './whole-file.js';

/** With the return path the source keeps the connection open: how long it must be idle after a whole tail. */
const EXACT_IDLE_MS = 5;
const GUESSED_IDLE_MS = 1000;

export interface ReceiveMigrationOptions extends Omit<ReceiverOptions, 'blocks' | 'devices'>, BoundOptions {
  /** Milliseconds for all connections to come in, once the first has (default 8000). */
  connectTimeoutMs?: number;
  /** The file that is made. It must not exist yet unless `overwrite` is set. Needed without `discard`. */
  out?: string;
  /**
   * Keep nothing: all is read, decoded, checked and counted, for throughput tests of a source. `true` and `refuse`: the source
   * is told that it failed, so that its guest runs on; one without return path is refused. `accept`: it is told that all is
   * well and gives its guest up. Default false.
   */
  discard?: boolean | Discard;
  overwrite?: boolean;
  /**
   * Pack the file when all is there, in the seekable zstd format (packMigration()); as long the source waits, and there is a
   * plain file beside. Default: where `out` ends with `.zst`.
   */
  packed?: boolean;
  /** zstd level of a packed file, 1 to 20 (default 3). */
  packLevel?: number;
  /** Called now and then while it is packed, with the bytes of the plain file done so far, and all of them. */
  onPacking?: (bytes: number, totalBytes: number) => void;
  /** After a failure, leave the partial file under `OUT.part` (default false: it is removed). */
  keepPartial?: boolean;
  /**
   * Write the pages past the page cache (O_DIRECT; default false). A file system that does not let that be done is refused
   * before anything is listened on. QEMU: direct-io.
   */
  directIo?: boolean;
  /**
   * With the return path: the source's SWITCHOVER_ACK, without which one with capability switchover-ack goes on for ever.
   * Default `auto`: where the source can be told to bear it; see switchover-ack.ts.
   */
  switchoverAck?: SwitchoverAck;
  /** Called once the address is listened on. */
  onListening?: (address: Address) => void;
  /** Called when the source has told what it sends. */
  onStart?: (start: { machine: string; blocks: { name: string; size: number }[] }) => void;
  /** Called with the session, for progress() and stats(). */
  onSession?: (receiver: PublicReceiver) => void;
}

/** Those that are not a receiver's. */
const OWN_OPTIONS: Record<Exclude<keyof ReceiveMigrationOptions, keyof ReceiverOptions>, true> = {
  ...BOUND_KEYS,
  out: true,
  discard: true,
  overwrite: true,
  packed: true,
  packLevel: true,
  onPacking: true,
  keepPartial: true,
  directIo: true,
  switchoverAck: true,
  onListening: true,
  onStart: true,
  onSession: true,
};

export interface ReceivedMigration {
  /** The file; empty where nothing is kept. */
  out: string;
  /** What the source was told of what was discarded; undefined where there is a file. */
  discarded?: Discard;
  /** The machine type's full name; empty if the source sent none. */
  machine: string;
  blocks: { name: string; size: number; presentPages: number }[];
  /** Target page size, in bytes. */
  pageSize: number;
  /** The VM's uuid in text, as its channels told it: `send` has to be given it, the file has no place for it. */
  uuid: string | null;
  /** Length of the file, holes included; of one that is packed, that of the plain one. */
  fileBytes: number;
  /** Length of a file that is packed. */
  packedBytes?: number;
  returnPath: boolean;
  stats: ReceiverStats;
}

/**
 * @throws MultifdError with all codes of a receiver, and ERR_MULTIFD_STREAM for a main stream that is refused
 */
export async function receiveMigration(options: ReceiveMigrationOptions): Promise<ReceivedMigration> {
  const {
    out = '',
    discard: given,
    overwrite,
    packed: givenPacked,
    packLevel: givenLevel,
    onPacking,
    keepPartial,
    switchoverAck,
    onListening,
    onStart,
    onSession,
    ...others
  } = requireOptions(options);
  const { maxRam, maxBlocks, maxDescription, directIo: direct, ...receiverOptions } = others;
  const directIo = checkDirectIo(direct);
  const bounds = checkBounds({ maxRam, maxBlocks, maxDescription });
  const ack = new AckOwed(checkSwitchoverAck(switchoverAck));
  const discard = checkDiscard(given);
  if (discard === undefined) fileName('out', options.out);
  else if (options.out !== undefined) throw wrong('out', options.out, 'none beside option discard');
  for (const [name, hook] of Object.entries({ onPacking, onListening, onStart, onSession }))
    callback(name, hook);
  const flags = { overwrite: flag('overwrite', overwrite), keepPartial: flag('keepPartial', keepPartial) };
  if (discard !== undefined) refuseOfFiles({ ...flags, packed: givenPacked, directIo });
  const isPacked = givenPacked === undefined ? out.endsWith(PACKED_SUFFIX) : flag('packed', givenPacked);
  if (givenLevel !== undefined && !isPacked)
    throw wrong(
      'packLevel',
      givenLevel,
      'none for a file that is not packed (option packed, or a name that ends with .zst)',
    );
  const level = integer('packLevel', givenLevel, PACK_LEVEL, 1, 20);
  if (isPacked) threadOptions('pack', 'zstd');
  await loadTls(receiverOptions.tls);
  const checked = checkReceiverOptions(
    {
      ...receiverOptions,
      connectTimeoutMs: receiverOptions.connectTimeoutMs ?? CONNECT_TIMEOUT_MS,
    },
    true,
    Object.keys(OWN_OPTIONS),
  );
  // Before anybody is told to connect: a folder that is not there shall not cost a guest its migration.
  const file =
    discard === undefined
      ? await makeOutput(out, isPacked, { overwrite: flags.overwrite, directIo, level, onPacking })
      : await DiscardedFile.make(discard);
  const { pageSize } = receiverOptions;
  const incoming = new IncomingMigration(file, { onStart, ack, pageSize, bounds });
  let receiver: Receiver | undefined;
  try {
    const session = (receiver = new Receiver(checked, {
      present: true,
      anyUuid: receiverOptions.uuid === undefined,
      main: (connection, begun) => incoming.takeMain(connection, begun),
      deviceState: (...packet) => incoming.devices.keep(...packet),
    }));
    await session.open();
    callHook('onListening', () => onListening?.(session.address));
    callHook('onSession', () => onSession?.(publicReceiver(session)));
    const result = await incoming.run(session, checked.stallTimeoutMs);
    // It has its name and its source knows it: what breaks now is nobody's loss.
    await receiver.end().catch(() => {});
    await incoming.devices.close();
    await file.close();
    return { ...result, ...(discard && { discarded: discard }), stats: receiver.stats() };
  } catch (thrown) {
    const error = MultifdError.wrap(thrown, 'ERR_MULTIFD_IO', out || 'discard');
    // Before the threads are waited for: meanwhile a source without return path could complete.
    incoming.breakOff();
    // A source that gives up ends its channels itself; a QEMU before 9.0 hangs for good if they break while it waits for them.
    let first = receiver?.error;
    if (receiver !== undefined && first === undefined && incoming.mainEnded) {
      // What the session makes of it meanwhile is a consequence.
      first = error;
      await settles(receiver.channelsEnded());
    }
    await receiver?.abandon(error);
    await incoming.giveUp(flags.keepPartial);
    first ??= receiver?.error ?? error;
    throw incoming.kept ?? (incoming.inTail ? first : brokenOff(first));
  }
}

async function makeOutput(
  out: string,
  isPacked: boolean,
  options: PackedOutputOptions,
): Promise<OutputFile | PackedOutput> {
  const { overwrite, directIo, onPacking } = options;
  if (!isPacked) return OutputFile.make(out, overwrite, directIo);
  const told =
    onPacking && ((...bytes: [number, number]) => callHook('onPacking', () => onPacking(...bytes)));
  return PackedOutput.make(out, { ...options, onPacking: told });
}

/** @throws MultifdError ERR_MULTIFD_OPTION */
function refuseOfFiles(flags: Record<string, boolean | undefined>): void {
  for (const [name, value] of Object.entries(flags)) {
    if (value === true) throw wrong(name, value, 'false with option discard: there is no file');
  }
}

/** A source that is killed ends its stream with an ordinary end of file. @returns what is wrong with one here, if anything is */
function cutTail({ complete, endsWithFooterAndEof }: TailScanner): MultifdError | undefined {
  if (complete || endsWithFooterAndEof) return undefined;
  const message = "main stream ended inside the devices' state, without VM description";
  return new MultifdError('ERR_MULTIFD_EOF', message);
}

class IncomingMigration {
  readonly #file: OutputFile | PackedOutput | DiscardedFile;
  readonly #whole: WholeFile | DiscardedFile;
  readonly devices: ParkedDevices;
  readonly #onStart: ReceiveMigrationOptions['onStart'];
  readonly #ack: AckOwed;
  /** As it was given; the stream may tell it. */
  readonly #pageSize: number | undefined;
  readonly #bounds: Bounds;
  #main: MainConnection | undefined;
  #mainCame!: (connection: MainConnection) => void;
  readonly #mainIn: Promise<MainConnection>;
  #stream: MainStreamReader | undefined;
  #returnPath = false;
  /** Has the source sent all and left its main stream open, to be told? */
  #waiting = false;
  #writer: MappedRamWriter | undefined;
  #state: FileRam | undefined;

  constructor(
    file: OutputFile | PackedOutput | DiscardedFile,
    options: Pick<ReceiveMigrationOptions, 'onStart' | 'pageSize'> & { ack: AckOwed; bounds: Bounds },
  ) {
    this.#file = file;
    this.#whole = file instanceof DiscardedFile ? file : new WholeFile(file);
    this.devices = new ParkedDevices(file instanceof DiscardedFile ? undefined : file.part);
    this.#onStart = options.onStart;
    this.#ack = options.ack;
    this.#pageSize = options.pageSize;
    this.#bounds = options.bounds;
    this.#mainIn = new Promise((resolve) => (this.#mainCame = resolve));
  }

  takeMain(connection: Connection, begun: Buffer): void {
    this.#main = new MainConnection(connection, begun);
    this.#mainCame(this.#main);
  }

  async run(receiver: Receiver, stallTimeoutMs: number): Promise<Omit<ReceivedMigration, 'stats'>> {
    // Whatever ends the session ends the wait for the main stream's next byte as well.
    // But once the file has its name its source is told so, whatever happens to the session.
    const ended = (): void => {
      if (!this.#file.named) this.#main?.destroy();
    };
    receiver.done.then(ended, ended);
    const main = await receiver.orStopped(this.#mainIn);
    const unwatch = watchMigration(
      stallTimeoutMs,
      () => receiver.stats().bytes + main.moved + this.devices.moved,
      (error) => void receiver.abandon(error),
    );
    try {
      return await this.#receive(receiver, main, stallTimeoutMs, unwatch);
    } finally {
      unwatch();
    }
  }

  /** @param allCame what comes behind it is our own disk's, and nobody's stall */
  async #receive(
    receiver: Receiver,
    main: MainConnection,
    stallTimeoutMs: number,
    allCame: () => void,
  ): Promise<Omit<ReceivedMigration, 'stats'>> {
    const { pageBytes: pageSize } = receiver;
    const bounds = this.#bounds;
    const stream = (this.#stream = new MainStreamReader(main.reader, { pageSize, bounds }));
    const writer = (this.#writer = new MappedRamWriter(this.#file.stream, { pageSize }));
    const state = (this.#state = new FileRam(receiver, this.#file));
    const { maxDescription: maxBytes } = bounds;
    const scanner = new TailScanner({ maxBytes });
    const tailError = (tail: readonly Buffer[]): MultifdError | undefined => {
      const look = new TailScanner({ maxBytes, keepJson: false });
      for (const raw of tail) look.push(raw);
      return cutTail(look);
    };
    const items = new ItemsAhead(stream, { over: main.over, stallTimeoutMs, tailError });
    for (;;) {
      const item = await receiver.orStopped(this.#next(items, scanner));
      if (item === undefined) break;
      if (hasCapability(stream.configuration, CAPABILITY_IGNORE_SHARED)) {
        const message = receivedExpected(
          'capability x-ignore-shared',
          'on',
          'off: shared RAM would be missing',
        );
        throw new MultifdError('ERR_MULTIFD_STREAM', message);
      }
      if (item.kind === 'configuration') {
        requirePageSizeTold(toldPageSize(item.configuration), this.#pageSize);
      }
      if (item.kind === 'tail') {
        for await (const raw of this.#tail(stream, item, items)) {
          await writer.accept({ ...item, raw });
          scanner.push(raw);
          this.#look(scanner);
        }
        continue;
      }
      await writer.accept(item);
      switch (item.kind) {
        case 'mem-size':
          if (this.#file instanceof DiscardedFile) this.#file.begin(this.#returnPath);
          state.begin(writer, stream.pageSize);
          callHook('onStart', () =>
            this.#onStart?.({
              machine: stream.configuration?.machine ?? '',
              blocks: item.blocks.map((block) => ({ name: block.name, size: block.usedLength })),
            }),
          );
          break;
        case 'command':
          await receiver.orStopped(this.#command(item, main, stream.configuration?.machine));
          break;
        case 'zero':
          state.zero(item.block, item.offsets);
          break;
        case 'page':
          await state.page(item.block, item.offset, item.data);
          break;
        case 'flush':
        case 'eos':
          if (item.sync) {
            await items.during(receiver.sync(), () => receiver.hasChannels);
            if (this.#returnPath && this.#ack.afterSync(receiver.syncPagesAlloc)) {
              await receiver.orStopped(main.write(encodeSwitchoverAck()));
            }
          }
          // Behind ram's END no page may come: it would change a file that is whole already.
          if (item.kind === 'eos' && item.section === 'end') receiver.freeze();
          break;
      }
    }
    if (!stream.inTail) throw new MultifdError('ERR_MULTIFD_EOF', "main stream ended before ram's END");
    const cut = cutTail(scanner);
    if (cut !== undefined) throw cut;
    // Without return path nothing is read at the source: with TLS 1.3 its close is a reset, behind all of its bytes.
    const isReset = main.isSecure && !this.#returnPath && codeOf(main.broken?.cause) === 'ECONNRESET';
    if (main.broken !== undefined && !isReset) throw main.broken;
    allCame();
    const fileBytes = await writer.finish(({ name }) => state.present(name), scanner);
    await this.#keep(receiver, main);
    if (this.#returnPath) await this.#whole.tell(main);
    else await settles(main.end());
    main.destroy();
    const blocks: ReceivedMigration['blocks'] = [];
    for (const { name, size } of receiver.blocks) {
      blocks.push({ name, size, presentPages: await countWordsInTurns(state.present(name)) });
    }
    return {
      out: this.#file.out,
      machine: stream.configuration?.machine ?? '',
      blocks,
      pageSize: stream.pageSize,
      uuid: receiver.uuid ?? null,
      fileBytes,
      ...(this.#file instanceof PackedOutput && { packedBytes: this.#file.packedBytes }),
      returnPath: this.#returnPath,
    };
  }

  /** Packing takes its time: the source is told that this side is there, and one that goes is noticed. */
  async #keep(receiver: Receiver, main: MainConnection): Promise<void> {
    const end: SourceEnd = { returnPath: this.#returnPath, waiting: this.#waiting };
    if (!(this.#file instanceof PackedOutput) || !this.#returnPath) {
      await this.#whole.keep(receiver, main, end);
      return;
    }
    await keepInformed(main, this.#whole.keep(receiver, main, end), (error) => {
      end.gone = true;
      void receiver.abandon(error);
    });
  }

  /** What is to be in the file: the piece as it came, or, where devices have come over the channels, the whole tail with them. */
  #tail(
    stream: MainStreamReader,
    first: TailItem,
    items: ItemsAhead,
  ): Iterable<Buffer> | AsyncIterable<Buffer> {
    const { configuration, pageSize, footers } = stream;
    if (!this.devices.any || configuration === undefined) return [first.raw];
    const { maxDescription } = this.#bounds;
    const how = { configuration, pageSize, footers: footers !== false, maxDescription };
    return this.devices.convert(tailOf(first, items), how);
  }

  #look(scanner: TailScanner): void {
    const wrong = descriptionError(scanner);
    if (wrong !== undefined) throw wrong;
  }

  /** The next item; with the return path the end shows itself only by a whole tail and then silence. */
  async #next(items: ItemsAhead, scanner: TailScanner): Promise<MainItem | undefined> {
    const next = (this.#pending ??= items.next());
    // Without a VM description (suppress-vmdesc=on) the last footer and EOF are all there is.
    if (this.#returnPath && (scanner.complete || scanner.endsWithFooterAndEof)) {
      const idleMs = scanner.exact ? EXACT_IDLE_MS : GUESSED_IDLE_MS;
      let timer: NodeJS.Timeout | undefined;
      const idle = new Promise<'idle'>((resolve) => {
        // A late timer comes before the sockets' news; these are waited for as well.
        timer = setTimeout(() => setImmediate(() => resolve('idle')), idleMs);
      });
      const first = await Promise.race([next, idle]);
      clearTimeout(timer);
      if (first === 'idle') {
        next.catch(() => {});
        this.#waiting = true;
        return undefined;
      }
    }
    const item = await next;
    this.#pending = undefined;
    return item;
  }
  #pending: Promise<MainItem | undefined> | undefined;

  async #command(
    item: MainItem & { kind: 'command' },
    main: MainConnection,
    machine: string | undefined,
  ): Promise<void> {
    if (item.command === COMMAND_OPEN_RETURN_PATH) {
      this.#returnPath = true;
      if (this.#ack.atOpen(machine)) await main.write(encodeSwitchoverAck());
    }
    const ping = pingValue(item);
    if (ping !== undefined) await main.write(encodePong(ping));
  }

  /** Why a whole file has not got its name. */
  get kept(): MultifdError | undefined {
    return this.#whole instanceof DiscardedFile ? undefined : this.#whole.kept;
  }

  /** Has ram's END come? */
  get inTail(): boolean {
    return this.#stream?.inTail === true;
  }

  breakOff(): void {
    this.#main?.breakOff();
  }

  /** Has the source ended its main stream? */
  get mainEnded(): boolean {
    return this.#main?.ended === true;
  }

  /** To be called when the session has ended: its threads have used the file's descriptor. */
  async giveUp(keepPartial: boolean): Promise<void> {
    this.#main?.destroy();
    if (keepPartial && this.kept === undefined && !(this.#file instanceof DiscardedFile)) {
      // So that what is kept can be looked into: which pages are there.
      const state = this.#state as FileRam;
      await this.#writer?.keep(({ name }) => state.present(name)).catch(() => {});
      this.#file.keep();
    }
    await this.devices.close();
    await this.#file.giveUp();
  }
}
