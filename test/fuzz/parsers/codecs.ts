/**
 * Compressed payloads, decoder by decoder: each fills its pages and nothing beside them. An input is
 *
 *     u8 pages, u16 length, payload      again and again: packets of one channel
 */
import zlib from 'node:zlib';
import type { Compression } from '../../../src/index.js';
import { METHODS } from '../../../src/methods/methods.js';
import { readCapture } from '../../support/reference-decoder.js';
import { Fault, cut, u16, u8, type Fuzzer, type Seed } from '../contract.js';
import { HEADER_BYTES, PAGE } from '../seeds.js';

const MOST_PAGES = 16;
const CANARY = Buffer.alloc(PAGE, 0xa5);

interface Packet {
  pages: number;
  payload: Buffer;
}

function seedOf(packets: readonly Packet[], fields: readonly string[]): Seed {
  return packets.flatMap(({ pages, payload }) => [u8(pages), u16(payload.length), ...cut(payload, fields)]);
}

/** Of our own senders: pages that compress, pages that do not. */
async function ownPackets(compression: Compression): Promise<Packet[]> {
  const codec = await METHODS[compression].load?.();
  const sender = codec!.createSender(1);
  const packets: Packet[] = [];
  for (const pages of [1, 3]) {
    const data = Buffer.alloc(pages * PAGE, `a page of a guest, ${pages} `);
    zlib.deflateRawSync(data).copy(data, PAGE / 2);
    packets.push({ pages, payload: Buffer.from(await sender.compress(data)) });
  }
  sender.close();
  return packets;
}

/** The first packets of a real channel, as long as they are small. */
function captured(name: string): Packet[] {
  const all = readCapture(name).subarray(64);
  const packets: Packet[] = [];
  for (let at = 0; at + HEADER_BYTES <= all.length;) {
    const pages = all.readUInt32BE(at + 16);
    const bytes = pages === 0 ? 0 : all.readUInt32BE(at + 20);
    if (pages > MOST_PAGES || bytes > 0xffff) break;
    if (pages > 0)
      packets.push({ pages, payload: all.subarray(at + HEADER_BYTES, at + HEADER_BYTES + bytes) });
    at += HEADER_BYTES + bytes;
  }
  return packets;
}

/** Header, then what a block begins with. */
const FIELDS: Record<'zlib' | 'zstd', string[]> = {
  zlib: ['+2', '+1', '-2', '-2'],
  zstd: ['+4', '+1', '+1', '-3', '-2', '-2', '-2', '-2'],
};

function fuzzerOf(compression: 'zlib' | 'zstd', captures: readonly string[]): Fuzzer {
  return {
    name: compression,
    what: `payloads of method ${compression}, packet by packet of one channel`,
    runs: 1500,
    // A zstd decoder of ours holds a window, and what is decoded.
    most: { bytes: 2 ** 26, perByte: 64 },
    async seeds() {
      const all = [await ownPackets(compression), ...captures.map(captured)].filter(
        (packets) => packets.length > 0,
      );
      return all.map((packets) => seedOf(packets, FIELDS[compression]));
    },
    async open() {
      const codec = (await METHODS[compression].load?.())!;
      const room = new Room();
      return {
        async run(input) {
          const receiver = codec.createReceiver(PAGE);
          try {
            for (let at = 0; at + 3 <= input.length;) {
              const size = PAGE * (1 + ((Math.max(input[at], 1) - 1) % MOST_PAGES));
              const payload = input.subarray(at + 3, at + 3 + input.readUInt16BE(at + 1));
              at += 3 + payload.length;
              // A channel refuses an empty one by its header.
              if (payload.length === 0) continue;
              try {
                const own = await receiver.decompress(payload, room.pages(size));
                if (own !== undefined && own.length !== size)
                  throw new Fault(`${own.length} bytes of ${size}`);
              } finally {
                room.check(size);
              }
            }
          } finally {
            receiver.close();
          }
        },
      };
    },
  };
}

/** Pages between canaries. */
class Room {
  readonly #all = Buffer.alloc(MOST_PAGES * PAGE + 2 * CANARY.length, CANARY);

  pages(size: number): Buffer {
    return this.#all.subarray(CANARY.length, CANARY.length + size);
  }

  /** @throws Fault for bytes beside them */
  check(size: number): void {
    const end = CANARY.length + size;
    const before = this.#all.subarray(0, CANARY.length);
    const behind = this.#all.subarray(end, end + CANARY.length);
    const isWhole = before.equals(CANARY) && behind.equals(CANARY);
    this.#all.fill(CANARY);
    if (!isWhole) throw new Fault('a decoder wrote beside its pages');
  }
}

export default [
  fuzzerOf('zlib', ['q100-zlib.ch1', 'q72-zlib.ch1']),
  fuzzerOf('zstd', ['q100-zstd.ch1', 'q72-zstd.ch1']),
];
