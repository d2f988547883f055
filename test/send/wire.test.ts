/** What the send channels put on the wire, taken down by a plain server and judged by the independent decoder. */
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import t, { type Test } from 'tap';
import { createReceiver, createSender, type Compression, type SenderOptions } from '../../src/index.js';
import { createZlibSender } from '../../src/methods/zlib.js';
import { createZstdSender, zstdBackends } from '../../src/methods/zstd.js';
import type { SendMethod } from '../../src/methods/contract.js';
import { captureServer } from '../support/capture-server.js';
import { CONTENTS, Guest, type GuestBlock } from '../support/guest.js';
import { Random } from '../support/random.js';
import {
  applyPackets,
  decodeChannel,
  type RefChannel,
  type RefPacket,
  type RefRAMPacket,
} from '../support/reference-decoder.js';
import { within } from '../support/within.js';
import { some } from '../support/some.js';

const PAGE = 4096;
const WAIT_MS = 30_000;
const METHOD_BITS = { none: 0x00, zlib: 0x02, zstd: 0x04 };

type Options = Omit<SenderOptions, 'address' | 'blocks'>;

/** Runs `work` on a sender whose channels a plain server takes down, then decodes them. */
async function capture(
  t: Test,
  guest: Guest,
  options: Options,
  work: (sender: Awaited<ReturnType<typeof createSender>>) => Promise<void>,
): Promise<{ raw: Buffer[]; channels: RefChannel[] }> {
  const server = await captureServer(t);
  const sender = await createSender({
    ...options,
    address: server.address,
    blocks: guest.blocks.map((block) => block.source.options),
  });
  t.teardown(() => sender.close());
  await within(work(sender), WAIT_MS, 'work');
  await within(sender.end(), WAIT_MS, 'end()');
  const raw = await server.ended(options.channels ?? 2);
  const channels: RefChannel[] = [];
  for (const bytes of raw) {
    const { pageSize = PAGE, compression = 'none' } = options;
    channels.push(await within(decodeChannel(bytes, { pageSize, compression }), WAIT_MS, 'decoding'));
  }
  return { raw, channels };
}

function ramPackets(packets: readonly RefPacket[]): RefRAMPacket[] {
  return packets.filter((packet) => packet.kind === 'ram');
}

function isSync(packet: RefPacket): boolean {
  return packet.kind === 'ram' && (packet.flags & 0x01) !== 0;
}

/** The packets before the first SYNC, between the first and the second, and so on. */
function phases(channel: RefChannel): RefPacket[][] {
  const found: RefPacket[][] = [[]];
  for (const packet of channel.packets) {
    if (isSync(packet)) found.push([]);
    else found[found.length - 1].push(packet);
  }
  return found;
}

/** The whole SYNC packet, written by hand from the specification. */
function syncPacket(pageSize: number, packetNum: bigint): Buffer {
  const bytes = Buffer.alloc(320 + 8 * (524288 / pageSize));
  Buffer.from('112233440000000100000001', 'hex').copy(bytes);
  bytes.writeBigUInt64BE(packetNum, 24);
  return bytes;
}

/**
 * What holds for every RAM packet of ours.
 *
 * @param still the guest wrote nothing while its pages were queued: else a page may have become zero between the look
 *   at it and its copy
 */
function checkPackets(t: Test, channels: readonly RefChannel[], options: Options, still = true): void {
  const { pageSize = PAGE, compression = 'none', zeroPageDetection = 'multifd' } = options;
  const limit = 524288 / pageSize;
  const numbers: bigint[] = [];
  for (const { hello, packets } of channels) {
    let last = -1n;
    for (const packet of ramPackets(packets)) {
      const what = `channel ${hello.id}, packet ${packet.packetNum}`;
      const { header, normalPages, zeroPages } = packet;
      if (packet.packetNum <= last) t.fail(`${what} comes after ${last}`);
      last = packet.packetNum;
      numbers.push(packet.packetNum);
      if (isSync(packet)) {
        if (!header.equals(syncPacket(pageSize, packet.packetNum))) t.fail(`${what}: not the SYNC packet`);
        continue;
      }
      if (packet.flags !== METHOD_BITS[compression]) t.fail(`${what}: flags ${packet.flags}`);
      if (packet.pagesAlloc !== limit) t.fail(`${what}: pages_alloc ${packet.pagesAlloc}`);
      if (normalPages + zeroPages < 1 || normalPages + zeroPages > limit) t.fail(`${what}: number of pages`);
      if (normalPages === 0 && packet.nextPacketSize !== 0) t.fail(`${what}: a payload without pages`);
      if (packet.nextPacketSize > 2 ** 20) t.fail(`${what}: a payload of ${packet.nextPacketSize}`);
      if (zeroPageDetection !== 'multifd' && zeroPages > 0) t.fail(`${what}: zero pages`);
      if (new Set(packet.offsets).size !== packet.offsets.length) t.fail(`${what}: a page twice`);
      const isZero = (page: Buffer): boolean => page.every((byte) => byte === 0);
      if (still && zeroPageDetection === 'multifd' && packet.pages.some(isZero)) {
        t.fail(`${what}: a normal page is zero`);
      }
      const name = Buffer.alloc(256);
      name.write(packet.ramblock);
      if (!header.subarray(64, 320).equals(name)) t.fail(`${what}: ramblock is not padded with zeros`);
      if (header.subarray(36, 64).some((byte) => byte !== 0)) t.fail(`${what}: reserved bytes`);
      const used = 320 + 8 * packet.offsets.length;
      if (header.subarray(used).some((byte) => byte !== 0)) t.fail(`${what}: unused offsets`);
    }
  }
  t.same(
    numbers.sort((a, b) => (a < b ? -1 : 1)),
    numbers.map((_, i) => BigInt(i)),
    'packet numbers are unique and contiguous over all channels',
  );
}

/** Applies phase `n` of all channels in one order and in the other: within a phase nothing orders channels. */
function applyPhase(
  channels: readonly RefChannel[],
  n: number,
  memory: Map<string, Buffer>,
  pageSize: number,
) {
  const apply = (into: Map<string, Buffer>, order: readonly RefChannel[]): void => {
    for (const channel of order) applyPackets(phases(channel)[n], into, pageSize);
  };
  const reversed = new Map([...memory].map(([name, bytes]) => [name, Buffer.from(bytes)]));
  apply(memory, channels);
  apply(reversed, [...channels].reverse());
  return reversed;
}

function twins(guest: Guest): Map<string, Buffer> {
  return new Map(guest.blocks.map((block) => [block.name, Buffer.from(block.twin)]));
}

function zeroed(guest: Guest): Map<string, Buffer> {
  return new Map(guest.blocks.map((block) => [block.name, Buffer.alloc(block.twin.length)]));
}

function equal(a: Map<string, Buffer>, b: Map<string, Buffer>): boolean {
  return [...a].every(([name, bytes]) => bytes.equals(b.get(name) as Buffer));
}

function fill(guest: Guest, block: GuestBlock, random: Random): void {
  for (let page = 0; page < block.pageCount; page++) {
    guest.writePage(block, page, CONTENTS[random.below(CONTENTS.length)], random);
  }
}

function makeGuest(t: Test, pageSize: number, random: Random): Guest {
  const guest = new Guest(t, pageSize);
  const full = 524288 / pageSize;
  guest.add('pc.ram', 'shared', 'shared', 2 * full + 3);
  guest.add('/rom@etc/acpi/tables', 'private', 'shared', full - 1);
  guest.add('vga.vram', 'file-offset', 'shared', full + 1);
  for (const block of guest.blocks) fill(guest, block, random);
  return guest;
}

// ---- hello ----

for (const [uuid, text] of [
  [undefined, '00000000000000000000000000000000'],
  ['00112233-4455-6677-8899-AABBCCDDEEFF', '00112233445566778899aabbccddeeff'],
] as const) {
  t.test(`each channel begins with its hello of 64 bytes, uuid ${uuid ?? 'none'}`, async (t) => {
    const guest = makeGuest(t, PAGE, new Random(1));
    const { raw } = await capture(t, guest, { channels: 3, uuid }, async () => {});
    t.equal(raw.length, 3);
    for (const [id, bytes] of raw.entries()) {
      t.equal(bytes.toString('hex'), `1122334400000001${text}0${id}${'00'.repeat(39)}`);
    }
  });
}

t.test('the ids run from 0 to channels - 1, for 40 channels too', async (t) => {
  const guest = new Guest(t, PAGE);
  guest.add('pc.ram', 'shared', 'shared', 1);
  const { channels } = await capture(t, guest, { channels: 40 }, (sender) => sender.sync());
  t.same(
    channels.map(({ hello, packets }) => [hello.id, packets.length]),
    channels.map((_, id) => [id, 1]),
  );
});

t.test('the channels of a unix socket carry the same', async (t) => {
  const dir = fs.mkdtempSync(path.join(os.tmpdir(), 'multifd-test-'));
  t.teardown(() => fs.rmSync(dir, { recursive: true }));
  const server = await captureServer(t, { path: path.join(dir, 'socket') });
  const guest = makeGuest(t, PAGE, new Random(2));
  const sender = await createSender({
    address: server.address,
    blocks: guest.blocks.map((block) => block.source.options),
  });
  t.teardown(() => sender.close());
  await sender.queueRange('pc.ram', 0, guest.blocks[0].twin.length);
  await within(sender.sync(), WAIT_MS, 'sync()');
  await within(sender.end(), WAIT_MS, 'end()');
  const channels: RefChannel[] = [];
  for (const bytes of await server.ended(2)) {
    channels.push(await decodeChannel(bytes, { pageSize: PAGE, compression: 'none' }));
  }
  checkPackets(t, channels, {});
  const memory = zeroed(guest);
  applyPhase(channels, 0, memory, PAGE);
  t.ok(memory.get('pc.ram')?.equals(guest.blocks[0].twin));
});

// ---- packets ----

t.test('a data packet, byte for byte from the specification', async (t) => {
  const guest = new Guest(t, PAGE);
  const block = guest.add('pc.ram', 'shared', 'shared', 300);
  const random = new Random(3);
  for (const page of [5, 3, 299, 200]) guest.writePage(block, page, 'random', random);
  const { raw } = await capture(t, guest, { channels: 1 }, async (sender) => {
    for (const page of [5, 9, 3, 299, 8, 200]) await sender.queuePage('pc.ram', page * PAGE);
  });
  const header = [
    '11223344 00000001 00000000', // magic, version, flags
    '00000080 00000004 00004000', // pages_alloc 128, normal_pages 4, next_packet_size 16384
    '0000000000000000', // packet_num
    '00000002 00000000', // zero_pages 2
    '00'.repeat(24),
    '70632e72616d' + '00'.repeat(250), // pc.ram
    '0000000000005000 0000000000003000 000000000012b000 00000000000c8000', // normal pages 5, 3, 299, 200
    '0000000000009000 0000000000008000', // zero pages 9, 8
    '00'.repeat(8 * 122),
  ];
  t.equal(raw[0].subarray(64, 64 + 1344).toString('hex'), header.join('').replaceAll(' ', ''));
  const pages = [5, 3, 299, 200].map((page) => block.twin.subarray(page * PAGE, (page + 1) * PAGE));
  t.ok(
    raw[0].subarray(64 + 1344).equals(Buffer.concat(pages)),
    'the payload follows in the order of the offsets',
  );
});

for (const pageSize of [4096, 65536]) {
  t.test(
    `a SYNC packet is ${pageSize === 4096 ? 1344 : 384} bytes of flags 0x01 and a number, also after data`,
    async (t) => {
      const guest = makeGuest(t, pageSize, new Random(4));
      for (const compression of ['none', 'zlib', 'zstd'] as const) {
        const { raw } = await capture(t, guest, { channels: 1, pageSize, compression }, async (sender) => {
          await sender.sync();
          await sender.queueRange('pc.ram', 0, guest.blocks[0].twin.length);
          await sender.sync();
          await sender.sync();
        });
        const size = pageSize === 4096 ? 1344 : 384;
        t.ok(raw[0].subarray(64, 64 + size).equals(syncPacket(pageSize, 0n)), `${compression}: set-up`);
        // All pages, in packets 1 to 3, lie between.
        const end = raw[0].length;
        t.ok(
          raw[0].subarray(end - 2 * size, end - size).equals(syncPacket(pageSize, 4n)),
          `${compression}: after data`,
        );
        t.ok(raw[0].subarray(end - size).equals(syncPacket(pageSize, 5n)), `${compression}: twice in a row`);
      }
    },
  );
}

const METHODS: [Compression, Options][] = [
  ['none', {}],
  ['zlib', { zlibLevel: 0 }],
  ['zlib', { zlibLevel: 1 }],
  ['zlib', { zlibLevel: 9 }],
  ['zstd', { zstdLevel: 1 }],
  ['zstd', { zstdLevel: 20 }],
];

for (const [index, [compression, level]] of METHODS.entries()) {
  for (const pageSize of some([4096, 65536], 2, index % 2)) {
    const name = `${compression}${Object.values(level)
      .map((value) => ` level ${value as number}`)
      .join('')}`;
    t.test(
      `${name}, pages of ${pageSize}: every packet decodes to the guest's pages`,
      { timeout: 60_000 },
      async (t) => {
        for (const zeroPageDetection of ['multifd', 'none'] as const) {
          const random = new Random(pageSize + compression.length);
          const guest = makeGuest(t, pageSize, random);
          const options: Options = { channels: 3, compression, pageSize, zeroPageDetection, ...level };
          const wanted: Map<string, Buffer>[] = [];
          const { channels } = await capture(t, guest, options, async (sender) => {
            await sender.sync();
            for (const block of guest.blocks) await sender.queueRange(block.name, 0, block.twin.length);
            await sender.sync();
            wanted.push(twins(guest));
            for (const block of guest.blocks) {
              for (let page = 1; page < block.pageCount; page += 3) {
                guest.writePage(block, page, CONTENTS[random.below(CONTENTS.length)], random);
                await sender.queuePage(block.name, page * pageSize);
              }
            }
            await sender.sync();
            wanted.push(twins(guest));
          });
          checkPackets(t, channels, options);
          const memory = zeroed(guest);
          for (const [n, want] of wanted.entries()) {
            const reversed = applyPhase(channels, n + 1, memory, pageSize);
            t.ok(equal(memory, want), `zero pages ${zeroPageDetection}, phase ${n + 1}`);
            t.ok(
              equal(reversed, want),
              `zero pages ${zeroPageDetection}, phase ${n + 1}, channels the other way round`,
            );
          }
          t.ok(channels.every((channel) => phases(channel).length === 4));
          t.ok(
            channels.every((channel) => phases(channel)[0].length === 0 && phases(channel)[3].length === 0),
          );
        }
      },
    );
  }
}

t.test('a packet is handed over when it is full, and holds pages of one block', async (t) => {
  const guest = new Guest(t, PAGE);
  const a = guest.add('a', 'shared', 'shared', 300);
  const b = guest.add('b', 'private', 'shared', 300);
  for (const block of [a, b]) fill(guest, block, new Random(6));
  const server = await captureServer(t);
  const sender = await createSender({
    address: server.address,
    channels: 1,
    zeroPageDetection: 'none',
    blocks: guest.blocks.map((block) => block.source.options),
  });
  t.teardown(() => sender.close());
  const packet = 1344 + 128 * PAGE;
  for (let page = 0; page < 128; page++) await sender.queuePage('a', page * PAGE);
  await server.until(() => server.bytes() >= 64 + packet, 'the full packet, without a flush');
  await sender.queueRange('a', 128 * PAGE, 127 * PAGE);
  await sender.queuePage('b', 0);
  await server.until(() => server.bytes() >= 64 + packet + 1344 + 127 * PAGE, 'the packet of block a');
  await sender.queuePage('a', 255 * PAGE);
  await sender.queueRange('b', PAGE, 130 * PAGE);
  t.equal(sender.stats().deviceStates, 0);
  await within(sender.end(), WAIT_MS, 'end()');
  const [bytes] = await server.ended(1);
  const { packets } = await decodeChannel(bytes, { pageSize: PAGE, compression: 'none' });
  t.same(
    ramPackets(packets).map((one) => [one.ramblock, one.normalPages]),
    [
      ['a', 128],
      ['a', 127],
      ['b', 1],
      ['a', 1],
      ['b', 128],
      ['b', 2],
    ],
  );
});

t.test('pages are listed in the order queued, zero pages after normal ones', async (t) => {
  const guest = new Guest(t, PAGE);
  for (const kind of ['shared', 'private', 'file'] as const) guest.add(kind, kind, 'shared', 200);
  const random = new Random(7);
  for (const block of guest.blocks) {
    for (let page = 0; page < 200; page++)
      guest.writePage(block, page, page % 3 === 0 ? 'zero' : 'random', random);
  }
  const order = random.shuffle(Array.from({ length: 128 }, (_, page) => page + 50));
  for (const compression of ['none', 'zstd'] as const) {
    const { channels } = await capture(t, guest, { channels: 1, compression }, async (sender) => {
      for (const block of guest.blocks) {
        for (const page of order) await sender.queuePage(block.name, page * PAGE);
      }
    });
    const normal = order.filter((page) => page % 3 !== 0);
    const zero = order.filter((page) => page % 3 === 0);
    for (const [i, packet] of ramPackets(channels[0].packets).entries()) {
      t.equal(packet.ramblock, guest.blocks[i].name);
      t.same([packet.normalPages, packet.zeroPages], [normal.length, zero.length]);
      t.same(
        packet.offsets.map((offset) => Number(offset) / PAGE),
        [...normal, ...zero],
        `${compression}, ${packet.ramblock}`,
      );
    }
  }
});

t.test('a packet of zero pages alone has no payload', async (t) => {
  const guest = new Guest(t, PAGE);
  for (const kind of ['shared-odd', 'private', 'file'] as const) guest.add(kind, kind, 'shared', 128);
  for (const compression of ['none', 'zlib', 'zstd'] as const) {
    const { raw, channels } = await capture(t, guest, { channels: 1, compression }, async (sender) => {
      for (const block of guest.blocks) await sender.queueRange(block.name, 0, block.twin.length);
    });
    t.equal(raw[0].length, 64 + 3 * 1344);
    for (const packet of ramPackets(channels[0].packets)) {
      t.same([packet.normalPages, packet.zeroPages, packet.nextPacketSize], [0, 128, 0]);
      t.same(
        packet.offsets,
        Array.from({ length: 128 }, (_, page) => BigInt(page * PAGE)),
      );
    }
  }
});

for (const kind of ['file', 'shared', 'private'] as const) {
  for (const compression of ['none', 'zlib', 'zstd'] as const) {
    t.test(
      `${kind}, ${compression}: a packet on its way is not touched by those made behind it`,
      async (t) => {
        const dir = fs.mkdtempSync(path.join(os.tmpdir(), 'multifd-test-'));
        t.teardown(() => fs.rmSync(dir, { recursive: true }));
        // A unix socket holds a quarter of a megabyte: the channel soon has a packet that is partly written.
        const server = await captureServer(t, { path: path.join(dir, 'socket'), hold: true });
        const random = new Random(14);
        const guest = new Guest(t, PAGE);
        const block = guest.add('pc.ram', kind, 'shared', 12 * 128);
        // Packets with pages and packets without, in turns that bring all kinds of neighbours together.
        const zeros = [0, 0, 1, 0, 1, 1, 0, 1, 0, 0, 1, 0];
        for (let page = 0; page < block.pageCount; page++) {
          if (zeros[Math.floor(page / 128)] === 0) guest.writePage(block, page, 'random', random);
        }
        const sender = await createSender({
          address: server.address,
          blocks: [block.source.options],
          channels: 1,
          compression,
        });
        t.teardown(() => sender.close());
        const work = (async () => {
          await sender.queueRange('pc.ram', 0, block.twin.length);
          await sender.sync();
          await sender.end();
        })();
        // Until nothing moves any more: the channel is stuck in a write, and has made what it can.
        for (let bytes = -1; sender.stats().bytes !== bytes;) {
          bytes = sender.stats().bytes;
          await new Promise((resolve) => setTimeout(resolve, 50));
        }
        t.equal(sender.stats().syncs, 0, 'the channel is stuck');
        server.release();
        await within(work, WAIT_MS, 'work');
        const [bytes] = await server.ended(1);
        const channel = await within(
          decodeChannel(bytes, { pageSize: PAGE, compression }),
          WAIT_MS,
          'decoding',
        );
        checkPackets(t, [channel], { compression });
        const memory = zeroed(guest);
        applyPhase([channel], 0, memory, PAGE);
        const sent = memory.get('pc.ram') as Buffer;
        const wrong: number[] = [];
        for (let page = 0; page < block.pageCount; page++) {
          const start = page * PAGE;
          if (sent.compare(block.twin, start, start + PAGE, start, start + PAGE) !== 0) wrong.push(page);
        }
        t.same(wrong, [], 'pages that differ');
      },
    );
  }
}

t.test(
  'race: a sync does not overtake a job: 300 phases, each page between the SYNCs of its phase',
  async (t) => {
    const guest = new Guest(t, PAGE);
    const shared = guest.add('shared', 'shared', 'shared', 4096);
    guest.add('private', 'private', 'shared', 4096);
    for (let page = 0; page < 4096; page++) shared.source.write(page * PAGE, Buffer.of(1));
    const random = new Random(8);
    const phaseOf = new Map<string, number>();
    const { channels } = await capture(t, guest, { channels: 5 }, async (sender) => {
      let next = 0;
      for (let phase = 0; phase < 300; phase++) {
        for (let n = random.below(13); n > 0; n--, next++) {
          const name = guest.blocks[random.below(2)].name;
          phaseOf.set(`${name} ${next * PAGE}`, phase);
          await sender.queuePage(name, next * PAGE);
          if (random.below(2) === 0) await sender.flush();
        }
        await sender.sync();
      }
    });
    checkPackets(t, channels, {});
    let pages = 0;
    for (const channel of channels) {
      t.equal(phases(channel).length, 301);
      for (const [phase, packets] of phases(channel).entries()) {
        for (const packet of ramPackets(packets)) {
          for (const offset of packet.offsets) {
            pages++;
            const wanted = phaseOf.get(`${packet.ramblock} ${offset}`);
            if (wanted !== phase)
              t.fail(`${packet.ramblock} ${offset} of phase ${wanted} came in phase ${phase}`);
          }
        }
      }
    }
    t.equal(pages, phaseOf.size);
  },
);

for (const channelCount of [2, 16]) {
  t.test(
    `a page queued again in a phase comes last, with its last content, on each of ${channelCount} channels`,
    async (t) => {
      const random = new Random(9 + channelCount);
      const guest = new Guest(t, PAGE);
      for (const kind of ['shared', 'private', 'file'] as const) guest.add(kind, kind, 'shared', 200);
      const hot = [0, 7, 8, 9, 100, 199];
      for (const block of guest.blocks) fill(guest, block, random);
      let want = twins(guest);
      const { channels } = await capture(
        t,
        guest,
        { channels: channelCount, compression: 'zlib' },
        async (sender) => {
          for (const block of guest.blocks) await sender.queueRange(block.name, 0, 200 * PAGE);
          for (let round = 0; round < 5; round++) {
            for (const block of guest.blocks) {
              for (const page of hot) {
                guest.writePage(block, page, CONTENTS[random.below(CONTENTS.length)], random);
                await sender.queuePage(block.name, page * PAGE);
              }
            }
          }
          await sender.sync();
          want = twins(guest);
        },
      );
      checkPackets(t, channels, { compression: 'zlib' }, false);
      const memory = zeroed(guest);
      const reversed = applyPhase(channels, 0, memory, PAGE);
      t.ok(equal(memory, want));
      t.ok(equal(reversed, want));
      for (const channel of channels) {
        for (const block of guest.blocks) {
          for (const page of hot) {
            const copies = ramPackets(phases(channel)[0]).filter(
              (packet) => packet.ramblock === block.name && packet.offsets.includes(BigInt(page * PAGE)),
            );
            const last = copies[copies.length - 1];
            const i = last?.offsets.indexOf(BigInt(page * PAGE)) ?? -1;
            const bytes = i < 0 ? undefined : (last.pages[i] ?? Buffer.alloc(PAGE));
            const twin = (want.get(block.name) as Buffer).subarray(page * PAGE, (page + 1) * PAGE);
            if (bytes?.equals(twin) !== true)
              t.fail(`channel ${channel.hello.id}, ${block.name}, page ${page}`);
          }
        }
      }
    },
  );
}

// ---- zero pages of mode legacy ----

t.test(
  'legacy: zero pages go to onZeroPages, ascending and merged, before the sync point, not to the wire',
  async (t) => {
    const guest = new Guest(t, PAGE);
    for (const kind of ['shared', 'private-odd', 'file-offset'] as const)
      guest.add(kind, kind, 'shared', 160);
    const random = new Random(10);
    for (const block of guest.blocks) {
      for (let page = 0; page < 160; page++) {
        guest.writePage(
          block,
          page,
          page < 20 || page === 159 || page % 40 === 0 ? 'zero' : 'random',
          random,
        );
      }
    }
    const reported: [string, number, number][] = [];
    let syncsSent = (): number => 0;
    const { channels } = await capture(
      t,
      guest,
      {
        channels: 2,
        zeroPageDetection: 'legacy',
        onZeroPages: async (block, offset, length) => {
          t.equal(syncsSent(), 2, 'no SYNC of this phase has been sent');
          reported.push([block.name, offset / PAGE, length / PAGE]);
          await new Promise((resolve) => setImmediate(resolve));
        },
      },
      async (sender) => {
        syncsSent = () => sender.stats().syncs;
        await sender.sync();
        for (const block of guest.blocks) {
          const pages = random.shuffle(Array.from({ length: 160 }, (_, page) => page));
          for (const page of pages) await sender.queuePage(block.name, page * PAGE);
        }
        t.same(reported, []);
        await sender.sync();
      },
    );
    const runs = [
      [0, 20],
      [40, 1],
      [80, 1],
      [120, 1],
      [159, 1],
    ];
    t.same(
      reported,
      guest.blocks.flatMap((block) => runs.map(([page, count]) => [block.name, page, count])),
    );
    checkPackets(t, channels, { zeroPageDetection: 'legacy' });
    const sent = channels.flatMap(({ packets }) => ramPackets(packets)).map((packet) => packet.normalPages);
    t.equal(
      sent.reduce((sum, count) => sum + count, 0),
      3 * (160 - 24),
    );
  },
);

t.test('legacy: a zero page that stops being zero before the sync is sent, and not reported', async (t) => {
  const guest = new Guest(t, PAGE);
  const block = guest.add('pc.ram', 'shared', 'shared', 10);
  const random = new Random(11);
  const reported: number[] = [];
  const { channels } = await capture(
    t,
    guest,
    {
      channels: 2,
      zeroPageDetection: 'legacy',
      onZeroPages: (_block, offset, length) => void reported.push(offset / PAGE, length / PAGE),
    },
    async (sender) => {
      await sender.queueRange('pc.ram', 0, 10 * PAGE);
      guest.writePage(block, 4, 'random', random);
      await sender.queuePage('pc.ram', 4 * PAGE);
      // And back, and forth: whatever is on the wire comes after, on every channel.
      guest.writePage(block, 4, 'zero', random);
      await sender.queuePage('pc.ram', 4 * PAGE);
      guest.writePage(block, 4, 'middle', random);
      await sender.queuePage('pc.ram', 4 * PAGE);
      await sender.sync();
    },
  );
  t.same(reported, [0, 4, 5, 5]);
  const memory = zeroed(guest);
  const reversed = applyPhase(channels, 0, memory, PAGE);
  t.ok(equal(memory, twins(guest)) && equal(reversed, twins(guest)));
});

t.test('legacy: what was reported is not reported again', async (t) => {
  const guest = new Guest(t, PAGE);
  guest.add('pc.ram', 'private', 'shared', 10);
  const reported: number[] = [];
  await capture(
    t,
    guest,
    {
      channels: 1,
      zeroPageDetection: 'legacy',
      onZeroPages: (_block, offset, length) => void reported.push(offset / PAGE, length / PAGE),
    },
    async (sender) => {
      await sender.queueRange('pc.ram', 0, 10 * PAGE);
      await sender.sync();
      await sender.queuePage('pc.ram', 3 * PAGE);
      await sender.sync();
      await sender.sync();
    },
  );
  t.same(reported, [0, 10, 3, 1]);
});

// ---- device state ----

t.test('a DEVICE_STATE packet, byte for byte from the specification', async (t) => {
  const guest = new Guest(t, PAGE);
  guest.add('pc.ram', 'shared', 'shared', 1);
  const { raw } = await capture(t, guest, { channels: 1 }, async (sender) => {
    await sender.queueDeviceState('0000:00:02.0/vfio', 0xfffffffe, Buffer.from('state'));
    await sender.sync();
  });
  const idstr = Buffer.alloc(256);
  idstr.write('0000:00:02.0/vfio');
  const wanted = `112233440000000100000040${idstr.toString('hex')}fffffffe00000005${Buffer.from('state').toString('hex')}`;
  t.equal(raw[0].subarray(64, 64 + 281).toString('hex'), wanted);
  t.ok(raw[0].subarray(64 + 281).equals(syncPacket(PAGE, 0n)), 'it takes no packet number');
});

t.test(
  'RAM and device state from two clients at once: each whole, and in order on its channel',
  async (t) => {
    const random = new Random(12);
    const guest = makeGuest(t, PAGE, random);
    const limit = 2 ** 20 + 4096;
    const states = Array.from({ length: 60 }, (_, seq) => {
      const data = Buffer.alloc([1, 2, 4096, 100_000, limit][seq % 5]);
      random.bytes(data);
      data[0] = seq;
      return { idstr: seq % 2 === 0 ? 'v'.repeat(255) : 'x', instanceId: seq, data };
    });
    const { channels } = await capture(t, guest, { channels: 4, compression: 'zstd' }, async (sender) => {
      const devices = Promise.all(
        states.map(({ idstr, instanceId, data }) => sender.queueDeviceState(idstr, instanceId, data)),
      );
      const ram = async (): Promise<void> => {
        for (let round = 0; round < 3; round++) {
          for (const block of guest.blocks) await sender.queueRange(block.name, 0, block.twin.length);
          await sender.sync();
        }
      };
      await Promise.all([devices, ram()]);
      await sender.sync();
    });
    checkPackets(t, channels, { compression: 'zstd' });
    const memory = zeroed(guest);
    for (let phase = 0; phase < 3; phase++) applyPhase(channels, phase, memory, PAGE);
    t.ok(equal(memory, twins(guest)));
    const seen: number[] = [];
    for (const { packets } of channels) {
      const mine = packets.filter((packet) => packet.kind === 'device-state');
      for (const { idstr, instanceId, data, header } of mine) {
        const state = states[instanceId];
        if (!data.equals(state.data) || idstr !== state.idstr) t.fail(`device state ${instanceId}`);
        if (header.subarray(12 + idstr.length, 268).some((byte) => byte !== 0)) t.fail('idstr is not padded');
      }
      const order = mine.map(({ instanceId }) => instanceId);
      t.same(
        order,
        [...order].sort((a, b) => a - b),
      );
      seen.push(...order);
    }
    t.same(
      seen.sort((a, b) => a - b),
      states.map((_, seq) => seq),
      'each once',
    );
  },
);

for (const channels of [1, 4]) {
  t.test(`RAM and device state at once arrive whole at a receiver, ${channels} channels`, async (t) => {
    const random = new Random(13 + channels);
    const guest = makeGuest(t, PAGE, random);
    const came = new Map<string, Buffer[]>();
    const device = (idstr: string, instanceId: number) => ({
      idstr,
      instanceId,
      load: async (data: Uint8Array) => {
        const copy = Buffer.from(data);
        await new Promise((resolve) => setImmediate(resolve));
        if (!copy.equals(data)) t.fail('the payload has changed during load()');
        const list = came.get(`${idstr}/${instanceId}`) ?? [];
        came.set(`${idstr}/${instanceId}`, [...list, copy]);
      },
    });
    const common = { channels, compression: 'zlib' as const };
    const receiver = await createReceiver({
      ...common,
      address: 'tcp:127.0.0.1:0',
      blocks: guest.blocks.map((block) => block.destination.options),
      devices: [device('vfio', 0), device('vfio', 0xffffffff), device('net', 1)],
    });
    t.teardown(() => receiver.close());
    const sender = await createSender({
      ...common,
      address: receiver.address,
      blocks: guest.blocks.map((block) => block.source.options),
    });
    t.teardown(() => sender.close());
    const states = Array.from({ length: 45 }, (_, i) => {
      const data = Buffer.alloc(1 + random.below(i % 3 === 0 ? 100 : 2 ** 20));
      random.bytes(data);
      return { name: (['vfio', 'vfio', 'net'] as const)[i % 3], id: [0, 0xffffffff, 1][i % 3], data };
    });
    const devices = Promise.all(states.map(({ name, id, data }) => sender.queueDeviceState(name, id, data)));
    for (const block of guest.blocks) await sender.queueRange(block.name, 0, block.twin.length);
    await within(devices, WAIT_MS, 'device state');
    await within(Promise.all([sender.sync(), receiver.sync()]), WAIT_MS, 'sync');
    t.same(guest.differences(), []);
    for (const [name, id] of [
      ['vfio', 0],
      ['vfio', 0xffffffff],
      ['net', 1],
    ] as const) {
      const sent = states.filter((state) => state.name === name && state.id === id).map(({ data }) => data);
      const got = came.get(`${name}/${id}`) ?? [];
      if (channels > 1) for (const list of [sent, got]) list.sort((a, b) => a.compare(b));
      t.ok(got.length === sent.length && got.every((data, i) => data.equals(sent[i])), `${name}/${id}`);
    }
    t.equal(receiver.stats().deviceStates, states.length);
    await within(Promise.all([sender.end(), receiver.end()]), WAIT_MS, 'ends');
  });
}

// ---- codecs ----

/** Payloads of one channel, each in a packet of its own, so that the independent decoder can judge them. */
function asChannel(flags: number, payloads: { payload: Buffer; pages: Buffer }[]): Buffer {
  const parts: Buffer[] = [Buffer.from('1122334400000001' + '00'.repeat(56), 'hex')];
  for (const [i, { payload, pages }] of payloads.entries()) {
    const header = Buffer.alloc(1344);
    const count = pages.length / PAGE;
    header.writeUInt32BE(0x11223344, 0);
    header.writeUInt32BE(1, 4);
    header.writeUInt32BE(flags, 8);
    header.writeUInt32BE(128, 12);
    header.writeUInt32BE(count, 16);
    header.writeUInt32BE(payload.length, 20);
    header.writeUInt32BE(i, 28);
    header.write('pc.ram', 64);
    for (let page = 0; page < count; page++) header.writeUInt32BE(page * PAGE, 320 + 8 * page + 4);
    parts.push(header, payload);
  }
  return Buffer.concat(parts);
}

const BACKENDS: [string, 'zlib' | 'zstd', readonly number[], (level: number) => SendMethod][] = [
  ['zlib, one stream', 'zlib', [0, 1, 6, 9], (level) => createZlibSender(level, true)],
  ['zlib, a raw deflate for each packet', 'zlib', [0, 1, 6, 9], (level) => createZlibSender(level, false)],
];
for (const backend of zstdBackends()) {
  const levels = backend === 'binding' ? some([1, 3, 20], 2) : [1, 3, 20];
  BACKENDS.push([`zstd of ${backend}`, 'zstd', levels, (level) => createZstdSender(level, backend)]);
}

for (const [name, compression, levels, create] of BACKENDS) {
  t.test(
    `${name}: an independent decoder takes every payload, packet by packet`,
    { timeout: 60_000 },
    async (t) => {
      for (const level of levels) {
        const random = new Random(level);
        const method = create(level);
        t.teardown(() => method.close());
        const text = Buffer.from('All work and no play makes a guest a dull machine. ');
        const inputs = [1, 128, 1, 2, 128, 128, 77, 1, 128].map((count, i) => {
          const pages = Buffer.alloc(count * PAGE);
          if (i % 3 === 0) pages.fill(text);
          if (i % 3 === 1) random.bytes(pages);
          if (i % 3 === 2) random.bytes(pages.subarray(0, pages.length / 2));
          return pages;
        });
        // A single page of zeros makes the smallest payload there is.
        inputs.unshift(Buffer.alloc(PAGE));
        inputs.push(Buffer.alloc(PAGE));
        const made: { payload: Buffer; pages: Buffer }[] = [];
        let before: { payload: Buffer; copy: Buffer } | undefined;
        for (const input of inputs) {
          const pages = Buffer.from(input);
          const payload = await method.compress(input);
          // Its input may be reused at once, its payload stays as it is until the call after the next.
          input.fill(0xdd);
          if (before !== undefined && !before.payload.equals(before.copy))
            t.fail('a payload on its way has changed');
          before = { payload, copy: Buffer.from(payload) };
          t.ok(payload.length >= 1 && payload.length <= 2 ** 20);
          made.push({ payload: before.copy, pages });
        }
        const channel = asChannel(METHOD_BITS[compression], made);
        const { packets } = await decodeChannel(channel, { pageSize: PAGE, compression });
        t.equal(packets.length, made.length);
        for (const [i, packet] of ramPackets(packets).entries()) {
          t.ok(Buffer.concat(packet.pages).equals(made[i].pages), `level ${level}, payload ${i}`);
        }
      }
    },
  );
}
