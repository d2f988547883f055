/**
 * Which channels may come in: each hello is of this migration's VM, and each channel comes once. On the calling thread, which
 * alone knows of all of them; where the hello is read inside TLS, its channel's thread asks here.
 */
import { MultifdError, receivedExpected } from '../errors.js';
import { decodeHello, keyOfHello } from '../wire/hello.js';

export class Admission {
  readonly channels: number;
  readonly #taken = new Set<number>();
  readonly #key: Buffer | undefined;
  #uuid: Uint8Array | undefined;

  /**
   * @param uuid what each hello must have; undefined: that of the first one holds for all
   * @param key who has not that is nobody that is waited for, and refuses nothing
   */
  constructor(channels: number, uuid: Uint8Array | undefined, key?: Buffer) {
    this.channels = channels;
    this.#uuid = uuid;
    this.#key = key;
  }

  isStranger(hello: Buffer): boolean {
    return this.#key !== undefined && !this.#key.equals(keyOfHello(hello));
  }

  /** The VM's, as given or as the first hello has told it. */
  get uuid(): Uint8Array | undefined {
    return this.#uuid;
  }

  /** Channels that have come in. */
  get count(): number {
    return this.#taken.size;
  }

  get complete(): boolean {
    return this.#taken.size === this.channels;
  }

  /** @throws MultifdError as decodeHello(), and ERR_MULTIFD_CHANNEL_DUPLICATE */
  check(hello: Buffer): { id: number; uuid: Uint8Array } {
    const { id, uuid } = decodeHello(hello, { uuid: this.#uuid, channels: this.channels });
    if (!this.#taken.has(id)) return { id, uuid };
    throw new MultifdError(
      'ERR_MULTIFD_CHANNEL_DUPLICATE',
      receivedExpected(`hello of channel ${id}`, 'a second connection', 'one connection for each channel'),
      { channel: id },
    );
  }

  /** What check() has let through is in. */
  take(id: number, uuid: Uint8Array): void {
    this.#taken.add(id);
    this.#uuid = uuid;
  }
}
