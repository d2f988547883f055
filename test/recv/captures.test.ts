/** Real captures of QEMU 10.0.2 and 7.2.22 (spec/samples), replayed over real sockets into the receiver. */
import { createHash } from 'node:crypto';
import { closeSync, ftruncateSync, openSync, readFileSync } from 'node:fs';
import path from 'node:path';
import { setImmediate as nextTurn } from 'node:timers/promises';
import t, { type Test } from 'tap';
import { type Address, type Compression, createReceiver } from '../../src/index.js';
import { PROMPT_MS, RawSource, TCP, temporaryDirectory } from '../support/raw-channel.js';
import { readCapture } from '../support/reference-decoder.js';
import { within } from '../support/within.js';
import { ALL } from '../support/some.js';

interface Capture {
  name: string;
  compression: Compression;
  /** ch0 and ch1: packets, normal pages, zero pages, SYNC packets, as the table of the samples has them. */
  counts: [packets: number, normal: number, zero: number, syncs: number][];
  /** Bytes of ch0 and ch1, from the same table. */
  bytes: [number, number];
}

const CAPTURES: Capture[] = [
  {
    name: 'q100-none',
    compression: 'none',
    counts: [
      [8, 64, 480, 3],
      [11, 36, 526, 3],
    ],
    bytes: [272960, 162304],
  },
  {
    name: 'q100-zlib',
    compression: 'zlib',
    counts: [
      [5, 64, 192, 3],
      [14, 36, 814, 3],
    ],
    bytes: [144586, 56537],
  },
  {
    name: 'q100-zstd',
    compression: 'zstd',
    counts: [
      [9, 80, 480, 3],
      [10, 20, 526, 3],
    ],
    bytes: [145297, 49414],
  },
  {
    name: 'q100-none-legacyzero',
    compression: 'none',
    counts: [
      [5, 96, 0, 3],
      [6, 4, 0, 3],
    ],
    bytes: [400000, 24512],
  },
  {
    name: 'q100-none-machine72',
    compression: 'none',
    counts: [
      [6, 97, 0, 3],
      [5, 3, 0, 3],
    ],
    bytes: [405440, 19072],
  },
  {
    name: 'q72-none',
    compression: 'none',
    counts: [
      [6, 97, 0, 3],
      [5, 2, 0, 3],
    ],
    bytes: [405440, 14976],
  },
  {
    name: 'q72-zlib',
    compression: 'zlib',
    counts: [
      [6, 82, 0, 3],
      [5, 17, 0, 3],
    ],
    bytes: [179760, 9022],
  },
  {
    name: 'q72-zstd',
    compression: 'zstd',
    counts: [
      [5, 81, 0, 3],
      [6, 18, 0, 3],
    ],
    bytes: [172960, 10238],
  },
];

/** The migration of each capture has three sync points. */
const SYNCS = 3;

const BLOCK_SIZES: [name: string, size: number][] = [
  ['pc.ram', 4194304],
  ['/rom@etc/acpi/tables', 131072],
  ['pc.rom', 131072],
  ['pc.bios', 65536],
  ['/rom@etc/table-loader', 4096],
  ['/rom@etc/acpi/rsdp', 4096],
];

const PCRAM = readCapture('pcram');

/** The guest's RAM in one of the three kinds, and how its bytes are looked at afterwards. */
interface Guest {
  blocks: ({ name: string; size: number } & (
    { memory: SharedArrayBuffer | ArrayBuffer } | { file: string; memory?: undefined }
  ))[];
  bytes(name: string): Buffer;
}

type Kind = 'shared' | 'private' | 'file';

function makeGuest(t: Test, kind: Kind): Guest {
  const directory = kind === 'file' ? temporaryDirectory(t) : '';
  const blocks = BLOCK_SIZES.map(([name, size], i): Guest['blocks'][number] => {
    if (kind === 'shared') return { name, size, memory: new SharedArrayBuffer(size) };
    if (kind === 'private') return { name, size, memory: new ArrayBuffer(size) };
    const file = path.join(directory, `block-${i}`);
    const fd = openSync(file, 'w');
    ftruncateSync(fd, size);
    closeSync(fd);
    return { name, size, file };
  });
  return {
    blocks,
    bytes(name) {
      const block = blocks.find((candidate) => candidate.name === name);
      if (block === undefined) throw new Error(`no block ${name}`);
      return block.memory === undefined
        ? readFileSync(block.file)
        : Buffer.from(block.memory as SharedArrayBuffer);
    },
  };
}

/** Channels in the order in which they connect and send. */
const ORDERS = { 'channel 0 first': [0, 1], 'channel 1 first': [1, 0] };

type Play = (source: RawSource, bytes: Buffer) => Promise<void>;

/** As QEMU's sockets hand it over: all that is there. */
const whole: Play = async (source, bytes) => {
  await source.send(bytes);
  source.end();
};

/** Byte by byte through the hello and the first packets, then in pieces that fit no border of the format. */
const cut: Play = async (source, bytes) => {
  const SINGLE = 3500;
  const PRIMES = [7, 1009, 13, 4099, 347, 1, 8191, 1343, 2];
  let at = 0;
  for (let i = 0; at < bytes.length; i++) {
    const count = at < SINGLE ? 1 : PRIMES[i % PRIMES.length];
    await source.send(bytes.subarray(at, at + count));
    // A turn of the loop, so that the other thread has a chance to see the piece alone.
    await nextTurn();
    at += count;
  }
  source.end();
};

async function replay(
  t: Test,
  capture: Capture,
  { kind, address, order, play }: { kind: Kind; address: Address; order: number[]; play: Play },
): Promise<void> {
  const guest = makeGuest(t, kind);
  const { name, compression } = capture;
  const receiver = await createReceiver({ address, compression, blocks: guest.blocks });
  t.teardown(() => receiver.close());
  const channels = [0, 1].map((id) => readCapture(`${name}.ch${id}`));
  t.same(
    channels.map((bytes) => bytes.length),
    capture.bytes,
  );
  const sources: RawSource[] = [];
  const playing: Promise<void>[] = [];
  for (const id of order) {
    const source = await RawSource.connect(t, receiver.address);
    sources.push(source);
    playing.push(play(source, channels[id]));
  }
  await within(receiver.ready, PROMPT_MS, 'all channels come in');
  for (let i = 0; i < SYNCS; i++) await within(receiver.sync(), 20_000, `sync point ${i}`);

  t.ok(guest.bytes('pc.ram').equals(PCRAM), 'pc.ram is what the source had');
  // The firmware of the captures is 64 KiB of HLT.
  t.ok(guest.bytes('pc.bios').equals(Buffer.alloc(65536, 0xf4)), 'pc.bios too');
  t.equal(guest.bytes('/rom@etc/acpi/rsdp').toString('latin1', 0, 8), 'RSD PTR ');
  const stats = receiver.stats();
  t.same(
    stats.channels.map((channel) => [channel.packets, channel.normalPages, channel.zeroPages, channel.syncs]),
    capture.counts,
    'packets, normal pages, zero pages, SYNC packets',
  );
  t.equal(stats.strays, 0);

  await within(Promise.all(playing), PROMPT_MS, 'the sources have sent everything');
  await within(receiver.end(), PROMPT_MS, 'end()');
  await within(Promise.all(sources.map((source) => source.gone)), PROMPT_MS, 'the connections go');
  t.ok(
    sources.every((source) => source.received === 0),
    'a receiver writes nothing',
  );
}

t.test('the expected memory is the one that the samples name', async (t) => {
  t.equal(
    createHash('sha256').update(PCRAM).digest('hex'),
    '1cb56c95f1aaa80439dcb66d0275b310883101adbcb741aea49b84a6633ec80e',
  );
});

for (const [index, capture] of CAPTURES.entries()) {
  const isIn = (turn: number): boolean => ALL || index % 2 === turn;
  t.test(`${capture.name} over tcp and over a unix socket, channels in either order`, async (t) => {
    for (const [label, order] of Object.entries(ORDERS)) {
      await t.test(`tcp, ${label}`, async (t) => {
        await replay(t, capture, { kind: 'shared', address: TCP, order, play: whole });
      });
      await t.test(`unix, ${label}`, async (t) => {
        const address = { path: path.join(temporaryDirectory(t), 'receiver') };
        await replay(t, capture, { kind: 'shared', address, order, play: whole });
      });
    }
  });

  if (isIn(0))
    t.test(`${capture.name} into private memory and into files`, async (t) => {
      for (const kind of ['private', 'file'] as const) {
        await t.test(kind, async (t) => {
          await replay(t, capture, { kind, address: TCP, order: [0, 1], play: whole });
        });
      }
    });

  if (isIn(1))
    t.test(`${capture.name} cut at odd places`, async (t) => {
      for (const kind of ['shared', 'private'] as const) {
        await t.test(kind, async (t) => {
          await replay(t, capture, { kind, address: TCP, order: [1, 0], play: cut });
        });
      }
    });
}

t.test('the received-bitmap has every page that a capture carries', async (t) => {
  const guest = makeGuest(t, 'shared');
  const receiver = await createReceiver({ address: TCP, blocks: guest.blocks });
  t.teardown(() => receiver.close());
  for (const id of [0, 1]) {
    const source = await RawSource.connect(t, receiver.address);
    void source.send(readCapture(`q100-none.ch${id}`));
  }
  for (let i = 0; i < SYNCS; i++) await within(receiver.sync(), PROMPT_MS, `sync point ${i}`);
  // 1106 pages on the channels, each page of each block once.
  for (const [name, size] of BLOCK_SIZES) {
    t.equal(receiver.received(name).count(), size / 4096, name);
    t.same([...receiver.received(name).ranges()], [{ offset: 0, length: size }]);
  }
  await within(receiver.end(), PROMPT_MS, 'end()');
});

t.test('bytes of the stats are all bytes on the wire, the hello too', async (t) => {
  const guest = makeGuest(t, 'shared');
  const receiver = await createReceiver({ address: TCP, blocks: guest.blocks });
  t.teardown(() => receiver.close());
  for (const id of [0, 1]) {
    const source = await RawSource.connect(t, receiver.address);
    void source.send(readCapture(`q72-none.ch${id}`));
  }
  for (let i = 0; i < SYNCS; i++) await within(receiver.sync(), PROMPT_MS, `sync point ${i}`);
  t.same(
    receiver.stats().channels.map((channel) => channel.bytes),
    [405440, 14976],
  );
  await within(receiver.end(), PROMPT_MS, 'end()');
});

t.test('a capture with one page less leaves the memory different', async (t) => {
  // The judge is judged: the comparison above sees one page.
  const guest = makeGuest(t, 'shared');
  const receiver = await createReceiver({ address: TCP, blocks: guest.blocks });
  t.teardown(() => receiver.close());
  for (const id of [0, 1]) {
    const bytes = readCapture(`q100-none-legacyzero.ch${id}`);
    // The first data packet of channel 0 comes after the hello and one SYNC: its first page goes to another place.
    const offset = 64 + 1344 + 320;
    if (id === 0) bytes.writeBigUInt64BE(0n, offset);
    const source = await RawSource.connect(t, receiver.address);
    void source.send(bytes);
  }
  for (let i = 0; i < SYNCS; i++) await within(receiver.sync(), PROMPT_MS, `sync point ${i}`);
  t.notOk(guest.bytes('pc.ram').equals(PCRAM));
  await within(receiver.end(), PROMPT_MS, 'end()');
});
