/**
 * The destination of a live migration: the mirror of outgoing.ts. It takes in a VM from a source of ours, or one that was parked
 * with receiveMigration() and is sent by sendMigration().
 *
 *     main stream                                          channels                 the embedder
 *     header, configuration: the machine is held against the option
 *     OPEN_RETURN_PATH, PING                -> PONG
 *     START, block list: likewise                                                   acceptBlocks()
 *     marker: waits for SYNC on each, releases       <->   SYNC                     state active
 *     PART ... END                                         pages, in place; large devices' pieces, kept
 *                                                          frozen
 *     devices' state, EOF, VM description: all of it is here, and sound
 *     with option verify: digests of all memory, those of the source equal          load() of each device
 *                                           -> SHUT 0                               start(), state completed
 *
 * SHUT 0 is written when all is loaded, and start() is called when it has been: a guest is never started of which its source
 * does not, or will not, know that it is here. Where it cannot be written, since the connection is broken or the source has
 * ended it, nothing is started. What is written the source may still not get to read: see outgoing.ts.
 *
 * With option resumable each try of the source is one of these (resumable-destination.ts): its main stream is in already, and
 * what was brought by tries before is there.
 *
 * Whatever fails before is told with SHUT 1, where the source can be told, and by breaking all connections off. What start()
 * throws changes nothing for the source: the guest is here, loaded, and its embedder's to start.
 */
import { setImmediate as turnEventLoop } from 'node:timers/promises';
import { MultifdError, receivedExpected } from '../errors.js';
import { BlockFiles } from '../ram/file-block.js';
import { makeBlocks, type RAMBlock } from '../ram/block.js';
import { Receiver, type CarriedPages, type ReceiverHooks, type ReceiverStats } from '../recv/receiver.js';
import { ByteReader } from '../stream/byte-reader.js';
import { quote } from '../stream/codes.js';
import { CAPABILITY_IGNORE_SHARED, type Configuration, hasCapability } from '../stream/configuration.js';
import { toldPageSize } from '../stream/machine.js';
import { MainStreamReader } from '../stream/main-stream.js';
import { RESUME_IDSTR } from '../stream/resume-section.js';
import { COMMAND_OPEN_RETURN_PATH, type MainItem } from '../stream/records.js';
import { encodePong, encodeShut, pingValue } from '../stream/return-path.js';
import type { Address } from '../transport/address.js';
import { MainConnection } from '../transport/main-connection.js';
import { brokenOff, closedUntold } from '../migration/blame.js';
import { keepInformed } from '../migration/keep-informed.js';
import { ItemsAhead, tailOf } from '../migration/items-ahead.js';
import { settles, withLimit } from '../migration/limits.js';
import { awaitHook, requirePageSizeTold } from '../migration/options.js';
import { watchMigration } from '../migration/watch.js';
import type { CheckedDestination, CheckedDestinationDevice, OfferedBlock } from './destination-options.js';
import { nameOf, readDeviceSections, type DeviceId, type ReceivedState } from './device-sections.js';
import { IncomingDevices, load } from './incoming-devices.js';
import { putPage, requireAllPages, requireSameBlocks, zeroPages } from './incoming-ram.js';
import { inTime, lateHookMs } from './late-hook.js';
import { Life } from './life.js';
import { ExpectedWithProof, requireSame } from './proof-section.js';
import { rehearseLoading } from './rehearsal.js';
import type { DestinationState } from './states.js';

const NOTHING = Buffer.alloc(0);

export interface ArrivedMigration {
  machine: string;
  blocks: { name: string; size: number }[];
  stats: ReceiverStats;
}

/** One try of a source that may be carried on: what there is already, and who is told how far it gets. */
export interface CarriedTry {
  main: MainConnection;
  kept: NonNullable<ReceiverHooks['kept']>;
  /** For the section that asks. */
  answer: Buffer;
  /** Of the tries before. */
  blocks: readonly RAMBlock[] | undefined;
  onState: (state: DestinationState) => void;
  /** The source has these blocks, and has heard the answer. */
  accept(blocks: readonly RAMBlock[]): CarriedPages;
  /** All pages of the next round are in place. */
  roundIsWhole(): void;
}

export class IncomingVm {
  readonly life: Life<DestinationState, ArrivedMigration>;
  readonly receiver: Receiver;
  readonly #options: CheckedDestination;
  #mainCame!: (main: MainConnection) => void;
  readonly #mainIn: Promise<MainConnection>;
  #main: MainConnection | undefined;
  #configuration: Configuration | undefined;
  /** ram's END has come. */
  #inTail = false;
  #blocks: readonly RAMBlock[] = [];
  #returnPath = false;
  readonly #devices: IncomingDevices;
  /** By cancel(), which may come too late. */
  #cancel!: () => void;
  readonly #cancelled = new Promise<void>((resolve) => (this.#cancel = resolve));
  readonly #carried: CarriedTry | undefined;
  /** All has come, and the devices may be loaded: it cannot be carried on any more. */
  isWhole = false;

  constructor(options: CheckedDestination, carried?: CarriedTry) {
    this.#options = options;
    this.#carried = carried;
    this.#devices = new IncomingDevices(options.devices, options.maxDeviceBytes);
    const onState = carried?.onState ?? options.given.onState;
    this.life = new Life<DestinationState, ArrivedMigration>('setup', onState);
    this.#mainIn = new Promise((resolve) => (this.#mainCame = resolve));
    const takeMain = (main: MainConnection): void => {
      this.#main = main;
      this.#mainCame(main);
    };
    const hooks: ReceiverHooks = {
      proof: options.verify,
      deviceState: (idstr, instanceId, payload) => this.#devices.take(idstr, instanceId, payload),
      ...(carried === undefined
        ? { main: (connection, begun) => takeMain(new MainConnection(connection, begun)) }
        : { kept: carried.kept }),
    };
    this.receiver = new Receiver(options.receiver, hooks);
    if (carried !== undefined) takeMain(carried.main);
  }

  async begin(): Promise<void> {
    const { receiver, life } = this;
    const { blocks, receiver: checked } = this.#options;
    try {
      if (blocks !== undefined && this.#carried === undefined) receiver.files = BlockFiles.open(blocks, 'r+');
      await receiver.open();
      if (this.#carried === undefined) await rehearseLoading(this.#options.machine, receiver.pageBytes);
    } catch (error) {
      await receiver.close();
      throw error;
    }
    receiver.orStopped(new Promise<never>(() => {})).catch((error: unknown) => this.#broke(error));
    const unfollow = life.follow(checked.signal);
    void this.#run()
      .catch((thrown: unknown) => this.#failed(thrown))
      .finally(unfollow);
  }

  get address(): Address {
    return this.receiver.address;
  }

  stats(): ReceiverStats {
    return this.receiver.stats();
  }

  /** Has its source said which blocks it has, and were they right? */
  get hasBegun(): boolean {
    return this.#blocks.length > 0;
  }

  async cancel(): Promise<void> {
    this.life.cancel();
    this.#cancel();
    await this.life.done.catch(() => {});
  }

  // ---- from the first connection to the last byte ----

  async #run(): Promise<void> {
    const { life, receiver } = this;
    const { bounds, receiver: checked } = this.#options;
    const { stallTimeoutMs } = checked;
    const main = await life.orFailed(this.#mainIn);
    const unwatch = watchMigration(
      stallTimeoutMs,
      () => receiver.stats().bytes + main.moved,
      (error) => life.fail(error),
    );
    let states: ReceivedState<CheckedDestinationDevice>[];
    let verify: () => Promise<void>;
    try {
      const stream = new MainStreamReader(main.reader, {
        pageSize: receiver.pageBytes,
        bounds,
        takesResume: this.#carried !== undefined,
      });
      const tail = await this.#receiveRam(main, stream);
      const proof = this.#options.verify ? receiver.prove().all() : undefined;
      proof?.catch(() => {});
      const received = await life.orFailed(this.#receiveDevices(stream, tail));
      states = received.states;
      verify = async () => {
        if (proof !== undefined) requireSame(receiver.blocks, await proof, received.proof);
      };
    } finally {
      unwatch();
    }
    await this.#keepInformed(main, life.orFailed(verify()));
    this.isWhole = true;
    for (const state of states) {
      const name = `device ${nameOf(state.device)}: load`;
      await this.#keepInformed(
        main,
        life.duringHook(
          name,
          awaitHook(name, () => load(state)),
        ),
      );
    }
    await life.orFailed(this.#tell(main));
    await this.#completed(main);
  }

  /** While a hook takes its time. */
  async #keepInformed<T>(main: MainConnection, hook: Promise<T>): Promise<T> {
    return keepInformed(main, hook, (error) => this.life.fail(error));
  }

  /** Up to ram's END, with its footer. @returns all that comes behind it */
  async #receiveRam(main: MainConnection, stream: MainStreamReader): Promise<AsyncIterable<Buffer>> {
    const { receiver, life } = this;
    const { stallTimeoutMs } = this.#options.receiver;
    // Behind whatever it comes: the source has to wait to be told.
    const tailError = (): MultifdError => closedUntold();
    const items = new ItemsAhead(stream, { over: main.over, stallTimeoutMs, tailError });
    for (;;) {
      const item = await life.orFailed(items.next());
      if (item === undefined && this.#inTail) break;
      if (item === undefined) throw new MultifdError('ERR_MULTIFD_EOF', "main stream ended before ram's END");
      if (item.kind === 'tail') {
        requireAllPages(receiver);
        return tailOf(item, items);
      }
      if (item.kind === 'configuration') this.#configuration = item.configuration;
      await life.orFailed(this.#take(item, main, items));
    }
    throw new MultifdError(
      'ERR_MULTIFD_EOF',
      "main stream ended behind ram's END, without the devices' state",
    );
  }

  async #take(item: MainItem, main: MainConnection, items: ItemsAhead): Promise<void> {
    const { receiver } = this;
    switch (item.kind) {
      case 'configuration':
        this.#checkConfiguration(item.configuration);
        break;
      case 'section':
        if (item.section === 'start') this.#checkStart();
        break;
      case 'other-section': {
        if (item.idstr === RESUME_IDSTR && this.#carried !== undefined) {
          await main.write(this.#carried.answer);
          break;
        }
        const what = "section before ram's END";
        const expected = 'none but of ram: a VM of ours sends none';
        throw new MultifdError('ERR_MULTIFD_STREAM', receivedExpected(what, quote(item.idstr), expected));
      }
      case 'command': {
        if (item.command === COMMAND_OPEN_RETURN_PATH) this.#returnPath = true;
        const ping = pingValue(item);
        if (ping !== undefined) await main.write(encodePong(ping));
        break;
      }
      case 'mem-size':
        await this.#accept(
          item.blocks.map(({ name, usedLength }) => ({ name, size: usedLength })),
          main,
        );
        break;
      case 'zero':
        await zeroPages(receiver, item.block, item.offsets);
        break;
      case 'page':
        await putPage(receiver, this.#blocks, item);
        break;
      case 'flush':
      case 'eos':
        if (item.sync) await items.during(receiver.sync(), () => receiver.hasChannels);
        if (item.kind === 'eos' && item.section !== 'start') this.#carried?.roundIsWhole();
        // Behind ram's END no page may come: it would change a guest that is whole already.
        if (item.kind === 'eos' && item.section === 'end') {
          receiver.freeze();
          this.#inTail = true;
        }
        break;
    }
  }

  #checkConfiguration(configuration: Configuration): void {
    const { machine } = this.#options;
    const bad = (what: string, received: string, expected: string): MultifdError =>
      new MultifdError('ERR_MULTIFD_STREAM', receivedExpected(what, received, expected));
    if (configuration.machine !== machine)
      throw bad('machine', quote(configuration.machine), `${quote(machine)} (option machine)`);
    if (hasCapability(configuration, CAPABILITY_IGNORE_SHARED))
      throw bad('capability x-ignore-shared', 'on', 'off: shared RAM would be missing');
    requirePageSizeTold(toldPageSize(configuration), this.receiver.pageBytes);
  }

  #checkStart(): void {
    const bad = (what: string, expected: string): MultifdError =>
      new MultifdError('ERR_MULTIFD_STREAM', receivedExpected(what, 'none', expected));
    if (this.#configuration === undefined)
      throw bad('configuration', `machine ${quote(this.#options.machine)} (option machine)`);
    // A source that is not told gives its guest up when it has written all, whatever becomes of it here.
    if (!this.#returnPath)
      throw bad('command OPEN_RETURN_PATH', 'one (capability return-path of the source)');
  }

  async #accept(offered: readonly OfferedBlock[], main: MainConnection): Promise<void> {
    const { receiver, life } = this;
    const { given, blocks } = this.#options;
    let here = this.#carried?.blocks ?? blocks;
    if (here === undefined) {
      const accept = awaitHook('acceptBlocks', () => given.acceptBlocks?.(offered) ?? []);
      const accepted = await this.#keepInformed(main, life.duringHook('acceptBlocks', accept));
      here = makeBlocks(accepted, receiver.pageBytes);
      requireSameBlocks(offered, here);
      if (this.#carried === undefined) receiver.files = BlockFiles.open(here, 'r+');
    } else requireSameBlocks(offered, here);
    this.#blocks = here;
    receiver.setBlocks(here, receiver.pageBytes, this.#carried?.accept(here));
    life.enter('active');
  }

  async #receiveDevices(
    stream: MainStreamReader,
    tail: AsyncIterable<Buffer>,
  ): Promise<{ states: ReceivedState<CheckedDestinationDevice>[]; proof: Buffer }> {
    const { bounds, verify } = this.#options;
    const { maxDescription } = bounds;
    const reader = new ByteReader(tail, { name: "devices' state" });
    // Known by the first section of all.
    const footers = stream.footers !== false;
    const devices = this.#devices;
    const expected = verify ? new ExpectedWithProof(devices, this.#blocks) : devices;
    const states = await readDeviceSections<DeviceId>(reader, {
      expected: expected,
      footers,
      maxDescription,
    });
    const proof = verify ? Buffer.concat((states.pop() as ReceivedState<DeviceId>).parts) : NOTHING;
    return { states: states as ReceivedState<CheckedDestinationDevice>[], proof };
  }

  // ---- ends ----

  #broke(thrown: unknown): void {
    this.life.fail(MultifdError.wrap(thrown, 'ERR_MULTIFD_CONNECTION', 'channels'));
  }

  /** SHUT 0, unless the source has ended its stream: then it does not wait for it any more. */
  async #tell(main: MainConnection): Promise<void> {
    const { stallTimeoutMs } = this.#options.receiver;
    // Its end may lie there unread; what is written behind it the kernel takes all the same.
    await turnEventLoop();
    if (this.life.error !== undefined) throw this.life.error;
    if (main.ended) throw main.broken ?? closedUntold();
    this.life.decide();
    const late = `the source has not taken the answer within ${stallTimeoutMs} ms`;
    await withLimit(main.write(encodeShut(0)), stallTimeoutMs, 'ERR_MULTIFD_STALL', late);
    // A reset: the source's end of the connection was closed when it came.
    await turnEventLoop();
    if (main.broken !== undefined) throw main.broken;
  }

  async #completed(main: MainConnection): Promise<void> {
    const { life, receiver } = this;
    const { given, machine } = this.#options;
    life.enterAnyway('completed');
    let failed: MultifdError | undefined;
    const start = awaitHook('start', () => given.start());
    const late = this.#cancelled.then(() =>
      inTime('start', start, lateHookMs(this.#options.receiver.stallTimeoutMs)),
    );
    await Promise.race([start, late]).catch((error: MultifdError) => (failed = error));
    await Promise.all([settles(main.end()), receiver.end().catch(() => receiver.close())]);
    main.destroy();
    if (failed !== undefined) return life.endFailed(failed);
    const blocks = receiver.blocks.map(({ name, size }) => ({ name, size }));
    life.end({ machine, blocks, stats: receiver.stats() });
  }

  async #failed(thrown: unknown): Promise<void> {
    const { life, receiver } = this;
    const error = life.error ?? MultifdError.wrap(thrown, 'ERR_MULTIFD_CONNECTION', 'migration');
    life.fail(error);
    const main = this.#main;
    if (main !== undefined) {
      // Not behind a SHUT 0: that may have been taken.
      if (this.#returnPath && !main.ended && !life.isDecided)
        await settles(main.write(encodeShut(1)).then(() => main.end()));
      main.breakOff();
    }
    await receiver.abandon(error);
    error.suppress(receiver.error);
    // A device that is being loaded is not to be touched by whoever comes next.
    await life.hookOver(lateHookMs(this.#options.receiver.stallTimeoutMs));
    life.enterAnyway(life.isCancelled ? 'cancelled' : 'failed');
    life.endFailed(this.#inTail || life.isCancelled ? error : brokenOff(error));
  }
}
