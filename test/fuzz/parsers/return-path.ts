/** What a destination says: messages of the return path, a page of what it has, and its requests while it runs. */
import { Resumption } from '../../../src/live/resumption.js';
import { PageMap } from '../../../src/postcopy/page-map.js';
import { PostcopyAnswers } from '../../../src/postcopy/answers.js';
import { ByteReader } from '../../../src/stream/byte-reader.js';
import { encodeResumeAnswer, encodeResumePages } from '../../../src/stream/resume-section.js';
import {
  encodePong,
  encodeShut,
  encodeSwitchoverAck,
  readReturnPath,
} from '../../../src/stream/return-path.js';
import { chunked } from '../../stream/support.js';
import { Fault, bytes, cut, u16, u32, u64, u8, type Fuzzer, type Seed } from '../contract.js';
import { PAGE } from '../seeds.js';

const PAGES = 1000;
const BLOCK = { name: 'pc.ram', usedLength: PAGES * PAGE, pageCount: PAGES };
const BITMAP_BYTES = 8 * Math.ceil(PAGES / 64);

function message(type: number, data: Seed): Seed {
  return [u16(type), u16(data.reduce((sum, piece) => sum + piece.bytes.length, 0)), ...data];
}

function name(): Seed {
  return [u8(BLOCK.name.length), bytes(Buffer.from(BLOCK.name))];
}

const SEEDS: Seed[] = [
  [encodePong(1), encodeSwitchoverAck(), encodePong(3), encodeShut(0)].flatMap((one) =>
    cut(one, ['+2', '+2', '+4']),
  ),
  [
    ...cut(encodeResumePages(BLOCK.name, 3, Int32Array.of(1, -1, 7)), [
      '+2',
      '+2',
      '+1',
      '=6',
      '+4',
      '+4',
      '+4',
      '+4',
    ]),
    ...cut(encodeResumeAnswer({ completed: 0, key: Buffer.alloc(16, 3) }), ['+2', '+2', '+4', '=16']),
  ],
  [
    ...message(3, [u64(2 * PAGE), u32(2 * PAGE), ...name()]),
    ...message(4, [u64(0), u32(2 * PAGE)]),
    ...message(5, name()),
    u64(BITMAP_BYTES),
    bytes(Buffer.alloc(BITMAP_BYTES, 0xff)),
    u64(0x0123456789abcdefn),
    ...message(6, [u32(1)]),
    ...cut(encodeShut(0), ['+2', '+2', '+4']),
  ],
];

const fuzzer: Fuzzer = {
  name: 'return-path',
  what: "the destination's messages: SHUT, PONG, pages that it has, pages that it wants, bitmaps",
  runs: 2000,
  most: { bytes: 2 ** 17, perByte: 16 },
  seeds: () => SEEDS,
  async open() {
    const bitmapOffset = 0;
    const described = { ...BLOCK, bitmapOffset, bitmapBytes: BITMAP_BYTES, pagesOffset: PAGE };
    const file = {
      read: async (into: Buffer, offset: number, length: number) => ({
        bytesRead: into.fill(1, offset, offset + length).length && length,
      }),
      stat: async () => ({ size: 2 ** 30 }),
    };
    const map = await PageMap.read(file, described as never, PAGE, 2 * PAGE);
    return {
      async run(input) {
        const reader = (): ByteReader => new ByteReader(chunked(input, 1, 5, 2, 64), { name: 'return path' });
        let refused: Error | undefined;
        await takeAll(reader()).catch((error: Error) => (refused = error));
        const answers = new PostcopyAnswers(reader(), new Map([[BLOCK.name, map]]), {
          request: async (_map, page) => {
            if (page % 2 !== 0 || page + 2 > PAGES) throw new Fault(`asked for page ${page}`);
          },
          pong: () => {},
          bitmap: (_map, all) => {
            if (all.length !== BITMAP_BYTES) throw new Fault(`a bitmap of ${all.length}`);
          },
          resumed: () => {},
        });
        answers.expectRequests();
        answers.expectBitmaps();
        answers.expectResume();
        answers.expectShut();
        await answers.shut;
        if (refused !== undefined) throw refused;
      },
    };
  },
};
export default fuzzer;

async function takeAll(reader: ByteReader): Promise<void> {
  const resumption = new Resumption({
    machine: 'm',
    pageSize: PAGE,
    blocks: [{ ...BLOCK, size: BLOCK.usedLength }],
  } as never);
  resumption.ask();
  for await (const message of readReturnPath(reader)) {
    if (message.kind === 'resume-pages') resumption.takePages(message.data);
  }
}
