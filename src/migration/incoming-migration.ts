/**
 * A live migration from QEMU on its way into a file: what its main stream says is done, beside what the channels do.
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
 * Called on the calling thread by receive.ts, which owns the session and the file.
 */
import { MultifdError, codeOf, receivedExpected } from '../errors.js';
import { MappedRamWriter } from '../mapped-ram/writer.js';
import { countWordsInTurns } from '../ram/bitmap.js';
import type { Receiver } from '../recv/receiver.js';
import type { Bounds } from '../stream/bounds.js';
import { CAPABILITY_IGNORE_SHARED, hasCapability } from '../stream/configuration.js';
import { toldPageSize } from '../stream/machine.js';
import { MainStreamReader } from '../stream/main-stream.js';
import { COMMAND_OPEN_RETURN_PATH, type MainItem, type TailItem } from '../stream/records.js';
import { encodePong, encodeSwitchoverAck, pingValue } from '../stream/return-path.js';
import { TailScanner } from '../stream/vm-description.js';
import type { Connection } from '../transport/connect.js';
import { MainConnection } from '../transport/main-connection.js';
import { DiscardedFile } from './discard.js';
import { FileRam } from './file-ram.js';
import { ItemsAhead, tailOf } from './items-ahead.js';
import { keepInformed } from './keep-informed.js';
import { settles } from './limits.js';
import { callHook, descriptionError, requirePageSizeTold } from './options.js';
import type { OutputFile } from './output-file.js';
import { PackedOutput } from './packed-output.js';
import { ParkedDevices } from './parked-devices.js';
import type { ReceiveMigrationOptions, ReceivedMigration } from './receive-options.js';
import type { AckOwed } from './switchover-ack.js';
import { watchMigration } from './watch.js';
import { WholeFile, type SourceEnd } from './whole-file.js';

/** With the return path the source keeps the connection open: how long it must be idle after a whole tail. */
const EXACT_IDLE_MS = 5;
const GUESSED_IDLE_MS = 1000;

export class IncomingMigration {
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
  /** The next item, asked for and not yet come. */
  #pending: Promise<MainItem | undefined> | undefined;
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

/** A source that is killed ends its stream with an ordinary end of file. @returns what is wrong with one here, if anything is */
function cutTail({ complete, endsWithFooterAndEof }: TailScanner): MultifdError | undefined {
  if (complete || endsWithFooterAndEof) return undefined;
  const message = "main stream ended inside the devices' state, without VM description";
  return new MultifdError('ERR_MULTIFD_EOF', message);
}
