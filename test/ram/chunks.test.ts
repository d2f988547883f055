/** RAM in chunks of 512 KiB, and their digests. */
import { createHash } from 'node:crypto';
import t from 'tap';
import { CHUNK_BYTES, Chunks, digestOf } from '../../src/ram/chunks.js';
import { ProofTable, makeProofTable } from '../../src/shared/proof-table.js';
import { Random } from '../support/random.js';

t.test('they are numbered through all blocks, and the last of each may be shorter', async (t) => {
  const sizes = [4096, 2 * CHUNK_BYTES, CHUNK_BYTES + 4096];
  const chunks = new Chunks(sizes);
  const expected = [
    { block: 0, offset: 0, length: 4096 },
    { block: 1, offset: 0, length: CHUNK_BYTES },
    { block: 1, offset: CHUNK_BYTES, length: CHUNK_BYTES },
    { block: 2, offset: 0, length: CHUNK_BYTES },
    { block: 2, offset: CHUNK_BYTES, length: 4096 },
  ];
  t.equal(chunks.count, expected.length);
  t.same(
    [0, 1, 2].map((block) => chunks.firstOf(block)),
    [0, 1, 3],
  );
  t.same(
    expected.map((_, i) => chunks.at(i)),
    expected,
  );
  for (const i of [4, 0, 3, 2, 1]) t.same(chunks.at(i), expected[i], 'in any order');
});

t.test('a digest is SHA-256, of zeros as of anything else', async (t) => {
  const bytes = Buffer.alloc(2 * CHUNK_BYTES);
  const plain = (at: number, length: number): Buffer =>
    createHash('sha256')
      .update(bytes.subarray(at, at + length))
      .digest();
  for (const fill of [() => {}, () => new Random(1).bytes(bytes), () => bytes.fill(0).fill(1, 5000, 5001)]) {
    fill();
    for (const [at, length] of [
      [0, CHUNK_BYTES],
      [4096, CHUNK_BYTES],
      [4096, 4096],
    ])
      t.ok(Buffer.from(digestOf(bytes, at, length)).equals(plain(at, length)));
  }
});

t.test('each chunk is claimed once, and its digest is there when it says so', async (t) => {
  const shared = makeProofTable(3);
  const [one, other] = [new ProofTable(shared), new ProofTable(shared)];
  t.same(
    [one.claim(), other.claim(), one.claim(), other.claim(), one.claim()],
    [0, 1, 2, undefined, undefined],
  );
  t.equal(one.has(1), false);
  t.equal(other.put(1, Buffer.alloc(32, 9)), 1);
  t.equal(one.has(1), true);
  t.equal(one.has(0), false);
  t.same([one.put(0, Buffer.alloc(32, 8)), other.put(2, Buffer.alloc(32, 7))], [2, 3]);
  t.ok(one.digests(0, 3).equals(Buffer.concat([8, 9, 7].map((value) => Buffer.alloc(32, value)))));
});
