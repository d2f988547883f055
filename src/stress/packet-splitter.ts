/**
 * What a channel sends, cut where its packets end, whatever pieces it comes in: so that one packet can be left out, sent twice,
 * or hit at a bit of it. Only plain text can be cut so.
 *
 *     hello, 64 bytes | header, payload | header, payload | ...
 */
import { DEVICE_STATE_HEADER_BYTES } from '../wire/device-state.js';
import { HELLO_BYTES, MULTIFD_MAGIC } from '../wire/hello.js';
import {
  MAX_PAYLOAD_BYTES,
  MULTIFD_FLAG_DEVICE_STATE,
  PACKET_START_BYTES,
  packetHeaderBytes,
} from '../wire/packet.js';

const OFF_HELLO_ID = 24;
const OFF_FLAGS = 8;
const OFF_NORMAL_PAGES = 16;
const OFF_NEXT_PACKET_SIZE = 20;

export interface Unit {
  /** A main stream is one `other` after the other, as it comes. */
  kind: 'hello' | 'packet' | 'other';
  bytes: Buffer;
  /** Of a packet: the bytes behind are its payload. */
  headerBytes: number;
  normalPages: number;
}

export class PacketSplitter {
  /** From its hello; undefined before it, and for good of what is no channel. */
  channel: number | undefined;
  readonly #pageSize: number;
  #kept: Buffer = Buffer.alloc(0);
  #isChannel: boolean | undefined;

  constructor(pageSize: number) {
    this.#pageSize = pageSize;
  }

  /** Is it known yet what it is? */
  get isMain(): boolean | undefined {
    return this.#isChannel === undefined ? undefined : !this.#isChannel;
  }

  /** What is whole by now. */
  push(chunk: Buffer): Unit[] {
    this.#kept = this.#kept.length === 0 ? chunk : Buffer.concat([this.#kept, chunk]);
    const units: Unit[] = [];
    for (;;) {
      const length = this.#next();
      if (length === undefined || length > this.#kept.length) return units;
      const bytes = this.#kept.subarray(0, length);
      this.#kept = this.#kept.subarray(length);
      units.push(this.#unit(bytes));
      if (this.#kept.length === 0) return units;
    }
  }

  /** Bytes of the next unit; undefined if that is not known yet. */
  #next(): number | undefined {
    const kept = this.#kept;
    if (kept.length < 4) return undefined;
    this.#isChannel ??= kept.readUInt32BE(0) === MULTIFD_MAGIC;
    if (!this.#isChannel) return kept.length;
    if (this.channel === undefined) return HELLO_BYTES;
    if (kept.length < PACKET_START_BYTES) return undefined;
    const isDevice = (kept.readUInt32BE(OFF_FLAGS) & MULTIFD_FLAG_DEVICE_STATE) !== 0;
    const header = isDevice ? DEVICE_STATE_HEADER_BYTES : packetHeaderBytes(this.#pageSize);
    if (kept.length < header) return undefined;
    if (isDevice) return header + kept.readUInt32BE(DEVICE_STATE_HEADER_BYTES - 4);
    // Of a packet without normal pages QEMU 7.2 leaves an old value there.
    if (kept.readUInt32BE(OFF_NORMAL_PAGES) === 0) return header;
    return header + Math.min(kept.readUInt32BE(OFF_NEXT_PACKET_SIZE), MAX_PAYLOAD_BYTES);
  }

  #unit(bytes: Buffer): Unit {
    if (this.#isChannel === false) return { kind: 'other', bytes, headerBytes: 0, normalPages: 0 };
    if (this.channel === undefined) {
      this.channel = bytes[OFF_HELLO_ID];
      return { kind: 'hello', bytes, headerBytes: 0, normalPages: 0 };
    }
    const isDevice = (bytes.readUInt32BE(OFF_FLAGS) & MULTIFD_FLAG_DEVICE_STATE) !== 0;
    return {
      kind: 'packet',
      bytes,
      headerBytes: isDevice ? DEVICE_STATE_HEADER_BYTES : packetHeaderBytes(this.#pageSize),
      normalPages: isDevice ? 0 : bytes.readUInt32BE(OFF_NORMAL_PAGES),
    };
  }
}
