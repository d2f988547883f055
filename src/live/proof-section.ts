/**
 * Option verify: the digests of all of the source's memory, as a section of their own among those of the devices, and what the
 * destination makes of it before any device is loaded.
 *
 *     04 u32 id, 0e "multifd-verify", u32 0, u32 1       FULL, as any device's (device-sections.ts); behind them all
 *        u32 length
 *        u32 blocks, each: u8 n, n bytes name, u64 size
 *        32 bytes for each 512 KiB of each block, in this order: SHA-256 (ram/chunks.ts)
 *     7e u32 id
 *
 *     source        END, SYNC --> digests begin --> devices' sections --> this one, written as they are made --> EOF
 *     destination   END, SYNC --> digests begin --> devices' sections --> this one --> both at hand: equal? --> load()
 *
 * Both ends read their memory at the same time, while the guest stands still: what a dirty bitmap has missed is found as well.
 * How long the section is follows from the blocks, which both ends have alike, and no other length is taken.
 */
import { MultifdError, receivedExpected } from '../errors.js';
import { CHUNK_BYTES, chunksOf } from '../ram/chunks.js';
import { DIGEST_BYTES } from '../shared/proof-table.js';
import { quote, refusal } from '../stream/codes.js';
import { encodeU32 } from '../stream/configuration.js';
import { PROOF_DEVICE, nameOf, type DeviceId, type Expected, type StateSize } from './device-sections.js';

const U32_BYTES = 4;
const U64_BYTES = 8;
/** Of a digest, in messages. */
const HEX_CHARS = 16;
const MAX_RUNS_SAID = 5;

interface NamedBlock {
  name: string;
  size: number;
}

/** Bytes of the section's body without its length. */
export function proofBytes(blocks: readonly NamedBlock[]): number {
  return blocks.reduce(
    (sum, { name, size }) => sum + 1 + name.length + U64_BYTES + chunksOf(size) * DIGEST_BYTES,
    U32_BYTES,
  );
}

/** What goes before the digests. */
export function encodeProofHead(blocks: readonly NamedBlock[]): Buffer {
  const entries = blocks.map(({ name, size }) => {
    const bytes = Buffer.from(name, 'latin1');
    const size64 = Buffer.alloc(U64_BYTES);
    size64.writeBigUInt64BE(BigInt(size));
    return Buffer.concat([Buffer.of(bytes.length), bytes, size64]);
  });
  return Buffer.concat([encodeU32(blocks.length), ...entries]);
}

/** The devices that are expected, and behind them the digests; what is told of those goes to no device. */
export class ExpectedWithProof<D extends DeviceId> implements Expected<D | DeviceId> {
  readonly devices: readonly (D | DeviceId)[];
  readonly #expected: Expected<D>;
  readonly #bytes: number;

  constructor(expected: Expected<D>, blocks: readonly NamedBlock[]) {
    this.devices = [...expected.devices, PROOF_DEVICE];
    this.#expected = expected;
    this.#bytes = proofBytes(blocks);
  }

  reserve(device: D | DeviceId, bytes: number): Buffer | undefined {
    if (device !== PROOF_DEVICE) return this.#expected.reserve(device as D, bytes);
    else if (bytes !== this.#bytes) throw this.#bad('bytes', bytes);
  }

  whole(device: D | DeviceId, size: StateSize): Buffer[] {
    if (device !== PROOF_DEVICE) return this.#expected.whole(device as D, size);
    throw this.#bad('pieces over the channels', size.pieces);
  }

  #bad(what: string, received: number): MultifdError {
    const expected = `${this.#bytes} bytes here, as the blocks are (option verify)`;
    return refusal('format', `device ${nameOf(PROOF_DEVICE)}: ${what}`, received, expected);
  }
}

/**
 * Is what is here what the source has?
 *
 * @param blocks of this end
 * @param here the digests of this end's, in the order of `blocks`
 * @param proof the section's body, of proofBytes(blocks) bytes
 * @throws MultifdError ERR_MULTIFD_VERIFY, STREAM_ERRORS.format
 */
export function requireSame(
  blocks: readonly (NamedBlock & { pageCount: number })[],
  here: Buffer,
  proof: Buffer,
): void {
  const there = digestsByBlock(blocks, proof);
  const runs: string[] = [];
  let detail = '';
  let first = 0;
  for (const { name, size, pageCount } of blocks) {
    const source = there.get(name) as Buffer;
    const count = chunksOf(size);
    const chunkPages = CHUNK_BYTES / (size / pageCount);
    const own = here.subarray(first * DIGEST_BYTES, (first + count) * DIGEST_BYTES);
    first += count;
    for (let chunk = 0; chunk < count; chunk++) {
      if (equals(own, source, chunk)) continue;
      if (runs.length === 0) detail = receivedExpected(': SHA-256', hex(own, chunk), hex(source, chunk));
      const from = chunk * chunkPages;
      while (chunk + 1 < count && !equals(own, source, chunk + 1)) chunk++;
      const to = Math.min(pageCount, (chunk + 1) * chunkPages) - 1;
      runs.push(`RAM block ${quote(name)}, pages ${from} to ${to}`);
    }
  }
  if (runs.length === 0) return;
  const more = runs.length > MAX_RUNS_SAID ? ` and ${runs.length - MAX_RUNS_SAID} more ranges` : '';
  const what = `option verify: the memory here is not the source's: ${runs.slice(0, MAX_RUNS_SAID).join('; ')}${more}`;
  throw new MultifdError('ERR_MULTIFD_VERIFY', `${what}${detail}`);
}

function equals(a: Buffer, b: Buffer, chunk: number): boolean {
  const at = chunk * DIGEST_BYTES;
  return a.compare(b, at, at + DIGEST_BYTES, at, at + DIGEST_BYTES) === 0;
}

function hex(digests: Buffer, chunk: number): string {
  return digests.toString('hex', chunk * DIGEST_BYTES, (chunk + 1) * DIGEST_BYTES).slice(0, HEX_CHARS);
}

/** The source's digests by block: which may have its blocks in another order. */
function digestsByBlock(blocks: readonly NamedBlock[], proof: Buffer): Map<string, Buffer> {
  const bad = (what: string, received: unknown, expected: unknown): MultifdError =>
    refusal('format', `option verify: ${what}`, received, expected);
  const sizes = new Map(blocks.map(({ name, size }) => [name, size]));
  const order: [name: string, size: number][] = [];
  const count = proof.readUInt32BE(0);
  if (count !== blocks.length) throw bad('blocks', count, blocks.length);
  let at = U32_BYTES;
  const needs = (bytes: number): void => {
    if (at + bytes > proof.length) throw bad('bytes', proof.length, `at least ${at + bytes}`);
  };
  for (let i = 0; i < count; i++) {
    needs(1);
    const length = proof[at];
    needs(1 + length + U64_BYTES);
    const name = proof.toString('latin1', at + 1, at + 1 + length);
    at += 1 + length;
    const size = Number(proof.readBigUInt64BE(at));
    at += U64_BYTES;
    const expected = sizes.get(name);
    if (expected === undefined)
      throw bad('RAM block', quote(name), `one of ${[...sizes.keys()].map(quote).join(', ')}, each once`);
    if (size !== expected) throw bad(`size of RAM block ${quote(name)}`, size, expected);
    sizes.delete(name);
    order.push([name, size]);
  }
  const digests = new Map<string, Buffer>();
  for (const [name, size] of order) {
    const bytes = chunksOf(size) * DIGEST_BYTES;
    needs(bytes);
    digests.set(name, proof.subarray(at, at + bytes));
    at += bytes;
  }
  return digests;
}
