/**
 * In place of a channel's ends of its connection, and of what accepts them: a write that the kernel takes at some step after
 * it, and looks at then; a read that brings what is left of a prepared stream.
 */
import { MultifdError } from '../../../src/errors.js';
import type {
  ConnectionIntake,
  ReceiveConnectionOptions,
} from '../../../src/transport/receive-connection.js';
import type { SendConnectionOptions } from '../../../src/transport/send-connection.js';
import type { ArrivalsSession } from '../../../src/recv/arrivals.js';
import { NOTE_BREAKS, NOTE_STUCK, NOTE_WRITES } from './stepper.js';
import { WireLog } from './wire-log.js';

const BROKEN = 'a connection that the test breaks';

export class SendConnection {
  readonly #options: SendConnectionOptions;
  readonly #log = new WireLog(stepped);
  #broken: MultifdError | undefined;
  #writing = false;
  #wakeWriter: (() => void) | undefined;
  readonly peerEnded = false;
  readonly secured = undefined;

  constructor(options: SendConnectionOptions) {
    this.#options = options;
  }

  get broken(): MultifdError | undefined {
    return this.#broken;
  }

  get writing(): boolean {
    return this.#writing;
  }

  async connect(): Promise<void> {
    await stepped.turn();
    if (this.#broken !== undefined) throw this.#broken;
  }

  break(error: MultifdError): void {
    if (this.#broken !== undefined) return;
    this.#broken = this.#options.broke(error);
    this.#writing = false;
    this.#wakeWriter?.();
  }

  write(pieces: readonly Uint8Array[], arePages: readonly boolean[]): void {
    const { notes } = stepped;
    this.#writing = true;
    const number = ++notes[NOTE_WRITES];
    if (number === notes[NOTE_STUCK]) return;
    const breaks = number === notes[NOTE_BREAKS];
    const breaking = (): void => this.break(new MultifdError('ERR_MULTIFD_CONNECTION', BROKEN));
    if (breaks && stepped.draw(2) === 0) {
      stepped.later(breaking);
      return;
    }
    const written = [...pieces];
    const pages = [...arePages];
    stepped.later(() => {
      if (this.#broken !== undefined) return;
      // The kernel reads until now.
      this.#log.take(written, pages);
      this.#writing = false;
      this.#wakeWriter?.();
      // Between two writes.
      if (breaks) stepped.later(() => stepped.later(breaking));
    });
  }

  async flushed(): Promise<void> {
    if (this.#writing) {
      await new Promise<void>((resolve) => (this.#wakeWriter = resolve));
      this.#wakeWriter = undefined;
    }
    if (this.#broken !== undefined) throw this.#broken;
  }

  async released(but = 0): Promise<void> {
    if (but === 0) await this.flushed();
    if (this.#broken !== undefined) throw this.#broken;
  }

  async finish(): Promise<void> {
    await this.flushed();
    await stepped.turn();
  }

  async close(): Promise<void> {
    await stepped.turn();
  }
}

export class ReceiveConnection {
  readonly secured = undefined;
  readonly #options: ReceiveConnectionOptions;
  readonly #intake: ConnectionIntake;
  readonly #stream: Uint8Array;
  #at = 0;
  #view: Uint8Array | undefined;
  #reading = false;
  #over = false;

  constructor(options: ReceiveConnectionOptions) {
    this.#options = options;
    this.#intake = options.intake;
    this.#stream = stepped.stream as Uint8Array;
  }

  resume(): void {
    if (this.#reading || this.#over) return;
    this.#reading = true;
    stepped.later(() => this.#read());
  }

  #read(): void {
    this.#reading = false;
    if (this.#over) return;
    const { notes } = stepped;
    if (++notes[NOTE_WRITES] === notes[NOTE_BREAKS]) {
      this.#over = true;
      this.#options.broke(new MultifdError('ERR_MULTIFD_CONNECTION', BROKEN));
      return;
    }
    const left = this.#stream.subarray(this.#at);
    if (left.length === 0) {
      this.#over = true;
      this.#options.ended();
      return;
    }
    // As Node does: the next view is asked for right after a read.
    const view = (this.#view ??= this.#intake.view());
    const count = Math.min(left.length, view.length);
    view.set(left.subarray(0, count));
    this.#at += count;
    const wants = this.#intake.read(count);
    this.#view = this.#intake.view();
    if (wants) this.resume();
  }

  async close(): Promise<void> {
    this.#over = true;
    await stepped.turn();
  }
}

/** In place of src/recv/arrivals.ts: all channels are in, each with its stream. */
export class Arrivals {
  readonly firstIn = Promise.resolve();
  readonly count = 2;
  readonly strays = 0;
  readonly uuid = undefined;
  readonly #session: ArrivalsSession;

  constructor(_options: unknown, _hooks: unknown, session: ArrivalsSession) {
    this.#session = session;
  }

  async listen(): Promise<unknown> {
    await stepped.turn();
    return undefined;
  }

  begin(): void {
    // The session's constructor is still at work.
    stepped.later(() => {
      for (const [id, stream] of stepped.streams.entries()) {
        const task = { ...this.#session.taskOf(id), fd: 0, stream };
        this.#session.start(id, task);
      }
    });
  }

  expectFirst(): void {}
  close(): void {}
  abandon(): void {}
  release(): void {}
}
