/** The judge is judged: by real captures of two QEMU versions, and by the encodings that real receivers refuse. */
import { createHash } from 'node:crypto';
import { constants, deflateRawSync, deflateSync } from 'node:zlib';
import { compress } from '@mongodb-js/zstd';
import t from 'tap';
import {
  type RefCompression,
  type RefRAMPacket,
  applyPackets,
  decodeChannel,
  readCapture,
} from './reference-decoder.js';

const PAGE = 4096;

/** Packets, normal pages, zero pages, SYNC packets of ch0 and ch1; pc.ram ends the same in all. */
const CAPTURES: [name: string, compression: RefCompression, ch0: number[], ch1: number[]][] = [
  ['q100-none', 'none', [8, 64, 480, 3], [11, 36, 526, 3]],
  ['q100-zlib', 'zlib', [5, 64, 192, 3], [14, 36, 814, 3]],
  ['q100-zstd', 'zstd', [9, 80, 480, 3], [10, 20, 526, 3]],
  ['q100-none-legacyzero', 'none', [5, 96, 0, 3], [6, 4, 0, 3]],
  ['q100-none-machine72', 'none', [6, 97, 0, 3], [5, 3, 0, 3]],
  ['q72-none', 'none', [6, 97, 0, 3], [5, 2, 0, 3]],
  ['q72-zlib', 'zlib', [6, 82, 0, 3], [5, 17, 0, 3]],
  ['q72-zstd', 'zstd', [5, 81, 0, 3], [6, 18, 0, 3]],
];

const BLOCK_SIZES: [name: string, size: number][] = [
  ['pc.ram', 4194304],
  ['/rom@etc/acpi/tables', 131072],
  ['pc.rom', 131072],
  ['pc.bios', 65536],
  ['/rom@etc/table-loader', 4096],
  ['/rom@etc/acpi/rsdp', 4096],
];

t.test('every capture of QEMU decodes to the counts of its table and to the guest memory', async (t) => {
  const pcram = readCapture('pcram');
  t.equal(
    createHash('sha256').update(pcram).digest('hex'),
    '1cb56c95f1aaa80439dcb66d0275b310883101adbcb741aea49b84a6633ec80e',
  );
  for (const [name, compression, ...expected] of CAPTURES) {
    const memory = new Map(BLOCK_SIZES.map(([block, size]) => [block, Buffer.alloc(size)]));
    const nums: bigint[] = [];
    for (const id of [0, 1]) {
      const bytes = readCapture(`${name}.ch${id}`);
      const channel = await decodeChannel(bytes, { pageSize: PAGE, compression });
      t.equal(channel.hello.id, id);
      t.same(channel.hello.uuid, Buffer.alloc(16));
      const packets = channel.packets.filter((packet) => packet.kind === 'ram');
      t.same(countsOf(packets), expected[id], `${name}.ch${id}`);
      for (const packet of packets) t.equal(packet.pages.length, packet.normalPages);
      nums.push(...packets.map((packet) => packet.packetNum));
      applyPackets(packets, memory, PAGE);
    }
    t.ok(memory.get('pc.ram')?.equals(pcram), `pc.ram after ${name}`);
    // The firmware of the captures is 64 KiB of HLT.
    t.ok(memory.get('pc.bios')?.equals(Buffer.alloc(65536, 0xf4)), `pc.bios after ${name}`);
    t.equal(memory.get('/rom@etc/acpi/rsdp')?.toString('latin1', 0, 8), 'RSD PTR ');
    if (name.startsWith('q100')) {
      const sorted = nums.sort((a, b) => Number(a - b));
      t.same(
        sorted,
        sorted.map((_num, i) => BigInt(i)),
        `${name} numbers its packets from 0 without gaps`,
      );
    }
  }
});

function countsOf(packets: RefRAMPacket[]): number[] {
  const sum = (of: (packet: RefRAMPacket) => number): number =>
    packets.reduce((all, packet) => all + of(packet), 0);
  return [packets.length, sum((p) => p.normalPages), sum((p) => p.zeroPages), sum((p) => p.flags & 1)];
}

t.test('memory really depends on each packet of a capture', async (t) => {
  const pcram = readCapture('pcram');
  const { packets } = await decodeChannel(readCapture('q100-none-legacyzero.ch0'), {
    pageSize: PAGE,
    compression: 'none',
  });
  const memory = new Map(BLOCK_SIZES.map(([block, size]) => [block, Buffer.alloc(size)]));
  // ch1 of this capture holds ROM pages only, so ch0 alone makes pc.ram.
  applyPackets(packets, memory, PAGE);
  t.ok(memory.get('pc.ram')?.equals(pcram));
  const full = packets.findIndex((packet) => packet.kind === 'ram' && packet.ramblock === 'pc.ram');
  const without = new Map(BLOCK_SIZES.map(([block, size]) => [block, Buffer.alloc(size)]));
  applyPackets(packets.toSpliced(full, 1), without, PAGE);
  t.notOk(without.get('pc.ram')?.equals(pcram));
});

const HELLO = Buffer.concat([Buffer.from('1122334400000001', 'hex'), Buffer.alloc(56)]);
const SYNC = Buffer.concat([Buffer.from('112233440000000100000001', 'hex'), Buffer.alloc(1332)]);

/** A channel with one packet for each payload, pages 0.. of block `ram` in order. */
function channelOf(flags: number, payloads: Buffer[], pagesOf: (packet: number) => number = () => 2): Buffer {
  return Buffer.concat([
    HELLO,
    ...payloads.flatMap((payload, i) => {
      const header = Buffer.alloc(1344);
      header.write('1122334400000001', 0, 'hex');
      header.writeUInt32BE(flags, 8);
      header.writeUInt32BE(128, 12);
      header.writeUInt32BE(pagesOf(i), 16);
      header.writeUInt32BE(payload.length, 20);
      header.write('ram', 64);
      for (let page = 0; page < pagesOf(i); page++) header.writeUInt32BE(page * PAGE, 320 + 8 * page + 4);
      return [header, payload];
    }),
    SYNC,
  ]);
}

async function pagesOf(bytes: Buffer, compression: RefCompression): Promise<Buffer> {
  const { packets } = await decodeChannel(bytes, { pageSize: PAGE, compression });
  return Buffer.concat(packets.flatMap((packet) => (packet.kind === 'ram' ? packet.pages : [])));
}

/** Four pages, two for each of two packets; not zero, not random. */
const DATA = Buffer.alloc(4 * PAGE);
for (let i = 0; i < DATA.length; i++) DATA[i] = (i * i) >>> 7;
const FIRST = DATA.subarray(0, 2 * PAGE);
const SECOND = DATA.subarray(2 * PAGE);
const syncFlush = { level: 1, finishFlush: constants.Z_SYNC_FLUSH };
const ZLIB_HEADER = Buffer.from('7801', 'hex');

t.test('zlib: what real receivers accept is accepted', async (t) => {
  const stored = (page: Buffer): Buffer => Buffer.concat([Buffer.from('000010ffef', 'hex'), page]);
  const pages = (bytes: Buffer): Buffer[] => [bytes.subarray(0, PAGE), bytes.subarray(PAGE)];
  const cases: Record<string, Buffer[]> = {
    'fresh history in each packet': [
      Buffer.concat([ZLIB_HEADER, deflateRawSync(FIRST, syncFlush)]),
      deflateRawSync(SECOND, syncFlush),
    ],
    'fresh history in each page': [
      Buffer.concat([ZLIB_HEADER, ...pages(FIRST).map((page) => deflateRawSync(page, syncFlush))]),
      Buffer.concat(pages(SECOND).map((page) => deflateRawSync(page, syncFlush))),
    ],
    'full flush': [
      deflateSync(FIRST, { finishFlush: constants.Z_FULL_FLUSH }),
      deflateRawSync(SECOND, { finishFlush: constants.Z_FULL_FLUSH }),
    ],
    'stored blocks made by hand': [
      Buffer.concat([ZLIB_HEADER, ...pages(FIRST).map(stored)]),
      Buffer.concat(pages(SECOND).map(stored)),
    ],
  };
  for (const [what, payloads] of Object.entries(cases)) {
    t.ok((await pagesOf(channelOf(0x02, payloads), 'zlib')).equals(DATA), what);
  }
});

t.test('zlib: what is no correct payload is refused, and the message says where', async (t) => {
  const first = deflateSync(FIRST, syncFlush);
  const second = deflateRawSync(SECOND, syncFlush);
  const cases: [what: string, payloads: Buffer[], message: RegExp][] = [
    ['a final block and a trailer', [deflateSync(FIRST), second], /packet 0 .*ends/],
    [
      'a final block without a trailer',
      [Buffer.concat([ZLIB_HEADER, deflateRawSync(FIRST)]), second],
      /packet 0 .*check/,
    ],
    ['a final block later', [first, deflateRawSync(SECOND)], /packet 1 .*check/],
    ['a second zlib header', [first, deflateSync(SECOND, syncFlush)], /packet 1 /],
    ['no zlib header', [deflateRawSync(FIRST, syncFlush), second], /packet 0 .*header/],
    [
      'a page too little',
      [first, deflateRawSync(SECOND.subarray(PAGE), syncFlush)],
      /packet 1 .* 4096 bytes, .* 8192/,
    ],
    [
      'a byte too little',
      [deflateSync(FIRST.subarray(1), syncFlush), second],
      /packet 0 .* 8191 bytes, .* 8192/,
    ],
    [
      'a byte too much',
      [deflateSync(DATA.subarray(0, 8193), syncFlush), second],
      /packet 0 .* 8193 bytes, .* 8192/,
    ],
    ['no flush', [deflateSync(FIRST, { finishFlush: constants.Z_NO_FLUSH }), second], /packet 0 /],
    [
      'a flush not to a byte border',
      [deflateSync(FIRST, { finishFlush: constants.Z_PARTIAL_FLUSH })],
      /packet 0 /,
    ],
    ['a cut flush', [first.subarray(0, first.length - 4), second], /packet 0 /],
    ['bytes behind the flush', [Buffer.concat([first, Buffer.from([1])]), second], /packet 0 /],
  ];
  for (const [what, payloads, message] of cases) {
    await t.rejects(pagesOf(channelOf(0x02, payloads), 'zlib'), { message }, what);
  }
});

/** A zstd block: 3 bytes little-endian, size << 3 | type << 1 | last, then the content. */
function block(type: number, last: boolean, size: number, content: Buffer): Buffer {
  const header = Buffer.alloc(3);
  header.writeUIntLE((size << 3) | (type << 1) | Number(last), 0, 3);
  return Buffer.concat([header, content]);
}
const raw = (page: Buffer, last = false): Buffer => block(0, last, page.length, page);
const rle = (byte: number, last = false): Buffer => block(1, last, PAGE, Buffer.from([byte]));
/** A frame of single segment with a content size of four bytes, as the specification gives it. */
const frame = (size: number, ...blocks: Buffer[]): Buffer => {
  const header = Buffer.from('28b52ffda000000000', 'hex');
  header.writeUInt32LE(size, 5);
  return Buffer.concat([header, ...blocks]);
};
const ENDLESS = Buffer.from('28b52ffd0038', 'hex');
const [P0, P1, P2, P3] = [0, 1, 2, 3].map((i) => DATA.subarray(i * PAGE, (i + 1) * PAGE));

t.test('zstd: what real receivers accept is accepted', async (t) => {
  const checksum = Buffer.from('28b52ffd0438', 'hex');
  const cases: Record<string, Buffer[]> = {
    'one frame a packet': [await compress(FIRST, 1), await compress(SECOND, 19)],
    'one frame a page': [
      Buffer.concat([await compress(P0, 1), await compress(P1, 1)]),
      Buffer.concat([await compress(P2, 1), await compress(P3, 1)]),
    ],
    'frames made by hand': [frame(8192, raw(P0), raw(P1, true)), frame(8192, raw(P2), raw(P3, true))],
    'one frame that never ends': [
      Buffer.concat([ENDLESS, raw(P0), raw(P1)]),
      Buffer.concat([raw(P2), raw(P3)]),
    ],
    'a frame that ends in a later packet': [
      Buffer.concat([ENDLESS, raw(P0), raw(P1)]),
      Buffer.concat([raw(P2, true), frame(4096, raw(P3, true))]),
    ],
    'frames with a checksum': [
      Buffer.concat([checksum, raw(P0), raw(P1, true), Buffer.alloc(4)]),
      Buffer.concat([checksum, raw(P2), raw(P3, true), Buffer.alloc(4)]),
    ],
  };
  for (const [what, payloads] of Object.entries(cases)) {
    t.ok((await pagesOf(channelOf(0x04, payloads), 'zstd')).equals(DATA), what);
  }
});

t.test('zstd: the shortest payloads there are come out at once', async (t) => {
  const filled = Buffer.concat([
    Buffer.alloc(PAGE, 0x41),
    Buffer.alloc(PAGE, 0x42),
    Buffer.alloc(PAGE, 0x43),
  ]);
  const ended = [0x41, 0x42, 0x43].map((byte) => frame(PAGE, rle(byte, true)));
  t.ok(
    (
      await pagesOf(
        channelOf(0x04, ended, () => 1),
        'zstd',
      )
    ).equals(filled),
    'frames of 13 bytes',
  );
  const endless = [Buffer.concat([ENDLESS, rle(0x41)]), rle(0x42), rle(0x43)];
  t.ok(
    (
      await pagesOf(
        channelOf(0x04, endless, () => 1),
        'zstd',
      )
    ).equals(filled),
    'a frame in pieces of 4 bytes',
  );
});

t.test('zstd: what is no correct payload is refused, and the message says where', async (t) => {
  const good = Buffer.concat([ENDLESS, raw(P0), raw(P1)]);
  const half = P1.subarray(0, 2048);
  const cases: [what: string, payloads: Buffer[], message: RegExp][] = [
    [
      'a frame that ends inside a page',
      [Buffer.concat([frame(6144, raw(P0), raw(half, true)), frame(2048, raw(half, true))])],
      /packet 0 .*ends inside a page, after 6144/,
    ],
    [
      'a skippable frame',
      [Buffer.concat([Buffer.from('502a4d180400000000000000', 'hex'), good])],
      /packet 0 .*magic is 0x184d2a50/,
    ],
    [
      'a window of 256 MiB',
      [Buffer.concat([Buffer.from('28b52ffd0090', 'hex'), raw(P0), raw(P1)])],
      /window of 268435456 bytes/,
    ],
    [
      'a reserved block type',
      [Buffer.concat([ENDLESS, block(3, false, 4096, P0), raw(P1)])],
      /reserved type/,
    ],
    ['a page too little', [good, raw(P2)], /packet 1 .* 4096 bytes, .* 8192/],
    [
      'a page too much',
      [good, Buffer.concat([raw(P2), raw(P3), raw(P0)])],
      /packet 1 .* 12288 bytes, .* 8192/,
    ],
    ['a cut block', [good.subarray(0, good.length - 1)], /packet 0 .*ends inside a zstd block$/],
    ['a cut block header', [Buffer.concat([good, Buffer.from('0000', 'hex')])], /inside a zstd block header/],
    ['a new frame while one is open', [good, frame(8192, raw(P2), raw(P3, true))], /packet 1 /],
  ];
  for (const [what, payloads, message] of cases) {
    await t.rejects(pagesOf(channelOf(0x04, payloads), 'zstd'), { message }, what);
  }
});

t.test('a wrong header is refused', async (t) => {
  const good = channelOf(0x00, [FIRST]);
  t.ok((await pagesOf(good, 'none')).equals(FIRST));
  const cases: [what: string, at: number, value: number, message: RegExp][] = [
    ['hello magic', 0, 0x5145564d, /hello: magic is 0x5145564d/],
    ['hello version', 4, 2, /hello: version is 2/],
    ['magic', 64, 0x11223345, /packet 0 at byte 64: magic is 0x11223345/],
    ['version', 68, 2, /packet 0 .*version is 2/],
    ['method bits', 72, 0x02, /packet 0 .*method bits 0x2/],
    ['pages_alloc', 76, 129, /packet 0 .*pages_alloc is 129/],
    ['pages_alloc', 76, 1, /packet 0 .*2 pages, pages_alloc is 1/],
    ['next_packet_size', 84, 8191, /packet 0 .*next_packet_size is 8191 for 2/],
    ['zero_pages', 96, 127, /packet 0 .*129 pages, pages_alloc is 128/],
    ['offset[1]', 64 + 320 + 12, 4097, /packet 0 .*offset 4097 is not page-aligned/],
    ['magic of the next', 64 + 1344 + 8192, 0, /packet 1 at byte 9600: magic is 0x0/],
  ];
  for (const [what, at, value, message] of cases) {
    const bytes = Buffer.from(good);
    bytes.writeUInt32BE(value, at);
    await t.rejects(pagesOf(bytes, 'none'), { message }, `${what} ${value}`);
  }
});

t.test('an end inside a packet is refused, an end between two packets is none', async (t) => {
  const good = channelOf(0x00, [FIRST]);
  const borders = [64, 64 + 1344 + 8192, good.length];
  for (const length of [...borders, 0, 63, 65, 75, 76, 1407, 1408, 1409, 9599, 9601, good.length - 1]) {
    const decoded = pagesOf(good.subarray(0, length), 'none');
    if (borders.includes(length)) await decoded;
    else await t.rejects(decoded, { message: /bytes are due, \d+ are left/ }, `${length} bytes`);
  }
});

t.test('a device-state packet between RAM packets is decoded, a wrong one refused', async (t) => {
  const start = Buffer.from('112233440000000100000040', 'hex');
  const idstr = Buffer.alloc(256);
  idstr.write('0000:00:02.0/vfio');
  const tail = Buffer.from('0000000700000003', 'hex');
  const good = Buffer.concat([channelOf(0x00, [FIRST]), start, idstr, tail, Buffer.from('abc'), SYNC]);
  const { packets } = await decodeChannel(good, { pageSize: PAGE, compression: 'none' });
  t.match(packets, [
    { kind: 'ram' },
    { kind: 'ram' },
    { kind: 'device-state', idstr: '0000:00:02.0/vfio', instanceId: 7, data: Buffer.from('abc') },
    { kind: 'ram', flags: 1, pages: [] },
  ]);
  t.equal(packets.length, 4);
  t.equal(packets[2].header.length, 276);

  const at = 64 + 1344 + 8192 + 1344;
  const broken = (change: (bytes: Buffer) => unknown): Promise<unknown> => {
    const bytes = Buffer.from(good);
    change(bytes);
    return decodeChannel(bytes, { pageSize: PAGE, compression: 'none' });
  };
  await t.rejects(
    broken((bytes) => (bytes[at + 11] = 0x41)),
    { message: /device state with SYNC/ },
  );
  await t.rejects(
    broken((bytes) => bytes.fill(0x61, at + 12, at + 268)),
    { message: /idstr/ },
  );
  await t.rejects(
    broken((bytes) => (bytes[at + 275] = 0)),
    { message: /without payload/ },
  );
});

t.test('applying packets clears zero pages and keeps to the block', async (t) => {
  const packet = (ramblock: string, offsets: bigint[]): RefRAMPacket => ({
    kind: 'ram',
    flags: 0,
    pagesAlloc: 128,
    normalPages: 1,
    zeroPages: offsets.length - 1,
    nextPacketSize: PAGE,
    packetNum: 0n,
    ramblock,
    offsets,
    header: Buffer.alloc(1344),
    pages: [Buffer.alloc(PAGE, 0x11)],
  });
  const memory = new Map([['ram', Buffer.alloc(3 * PAGE, 0xee)]]);
  applyPackets([packet('ram', [8192n, 0n])], memory, PAGE);
  const expected = Buffer.concat([Buffer.alloc(PAGE), Buffer.alloc(PAGE, 0xee), Buffer.alloc(PAGE, 0x11)]);
  t.ok(memory.get('ram')?.equals(expected));
  t.throws(() => applyPackets([packet('rom', [0n])], memory, PAGE), { message: /no RAM block "rom"/ });
  t.throws(() => applyPackets([packet('ram', [12288n])], memory, PAGE), { message: /offset 12288/ });
  t.throws(() => applyPackets([packet('ram', [0n, 2n ** 32n])], memory, PAGE), {
    message: /offset 4294967296/,
  });
});
