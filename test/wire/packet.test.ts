import t, { type Test } from 'tap';
import { type ErrorCode, type MultifdError } from '../../src/errors.js';
import {
  MAX_PAYLOAD_BYTES,
  MULTIFD_FLAG_COMPRESSION_MASK,
  MULTIFD_FLAG_DEVICE_STATE,
  MULTIFD_FLAG_NOCOMP,
  MULTIFD_FLAG_SYNC,
  MULTIFD_FLAG_ZLIB,
  MULTIFD_FLAG_ZSTD,
  MULTIFD_PACKET_BYTES,
  PACKET_START_BYTES,
  PacketHeader,
  type PacketExpectation,
  type PacketToSend,
  RAMBLOCK_NAME_BYTES,
  fillPacket,
  packetHeaderBytes,
  pagesPerPacket,
  unfillPacket,
  unfillPacketStart,
} from '../../src/wire/packet.js';
import { type RefCompression, decodeChannel, readCapture } from '../support/reference-decoder.js';

/** Hex with blanks and line ends, as in the specification's tables. */
function hex(text: string): Buffer {
  return Buffer.from(text.replaceAll(/\s/g, ''), 'hex');
}

/** A header of hex written by hand: the 64 fixed bytes, the name, the offsets; the rest is 0. */
function header(bytes: number, fixed: string, name = '', offsets = ''): Buffer {
  const all = Buffer.alloc(bytes);
  all.set(hex(fixed), 0);
  all.set(hex(name), 64);
  all.set(hex(offsets), 320);
  return all;
}

/** `bytes` with values in hex put at their places. */
function patched(bytes: Buffer, ...changes: [at: number, value: string][]): Buffer {
  const copy = Buffer.from(bytes);
  for (const [at, value] of changes) copy.set(hex(value), at);
  return copy;
}

/** A block's name in the 256 bytes of the wire. */
function nameBytes(name: string): Buffer {
  const bytes = Buffer.alloc(256);
  bytes.write(name, 'latin1');
  return bytes;
}

const PC_RAM = '70632e72616d';
const TIB = 2 ** 40;
const METHODS: Record<RefCompression, number> = { none: 0x00, zlib: 0x02, zstd: 0x04 };

interface Vector {
  what: string;
  pageSize: number;
  bytes: Buffer;
  packet: PacketToSend & { name: string };
}

/** From the specification, by hand. `pages` are the offsets divided by the page size. */
const VECTORS: Vector[] = [
  {
    what: 'zstd, 4 KiB pages, offsets above 4 GiB, packet_num above 2^32',
    pageSize: 4096,
    bytes: header(
      1344,
      `11223344 00000001 00000004 00000080 00000003 00012345 00000002 00000005
       00000002 00000000 00000000 00000000 00000000 00000000 00000000 00000000`,
      PC_RAM,
      `0000000000001000 0000000100000000 000000a5fffff000
       0000000000000000 000000fffffff000`,
    ),
    packet: {
      flags: 0x04,
      normalPages: 3,
      zeroPages: 2,
      nextPacketSize: 0x12345,
      packetNum: 8589934597,
      name: 'pc.ram',
      ramblock: nameBytes('pc.ram'),
      pages: Uint32Array.of(1, 0x100000, 0xa5fffff, 0, 0xfffffff),
    },
  },
  {
    what: 'no compression, 64 KiB pages, all slots used',
    pageSize: 65536,
    bytes: header(
      384,
      `11223344 00000001 00000000 00000008 00000005 00050000 00000000 ffffffff
       00000003 00000000 00000000 00000000 00000000 00000000 00000000 00000000`,
      PC_RAM,
      `0000000000070000 0000000000010000 0000000100000000 00000000ffff0000 000000ffffff0000
       0000000000000000 0000000200000000 0000000000020000`,
    ),
    packet: {
      flags: 0x00,
      normalPages: 5,
      zeroPages: 3,
      nextPacketSize: 327680,
      packetNum: 4294967295,
      name: 'pc.ram',
      ramblock: nameBytes('pc.ram'),
      pages: Uint32Array.of(7, 1, 0x10000, 0xffff, 0xffffff, 0, 0x20000, 2),
    },
  },
  {
    what: 'zero pages only under zlib, 4 KiB pages, the largest exact packet_num',
    pageSize: 4096,
    bytes: header(
      1344,
      `11223344 00000001 00000002 00000080 00000000 00000000 001fffff ffffffff
       00000001 00000000 00000000 00000000 00000000 00000000 00000000 00000000`,
      '61',
      '00000000 80000000',
    ),
    packet: {
      flags: 0x02,
      normalPages: 0,
      zeroPages: 1,
      nextPacketSize: 0,
      packetNum: Number.MAX_SAFE_INTEGER,
      name: 'a',
      ramblock: nameBytes('a'),
      pages: Uint32Array.of(0x80000),
    },
  },
  {
    what: 'SYNC, 4 KiB pages',
    pageSize: 4096,
    bytes: header(1344, '11223344 00000001 00000001 00000000 00000000 00000000 00000001 00000000'),
    packet: {
      flags: 0x01,
      normalPages: 0,
      zeroPages: 0,
      nextPacketSize: 0,
      packetNum: 4294967296,
      name: '',
      ramblock: undefined,
      pages: new Uint32Array(0),
    },
  },
  {
    what: 'SYNC, 64 KiB pages',
    pageSize: 65536,
    bytes: header(384, '11223344 00000001 00000001 00000000 00000000 00000000 00000000 00000000'),
    packet: {
      flags: 0x01,
      normalPages: 0,
      zeroPages: 0,
      nextPacketSize: 0,
      packetNum: 0,
      name: '',
      ramblock: undefined,
      pages: new Uint32Array(0),
    },
  },
];

/** A receiver with one block; the names that it is asked for are in `asked`. */
function receiver(
  options: {
    name?: string;
    size?: number;
    index?: number;
    pageSize?: number;
    compression?: RefCompression;
  } = {},
) {
  const { name = 'pc.ram', size = TIB, index = 0, pageSize = 4096, compression = 'none' } = options;
  const asked: string[] = [];
  const findBlock = (given: string): { index: number; size: number } | undefined => {
    asked.push(given);
    return given === name ? { index, size } : undefined;
  };
  return { asked, pageSize, methodFlag: METHODS[compression], findBlock };
}

function unfill(bytes: Buffer, expected = receiver()): PacketHeader {
  const into = new PacketHeader(expected.pageSize);
  unfillPacket(bytes, expected, into);
  return into;
}

/** The listed pages of an unfilled header. */
function listed(packet: PacketHeader): number[] {
  return [...packet.pages.subarray(0, packet.normalPages + packet.zeroPages)];
}

t.test("sizes, limits and flags are the specification's", async (t) => {
  t.equal(MULTIFD_PACKET_BYTES, 524288);
  t.equal(MAX_PAYLOAD_BYTES, 1048576);
  t.equal(PACKET_START_BYTES, 12);
  t.equal(RAMBLOCK_NAME_BYTES, 256);
  t.equal(MULTIFD_FLAG_SYNC, 1);
  t.equal(MULTIFD_FLAG_COMPRESSION_MASK, 0x3e);
  t.equal(MULTIFD_FLAG_NOCOMP, 0);
  t.equal(MULTIFD_FLAG_ZLIB, 2);
  t.equal(MULTIFD_FLAG_ZSTD, 4);
  t.equal(MULTIFD_FLAG_DEVICE_STATE, 0x40);
  t.same([4096, 8192, 16384, 32768, 65536].map(pagesPerPacket), [128, 64, 32, 16, 8]);
  t.same([4096, 8192, 16384, 32768, 65536].map(packetHeaderBytes), [1344, 832, 576, 448, 384]);
  t.equal(new PacketHeader(4096).pages.length, 128);
  t.equal(new PacketHeader(65536).pages.length, 8);
});

for (const { what, pageSize, bytes, packet } of VECTORS) {
  t.test(`filled as the specification says, whatever the buffer held: ${what}`, async (t) => {
    for (const stale of [0x00, 0xee]) {
      const into = Buffer.alloc(bytes.length, stale);
      fillPacket(into, pageSize, packet);
      t.equal(into.toString('hex'), bytes.toString('hex'));
    }
  });

  t.test(`unfilled as the specification says: ${what}`, async (t) => {
    const compression = (['none', 'zlib', 'zstd'] as const)[(packet.flags & 0x3e) >> 1];
    const expected = receiver({ name: packet.name, index: 3, pageSize, compression });
    const unfilled = unfill(bytes, expected);
    const pages = packet.normalPages + packet.zeroPages;
    t.match(unfilled, {
      flags: packet.flags,
      normalPages: packet.normalPages,
      zeroPages: packet.zeroPages,
      nextPacketSize: packet.nextPacketSize,
      packetNum: packet.packetNum,
      block: pages > 0 ? 3 : -1,
      sync: packet.flags === 0x01,
    });
    t.same(listed(unfilled), [...(packet.pages as Uint32Array)]);
    t.same(expected.asked, pages > 0 ? [packet.name] : [], 'a block is looked up only for pages');
    t.equal(unfillPacketStart(bytes.subarray(0, 12)), packet.flags);
  });
}

t.test('one buffer serves for packets one after another', async (t) => {
  const into = Buffer.alloc(1344);
  for (const { pageSize, bytes, packet } of [...VECTORS, ...VECTORS.toReversed()]) {
    if (pageSize !== 4096) continue;
    fillPacket(into, pageSize, packet);
    t.equal(into.toString('hex'), bytes.toString('hex'));
  }
});

t.test('filling stays within the header', async (t) => {
  for (const { pageSize, bytes, packet } of VECTORS) {
    const around = Buffer.alloc(bytes.length + 64, 0xee);
    fillPacket(around.subarray(32, 32 + bytes.length), pageSize, packet);
    t.ok(around.subarray(0, 32).equals(Buffer.alloc(32, 0xee)));
    t.ok(around.subarray(32 + bytes.length).equals(Buffer.alloc(32, 0xee)));
  }
});

t.test('a full packet of 128 pages fills the header to its last byte', async (t) => {
  const pages = Uint32Array.from({ length: 128 }, (_, i) => 0xffffffff - i);
  const into = Buffer.alloc(1344);
  const packet = { flags: 0, normalPages: 100, zeroPages: 28, nextPacketSize: 409600, packetNum: 1 };
  fillPacket(into, 4096, { ...packet, ramblock: nameBytes('pc.ram'), pages });
  // Page 0xffffffff lies at 16 TiB - 4096, page 0xffffff80 at 16 TiB - 128 * 4096.
  t.equal(into.toString('hex', 320, 328), '00000ffffffff000');
  t.equal(into.toString('hex', 1336), '00000ffffff80000');
  const unfilled = unfill(into, receiver({ size: 2 ** 44 }));
  t.same(listed(unfilled), [...pages]);
});

t.test('pages side by side are listed by the first of them', async (t) => {
  for (const pageSize of [4096, 65536]) {
    for (const first of [0, 5, 0x000fffff, 0x00100000, 0xffffffff - 99]) {
      for (const count of [1, 3, 524288 / pageSize].map((count) => Math.min(count, 100))) {
        for (const normalPages of [0, count]) {
          const packet = {
            flags: 0,
            normalPages,
            zeroPages: count - normalPages,
            nextPacketSize: normalPages * pageSize,
            packetNum: 2 ** 33 + 7,
            ramblock: nameBytes('pc.ram'),
          };
          const listed = Buffer.alloc(320 + 4194304 / pageSize, 0xee);
          const ranged = Buffer.from(listed);
          const pages = Uint32Array.from({ length: count }, (_, i) => first + i);
          fillPacket(listed, pageSize, { ...packet, pages });
          fillPacket(ranged, pageSize, { ...packet, pages: first });
          t.equal(ranged.toString('hex'), listed.toString('hex'), `${count} pages from ${first} on`);
        }
      }
    }
  }
});

t.test('headers side by side in one buffer are filled and unfilled where they lie', async (t) => {
  const small = VECTORS.filter(({ pageSize }) => pageSize === 4096);
  const into = Buffer.alloc(1344 * small.length + 64, 0xee);
  for (const [i, { packet }] of small.entries()) fillPacket(into, 4096, packet, 32 + 1344 * i);
  t.equal(into.toString('hex', 0, 32), 'ee'.repeat(32));
  t.equal(into.toString('hex', into.length - 32), 'ee'.repeat(32));
  const header = new PacketHeader(4096);
  for (const [i, { what, bytes, packet }] of small.entries()) {
    t.equal(into.toString('hex', 32 + 1344 * i, 32 + 1344 * (i + 1)), bytes.toString('hex'), what);
    const compression = (['none', 'zlib', 'zstd'] as const)[(packet.flags & 0x3e) >> 1];
    unfillPacket(into, receiver({ name: packet.name, compression }), header, 32 + 1344 * i);
    t.equal(header.packetNum, packet.packetNum);
    t.same(listed(header), [...(packet.pages as Uint32Array)]);
  }
  const broken = patched(into, [32 + 1344 + 3, '00']);
  const unfillSecond = (): void => unfillPacket(broken, receiver({}), header, 32 + 1344);
  t.throws(unfillSecond, { code: 'ERR_MULTIFD_MAGIC' });
});

t.test('names that change from packet to packet, and one that is unknown between them', async (t) => {
  const blocks: Record<string, { index: number; size: number }> = {
    'pc.ram': { index: 0, size: 40960 },
    'vga.vram': { index: 1, size: 8192 },
  };
  const names = ['pc.ram', 'vga.vram', 'pc.ram', 'pc.ra', 'vga.vram', 'vga.vram', 'pc.ram'];
  const expected: PacketExpectation = {
    pageSize: 4096,
    methodFlag: 0,
    findBlock: (name) => blocks[name],
  };
  const into = new PacketHeader(4096);
  const bytes = Buffer.alloc(1344);
  const packet = { flags: 0, normalPages: 0, zeroPages: 1, nextPacketSize: 0, packetNum: 1 };
  for (const name of names) {
    fillPacket(bytes, 4096, { ...packet, ramblock: nameBytes(name), pages: 1 });
    const unfillIt = (): void => unfillPacket(bytes, expected, into);
    if (name === 'pc.ra') t.throws(unfillIt, { code: 'ERR_MULTIFD_RAMBLOCK' });
    else unfillIt();
    t.equal(into.block, ['pc.ram', 'vga.vram'].indexOf(name), name);
  }
  // Page 5 is one of pc.ram's ten, and not of the two of vga.vram.
  fillPacket(bytes, 4096, { ...packet, ramblock: nameBytes('vga.vram'), pages: 5 });
  t.throws(() => unfillPacket(bytes, expected, into), { code: 'ERR_MULTIFD_OFFSET' });
});

/** Two normal pages, 30 zero pages, not in order. */
const Q100_TABLES = header(
  1344,
  `11223344 00000001 00000000 00000080 00000002 00002000 00000000 0000000a
   0000001e 00000000 00000000 00000000 00000000 00000000 00000000 00000000`,
  '2f726f6d406574632f616370692f7461626c6573',
  `0000000000000000 0000000000001000 0000000000003000 0000000000004000 0000000000005000 0000000000006000
   0000000000007000 0000000000008000 0000000000009000 000000000000a000 000000000000b000 000000000000c000
   000000000000d000 000000000000e000 000000000000f000 0000000000010000 0000000000011000 0000000000012000
   0000000000013000 0000000000014000 0000000000015000 0000000000016000 0000000000017000 0000000000018000
   0000000000019000 000000000001a000 000000000001b000 000000000001c000 000000000001d000 000000000001e000
   000000000001f000 0000000000002000`,
);
const Q100_FIRST_SYNC = header(
  1344,
  '11223344 00000001 00000001 00000000 00000000 00000000 00000000 00000001',
);
const Q72_FIRST_SYNC = header(
  1344,
  '11223344 00000001 00000001 00000080 00000000 00000000 00000000 00000000',
);
/** SYNC and one page in one packet; the offsets after the first are those of earlier packets. */
const Q72_SYNC_WITH_PAGE = header(
  1344,
  '11223344 00000001 00000001 00000080 00000001 00001000 00000000 00000007',
  '2f726f6d406574632f616370692f72736470',
  // 0x1000 .. 0xf000 of pc.bios, then pc.ram's: the last four of each eight pages from 0x124000 on.
  [...Array(16).keys(), ...Array.from({ length: 64 }, (_, i) => 0x124 + 8 * (i >> 2) + (i & 3))]
    .map((page) => `${page.toString(16)}000`.padStart(16, '0'))
    .join(''),
);
/** The same without pages or SYNC; block, size and offsets are stale. */
const Q72_EMPTY = patched(Q72_SYNC_WITH_PAGE, [8, '00000000'], [16, '00000000']);
const Q72_STALE_SYNC = patched(Q72_EMPTY, [8, '00000001'], [24, '00000000 00000009']);

t.test('headers that QEMU 10.0 sent are unfilled, and filled the same', async (t) => {
  const { packets } = await decodeChannel(readCapture('q100-none.ch0'), {
    pageSize: 4096,
    compression: 'none',
  });
  t.equal(packets[0].header.toString('hex'), Q100_FIRST_SYNC.toString('hex'));
  const sync = { sync: true, pagesAlloc: 0, normalPages: 0, zeroPages: 0, packetNum: 1, block: -1 };
  t.match(unfill(Q100_FIRST_SYNC), sync);

  const second = await decodeChannel(readCapture('q100-none.ch1'), { pageSize: 4096, compression: 'none' });
  t.equal(second.packets[5].header.toString('hex'), Q100_TABLES.toString('hex'));
  const expected = receiver({ name: '/rom@etc/acpi/tables', size: 131072, index: 1 });
  const unfilled = unfill(Q100_TABLES, expected);
  t.match(unfilled, {
    sync: false,
    normalPages: 2,
    zeroPages: 30,
    nextPacketSize: 8192,
    packetNum: 10,
    block: 1,
  });
  t.same(listed(unfilled), [0, 1, ...Array.from({ length: 29 }, (_, i) => 3 + i), 2]);
});

t.test('SYNC packets of QEMU 7.2 with pages, and with stale fields, are unfilled', async (t) => {
  const { packets } = await decodeChannel(readCapture('q72-none.ch0'), {
    pageSize: 4096,
    compression: 'none',
  });
  const headers = [packets[0], ...packets.slice(3)].map((packet) => packet.header.toString('hex'));
  const byHand = [Q72_FIRST_SYNC, Q72_SYNC_WITH_PAGE, Q72_EMPTY, Q72_STALE_SYNC];
  t.same(
    headers,
    byHand.map((bytes) => bytes.toString('hex')),
  );

  const first = { sync: true, pagesAlloc: 128, normalPages: 0, packetNum: 0, nextPacketSize: 0, block: -1 };
  t.match(unfill(Q72_FIRST_SYNC), first);
  const filled = Buffer.alloc(packetHeaderBytes(4096));
  const none = { normalPages: 0, zeroPages: 0, ramblock: undefined, pages: 0 };
  fillPacket(filled, 4096, { ...none, flags: 1, nextPacketSize: 0, packetNum: 0, pagesAlloc: 128 });
  t.equal(filled.toString('hex'), Q72_FIRST_SYNC.toString('hex'), 'and written as it was, for a relay');

  const rsdp = receiver({ name: '/rom@etc/acpi/rsdp', size: 4096, index: 5 });
  const withPage = unfill(Q72_SYNC_WITH_PAGE, rsdp);
  t.match(withPage, {
    sync: true,
    normalPages: 1,
    zeroPages: 0,
    packetNum: 7,
    nextPacketSize: 4096,
    block: 5,
  });
  t.same(listed(withPage), [0]);

  // The stale block is not even known here, and the stale offsets are not in any block.
  const unknown = receiver({ name: 'other', size: 4096 });
  t.match(unfill(Q72_EMPTY, unknown), {
    sync: false,
    normalPages: 0,
    packetNum: 7,
    nextPacketSize: 0,
    block: -1,
  });
  t.match(unfill(Q72_STALE_SYNC, unknown), {
    sync: true,
    normalPages: 0,
    packetNum: 9,
    nextPacketSize: 0,
    block: -1,
  });
  t.same(unknown.asked, []);
});

t.test('every header of every capture is unfilled as the reference decoder has it', async (t) => {
  const names = ['none', 'zlib', 'zstd', 'none-legacyzero', 'none-machine72'];
  const captures = [...names.map((name) => `q100-${name}`), 'q72-none', 'q72-zlib', 'q72-zstd'];
  let count = 0;
  for (const capture of captures) {
    const compression = capture.split('-')[1] as RefCompression;
    for (const id of [0, 1]) {
      const { packets } = await decodeChannel(readCapture(`${capture}.ch${id}`), {
        pageSize: 4096,
        compression,
      });
      const into = new PacketHeader(4096);
      for (const [i, packet] of packets.entries()) {
        if (packet.kind !== 'ram') continue;
        count++;
        const what = `${capture}.ch${id} packet ${i}`;
        const pages = packet.offsets.map((offset) => Number(offset / 4096n));
        unfillPacket(packet.header, receiver({ name: packet.ramblock, size: 4194304, compression }), into);
        t.match(
          into,
          {
            flags: packet.flags,
            normalPages: packet.normalPages,
            zeroPages: packet.zeroPages,
            nextPacketSize: packet.normalPages > 0 ? packet.nextPacketSize : 0,
            packetNum: Number(packet.packetNum),
            block: pages.length > 0 ? 0 : -1,
          },
          what,
        );
        t.same(listed(into), pages, what);
        if (capture.startsWith('q72')) continue;
        const filled = Buffer.alloc(1344, 0xee);
        fillPacket(filled, 4096, {
          flags: into.flags,
          normalPages: into.normalPages,
          zeroPages: into.zeroPages,
          nextPacketSize: into.nextPacketSize,
          packetNum: into.packetNum,
          ramblock: pages.length > 0 ? nameBytes(packet.ramblock) : undefined,
          pages: into.pages,
        });
        t.equal(filled.toString('hex'), packet.header.toString('hex'), `${what}, filled`);
      }
    }
  }
  // The sum of the table in the captures' README.
  t.equal(count, 8 + 11 + 5 + 14 + 9 + 10 + 5 + 6 + 6 + 5 + 6 + 5 + 6 + 5 + 5 + 6);
});

/** Two normal pages and one zero page of pc.ram: the header that the refusals below are made of. */
const DATA = header(
  1344,
  `11223344 00000001 00000000 00000080 00000002 00002000 00000001 00000002
   00000001 00000000 00000000 00000000 00000000 00000000 00000000 00000000`,
  PC_RAM,
  '0000000000003000 0000000000000000 0000000000001000',
);
const DATA_NUM = 4294967298;
const FOUR_PAGES = 16384;

/** Asserts a refusal; returns nothing, as all that is said is in the error. */
function refused(
  t: Test,
  bytes: Buffer,
  expected: ReturnType<typeof receiver>,
  code: ErrorCode,
  ...texts: string[]
): void {
  const into = new PacketHeader(expected.pageSize);
  const error = t.throws(() => unfillPacket(bytes, expected, into), { code }) as MultifdError;
  for (const text of texts) t.ok(error.message.includes(text), `${error.message} -- ${text}`);
  t.equal(error.packetNum, DATA_NUM);
  t.match(
    into,
    { normalPages: 0, zeroPages: 0, nextPacketSize: 0, block: -1 },
    'a refused header lists no pages',
  );
}

t.test('the header of the refusals is itself not refused', async (t) => {
  const unfilled = unfill(DATA, receiver({ size: FOUR_PAGES }));
  t.match(unfilled, { normalPages: 2, zeroPages: 1, nextPacketSize: 8192, packetNum: DATA_NUM, block: 0 });
  t.same(listed(unfilled), [3, 0, 1]);
});

t.test('a wrong magic or version is refused', async (t) => {
  const cases: [at: number, value: string, code: ErrorCode, received: string, expected: string][] = [
    [0, '11223345', 'ERR_MULTIFD_MAGIC', 'received 0x11223345', 'expected 0x11223344'],
    [0, '44332211', 'ERR_MULTIFD_MAGIC', 'received 0x44332211', 'expected 0x11223344'],
    [0, 'ffffffff', 'ERR_MULTIFD_MAGIC', 'received 0xffffffff', 'expected 0x11223344'],
    [4, '00000000', 'ERR_MULTIFD_VERSION', 'received 0', 'expected 1'],
    [4, '00000002', 'ERR_MULTIFD_VERSION', 'received 2', 'expected 1'],
    [4, 'ffffffff', 'ERR_MULTIFD_VERSION', 'received 4294967295', 'expected 1'],
  ];
  for (const [at, value, code, received, wanted] of cases) {
    const bytes = patched(DATA, [at, value]);
    for (const unfillIt of [() => unfillPacketStart(bytes.subarray(0, 12)), () => unfill(bytes)]) {
      const error = t.throws(unfillIt, { code }) as MultifdError;
      t.ok(error.message.includes(received), error.message);
      t.ok(error.message.includes(wanted), error.message);
    }
  }
});

t.test('pages_alloc above N is refused, N is not', async (t) => {
  const expected = receiver({ size: FOUR_PAGES });
  t.equal(unfill(patched(DATA, [12, '00000080']), expected).normalPages, 2);
  for (const [value, text] of [
    ['00000081', '129'],
    ['ffffffff', '4294967295'],
  ]) {
    const bytes = patched(DATA, [12, value]);
    refused(t, bytes, expected, 'ERR_MULTIFD_PAGES_ALLOC', `pages_alloc: received ${text},`, 'at most 128');
  }
  // N is 8 for 64 KiB pages.
  const big = receiver({ size: 8 * 65536, pageSize: 65536 });
  const fields = patched(DATA.subarray(0, 384), [320, '0000000000030000'], [336, '0000000000010000']);
  t.equal(unfill(patched(fields, [12, '00000008']), big).normalPages, 2);
  refused(t, patched(fields, [12, '00000009']), big, 'ERR_MULTIFD_PAGES_ALLOC', 'received 9,', 'at most 8');
});

t.test('pages_alloc above N is refused in a SYNC packet too', async (t) => {
  const bytes = patched(DATA, [8, '00000001'], [12, '00000081'], [16, '00000000'], [32, '00000000']);
  refused(t, bytes, receiver(), 'ERR_MULTIFD_PAGES_ALLOC', 'received 129,');
});

t.test('normal_pages above pages_alloc is refused, as many as pages_alloc are not', async (t) => {
  const expected = receiver({ size: FOUR_PAGES });
  const exact = patched(DATA, [12, '00000002'], [32, '00000000']);
  t.match(unfill(exact, expected), { normalPages: 2, zeroPages: 0 });
  for (const [alloc, value, text] of [
    ['00000001', '00000002', 'normal_pages: received 2, expected at most 1'],
    ['00000000', '00000001', 'normal_pages: received 1, expected at most 0'],
    ['00000080', '00000081', 'normal_pages: received 129, expected at most 128'],
    ['00000080', 'ffffffff', 'normal_pages: received 4294967295, expected at most 128'],
  ]) {
    const bytes = patched(DATA, [12, alloc], [16, value], [32, '00000000']);
    refused(t, bytes, expected, 'ERR_MULTIFD_NORMAL_PAGES', text);
  }
});

t.test('zero_pages above pages_alloc - normal_pages is refused, as many as that are not', async (t) => {
  const expected = receiver({ size: FOUR_PAGES });
  t.match(unfill(patched(DATA, [12, '00000003']), expected), { normalPages: 2, zeroPages: 1 });
  t.match(unfill(patched(DATA, [32, '0000007e']), expected), { normalPages: 2, zeroPages: 126 });
  for (const [alloc, normal, value, text] of [
    ['00000002', '00000002', '00000001', 'zero_pages: received 1, expected at most 0'],
    ['00000080', '00000002', '0000007f', 'zero_pages: received 127, expected at most 126'],
    ['00000080', '00000000', '00000081', 'zero_pages: received 129, expected at most 128'],
    ['00000080', '00000002', 'ffffffff', 'zero_pages: received 4294967295, expected at most 126'],
    // The sum wraps to 1 in 32 bits.
    ['00000080', '00000002', 'fffffffe', 'zero_pages: received 4294967294, expected at most 126'],
  ]) {
    const bytes = patched(DATA, [12, alloc], [16, normal], [32, value]);
    refused(t, bytes, expected, 'ERR_MULTIFD_ZERO_PAGES', text);
  }
});

t.test('a block that is not known is refused, with normal pages and with zero pages alone', async (t) => {
  const expected = receiver({ name: 'pc.rom' });
  refused(t, DATA, expected, 'ERR_MULTIFD_RAMBLOCK', 'ramblock: received "pc.ram"', 'a known RAM block');
  refused(t, patched(DATA, [16, '00000000']), expected, 'ERR_MULTIFD_RAMBLOCK', '"pc.ram"');
  t.equal(unfill(patched(DATA, [68, '6f']), expected).block, 0, 'pc.rom in place of pc.ram');
  refused(t, patched(DATA, [64, '00']), receiver(), 'ERR_MULTIFD_RAMBLOCK', 'received ""');
});

t.test('the name is all that stands before the first NUL', async (t) => {
  const expected = receiver();
  t.equal(unfill(patched(DATA, [71, 'ff'.repeat(249)]), expected).block, 0);
  t.same(expected.asked, ['pc.ram']);
});

t.test('byte 255 of ramblock counts as NUL whatever was sent', async (t) => {
  const name = 'x'.repeat(255);
  for (const last of ['00', '78', 'ff']) {
    const expected = receiver({ name });
    t.equal(unfill(patched(DATA, [64, '78'.repeat(255)], [319, last]), expected).block, 0);
    t.same(expected.asked, [name]);
  }
});

t.test('a name of any bytes is asked for and refused, not mangled into a known one', async (t) => {
  const expected = receiver();
  refused(t, patched(DATA, [70, 'e9ff']), expected, 'ERR_MULTIFD_RAMBLOCK');
  refused(t, patched(DATA, [64, 'f0e3ae72616d']), expected, 'ERR_MULTIFD_RAMBLOCK');
  t.same(expected.asked, ['pc.ram\xe9\xff', '\xf0\xe3\xaeram']);
});

t.test('an offset behind the last page is refused, in every listed slot', async (t) => {
  const expected = receiver({ size: FOUR_PAGES });
  for (const slot of [0, 1, 2]) {
    const at = 320 + 8 * slot;
    t.same(listed(unfill(patched(DATA, [at, '0000000000003000']), expected))[slot], 3, 'the last page is in');
    for (const [value, text] of [
      ['0000000000004000', 'received 16384,'],
      ['00000000fffff000', 'received 4294963200,'],
      // The low 32 bits alone would be a page of the block.
      ['0000000100000000', 'received 4294967296,'],
      ['0000000100001000', 'received 4294971392,'],
      ['8000000000001000', 'received'],
      ['fffffffffffff000', 'received 18446744073709548000,'],
      ['ffffffffffffffff', 'received 18446744073709552000,'],
    ]) {
      const bytes = patched(DATA, [at, value]);
      refused(
        t,
        bytes,
        expected,
        'ERR_MULTIFD_OFFSET',
        `offset ${slot} in "pc.ram": ${text}`,
        'at most 12288',
      );
    }
  }
});

t.test('a block larger than 4 GiB ends where it ends', async (t) => {
  const expected = receiver({ size: 2 ** 33 + 4096 });
  t.equal(listed(unfill(patched(DATA, [320, '0000000200000000']), expected))[0], 0x200000);
  refused(
    t,
    patched(DATA, [320, '0000000200001000']),
    expected,
    'ERR_MULTIFD_OFFSET',
    'received 8589938688,',
  );
});

t.test('an offset that is not page-aligned is refused', async (t) => {
  const expected = receiver({ size: FOUR_PAGES });
  for (const [value, text] of [
    ['0000000000000001', 'received 1,'],
    ['0000000000000800', 'received 2048,'],
    ['0000000000000fff', 'received 4095,'],
    ['0000000000002001', 'received 8193,'],
  ]) {
    for (const slot of [0, 1, 2]) {
      const bytes = patched(DATA, [320 + 8 * slot, value]);
      refused(
        t,
        bytes,
        expected,
        'ERR_MULTIFD_OFFSET',
        `offset ${slot} in "pc.ram": ${text}`,
        'a multiple of 4096',
      );
    }
  }
  // Aligned to 4 KiB, not to 64 KiB.
  const big = receiver({ size: 8 * 65536, pageSize: 65536 });
  const fields = patched(
    DATA.subarray(0, 384),
    [12, '00000008'],
    [320, '0000000000001000'],
    [336, '0000000000010000'],
  );
  refused(t, fields, big, 'ERR_MULTIFD_OFFSET', 'received 4096,', 'a multiple of 65536');
});

t.test('offsets that are not listed are not looked at', async (t) => {
  const bytes = patched(DATA, [344, 'ff'.repeat(1000)]);
  t.same(listed(unfill(bytes, receiver({ size: FOUR_PAGES }))), [3, 0, 1]);
});

t.test('method bits other than the configured compression are refused in a packet with pages', async (t) => {
  const names: [flags: string, name: string][] = [
    ['00', 'none (0x00)'],
    ['02', 'zlib (0x02)'],
    ['04', 'zstd (0x04)'],
    ['06', 'unknown (0x06)'],
    ['08', 'qpl (0x08)'],
    ['10', 'uadk (0x10)'],
    ['20', 'qatzip (0x20)'],
    ['3e', 'unknown (0x3e)'],
  ];
  for (const [compression, configured] of Object.entries(METHODS) as [RefCompression, number][]) {
    const expected = receiver({ compression });
    for (const [bits, name] of names) {
      for (const sync of [0, 1]) {
        const flags = (parseInt(bits, 16) | sync).toString(16).padStart(8, '0');
        const both = patched(DATA, [8, flags]);
        const zeroOnly = patched(both, [16, '00000000']);
        for (const bytes of [both, zeroOnly]) {
          if (parseInt(bits, 16) === configured) {
            t.equal(unfill(bytes, expected).sync, sync === 1, `${compression} takes ${flags}`);
          } else {
            const wanted = `expected ${compression} (0x0${configured})`;
            refused(t, bytes, expected, 'ERR_MULTIFD_METHOD', `received ${name},`, wanted);
          }
        }
      }
    }
  }
});

t.test('method bits are not looked at in a packet without pages', async (t) => {
  const bare = patched(DATA, [16, '00000000'], [32, '00000000']);
  for (const compression of ['none', 'zlib', 'zstd'] as const) {
    for (const flags of ['00000000', '00000001', '00000003', '00000005', '0000003f']) {
      t.equal(unfill(patched(bare, [8, flags]), receiver({ compression })).block, -1);
    }
  }
});

t.test('a SYNC packet may carry pages', async (t) => {
  for (const [flags, compression] of [
    ['00000001', 'none'],
    ['00000003', 'zlib'],
    ['00000005', 'zstd'],
  ] as const) {
    const unfilled = unfill(patched(DATA, [8, flags]), receiver({ size: FOUR_PAGES, compression }));
    t.match(unfilled, { sync: true, normalPages: 2, zeroPages: 1, nextPacketSize: 8192 });
    t.same(listed(unfilled), [3, 0, 1]);
  }
});

t.test('unknown higher flags are not looked at', async (t) => {
  t.match(unfill(patched(DATA, [8, 'ffffff80'])), { normalPages: 2, sync: false });
  t.match(unfill(patched(DATA, [8, '80000001'])), { normalPages: 2, sync: true });
});

t.test('next_packet_size of 0 or above 1 MiB is refused under compression', async (t) => {
  for (const [compression, flags] of [
    ['zlib', '00000002'],
    ['zstd', '00000004'],
  ] as const) {
    const expected = receiver({ compression });
    const sized = (size: string): Buffer => patched(DATA, [8, flags], [20, size]);
    t.equal(unfill(sized('00000001'), expected).nextPacketSize, 1);
    t.equal(unfill(sized('00100000'), expected).nextPacketSize, 1048576);
    for (const [size, text] of [
      ['00000000', '0'],
      ['00100001', '1048577'],
      ['ffffffff', '4294967295'],
    ]) {
      const message = `next_packet_size: received ${text}, expected 1 to 1048576`;
      refused(t, sized(size), expected, 'ERR_MULTIFD_PACKET_SIZE', message);
    }
  }
});

t.test(
  'without compression the payload is as long as the pages, whatever next_packet_size says',
  async (t) => {
    for (const size of ['00000000', '00002000', '00000001', 'ffffffff']) {
      t.equal(unfill(patched(DATA, [20, size])).nextPacketSize, 8192);
    }
  },
);

t.test('a packet without normal pages has no payload, whatever next_packet_size says', async (t) => {
  for (const [compression, bits] of Object.entries(METHODS) as [RefCompression, number][]) {
    for (const size of ['00000000', '00080000', 'ffffffff']) {
      const zeroOnly = patched(DATA, [11, `0${bits}`], [16, '00000000'], [20, size]);
      t.match(unfill(zeroOnly, receiver({ compression })), { zeroPages: 1, nextPacketSize: 0 });
      const sync = patched(zeroOnly, [11, '01'], [32, '00000000']);
      t.match(unfill(sync, receiver({ compression })), { zeroPages: 0, nextPacketSize: 0, sync: true });
    }
  }
});

t.test('reserved bytes are not looked at', async (t) => {
  const unfilled = unfill(patched(DATA, [36, 'ff'.repeat(28)]), receiver({ size: FOUR_PAGES }));
  t.match(unfilled, { normalPages: 2, zeroPages: 1, packetNum: DATA_NUM });
  t.same(listed(unfilled), [3, 0, 1]);
});

t.test('a packet without pages and without SYNC is borne', async (t) => {
  const unfilled = unfill(patched(DATA, [16, '00000000'], [32, '00000000'], [64, '00']));
  t.match(unfilled, { sync: false, normalPages: 0, zeroPages: 0, block: -1 });
});

t.test("of several wrong fields the first in QEMU's order is named", async (t) => {
  /** In QEMU's order. Each is wrong on its own, and stays wrong when those before are put right. */
  const wrong: [code: ErrorCode, at: number, value: string][] = [
    ['ERR_MULTIFD_MAGIC', 0, 'ffffffff'],
    ['ERR_MULTIFD_VERSION', 4, '00000002'],
    ['ERR_MULTIFD_PAGES_ALLOC', 12, '00000081'],
    ['ERR_MULTIFD_NORMAL_PAGES', 16, '00000082'],
    ['ERR_MULTIFD_ZERO_PAGES', 32, '00000082'],
    ['ERR_MULTIFD_RAMBLOCK', 64, '71'],
    ['ERR_MULTIFD_OFFSET', 320, '0000000000004000'],
    ['ERR_MULTIFD_METHOD', 11, '04'],
    ['ERR_MULTIFD_PACKET_SIZE', 20, '00000000'],
  ];
  const expected = receiver({ size: FOUR_PAGES, compression: 'zlib' });
  const good = patched(DATA, [11, '02']);
  t.equal(unfill(good, expected).nextPacketSize, 8192);
  for (const [i, [code]] of wrong.entries()) {
    const bytes = patched(good, ...wrong.slice(i).map(([, at, value]): [number, string] => [at, value]));
    t.throws(() => unfill(bytes, expected), { code }, code);
  }
});

t.test('one header object serves for packets one after another', async (t) => {
  const expected = receiver({ size: FOUR_PAGES });
  const into = new PacketHeader(4096);
  unfillPacket(DATA, expected, into);
  unfillPacket(Q100_FIRST_SYNC, expected, into);
  t.match(into, {
    flags: 1,
    normalPages: 0,
    zeroPages: 0,
    nextPacketSize: 0,
    packetNum: 1,
    block: -1,
    sync: true,
  });
  unfillPacket(DATA, expected, into);
  t.match(into, { flags: 0, normalPages: 2, zeroPages: 1, nextPacketSize: 8192, block: 0, sync: false });
});
