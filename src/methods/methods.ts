/**
 * The compression methods: one table, one contract.
 *
 * A method has a sending and a receiving half, each made once for a channel, in its thread, and kept for the whole
 * life of the channel, since a real sender's stream goes on from packet to packet.
 *
 * Sending half
 *   compress(pages)  `pages` are whole pages in packet order, private to the channel for the time of the call (a
 *                    guest may write to its RAM while it is compressed). Returns the payload, 1 byte to 1 MiB, which
 *                    decodes, with what went before on this channel, to exactly these pages and leaves nothing
 *                    pending. With `rawFollows` there may be no pages at all, and no payload. The payload's bytes
 *                    stay valid until the call after the next one, so that one packet may be on its way while the
 *                    next is made. A half that returns a promise works on a thread of the codec's: the next call may
 *                    come before it settles, its payload stays valid for one call more, and its packets are
 *                    independent.
 *   raw(pieces)      the rest of a payload that was begun by compress() with `rawFollows`: these pages as they are, in
 *                    the codec's format. `pieces` are not copied, and may change while they are written.
 * Receiving half
 *   decompress(payload, pages)  fills `pages` exactly, or throws ERR_MULTIFD_DECOMPRESS. The output is bounded by
 *                    `pages` however the payload was made. A half whose codec makes a buffer of its own resolves with
 *                    that, of exactly as many bytes, and leaves `pages` as they are: a copy less. It stays valid until the
 *                    next call.
 * Both
 *   close()          frees native memory; also after a failure.
 *
 * Method none has no halves: its pages are the payload, and the channels move them without a copy.
 */
import { MULTIFD_FLAG_NOCOMP, MULTIFD_FLAG_ZLIB, MULTIFD_FLAG_ZSTD } from '../wire/packet.js';
import type { Compression } from '../options.js';

export interface SendMethod {
  compress(pages: Buffer, rawFollows?: boolean): Buffer | Promise<Buffer>;
  raw(pieces: readonly Uint8Array[]): Uint8Array[];
  close(): void;
}

export interface ReceiveMethod {
  decompress(payload: Buffer, pages: Buffer): void | Promise<Buffer | void>;
  close(): void;
}

/** Makes a method's halves. */
export interface Codec {
  createSender(level: number): SendMethod;
  createReceiver(pageSize: number): ReceiveMethod;
}

export interface Method {
  /** The method bits in a packet's flags. */
  readonly flag: number;
  /** Its modules, and with them its codec, are loaded where it is used: each channel's thread pays for them. */
  readonly load?: () => Promise<Codec>;
}

export const METHODS: Record<Compression, Method> = {
  none: { flag: MULTIFD_FLAG_NOCOMP },
  zlib: {
    flag: MULTIFD_FLAG_ZLIB,
    load: async () => {
      const { createZlibSender, createZlibReceiver } = await import('./zlib.js');
      return { createSender: createZlibSender, createReceiver: createZlibReceiver };
    },
  },
  zstd: {
    flag: MULTIFD_FLAG_ZSTD,
    load: async () => {
      const { createZstdSender, createZstdReceiver } = await import('./zstd.js');
      return { createSender: createZstdSender, createReceiver: createZstdReceiver };
    },
  },
};
