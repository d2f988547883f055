/**
 * What a compression method is: the contract that codecs fulfil (zlib.ts, zstd.ts) and channels call; the table of
 * the methods that there are is in methods.ts.
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
 */
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
