/**
 * The receiving halves of zlib and zstd, each with all of its backends, packet by packet: real captures, every
 * encoding of the tables in specification 3.2 and 3.3, and payloads that lie.
 *
 * The judge of the captures is test/support/reference-decoder.ts, which shares nothing with src.
 */
import { compress as zstdCompress } from '@mongodb-js/zstd';
import { once } from 'node:events';
import v8 from 'node:v8';
import vm from 'node:vm';
import zlib from 'node:zlib';
import t, { type Test } from 'tap';
import { MultifdError } from '../../src/errors.js';
import type { ReceiveMethod } from '../../src/methods/contract.js';
import { createZlibReceiver } from '../../src/methods/zlib.js';
import { createZstdReceiver } from '../../src/methods/zstd.js';
import { hasNodeZstd } from '../../src/methods/zstd-node.js';
import { findLibzstd, whyNoLibzstd } from '../../src/native/libzstd.js';
import { Random } from '../support/random.js';
import { decodeChannel, readCapture } from '../support/reference-decoder.js';

const PAGE = 4096;
const MiB = 2 ** 20;
const { Z_SYNC_FLUSH, Z_FULL_FLUSH } = zlib.constants;

interface Backend {
  name: string;
  create(pageSize?: number): ReceiveMethod;
  /** Why it cannot run here. */
  skip?: string;
}

const ZLIB: Backend[] = [
  { name: 'zlib by node:zlib', create: (pageSize = PAGE) => createZlibReceiver(pageSize, true) },
  { name: 'zlib by fflate', create: (pageSize = PAGE) => createZlibReceiver(pageSize, false) },
];
const NODE_ZSTD: Backend = {
  name: 'zstd by node:zlib',
  create: (pageSize = PAGE) => createZstdReceiver(pageSize, 'node'),
};
if (!hasNodeZstd) NODE_ZSTD.skip = 'this Node has no zstd of its own';
const LIBZSTD: Backend = {
  name: "zstd by the system's libzstd",
  create: (pageSize = PAGE) => createZstdReceiver(pageSize, 'libzstd'),
};
if (findLibzstd() === undefined) LIBZSTD.skip = whyNoLibzstd();
const ZSTD: Backend[] = [
  NODE_ZSTD,
  LIBZSTD,
  {
    name: 'zstd by @mongodb-js/zstd and our decoder',
    create: (pageSize = PAGE) => createZstdReceiver(pageSize, 'binding'),
  },
];
const BACKENDS = { zlib: ZLIB, zstd: ZSTD };

/** A backend as a test's options. */
const options = (backend: Backend): { skip?: string } =>
  backend.skip === undefined ? {} : { skip: backend.skip };

const CANARY = 0xa5;

/** Decodes one payload to `length` bytes; nothing around them may be touched, whatever the payload is. */
async function decode(t: Test, method: ReceiveMethod, payload: Buffer, length: number): Promise<Buffer> {
  const around = Buffer.alloc(length + 2 * PAGE, CANARY);
  const pages = around.subarray(PAGE, PAGE + length);
  // A channel reads the next payload into the same buffer.
  const lent = Buffer.from(payload);
  try {
    const own = await method.decompress(lent, pages);
    if (own !== undefined) {
      if (own.length !== length) t.fail(`${own.length} bytes, expected ${length}`);
      own.copy(pages);
    }
  } finally {
    lent.fill(0xdd);
    const untouched =
      around.subarray(0, PAGE).equals(Buffer.alloc(PAGE, CANARY)) &&
      around.subarray(PAGE + length).equals(Buffer.alloc(PAGE, CANARY));
    if (!untouched) t.fail('bytes outside of the pages were written');
  }
  return pages;
}

/** The packet at which a channel of these payloads is refused, and why; undefined if every one is taken. */
async function refusal(
  t: Test,
  backend: Backend,
  packets: { payload: Buffer; pages: Buffer }[],
  pageSize = PAGE,
): Promise<{ packet: number; error: MultifdError } | undefined> {
  const method = backend.create(pageSize);
  try {
    for (const [packet, { payload, pages }] of packets.entries()) {
      try {
        const decoded = await decode(t, method, payload, pages.length);
        if (!decoded.equals(pages))
          t.fail(`${backend.name}: packet ${packet} is taken, and its pages are wrong`);
      } catch (error) {
        if (!(error instanceof MultifdError)) throw error;
        return { packet, error };
      }
    }
    return undefined;
  } finally {
    method.close();
  }
}

// ---- guest pages ----

/** Pages as guests have them: words of few kinds, noise, text; none is zero. */
function guestPages(count: number, seed: number): Buffer {
  const random = new Random(seed);
  const bytes = Buffer.alloc(count * PAGE);
  for (let page = 0; page < count; page++) {
    const view = bytes.subarray(page * PAGE, (page + 1) * PAGE);
    if (page % 3 === 0) random.bytes(view);
    else if (page % 3 === 1)
      for (let i = 0; i < PAGE; i += 4) view.writeUInt32LE(random.next() & 0x0f0f0f0f, i);
    else view.fill(`page ${page} of a guest's memory `);
  }
  return bytes;
}

const PACKETS = [guestPages(5, 1), guestPages(128, 2), guestPages(1, 3), guestPages(32, 2)];
const pagesOf = (bytes: Buffer): Buffer[] =>
  Array.from({ length: bytes.length / PAGE }, (_, i) => bytes.subarray(i * PAGE, (i + 1) * PAGE));

// ---- captures ----

/** The payloads of a channel, cut out by hand: hello of 64 bytes, headers of 1344. */
function payloadsOf(bytes: Buffer): Buffer[] {
  const payloads: Buffer[] = [];
  for (let at = 64; at < bytes.length;) {
    const normalPages = bytes.readUInt32BE(at + 16);
    // Stale in packets without pages of 7.2.
    const size = normalPages > 0 ? bytes.readUInt32BE(at + 20) : 0;
    if (size > 0) payloads.push(bytes.subarray(at + 1344, at + 1344 + size));
    at += 1344 + size;
  }
  return payloads;
}

for (const compression of ['zlib', 'zstd'] as const) {
  for (const backend of BACKENDS[compression]) {
    t.test(`${backend.name}: the captures of QEMU, packet by packet`, options(backend), async (t) => {
      for (const name of [`q100-${compression}`, `q72-${compression}`]) {
        for (const id of [0, 1]) {
          const bytes = readCapture(`${name}.ch${id}`);
          const { packets } = await decodeChannel(bytes, { pageSize: PAGE, compression });
          const expected = packets.flatMap((packet) =>
            packet.kind === 'ram' && packet.normalPages > 0 ? [Buffer.concat(packet.pages)] : [],
          );
          const payloads = payloadsOf(bytes);
          t.equal(payloads.length, expected.length);
          const refused = await refusal(
            t,
            backend,
            payloads.map((payload, i) => ({ payload, pages: expected[i] })),
          );
          t.equal(refused, undefined, `${name}.ch${id}`);
        }
      }
    });
  }
}

// ---- 3.2: zlib ----

/** A deflate stream that goes on from packet to packet, by Node's own stream. */
async function deflateStream(
  packets: Buffer[],
  level: number,
  flush: number,
  perPage = false,
): Promise<Buffer[]> {
  const stream = zlib.createDeflate({ level });
  const payloads: Buffer[] = [];
  let chunks: Buffer[] = [];
  stream.on('data', (chunk: Buffer) => chunks.push(chunk));
  for (const packet of packets) {
    for (const piece of perPage ? pagesOf(packet) : [packet]) {
      stream.write(piece);
      await new Promise<void>((resolve) => stream.flush(flush, resolve));
    }
    payloads.push(Buffer.concat(chunks));
    chunks = [];
  }
  stream.destroy();
  await once(stream, 'close');
  return payloads;
}

const ZLIB_HEADER = Buffer.from('7801', 'hex');
const withHeader = (payloads: Buffer[]): Buffer[] =>
  payloads.map((payload, i) => (i === 0 ? Buffer.concat([ZLIB_HEADER, payload]) : payload));
const openRaw = (bytes: Buffer): Buffer =>
  zlib.deflateRawSync(bytes, { level: 1, finishFlush: Z_SYNC_FLUSH });

/** Stored blocks: 00, LEN, ~LEN, bytes; at most 65535 bytes each. */
function storedBlocks(bytes: Buffer, blockBytes: number): Buffer {
  const parts: Buffer[] = [];
  for (let at = 0; at < bytes.length; at += blockBytes) {
    const block = bytes.subarray(at, at + blockBytes);
    const header = Buffer.alloc(5);
    header.writeUInt16LE(block.length, 1);
    header.writeUInt16LE(block.length ^ 0xffff, 3);
    parts.push(header, block);
  }
  return Buffer.concat(parts);
}

const packetsOf = (payloads: Buffer[]): { payload: Buffer; pages: Buffer }[] =>
  payloads.map((payload, i) => ({ payload, pages: PACKETS[i] }));

const ZLIB_ACCEPTED: Record<string, () => Buffer[] | Promise<Buffer[]>> = {
  'one continuing stream, sync flush a packet': () => deflateStream(PACKETS, 1, Z_SYNC_FLUSH),
  'the same of level 9': () => deflateStream(PACKETS, 9, Z_SYNC_FLUSH),
  'the same of level 0': () => deflateStream(PACKETS, 0, Z_SYNC_FLUSH),
  'one continuing stream, full flush a packet': () => deflateStream(PACKETS, 1, Z_FULL_FLUSH),
  'one continuing stream, sync flush a page': () => deflateStream(PACKETS, 1, Z_SYNC_FLUSH, true),
  'header once, an independent raw deflate a packet': () => withHeader(PACKETS.map(openRaw)),
  'header once, an independent raw deflate a page': () =>
    withHeader(PACKETS.map((packet) => Buffer.concat(pagesOf(packet).map(openRaw)))),
  'header once, stored blocks only, one a page': () =>
    withHeader(PACKETS.map((packet) => storedBlocks(packet, PAGE))),
  'header once, stored blocks only, across pages': () =>
    withHeader(PACKETS.map((packet) => storedBlocks(packet, 65535))),
};

/** And the packet at which each backend refuses. An end is only noticed when more follows it. */
const ZLIB_REFUSED: Record<string, { payloads: () => Buffer[]; packets: [node: number, fflate: number] }> = {
  'raw deflate with a final block a packet': {
    // Inflate waits for the Adler sum and finds the next packet in its place, as in QEMU.
    payloads: () => withHeader(PACKETS.map((packet) => zlib.deflateRawSync(packet, { level: 1 }))),
    packets: [1, 1],
  },
  'a complete zlib stream a packet': {
    payloads: () => PACKETS.map((packet) => zlib.deflateSync(packet)),
    packets: [0, 1],
  },
  'a fresh zlib header a packet, unfinished': {
    payloads: () => PACKETS.map((packet) => zlib.deflateSync(packet, { finishFlush: Z_SYNC_FLUSH })),
    packets: [1, 1],
  },
  'raw deflate without any zlib header': { payloads: () => PACKETS.map(openRaw), packets: [0, 0] },
  'an end of the stream after the last page': {
    payloads: () =>
      withHeader(PACKETS.map((packet) => Buffer.concat([openRaw(packet), Buffer.from('0300', 'hex')]))),
    packets: [1, 1],
  },
};

for (const backend of ZLIB) {
  for (const [name, payloads] of Object.entries(ZLIB_ACCEPTED)) {
    t.test(`${backend.name} takes: ${name}`, async (t) => {
      const refused = await refusal(t, backend, packetsOf(await payloads()));
      t.equal(refused, undefined, refused?.error.message ?? 'taken');
    });
  }
  for (const [name, { payloads, packets }] of Object.entries(ZLIB_REFUSED)) {
    t.test(`${backend.name} refuses: ${name}`, async (t) => {
      const refused = await refusal(t, backend, packetsOf(payloads()));
      t.equal(refused?.error.code, 'ERR_MULTIFD_DECOMPRESS');
      t.equal(refused?.packet, packets[ZLIB.indexOf(backend)], refused?.error.message ?? 'taken');
    });
  }
}

// ---- 3.3: zstd ----

const FRAME_MAGIC = Buffer.from('28b52ffd', 'hex');

/** A block: 3 bytes little-endian, size << 3 | type << 1 | last. */
function zstdBlock(type: 'raw' | 'rle', bytes: Buffer, last: boolean): Buffer {
  const rle = type === 'rle';
  const header = Buffer.alloc(3);
  header.writeUIntLE(bytes.length * 8 + (rle ? 2 : 0) + (last ? 1 : 0), 0, 3);
  return Buffer.concat([header, rle ? bytes.subarray(0, 1) : bytes]);
}

/** One block a page: RLE where the page is of one byte. */
function pageBlocks(bytes: Buffer, end: boolean): Buffer {
  const pages = pagesOf(bytes);
  return Buffer.concat(
    pages.map((page, i) =>
      zstdBlock(
        page.equals(Buffer.alloc(PAGE, page[0])) ? 'rle' : 'raw',
        page,
        end && i === pages.length - 1,
      ),
    ),
  );
}

/** `28 b5 2f fd a0 <LE32 size>`: one segment, content size of 4 bytes. */
function sizedHeader(size: number): Buffer {
  const bytes = Buffer.from('28b52ffda000000000', 'hex');
  bytes.writeUInt32LE(size, 5);
  return bytes;
}

/** The blocks of a complete frame. */
function blocksOf(frame: Buffer): Buffer[] {
  const descriptor = frame[4];
  const single = (descriptor & 0x20) !== 0;
  let at = 5 + (single ? 0 : 1) + [single ? 1 : 0, 2, 4, 8][descriptor >>> 6];
  const blocks: Buffer[] = [];
  for (let last = false; !last;) {
    const header = frame.readUIntLE(at, 3);
    last = (header & 1) !== 0;
    const size = 3 + (((header >>> 1) & 3) === 1 ? 1 : header >>> 3);
    blocks.push(frame.subarray(at, at + size));
    at += size;
  }
  return blocks;
}

/** A window of 1 MiB, no content size, no checksum. */
const UNSIZED_HEADER = Buffer.concat([FRAME_MAGIC, Buffer.of(0x00, 10 << 3)]);

/** Complete frames; whether the compressor writes the content size depends on its version, so the headers are ours. */
async function sizedFrame(bytes: Buffer): Promise<Buffer> {
  return Buffer.concat([sizedHeader(bytes.length), ...blocksOf(await zstdCompress(bytes))]);
}
async function unsizedFrame(bytes: Buffer): Promise<Buffer> {
  return Buffer.concat([UNSIZED_HEADER, ...blocksOf(await zstdCompress(bytes))]);
}

/** The low 32 bits of xxHash64, seed 0: a frame's checksum. */
function frameChecksum(bytes: Buffer): Buffer {
  const P1 = 0x9e3779b185ebca87n;
  const P2 = 0xc2b2ae3d27d4eb4fn;
  const P3 = 0x165667b19e3779f9n;
  const P4 = 0x85ebca77c2b2ae63n;
  const mul = (a: bigint, b: bigint): bigint => BigInt.asUintN(64, a * b);
  const add = (a: bigint, b: bigint): bigint => BigInt.asUintN(64, a + b);
  const rotl = (a: bigint, n: bigint): bigint => BigInt.asUintN(64, (a << n) | (a >> (64n - n)));
  const round = (acc: bigint, lane: bigint): bigint => mul(rotl(add(acc, mul(lane, P2)), 31n), P1);
  // Whole pages only: a multiple of 32 bytes, so the tail of the algorithm is never needed.
  if (bytes.length === 0 || bytes.length % 32 !== 0) throw new Error(`length ${bytes.length}`);
  const accs = [add(P1, P2), P2, 0n, BigInt.asUintN(64, -P1)];
  for (let at = 0; at < bytes.length; at += 32) {
    for (let i = 0; i < 4; i++) accs[i] = round(accs[i], bytes.readBigUInt64LE(at + 8 * i));
  }
  let hash = [1n, 7n, 12n, 18n].reduce((sum, n, i) => add(sum, rotl(accs[i], n)), 0n);
  for (const acc of accs) hash = add(mul(hash ^ round(0n, acc), P1), P4);
  hash = add(hash, BigInt(bytes.length));
  hash = mul(hash ^ (hash >> 33n), P2);
  hash = mul(hash ^ (hash >> 29n), P3);
  hash ^= hash >> 32n;
  const checksum = Buffer.alloc(4);
  checksum.writeUInt32LE(Number(hash & 0xffffffffn));
  return checksum;
}

/** A complete frame with a checksum, from one without. */
function withChecksum(frame: Buffer, content: Buffer): Buffer {
  const marked = Buffer.concat([frame, frameChecksum(content)]);
  marked[4] |= 0x04;
  return marked;
}

const perPacket = (make: (bytes: Buffer) => Buffer | Promise<Buffer>): Promise<Buffer[]> =>
  Promise.all(PACKETS.map(async (bytes) => make(bytes)));

/** A first page of one byte value beside others, so that hand-made frames have RLE blocks too. */
PACKETS[1].fill(0x77, PAGE, 2 * PAGE);

const ZSTD_ACCEPTED: Record<string, () => Promise<Buffer[]>> = {
  'one complete frame a packet, as @mongodb-js/zstd makes it': () =>
    perPacket((bytes) => zstdCompress(bytes)),
  'one complete frame a packet, content size known': () => perPacket(sizedFrame),
  'one complete frame a packet, content size unknown': () => perPacket(unsizedFrame),
  'one complete frame a packet, content size known, checksum': () =>
    perPacket(async (bytes) => withChecksum(await sizedFrame(bytes), bytes)),
  'one complete frame a packet, content size unknown, checksum': () =>
    perPacket(async (bytes) => withChecksum(await unsizedFrame(bytes), bytes)),
  'one complete frame a page': () =>
    perPacket(async (bytes) =>
      Buffer.concat(await Promise.all(pagesOf(bytes).map((page) => zstdCompress(page)))),
    ),
  'a hand-made frame a packet, a raw or RLE block a page': () =>
    perPacket((bytes) => Buffer.concat([sizedHeader(bytes.length), pageBlocks(bytes, true)])),
  'a hand-made frame that never ends, a raw or RLE block a page': () =>
    Promise.resolve(
      PACKETS.map((bytes, i) => {
        const blocks = pageBlocks(bytes, false);
        return i > 0 ? blocks : Buffer.concat([Buffer.from('28b52ffd0038', 'hex'), blocks]);
      }),
    ),
  'an endless frame, then complete ones after it has ended': async () => [
    Buffer.concat([Buffer.from('28b52ffd0038', 'hex'), pageBlocks(PACKETS[0], false)]),
    pageBlocks(PACKETS[1], true),
    await zstdCompress(PACKETS[2]),
    await unsizedFrame(PACKETS[3]),
  ],
};

const ZSTD_REFUSED: Record<string, { payloads: () => Promise<Buffer[]>; packet: number }> = {
  'a frame that ends in the middle of a page': {
    payloads: async () => {
      const [, bytes] = PACKETS;
      const middle = 10 * PAGE + 100;
      const halves = [bytes.subarray(0, middle), bytes.subarray(middle)];
      return [
        await zstdCompress(PACKETS[0]),
        Buffer.concat(await Promise.all(halves.map((half) => zstdCompress(half)))),
      ];
    },
    packet: 1,
  },
  'a skippable frame before the data frame': {
    payloads: () =>
      perPacket(async (bytes) =>
        Buffer.concat([Buffer.from('502a4d1804000000', 'hex'), Buffer.alloc(4), await zstdCompress(bytes)]),
      ),
    packet: 0,
  },
  'a window of 256 MiB': {
    payloads: () =>
      perPacket((bytes) => Buffer.concat([FRAME_MAGIC, Buffer.of(0x00, 18 << 3), pageBlocks(bytes, true)])),
    packet: 0,
  },
};

/** Node's own streaming compressor, where there is one: the form of a real QEMU. */
async function zstdStream(packets: Buffer[]): Promise<Buffer[]> {
  const nodeZstd = zlib as unknown as {
    createZstdCompress(options: object): zlib.Zlib & NodeJS.ReadWriteStream & { destroy(): void };
    constants: { ZSTD_e_flush: number };
  };
  const stream = nodeZstd.createZstdCompress({});
  const payloads: Buffer[] = [];
  let chunks: Buffer[] = [];
  stream.on('data', (chunk: Buffer) => chunks.push(chunk));
  for (const packet of packets) {
    stream.write(packet);
    await new Promise<void>((resolve) => stream.flush(nodeZstd.constants.ZSTD_e_flush, resolve));
    payloads.push(Buffer.concat(chunks));
    chunks = [];
  }
  stream.destroy();
  return payloads;
}

for (const backend of ZSTD) {
  const streamed = hasNodeZstd ? options(backend) : { skip: 'this Node has no zstd of its own' };
  t.test(`${backend.name} takes: one continuing frame, flush a packet`, streamed, async (t) => {
    const refused = await refusal(t, backend, packetsOf(await zstdStream(PACKETS)));
    t.equal(refused, undefined, refused?.error.message ?? 'taken');
  });

  t.test(
    `${backend.name} takes: one frame over four packets, cut at its blocks`,
    options(backend),
    async (t) => {
      // Blocks of 128 KiB that refer to the history of the blocks before.
      const bytes = Buffer.concat([
        guestPages(32, 7),
        guestPages(32, 7),
        guestPages(32, 8),
        guestPages(32, 7),
      ]);
      const blocks = blocksOf(await zstdCompress(bytes)).slice(0, 4);
      // Then none is the last one, the frame stays open.
      t.ok(blocks.every((block) => (block[0] & 1) === 0));
      const refused = await refusal(
        t,
        backend,
        blocks.map((block, i) => ({
          payload: i > 0 ? block : Buffer.concat([UNSIZED_HEADER, block]),
          pages: bytes.subarray(i * 32 * PAGE, (i + 1) * 32 * PAGE),
        })),
      );
      t.equal(refused, undefined, refused?.error.message ?? 'taken');
    },
  );

  for (const [name, payloads] of Object.entries(ZSTD_ACCEPTED)) {
    t.test(`${backend.name} takes: ${name}`, options(backend), async (t) => {
      const refused = await refusal(t, backend, packetsOf(await payloads()));
      t.equal(refused, undefined, refused?.error.message ?? 'taken');
    });
  }
  for (const [name, { payloads, packet }] of Object.entries(ZSTD_REFUSED)) {
    t.test(`${backend.name} refuses: ${name}`, options(backend), async (t) => {
      const refused = await refusal(t, backend, packetsOf(await payloads()));
      t.equal(refused?.error.code, 'ERR_MULTIFD_DECOMPRESS');
      t.equal(refused?.packet, packet, `at the packet at which QEMU refuses it: ${refused?.error.message}`);
    });
  }
}

// ---- payloads that lie ----

/** One form of each method that a real sender uses. */
const FORMS: Record<'zlib' | 'zstd', Record<string, (bytes: Buffer) => Promise<Buffer>>> = {
  zlib: { stream: async (bytes) => (await deflateStream([bytes], 1, Z_SYNC_FLUSH))[0] },
  zstd: {
    'complete frame with its size': sizedFrame,
    'complete frame without size': unsizedFrame,
    'endless frame': (bytes) =>
      Promise.resolve(Buffer.concat([Buffer.from('28b52ffd0038', 'hex'), pageBlocks(bytes, false)])),
  },
};

for (const compression of ['zlib', 'zstd'] as const) {
  for (const backend of BACKENDS[compression]) {
    t.test(`${backend.name} refuses payloads of the wrong size`, options(backend), async (t) => {
      const bytes = guestPages(8, 4);
      for (const [form, make] of Object.entries(FORMS[compression])) {
        const payload = await make(bytes);
        for (const pages of [1, 7, 9, 128]) {
          const refused = await refusal(t, backend, [{ payload, pages: Buffer.alloc(pages * PAGE) }]);
          t.equal(refused?.error.code, 'ERR_MULTIFD_DECOMPRESS', `${form}: 8 pages as ${pages}`);
        }
      }
    });

    t.test(`${backend.name} refuses truncated payloads`, options(backend), async (t) => {
      const bytes = guestPages(8, 5);
      for (const [form, make] of Object.entries(FORMS[compression])) {
        const payload = await make(bytes);
        // Short of the last 16 bytes a page is missing in every form.
        for (const length of [1, 2, 3, 5, 6, 7, 9, 64, payload.length >>> 1, payload.length - 16]) {
          const refused = await refusal(t, backend, [{ payload: payload.subarray(0, length), pages: bytes }]);
          t.equal(
            refused?.error.code,
            'ERR_MULTIFD_DECOMPRESS',
            `${form}: ${length} of ${payload.length} bytes`,
          );
        }
      }
    });

    t.test(`${backend.name} refuses bytes left over`, options(backend), async (t) => {
      const bytes = guestPages(8, 6);
      for (const [form, make] of Object.entries(FORMS[compression])) {
        const payload = await make(bytes);
        const extra: Record<string, Buffer> =
          compression === 'zlib'
            ? {
                'one more stored byte': storedBlocks(Buffer.alloc(1), 1),
                'one more page': openRaw(guestPages(1, 9)),
                'a block of the reserved type': Buffer.alloc(16, 0xff),
              }
            : {
                'one more frame': await zstdCompress(guestPages(1, 9)),
                'no frame and no block': Buffer.alloc(16, 0xff),
              };
        for (const [what, more] of Object.entries(extra)) {
          const refused = await refusal(t, backend, [
            { payload: Buffer.concat([payload, more]), pages: bytes },
          ]);
          t.equal(refused?.error.code, 'ERR_MULTIFD_DECOMPRESS', `${form} and ${what}`);
        }
      }
    });

    t.test(`${backend.name} refuses noise`, options(backend), async (t) => {
      const random = new Random(10);
      for (let i = 0; i < 200; i++) {
        const noise = Buffer.alloc(1 + random.below(4096));
        random.bytes(noise);
        const refused = await refusal(t, backend, [{ payload: noise, pages: Buffer.alloc(8 * PAGE) }]);
        if (refused?.error.code !== 'ERR_MULTIFD_DECOMPRESS') t.fail(`noise ${i} is taken`);
      }
    });

    t.test(
      `${backend.name} never writes outside the pages, whatever byte is wrong`,
      options(backend),
      async (t) => {
        const random = new Random(11);
        const bytes = guestPages(8, 12);
        for (const make of Object.values(FORMS[compression])) {
          const payload = await make(bytes);
          const method = backend.create();
          method.close();
          for (let i = 0; i < 150; i++) {
            const wrong = Buffer.from(payload);
            wrong[random.below(i % 2 === 0 ? Math.min(wrong.length, 200) : wrong.length)] ^=
              1 << random.below(8);
            const one = backend.create();
            try {
              // Taken or refused: without a checksum a wrong literal is just another literal.
              await decode(t, one, wrong, bytes.length);
            } catch (error) {
              if (!(error instanceof MultifdError) || error.code !== 'ERR_MULTIFD_DECOMPRESS') {
                t.fail(`flip ${i}: ${String(error)}`);
              }
            } finally {
              one.close();
            }
          }
        }
        t.pass('every flip ends in pages or in a refusal');
      },
    );
  }
}

for (const backend of ZSTD) {
  t.test(`${backend.name} refuses a wrong content size`, options(backend), async (t) => {
    const bytes = guestPages(8, 13);
    for (const size of [0, bytes.length - PAGE, bytes.length + 1, 2 ** 27, 2 ** 31]) {
      const payload = Buffer.concat([sizedHeader(size), pageBlocks(bytes, true)]);
      const refused = await refusal(t, backend, [{ payload, pages: bytes }]);
      t.equal(refused?.error.code, 'ERR_MULTIFD_DECOMPRESS', `${size}, and ${bytes.length} bytes follow`);
    }
  });

  t.test(`${backend.name} refuses a block header cut short`, options(backend), async (t) => {
    const [first, second] = [guestPages(8, 15), guestPages(8, 16)];
    const refused = await refusal(t, backend, [
      {
        payload: Buffer.concat([
          Buffer.from('28b52ffd0038', 'hex'),
          pageBlocks(first, false),
          Buffer.of(0x01),
        ]),
        pages: first,
      },
      { payload: pageBlocks(second, true), pages: second },
    ]);
    // Node's decoder keeps the byte and stumbles over what follows.
    t.equal(refused?.error.code, 'ERR_MULTIFD_DECOMPRESS');
  });

  t.test(`${backend.name} refuses a frame that wants a dictionary`, options(backend), async (t) => {
    const bytes = guestPages(1, 14);
    const payload = Buffer.concat([FRAME_MAGIC, Buffer.of(0x01, 10 << 3, 0x05), pageBlocks(bytes, true)]);
    const refused = await refusal(t, backend, [{ payload, pages: bytes }]);
    t.equal(refused?.error.code, 'ERR_MULTIFD_DECOMPRESS');
  });
}

// ---- bombs ----

/** Stored once, repeated: 8 MiB of zeroes in about 8 KiB, open and independent. */
const ZLIB_BOMB_PIECE = openRaw(Buffer.alloc(8 * MiB));
/** RLE blocks of 128 KiB in 4 bytes each. */
const rleBlocks = (count: number, last: boolean): Buffer => {
  const block = Buffer.from('02001000', 'hex');
  const blocks = Buffer.alloc(count * 4, block);
  if (last) blocks[blocks.length - 4] |= 1;
  return blocks;
};

const BOMBS: Record<'zlib' | 'zstd', Record<string, () => Promise<Buffer>>> = {
  zlib: {
    '1 MiB that expands to 1 GiB': async () =>
      Buffer.concat([
        ZLIB_HEADER,
        ...Array<Buffer>(Math.floor(MiB / ZLIB_BOMB_PIECE.length)).fill(ZLIB_BOMB_PIECE),
      ]),
  },
  zstd: {
    'an endless frame of RLE blocks, 32 GiB': async () =>
      Buffer.concat([Buffer.from('28b52ffd0038', 'hex'), rleBlocks(MiB / 4 - 2, false)]),
    'a complete frame without size, 32 GiB': async () =>
      Buffer.concat([Buffer.from('28b52ffd0038', 'hex'), rleBlocks(MiB / 4 - 2, true)]),
    'a complete frame of compressed blocks, 64 MiB': () => unsizedFrame(Buffer.alloc(64 * MiB)),
    'the same with its size': () => sizedFrame(Buffer.alloc(64 * MiB)),
    'the same that says 8 pages': async () =>
      Buffer.concat([sizedHeader(8 * PAGE), ...blocksOf(await zstdCompress(Buffer.alloc(64 * MiB)))]),
    // 256 MiB here, so that a decoder that falls for it does not take the machine with it; 32 GiB are as easy.
    'a complete frame that says 8 pages and holds 256 MiB': async () =>
      Buffer.concat([sizedHeader(8 * PAGE), rleBlocks(2048, true)]),
    'many complete frames, the last too many': async () => {
      const frame = await zstdCompress(Buffer.alloc(512 * PAGE));
      return Buffer.concat(Array<Buffer>(Math.floor(MiB / frame.length)).fill(frame));
    },
  },
};

for (const compression of ['zlib', 'zstd'] as const) {
  for (const backend of BACKENDS[compression]) {
    for (const [name, make] of Object.entries(BOMBS[compression])) {
      t.test(`${backend.name} refuses a bomb in little memory: ${name}`, options(backend), async (t) => {
        const payload = await make();
        t.ok(payload.length <= MiB, 'a payload that a header may announce');
        const before = process.resourceUsage().maxRSS;
        const refused = await refusal(t, backend, [{ payload, pages: Buffer.alloc(8 * PAGE) }]);
        t.equal(refused?.error.code, 'ERR_MULTIFD_DECOMPRESS');
        const grown = (process.resourceUsage().maxRSS - before) / 1024;
        t.ok(grown < 64, `the process grew by ${grown.toFixed(1)} MiB`);
      });
    }
  }
}

t.test("an endless zstd frame without Node's own zstd: nothing of what came before is held", async (t) => {
  const method = createZstdReceiver(PAGE, 'binding');
  const page = Buffer.alloc(128 * PAGE);
  const collect = (): number => {
    v8.setFlagsFromString('--expose-gc');
    const gc = vm.runInNewContext('globalThis.gc') as () => void;
    for (let i = 0; i < 3; i++) gc();
    return process.memoryUsage().arrayBuffers;
  };
  let before = 0;
  const packets = 120;
  for (let i = 0; i < packets; i++) {
    if (i === 20) before = collect();
    const noise = guestPages(128, i);
    const blocks = Array.from({ length: 4 }, (_, j) =>
      zstdBlock('raw', noise.subarray((j * noise.length) / 4, ((j + 1) * noise.length) / 4), false),
    );
    const header = i === 0 ? [Buffer.from('28b52ffd0048', 'hex')] : [];
    const own = await method.decompress(Buffer.concat([...header, ...blocks]), page);
    t.equal(own, undefined, 'streamed');
    if (!page.equals(noise)) t.fail(`packet ${i}`);
  }
  const grown = (collect() - before) / MiB;
  t.ok(grown < 10, `${grown.toFixed(1)} MiB are held after ${(packets - 20) / 2} MiB`);
  method.close();
});

t.test("a window beyond that of QEMU's highest level is refused before it is memory", async (t) => {
  const take = async (exponent: number): Promise<unknown> => {
    const header = Buffer.concat([FRAME_MAGIC, Buffer.of(0, (exponent - 10) << 3)]);
    const payload = Buffer.concat([header, zstdBlock('raw', Buffer.alloc(PAGE, 1), false)]);
    return createZstdReceiver(PAGE, 'binding').decompress(payload, Buffer.alloc(PAGE));
  };
  await t.resolves(take(25));
  await t.rejects(take(26), {
    code: 'ERR_MULTIFD_DECOMPRESS',
    message: /frame window: received 67108864, expected at most 33554432/,
  });
});
