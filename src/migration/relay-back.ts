/**
 * The return path of a relay: the destination's messages on their way back to the source, if that has opened one.
 *
 *     message           goes on                            besides
 *     PONG              as it is                           the destination's channels are all in
 *     SWITCHOVER_ACK    with `auto` only
 *     SHUT 0            no: the relay passes it on (relay.ts) when it has decided
 *     SHUT, not 0       as it is                           the destination has refused
 *     any other         as it is
 *
 * Runs on the calling thread, one message after the other.
 */
import { MultifdError, receivedExpected } from '../errors.js';
import { readReturnPath } from '../stream/return-path.js';
import type { MainConnection } from '../transport/main-connection.js';
import type { MainForth } from './relay-forth.js';
import type { SideErrors } from './side-errors.js';
import type { SwitchoverAck } from './switchover-ack.js';

export class MainBack {
  /** Settles with the destination's first PONG. */
  readonly pong: Promise<void>;
  #ponged!: () => void;
  readonly #forth: MainForth;
  readonly #errors: SideErrors;
  readonly #switchoverAck: SwitchoverAck;

  constructor(forth: MainForth, errors: SideErrors, switchoverAck: SwitchoverAck) {
    this.#forth = forth;
    this.#errors = errors;
    this.#switchoverAck = switchoverAck;
    this.pong = new Promise((resolve) => (this.#ponged = resolve));
  }

  /** Resolves after `loaded`. @param loaded called with the SHUT 0 in the moment in which it is read; may throw */
  async copy(sink: MainConnection, source: MainConnection, loaded: (shut: Buffer) => void): Promise<void> {
    const messages = this.#errors.each('destination', readReturnPath(sink.reader));
    for await (const message of messages) {
      if (message.kind === 'shut' && message.status === 0) {
        if (this.#forth.tail.bytes === 0) {
          throw this.#refused('SHUT 0', "before the devices' state", 'after it');
        }
        loaded(message.raw);
        return;
      }
      const passed = message.kind !== 'switchover-ack' || this.#switchoverAck === 'auto';
      if (this.#forth.returnPath && passed) await this.#errors.of('source', source.write(message.raw));
      if (message.kind === 'pong') this.#ponged();
      if (message.kind === 'shut') throw this.#refused('SHUT', message.status, 0);
    }
    if (this.#forth.cut !== undefined) throw this.#forth.cut;
    const message = 'the destination closed the main stream before it had loaded all';
    throw this.#errors.mark('destination', new MultifdError('ERR_MULTIFD_CONNECTION', message));
  }

  #refused(what: string, received: unknown, expected: unknown): MultifdError {
    // A destination that got half a device says no more than that it failed.
    if (this.#forth.cut !== undefined) return this.#forth.cut;
    const message = receivedExpected(`the destination's ${what}`, received, expected);
    return this.#errors.mark('destination', new MultifdError('ERR_MULTIFD_STREAM', message));
  }
}
