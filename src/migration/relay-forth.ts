/**
 * The main stream of a relay on its way forth: read item by item, every byte passed on as it is.
 *
 *     item               what is done before it goes on
 *     configuration      the page size is compared
 *     OPEN_RETURN_PATH   SWITCHOVER_ACK, with `always`
 *     PING               noted; if the source has opened no return path, one is opened here before the first section
 *     sync point         relay.sync(): SYNC on the channels of both sides
 *     block list         goes on beside relay.start(): a QEMU reads it when the channels are there
 *     the devices        scanned for their VM description, by which the end is known
 *
 * Runs on the calling thread; a piece is read when the one before it is written. Both sides' sessions, and what becomes of
 * a failure, are the relay's (relay.ts).
 */
import { MultifdError } from '../errors.js';
import type { Receiver } from '../recv/receiver.js';
import type { Bounds } from '../stream/bounds.js';
import { toldPageSize } from '../stream/machine.js';
import { MainStreamReader } from '../stream/main-stream.js';
import { encodeCommand } from '../stream/main-writer.js';
import { COMMAND_OPEN_RETURN_PATH, COMMAND_PING } from '../stream/records.js';
import { encodeSwitchoverAck } from '../stream/return-path.js';
import { TailScanner } from '../stream/vm-description.js';
import type { MainConnection } from '../transport/main-connection.js';
import { closedUntold } from './blame.js';
import { PING_VALUE } from './destination.js';
import { ItemsAhead } from './items-ahead.js';
import { descriptionError, requirePageSizeTold } from './options.js';
import type { SideErrors } from './side-errors.js';
import type { SwitchoverAck } from './switchover-ack.js';

/** What is the relay's to do. */
export interface ForthRelay {
  readonly isLoaded: boolean;
  /** Waits for what the destination has to take. */
  owed(wait: Promise<void>): Promise<void>;
  /** The source has named the blocks: makes the sessions of both sides. */
  start(blocks: readonly { name: string; usedLength: number }[], pageSize: number): Promise<void>;
  /** Ends the phase on the channels of both sides. */
  sync(): Promise<void>;
  /** start() has failed while nobody waited for it. */
  fail(error: MultifdError): void;
}

export interface ForthOptions {
  bounds: Bounds;
  /** As it was given; the stream may tell it. */
  pageSize: number | undefined;
  stallTimeoutMs: number;
  switchoverAck: SwitchoverAck;
}

export class MainForth {
  /** The machine type's full name; empty until it is told. */
  machine = '';
  /** Has the source opened a return path? Else it is opened here: how it ended is to be known in any case. */
  returnPath = false;
  pinged = false;
  /** Set when the source has ended its main stream inside the devices' state. */
  cut: MultifdError | undefined;
  readonly tail: TailScanner;
  readonly #options: ForthOptions;
  readonly #errors: SideErrors;
  readonly #relay: ForthRelay;
  #stream: MainStreamReader | undefined;

  constructor(options: ForthOptions, errors: SideErrors, relay: ForthRelay) {
    this.#options = options;
    this.#errors = errors;
    this.#relay = relay;
    // Passed on as it is: nothing of the description is kept.
    this.tail = new TailScanner({ maxBytes: options.bounds.maxDescription, keepJson: false });
  }

  /** Has ram's END come? */
  get inTail(): boolean {
    return this.#stream?.inTail === true;
  }

  /** To the end of the source's stream. */
  async copy(receiver: Receiver, source: MainConnection, sink: MainConnection): Promise<void> {
    const { pageBytes: pageSize } = receiver;
    const stream = new MainStreamReader(source.reader, { pageSize, bounds: this.#options.bounds });
    this.#stream = stream;
    const write = async (bytes: Buffer): Promise<void> => {
      // What a source sends when all is loaded is of no use to anybody.
      if (this.#relay.isLoaded) return;
      await this.#relay.owed(sink.write(bytes));
    };
    // Without a return path the destination is given what there is, and says what it makes of it.
    const tailError = (): MultifdError | undefined => (this.returnPath ? closedUntold() : undefined);
    const { stallTimeoutMs } = this.#options;
    const items = new ItemsAhead(stream, { over: source.over, stallTimeoutMs, tailError });
    /**
     * Begins with the block list, since a relay before this one sends no more until the destination has answered; done at
     * the first sync point, which ends ram's START, where the items behind it are read meanwhile.
     */
    let started: Promise<void> | undefined;
    const sync = async (): Promise<void> => {
      await started;
      await this.#relay.sync();
    };
    for (;;) {
      const item = await receiver.orStopped(this.#errors.of('source', items.next()));
      if (item === undefined) break;
      if (item.kind === 'configuration') {
        this.machine = item.configuration.machine;
        requirePageSizeTold(toldPageSize(item.configuration), this.#options.pageSize);
      }
      if (item.kind === 'command' && item.command === COMMAND_OPEN_RETURN_PATH) {
        this.returnPath = true;
        if (this.#options.switchoverAck === 'always') {
          await receiver.orStopped(source.write(encodeSwitchoverAck()));
        }
      }
      if (item.kind === 'command' && item.command === COMMAND_PING) this.pinged = true;
      const isSection = item.kind === 'section' || item.kind === 'other-section';
      if (isSection && !this.returnPath && !this.pinged) {
        this.pinged = true;
        await write(
          Buffer.concat([encodeCommand(COMMAND_OPEN_RETURN_PATH), encodeCommand(COMMAND_PING, PING_VALUE)]),
        );
      }
      if ((item.kind === 'flush' || item.kind === 'eos') && item.sync) {
        await items.during(sync(), () => receiver.hasChannels);
      }
      // Before they go out: what answers them may come in at once.
      if (item.kind === 'tail') {
        this.tail.push(item.raw);
        const wrong = descriptionError(this.tail);
        if (wrong !== undefined) throw this.#errors.mark('source', wrong);
      }
      const written = write(item.raw);
      if (item.kind === 'mem-size') {
        written.catch(() => {});
        started = this.#relay.start(item.blocks, stream.pageSize);
        // Nothing else may come in until it is done.
        started.catch((thrown: unknown) =>
          this.#relay.fail(MultifdError.wrap(thrown, 'ERR_MULTIFD_CONNECTION', 'relay')),
        );
      }
      await written;
    }
    await this.#ended(receiver, source, sink);
  }

  /** The source's stream is at its end. @throws MultifdError if it should not be */
  async #ended(receiver: Receiver, source: MainConnection, sink: MainConnection): Promise<void> {
    if (source.broken !== undefined) throw this.#errors.mark('source', source.broken);
    const ended = (where: string): MultifdError =>
      this.#errors.mark('source', new MultifdError('ERR_MULTIFD_EOF', `main stream ended ${where}`));
    if (!this.inTail) throw ended("before ram's END");
    if (this.#relay.isLoaded) return;
    if (this.tail.complete || this.tail.endsWithFooterAndEof) {
      // With the return path it waits to be told, unless it has died, or given up and let its guest run on.
      if (this.returnPath) throw this.#errors.mark('source', closedUntold());
      return;
    }
    // The destination knows best whether something is missing: it is given the end, and its answer is waited for.
    this.cut = ended("inside the devices' state, without VM description");
    await receiver.orStopped(sink.end());
  }
}
