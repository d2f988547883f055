/** Packed files: frames, the seek table, and what is read by it. */
import { createFrameMaker } from '../../../src/methods/zstd.js';
import { PackedFile } from '../../../src/packed/packed-file.js';
import { MAX_FRAME_BYTES, encodeSeekTable, readSeekTable } from '../../../src/packed/seek-table.js';
import { readAt } from '../../../src/stream/positioned-file.js';
import { MemoryFile } from '../../stream/support.js';
import { Fault, bytes, cut, type Fuzzer, type Seed } from '../contract.js';

/** Read of what it says to hold, frame by frame. */
const READ_BYTES = 2 ** 20;

async function seed(plains: readonly Buffer[]): Promise<Seed> {
  const maker = createFrameMaker(3);
  const frames: Buffer[] = [];
  for (const plain of plains) {
    const output = Buffer.alloc(plain.length + 1024);
    const made = await maker.compress(plain, output);
    frames.push(typeof made === 'number' ? Buffer.from(output.subarray(0, made)) : made);
  }
  maker.close();
  const table = encodeSeekTable(
    frames.map((frame, i) => ({ packed: frame.length, plain: plains[i].length })),
  );
  const entries = Array<string>(2 * plains.length).fill('+4');
  return [
    ...frames.flatMap((frame) => [
      ...cut(frame.subarray(0, 8), ['+4', '+1', '+1', '+1', '+1']),
      bytes(frame.subarray(8)),
    ]),
    ...cut(table, ['+4', '+4', ...entries, '+4', '+1', '+4']),
  ];
}

const TEXT = Buffer.from('a guest that counts, and says so on its serial line; '.repeat(80));

const fuzzer: Fuzzer = {
  name: 'packed',
  what: 'packed files: the seek table, and frames read by it',
  runs: 1500,
  // A frame is taken whole, and its room before it is decoded.
  most: { bytes: 2 * MAX_FRAME_BYTES + 8 * READ_BYTES, perByte: 64 },
  seeds: async () => [
    await seed([TEXT, Buffer.alloc(9000), TEXT.subarray(7)]),
    await seed([Buffer.alloc(4096, 1), TEXT]),
  ],
  open: () => ({
    async run(input) {
      const file = new MemoryFile(input);
      const table = await readSeekTable(file);
      if (table === undefined) return;
      if (table.packedBytes > input.length) throw new Fault(`frames up to ${table.packedBytes}`);
      const packed = new PackedFile(file as never, table);
      try {
        const plain = await readAt(packed, 0, Math.min(READ_BYTES, table.plainBytes));
        if (plain.length < Math.min(READ_BYTES, table.plainBytes)) throw new Fault(`${plain.length} bytes`);
        await readAt(packed, Math.max(0, table.plainBytes - 10), 100);
      } finally {
        packed.close();
      }
    },
  }),
};
export default fuzzer;
