/**
 * Mapped-ram files: the stream, block headers, bitmaps, tail. Such a file has megabytes of pages between the few bytes that
 * are parsed, so an input is a list of those, each with its place:
 *
 *     u32 place, u16 length, bytes       again and again; between them is zero
 */
import { requireSound } from '../../../src/mapped-ram/description.js';
import { readOtherSections, readPageRuns, readTail } from '../../../src/mapped-ram/pages.js';
import { readMappedRam } from '../../../src/mapped-ram/read.js';
import { readSaveImage } from '../../../src/libvirt/save-image.js';
import { readMig } from '../../stream/support.js';
import { Fault, bytes, cut, number, u16, u32, type Fuzzer, type Piece, type Seed } from '../contract.js';

const EXTENT_HEAD = 6;
/** A byte of 24 bits is as far as any place goes: bitmaps that are claimed are read, as far as the file has them. */
const MOST_PLACE = 2 ** 26;

/** A file that is mostly holes. */
class SparseFile {
  readonly size: number;
  readonly #extents: { at: number; data: Buffer }[] = [];

  constructor(input: Buffer) {
    let size = 0;
    for (let at = 0; at + EXTENT_HEAD <= input.length;) {
      const place = input.readUInt32BE(at) % MOST_PLACE;
      const data = input.subarray(at + EXTENT_HEAD, at + EXTENT_HEAD + input.readUInt16BE(at + 4));
      this.#extents.push({ at: place, data });
      size = Math.max(size, place + data.length);
      at += EXTENT_HEAD + data.length;
    }
    this.size = size;
  }

  async read(into: Buffer, offset: number, length: number, position: number): Promise<{ bytesRead: number }> {
    const count = Math.max(0, Math.min(length, this.size - position));
    into.fill(0, offset, offset + count);
    for (const { at, data } of this.#extents) {
      const from = Math.max(at, position);
      const to = Math.min(at + data.length, position + count);
      if (from < to) data.copy(into, offset + from - position, from - at, to - at);
    }
    return { bytesRead: count };
  }

  async stat(): Promise<{ size: number }> {
    return { size: this.size };
  }
}

function extent(place: number, pieces: Piece[]): Seed {
  const length = pieces.reduce((sum, piece) => sum + piece.bytes.length, 0);
  return [u32(place), u16(length), ...pieces];
}

/** What is parsed of a real file: head and block list, each block's header and bitmap, the end. */
async function seedOf(file: Buffer): Promise<Seed> {
  const { blocks, tailOffset = 0, configuration } = await readMappedRam(sparse(file));
  const first = blocks[0];
  const machine = configuration?.machine.length ?? 0;
  const seed: Seed = [];
  const before = first.bitmapOffset - 28;
  seed.push(
    ...extent(
      0,
      cut(file.subarray(0, before), [
        '+4',
        '+4',
        '+1',
        '+4',
        `=${machine}`,
        ...Array<string>(Math.floor((before - 13 - machine) / 4)).fill('+4'),
      ]),
    ),
  );
  let entry = before;
  for (const { bitmapOffset, bitmapBytes, pagesOffset, usedLength } of blocks) {
    const header = bitmapOffset - 28;
    const bitmap = file.subarray(bitmapOffset, bitmapOffset + Math.min(bitmapBytes, 64));
    seed.push(
      ...extent(entry, [
        ...(entry === header ? [] : cut(file.subarray(entry, header), ['+1', `=${file[entry]}`, '+8'])),
        ...cut(file.subarray(header, bitmapOffset), ['+4', '+8', '+8', '+8']),
        number(bitmap.subarray(0, 8), true),
        bytes(bitmap.subarray(8)),
      ]),
    );
    entry = pagesOffset + usedLength;
  }
  seed.push(
    ...extent(entry, cut(file.subarray(entry, tailOffset), ['+8', '+1', '+4', '+1', '+4', '+8', '+1', '+4'])),
  );
  const json = Buffer.from('{"page_size": 4096, "devices": []}');
  seed.push(...extent(tailOffset, [bytes(Buffer.of(0, 6)), u32(json.length), bytes(json)]));
  return seed;
}

function sparse(file: Buffer): { read: SparseFile['read']; stat: SparseFile['stat'] } {
  return {
    read: async (into, offset, length, position) => ({
      bytesRead: file.copy(into, offset, position, position + length),
    }),
    stat: async () => ({ size: file.length }),
  };
}

const fuzzer: Fuzzer = {
  name: 'mapped-ram',
  what: 'mapped-ram files: stream, block headers, bitmaps, tail',
  runs: 1000,
  // A bitmap of 4 TiB, piece by piece, twice; and what the finder of a tail looks at.
  most: { bytes: 2 ** 28, perByte: 100 },
  async seeds() {
    return [await seedOf(readMig('q100-mappedram-multifd')), await seedOf(readMig('q100-mappedram-single'))];
  },
  open: () => ({
    async run(input) {
      const file = new SparseFile(input);
      await readSaveImage(file);
      const description = await readMappedRam(file);
      if (description.problems.length > 101) throw new Fault(`${description.problems.length} problems`);
      requireSound(description);
      for (const block of description.blocks) {
        let next = 0;
        let present = 0;
        for await (const run of readPageRuns(file, block)) {
          if (run.page !== next || run.count < 1)
            throw new Fault(`a run at ${run.page}, expected at ${next}`);
          next += run.count;
          if (run.present) present += run.count;
        }
        if (next !== block.pageCount || present !== block.presentPages) {
          throw new Fault(
            `${next} pages in runs, ${present} present, of ${block.pageCount}, ${block.presentPages}`,
          );
        }
        const end = block.pagesOffset + block.usedLength;
        if (present === block.pageCount && end > file.size)
          throw new Fault(`pages up to ${end} of ${file.size}`);
      }
      let tail = 0;
      for await (const piece of readTail(file, description)) tail += piece.length;
      if (tail !== description.tailBytes) throw new Fault(`${tail} bytes of the tail`);
      for await (const piece of readOtherSections(file, description.sectionsBesideRam)) tail += piece.length;
    },
  }),
};
export default fuzzer;
