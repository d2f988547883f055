/** The digest of a page: the specification's XXH64, bit by bit. */
import t from 'tap';
import { PageDigests, digestTables, viewDigests } from '../../src/ram/page-digest.js';
import { Random } from '../support/random.js';

const MASK = (1n << 64n) - 1n;
const [P1, P2, P3, P4] = [0x9e3779b185ebca87n, 0xc2b2ae3d27d4eb4fn, 0x165667b19e3779f9n, 0x85ebca77c2b2ae63n];
const rotate = (word: bigint, bits: bigint): bigint => ((word << bits) | (word >> (64n - bits))) & MASK;
const round = (sum: bigint, word: bigint): bigint => (rotate((sum + word * P2) & MASK, 31n) * P1) & MASK;

/** By the specification, for whole stripes, slowly. */
function xxh64(bytes: Buffer): bigint {
  const lanes = [(P1 + P2) & MASK, P2, 0n, -P1 & MASK];
  for (let at = 0; at < bytes.length; at += 8)
    lanes[(at / 8) % 4] = round(lanes[(at / 8) % 4], bytes.readBigUInt64LE(at));
  const bits = [1n, 7n, 12n, 18n];
  let hash = lanes.reduce((sum, lane, i) => sum + rotate(lane, bits[i]), 0n) & MASK;
  for (const lane of lanes) hash = ((hash ^ round(0n, lane)) * P1 + P4) & MASK;
  hash = (hash + BigInt(bytes.length)) & MASK;
  hash = ((hash ^ (hash >> 33n)) * P2) & MASK;
  hash = ((hash ^ (hash >> 29n)) * P3) & MASK;
  return hash ^ (hash >> 32n);
}

t.test('it is XXH64 of the bytes, wherever they lie and however many they are', async (t) => {
  const digests = new PageDigests(2 ** 18);
  const random = new Random(1);
  for (const bytes of [32, 64, 4096, 16384, 65536]) {
    for (const at of [0, 4096, 2 ** 18 - bytes]) {
      random.bytes(digests.memory);
      const [low, high] = digests.of(at, bytes);
      const expected = xxh64(digests.memory.subarray(at, at + bytes));
      t.equal((BigInt(high >>> 0) << 32n) | BigInt(low >>> 0), expected, `${bytes} bytes from ${at} on`);
    }
  }
});

t.test('each bit of a page changes its digest', async (t) => {
  const digests = new PageDigests(4096);
  const seen = new Set<string>([digests.of(0, 4096).join()]);
  for (let bit = 0; bit < 8 * 4096; bit++) {
    digests.memory[bit >> 3] = 1 << (bit & 7);
    seen.add(digests.of(0, 4096).join());
    digests.memory[bit >> 3] = 0;
  }
  t.equal(seen.size, 1 + 8 * 4096);
});

t.test('a table has no digest to begin with, and one too large is refused', async (t) => {
  const [table, other] = digestTables([3, 1]).map(viewDigests);
  t.same([...table], [0, 0, 0, 0, 0, 0]);
  t.equal(other.length, 2);
  const expected = { code: 'ERR_MULTIFD_OPTION', message: /option dirty/ };
  t.throws(() => digestTables([2 ** 49]), expected);
});
