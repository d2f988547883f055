/**
 * The digests of all of RAM for option verify, on the calling thread, at either end.
 *
 *     begin() --> every channel's thread: chunks of shared memory and files (proof-thread.ts) --+
 *           \---> here: chunks of private memory, copied for the threads of Node's own pool ----+--> ProofTable --> inOrder()
 *
 * Memory and files are only read, between begin() and the last digest; nothing may write to them.
 */
import { webcrypto } from 'node:crypto';
import { MultifdError } from './errors.js';
import type { RAMBlock } from './ram/block.js';
import { CHUNK_BYTES, Chunks, zeroDigest } from './ram/chunks.js';
import { Windows } from './ram/windows.js';
import { TELL_CHUNKS } from './proof-thread.js';
import { STOP_RUN, type Control } from './shared/control.js';
import { ProofTable, makeProofTable } from './shared/proof-table.js';

/** Of the session; as its methods of the same names. */
interface Access {
  readonly control: Control;
  until(condition: () => boolean, spin: number): Promise<boolean>;
  fail(error: MultifdError): void;
}

/** As many as Node's pool has threads, unless it was told otherwise. */
const AT_A_TIME = 4;

/** @returns for the channels' threads */
export function proofTableOf(blocks: readonly RAMBlock[]): SharedArrayBuffer {
  return makeProofTable(new Chunks(blocks.map(({ size }) => size)).count);
}

export class Proof {
  readonly #session: Access;
  readonly #blocks: readonly RAMBlock[];
  readonly #chunks: Chunks;
  readonly #table: ProofTable;

  /** @param shared of proofTableOf() */
  constructor(session: Access, blocks: readonly RAMBlock[], shared: SharedArrayBuffer) {
    this.#session = session;
    this.#blocks = blocks;
    this.#chunks = new Chunks(blocks.map(({ size }) => size));
    this.#table = new ProofTable(shared);
  }

  begin(): void {
    this.#session.control.askProof();
    this.#digestPrivate().catch((thrown: unknown) => {
      this.#session.fail(MultifdError.wrap(thrown, 'ERR_MULTIFD_WORKER', 'option verify'));
    });
  }

  /**
   * The digests of all chunks, some at a time, as they are made.
   *
   * @throws MultifdError the session's error
   */
  async *inOrder(): AsyncGenerator<Buffer, void, undefined> {
    const table = this.#table;
    for (let at = 0; at < table.count;) {
      let end = Math.min(at + TELL_CHUNKS, table.count);
      await this.#session.until(() => this.#hasAll(at, end), 0);
      while (end < table.count && table.has(end)) end++;
      yield table.digests(at, end);
      at = end;
    }
  }

  async all(): Promise<Buffer> {
    const pieces: Buffer[] = [];
    for await (const piece of this.inOrder()) pieces.push(piece);
    return Buffer.concat(pieces);
  }

  #hasAll(from: number, to: number): boolean {
    for (let chunk = from; chunk < to; chunk++) if (!this.#table.has(chunk)) return false;
    return true;
  }

  async #digestPrivate(): Promise<void> {
    const waits = new Set<Promise<void>>();
    for (const { kind, index, size } of this.#blocks) {
      if (kind !== 'private') continue;
      const first = this.#chunks.firstOf(index);
      for (let offset = 0; offset < size; offset += CHUNK_BYTES) {
        if (this.#session.control.stopped !== STOP_RUN) return;
        const chunk = first + offset / CHUNK_BYTES;
        const wait = this.#digest(chunk).finally(() => waits.delete(wait));
        waits.add(wait);
        if (waits.size >= AT_A_TIME) await Promise.race(waits);
      }
    }
    await Promise.all(waits);
  }

  async #digest(index: number): Promise<void> {
    const { block, offset, length } = this.#chunks.at(index);
    const window = this.#blocks[block].memory?.windowAt(offset) as Buffer;
    const at = offset % Windows.WINDOW_BYTES;
    // A copy: the memory may be detached, or of a kind that is not taken.
    const digest =
      zeroDigest(window, at, length) ??
      new Uint8Array(
        await webcrypto.subtle.digest('SHA-256', Uint8Array.from(window.subarray(at, at + length))),
      );
    const done = this.#table.put(index, digest);
    if (done % TELL_CHUNKS === 0 || done === this.#table.count) this.#session.control.postReady();
  }
}
