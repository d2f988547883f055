/**
 * What a receiver refuses (specification 1.2 and 4), what it bears (5), and what is none of its business: each over a
 * real socket, with a source made by hand. A refusal reaches `ready`, a pending sync() and `done` as one and the same
 * error, and ends every channel.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import t, { type Test } from 'tap';
import {
  type ErrorCode,
  type MultifdError,
  type Receiver,
  type ReceiverOptions,
  createReceiver,
} from '../../src/index.js';
import { Random } from '../support/random.js';
import {
  DEVICE_STATE,
  PAGE,
  PROMPT_MS,
  type PacketFields,
  RawSource,
  SYNC,
  TCP,
  ZLIB,
  ZSTD,
  deviceStateBytes,
  eventually,
  failure,
  helloBytes,
  hold,
  isPending,
  packetBytes,
  patternPage,
  syncBytes,
} from '../support/raw-channel.js';
import { within } from '../support/within.js';

const RAM_PAGES = 64;
const RAM_BYTES = RAM_PAGES * PAGE;
/** Far beyond every limit of these tests: an error that comes earlier did not come from a time-out. */
const FAR_MS = 60_000;

const UUID = '00112233-4455-6677-8899-aabbccddeeff';
const UUID_BYTES = Buffer.from('00112233445566778899aabbccddeeff', 'hex');

const unhandled: unknown[] = [];
process.on('unhandledRejection', (reason) => unhandled.push(reason));

interface Opened {
  receiver: Receiver;
  ram: Buffer;
}

async function open(t: Test, options: Partial<ReceiverOptions> = {}): Promise<Opened> {
  const memory = new SharedArrayBuffer(RAM_BYTES);
  const receiver = await createReceiver({
    address: TCP,
    blocks: [
      { name: 'pc.ram', memory },
      { name: 'pc.bios', memory: new SharedArrayBuffer(4 * PAGE) },
    ],
    stallTimeoutMs: FAR_MS,
    connectTimeoutMs: FAR_MS,
    ...options,
  });
  t.teardown(() => within(receiver.close(), PROMPT_MS, 'close()'));
  return { receiver, ram: Buffer.from(memory) };
}

/** A source on one channel that has said hello, and has sent `pieces`. */
async function channel(t: Test, receiver: Receiver, id: number, ...pieces: Buffer[]): Promise<RawSource> {
  const source = await RawSource.connect(t, receiver.address);
  void source.send(helloBytes({ id }), ...pieces);
  return source;
}

interface Refusal {
  code: ErrorCode;
  /** All of it must be in the message: what was received, and what was expected. */
  message: RegExp;
  channel?: number;
  packetNum?: number;
}

/**
 * The receiver fails as it should: `ready` (unless the channels were in), a sync() that is pending and `done` with one
 * error, which is this one; every connection ends; later calls say the same.
 */
async function fails(
  t: Test,
  receiver: Receiver,
  { refusal, pending, sources }: { refusal: Refusal; pending: Promise<unknown>[]; sources: RawSource[] },
): Promise<MultifdError> {
  const error = await failure(receiver.done, 'done');
  t.equal(error.code, refusal.code, error.message);
  t.match(error.message, refusal.message);
  t.equal(error.channel, refusal.channel, 'channel');
  t.equal(error.packetNum, refusal.packetNum, 'packetNum');
  t.equal(receiver.error, error);
  for (const [i, promise] of pending.entries()) {
    t.equal(await failure(promise, `pending promise ${i}`), error, 'every promise has the same error');
  }
  t.equal(await failure(receiver.sync(), 'a later sync()'), error);
  t.equal(await failure(receiver.end(), 'a later end()'), error);
  await within(Promise.all(sources.map((source) => source.gone)), PROMPT_MS, 'every channel ends');
  t.ok(
    sources.every((source) => source.received === 0),
    'a receiver writes nothing',
  );
  await within(receiver.close(), PROMPT_MS, 'close()');
  return error;
}

const DATA = { normal: [0], payload: patternPage(1) };
/** Enough of a packet for any header to be complete, whatever it announces. */
const MORE = Buffer.alloc(2 ** 16);

/** Sent as the first packet of a lone channel, and again in the middle of a migration on the second of two. */
const PACKET_REFUSALS: Record<
  string,
  Omit<Refusal, 'channel'> & { bytes: Buffer; options?: Partial<ReceiverOptions> }
> = {
  'a wrong magic': {
    bytes: packetBytes({ ...DATA, magic: 0x11223345 }),
    code: 'ERR_MULTIFD_MAGIC',
    message: /received 0x11223345, expected 0x11223344/,
  },
  'a wrong version': {
    bytes: packetBytes({ ...DATA, version: 2 }),
    code: 'ERR_MULTIFD_VERSION',
    message: /received 2, expected 1/,
  },
  'pages_alloc above 128': {
    bytes: packetBytes({ ...DATA, pagesAlloc: 129, packetNum: 70n }),
    code: 'ERR_MULTIFD_PAGES_ALLOC',
    message: /received 129, expected at most 128/,
    packetNum: 70,
  },
  'pages_alloc above 8 of a page size of 64 KiB': {
    bytes: packetBytes({ pagesAlloc: 9, pageSize: 65536 }),
    options: { pageSize: 65536, blocks: [{ name: 'pc.ram', memory: new SharedArrayBuffer(65536) }] },
    code: 'ERR_MULTIFD_PAGES_ALLOC',
    message: /received 9, expected at most 8/,
    packetNum: 0,
  },
  'normal_pages above pages_alloc': {
    bytes: packetBytes({ ...DATA, pagesAlloc: 3, normalPages: 4, packetNum: 71n }),
    code: 'ERR_MULTIFD_NORMAL_PAGES',
    message: /received 4, expected at most 3/,
    packetNum: 71,
  },
  'normal_pages of 2^32-1': {
    bytes: packetBytes({ ...DATA, normalPages: 0xffffffff }),
    code: 'ERR_MULTIFD_NORMAL_PAGES',
    message: /received 4294967295, expected at most 128/,
    packetNum: 0,
  },
  'zero_pages above what normal_pages leave': {
    bytes: packetBytes({ ...DATA, pagesAlloc: 3, zeroPages: 3, packetNum: 72n }),
    code: 'ERR_MULTIFD_ZERO_PAGES',
    message: /received 3, expected at most 2/,
    packetNum: 72,
  },
  'zero_pages of 2^32-1': {
    bytes: packetBytes({ zeroPages: 0xffffffff }),
    code: 'ERR_MULTIFD_ZERO_PAGES',
    message: /received 4294967295, expected at most 128/,
    packetNum: 0,
  },
  'an unknown RAM block': {
    bytes: packetBytes({ ...DATA, ramblock: 'pc.rom', packetNum: 73n }),
    code: 'ERR_MULTIFD_RAMBLOCK',
    message: /received "pc\.rom", expected a known RAM block/,
    packetNum: 73,
  },
  'an unknown RAM block of a zero page': {
    bytes: packetBytes({ zero: [0], ramblock: '' }),
    code: 'ERR_MULTIFD_RAMBLOCK',
    message: /received "", expected a known RAM block/,
    packetNum: 0,
  },
  'an offset one page past the block': {
    bytes: packetBytes({ ...DATA, normal: [RAM_BYTES], packetNum: 2n ** 40n }),
    code: 'ERR_MULTIFD_OFFSET',
    message: new RegExp(`received ${RAM_BYTES}, expected at most ${RAM_BYTES - PAGE}`),
    packetNum: 2 ** 40,
  },
  'an offset of a zero page past the block': {
    bytes: packetBytes({ ...DATA, zero: [4 * PAGE, RAM_BYTES + PAGE] }),
    code: 'ERR_MULTIFD_OFFSET',
    message: new RegExp(`received ${RAM_BYTES + PAGE}, expected at most ${RAM_BYTES - PAGE}`),
    packetNum: 0,
  },
  'an offset that fits the largest block and not this one': {
    bytes: packetBytes({ ...DATA, ramblock: 'pc.bios', normal: [4 * PAGE] }),
    code: 'ERR_MULTIFD_OFFSET',
    message: /received 16384, expected at most 12288/,
    packetNum: 0,
  },
  'an offset of 2^64 - 4096': {
    bytes: packetBytes({ ...DATA, normal: [2n ** 64n - 4096n] }),
    code: 'ERR_MULTIFD_OFFSET',
    message: /received 18446744073709\d+, expected at most/,
    packetNum: 0,
  },
  'an offset between two pages': {
    bytes: packetBytes({ ...DATA, normal: [PAGE + 1] }),
    code: 'ERR_MULTIFD_OFFSET',
    message: /received 4097, expected a multiple of 4096/,
    packetNum: 0,
  },
  'method zlib where none is configured': {
    bytes: packetBytes({ ...DATA, flags: ZLIB, packetNum: 74n }),
    code: 'ERR_MULTIFD_METHOD',
    message: /received zlib \(0x02\), expected none \(0x00\)/,
    packetNum: 74,
  },
  'method none where zlib is configured': {
    bytes: packetBytes(DATA),
    options: { compression: 'zlib' },
    code: 'ERR_MULTIFD_METHOD',
    message: /received none \(0x00\), expected zlib \(0x02\)/,
    packetNum: 0,
  },
  'method zstd of a packet of zero pages where zlib is configured': {
    bytes: packetBytes({ zero: [0], flags: ZSTD }),
    options: { compression: 'zlib' },
    code: 'ERR_MULTIFD_METHOD',
    message: /received zstd \(0x04\), expected zlib \(0x02\)/,
    packetNum: 0,
  },
  'two method bits at once': {
    bytes: packetBytes({ ...DATA, flags: ZSTD | ZLIB }),
    options: { compression: 'zstd' },
    code: 'ERR_MULTIFD_METHOD',
    message: /received unknown \(0x06\), expected zstd \(0x04\)/,
    packetNum: 0,
  },
  'a payload of no bytes': {
    bytes: packetBytes({ normal: [0], flags: ZLIB, nextPacketSize: 0 }),
    options: { compression: 'zlib' },
    code: 'ERR_MULTIFD_PACKET_SIZE',
    message: /received 0, expected 1 to 1048576/,
    packetNum: 0,
  },
  'a payload above 1 MiB': {
    bytes: packetBytes({ normal: [0], flags: ZSTD, nextPacketSize: 1048577, packetNum: 75n }),
    options: { compression: 'zstd' },
    code: 'ERR_MULTIFD_PACKET_SIZE',
    message: /received 1048577, expected 1 to 1048576/,
    packetNum: 75,
  },
  'a zlib payload that is none': {
    bytes: packetBytes({ normal: [0], flags: ZLIB, payload: Buffer.alloc(100, 0xff), packetNum: 76n }),
    options: { compression: 'zlib' },
    code: 'ERR_MULTIFD_DECOMPRESS',
    message: /zlib payload: incorrect header check/,
    packetNum: 76,
  },
  'a zstd payload that is none': {
    bytes: packetBytes({ normal: [0], flags: ZSTD, payload: Buffer.alloc(100, 0xff), packetNum: 77n }),
    options: { compression: 'zstd' },
    code: 'ERR_MULTIFD_DECOMPRESS',
    message: /zstd payload: /,
    packetNum: 77,
  },
  'a zstd payload of one page for two': {
    bytes: packetBytes({
      normal: [0, PAGE],
      flags: ZSTD,
      payload: zstdFrame(patternPage(1)),
      packetNum: 78n,
    }),
    options: { compression: 'zstd' },
    code: 'ERR_MULTIFD_DECOMPRESS',
    message: /received 4096, expected 8192/,
    packetNum: 78,
  },
  'device state for which there is no device': {
    bytes: deviceStateBytes({ idstr: 'vfio', payload: Buffer.from('state') }),
    code: 'ERR_MULTIFD_DEVICE_STATE',
    message: /received "vfio" instance 0, expected no device/,
  },
  'device state of an unknown device': {
    bytes: deviceStateBytes({ idstr: 'vfio', instanceId: 8, payload: Buffer.from('state') }),
    options: { devices: [{ idstr: 'vfio', instanceId: 7, load: () => undefined }] },
    code: 'ERR_MULTIFD_DEVICE_STATE',
    message: /received "vfio" instance 8, expected one of vfio\/7/,
  },
  'device state with SYNC': {
    bytes: deviceStateBytes({ idstr: 'vfio', flags: DEVICE_STATE | SYNC, payload: Buffer.from('state') }),
    options: { devices: [{ idstr: 'vfio', instanceId: 0, load: () => undefined }] },
    code: 'ERR_MULTIFD_DEVICE_STATE',
    message: /received 0x41, expected SYNC \(0x1\) not set/,
  },
  'device state without payload': {
    bytes: deviceStateBytes({ idstr: 'vfio' }),
    options: { devices: [{ idstr: 'vfio', instanceId: 0, load: () => undefined }] },
    code: 'ERR_MULTIFD_DEVICE_STATE',
    message: /received 0, expected 1 to \d+/,
  },
  'device state above the limit': {
    bytes: deviceStateBytes({ idstr: 'vfio', nextPacketSize: 1001 }),
    options: { deviceStateBytes: 1000, devices: [{ idstr: 'vfio', instanceId: 0, load: () => undefined }] },
    code: 'ERR_MULTIFD_DEVICE_STATE',
    message: /received 1001, expected 1 to 1000/,
  },
  'device state of a name without end': {
    bytes: deviceStateBytes({ idstr: 'v'.repeat(256), payload: Buffer.from('state') }),
    options: { devices: [{ idstr: 'vfio', instanceId: 0, load: () => undefined }] },
    code: 'ERR_MULTIFD_DEVICE_STATE',
    message: /received 256 bytes without NUL, expected a NUL/,
  },
};

/** `28 b5 2f fd a0 <LE32 size>`, then one raw block. */
function zstdFrame(page: Buffer): Buffer {
  const header = Buffer.from('28b52ffda000000000', 'hex');
  header.writeUInt32LE(page.length, 5);
  const block = Buffer.alloc(3);
  block.writeUIntLE(page.length * 8 + 1, 0, 3);
  return Buffer.concat([header, block, page]);
}

/** `78 01`, then one stored block, open. */
function zlibPayload(page: Buffer): Buffer {
  const header = Buffer.from('78010000000000', 'hex');
  header.writeUInt16LE(page.length, 3);
  header.writeUInt16LE(page.length ^ 0xffff, 5);
  return Buffer.concat([header, page]);
}

for (const [name, { bytes, options = {}, ...refusal }] of Object.entries(PACKET_REFUSALS)) {
  t.test(`${name} is refused in the first packet of the first channel`, async (t) => {
    const { receiver } = await open(t, options);
    const pending = [receiver.ready, hold(receiver.sync())];
    const source = await channel(t, receiver, 0, bytes, MORE);
    await fails(t, receiver, { refusal: { ...refusal, channel: 0 }, pending, sources: [source] });
  });

  t.test(`${name} is refused in the middle of a migration`, async (t) => {
    const { receiver } = await open(t, options);
    const sync = packetBytes({ flags: SYNC, pagesAlloc: 0, pageSize: options.pageSize ?? PAGE });
    const sources = [await channel(t, receiver, 1, sync), await channel(t, receiver, 0, sync)];
    await within(receiver.sync(), PROMPT_MS, 'the first sync()');
    const pending = [hold(receiver.sync()), hold(receiver.sync())];
    // The other channel has done its part already.
    void sources[1].send(sync);
    void sources[0].send(bytes, MORE);
    await fails(t, receiver, { refusal: { ...refusal, channel: 1 }, pending, sources });
  });
}

// ---- hello ----

const HELLO_REFUSALS: Record<string, Refusal & { bytes: Buffer; options?: Partial<ReceiverOptions> }> = {
  'a wrong version': {
    bytes: helloBytes({ id: 0, version: 2 }),
    code: 'ERR_MULTIFD_VERSION',
    message: /hello version: received 2, expected 1/,
  },
  'a uuid where none is expected': {
    bytes: helloBytes({ id: 0, uuid: UUID_BYTES }),
    code: 'ERR_MULTIFD_UUID',
    message: new RegExp(`received ${UUID}, expected none`),
  },
  'no uuid where one is expected': {
    bytes: helloBytes({ id: 0 }),
    options: { uuid: UUID },
    code: 'ERR_MULTIFD_UUID',
    message: new RegExp(`received none, expected ${UUID}`),
  },
  'a uuid that differs in its last bit': {
    bytes: helloBytes({ id: 0, uuid: Buffer.from('00112233445566778899aabbccddeefe', 'hex') }),
    options: { uuid: UUID },
    code: 'ERR_MULTIFD_UUID',
    message: new RegExp(`received ${UUID.slice(0, -1)}e, expected ${UUID}`),
  },
  'an id that is the number of channels': {
    bytes: helloBytes({ id: 2 }),
    code: 'ERR_MULTIFD_CHANNEL_ID',
    message: /received 2, expected less than 2/,
  },
  'an id of 255': {
    bytes: helloBytes({ id: 255 }),
    code: 'ERR_MULTIFD_CHANNEL_ID',
    message: /received 255, expected less than 2/,
  },
};

for (const [name, { bytes, options = {}, ...refusal }] of Object.entries(HELLO_REFUSALS)) {
  t.test(`a hello with ${name} is refused`, async (t) => {
    const { receiver } = await open(t, options);
    const pending = [receiver.ready, hold(receiver.sync())];
    const uuid = options.uuid === undefined ? Buffer.alloc(16) : UUID_BYTES;
    const good = await RawSource.connect(t, receiver.address);
    await good.send(helloBytes({ id: 1, uuid }));
    const bad = await RawSource.connect(t, receiver.address);
    await bad.send(bytes);
    await fails(t, receiver, { refusal, pending, sources: [good, bad] });
    t.equal(receiver.stats().strays, 0, 'a misconfigured source is no stray');
  });
}

t.test('a second connection for a channel that is taken is refused', async (t) => {
  const { receiver } = await open(t);
  const pending = [receiver.ready, hold(receiver.sync())];
  const first = await channel(t, receiver, 1);
  await eventually(() => receiver.stats().strays === 0, 'the first is in');
  const second = await channel(t, receiver, 1);
  const refusal: Refusal = {
    code: 'ERR_MULTIFD_CHANNEL_DUPLICATE',
    message: /channel 1: received a second connection, expected one connection/,
    channel: 1,
  };
  await fails(t, receiver, { refusal, pending, sources: [first, second] });
});

t.test('hellos of both ends of the range of ids come in, and reserved bytes are not looked at', async (t) => {
  const { receiver, ram } = await open(t, { channels: 3, uuid: UUID });
  for (const id of [2, 0, 1]) {
    const source = await RawSource.connect(t, receiver.address);
    const hello = helloBytes({ id, uuid: UUID_BYTES });
    hello.fill(0xee, 25);
    void source.send(hello, packetBytes({ normal: [id * PAGE], payload: patternPage(id) }), syncBytes());
  }
  await within(receiver.sync(), PROMPT_MS, 'sync()');
  for (const id of [0, 1, 2]) t.ok(ram.subarray(id * PAGE, (id + 1) * PAGE).equals(patternPage(id)));
  await within(receiver.end(), PROMPT_MS, 'end()');
});

// ---- strays ----

t.test('connections that are no channels neither hang nor harm a migration, and are counted', async (t) => {
  const { receiver, ram } = await open(t);
  const noise = Buffer.alloc(5000);
  new Random(1).bytes(noise);
  const strays: Record<string, (source: RawSource) => void> = {
    'says nothing': () => undefined,
    'says nothing, and goes': (source) => source.end(),
    'says nothing, and resets': (source) => source.reset(),
    'says garbage': (source) => void source.send(noise),
    'is a main stream with a header': (source) =>
      void source.send(Buffer.from('5145564d00000003', 'hex'), noise),
    'is a main stream that says no more': (source) => void source.send(Buffer.from('QEVM')),
    'is an HTTP client': (source) =>
      void source.send(
        Buffer.from(`GET / HTTP/1.1\r\nHost: localhost\r\nUser-Agent: ${'x'.repeat(64)}\r\n\r\n`),
      ),
    'is a short HTTP client': (source) => void source.send(Buffer.from('GET / HTTP/1.0\r\n\r\n')),
    'says 63 bytes of a hello, and goes': (source) => source.end(helloBytes({ id: 0 }).subarray(0, 63)),
    'says 63 bytes of a hello, and stays': (source) =>
      void source.send(helloBytes({ id: 0 }).subarray(0, 63)),
    'has a magic that is off by a bit': (source) =>
      void source.send(helloBytes({ id: 0, magic: 0x11223345 })),
  };
  const sources: RawSource[] = [];
  for (const act of Object.values(strays)) {
    const source = await RawSource.connect(t, receiver.address);
    sources.push(source);
    act(source);
  }
  t.ok(await isPending(receiver.ready));
  for (const id of [1, 0]) {
    await channel(
      t,
      receiver,
      id,
      packetBytes({ normal: [id * PAGE], payload: patternPage(id) }),
      syncBytes(),
    );
  }
  await within(receiver.sync(), PROMPT_MS, 'sync()');
  for (const id of [0, 1]) t.ok(ram.subarray(id * PAGE, (id + 1) * PAGE).equals(patternPage(id)));
  // Those that say nothing stay until all channels are in.
  await within(Promise.all(sources.map((source) => source.gone)), PROMPT_MS, 'the strays are gone');
  t.equal(receiver.stats().strays, sources.length);
  await within(receiver.end(), PROMPT_MS, 'end()');
  t.equal(receiver.stats().strays, sources.length, 'after the end too');
});

t.test('a stray between two channels does no harm', async (t) => {
  const { receiver } = await open(t);
  await channel(t, receiver, 0, syncBytes());
  const stray = await RawSource.connect(t, receiver.address);
  void stray.send(Buffer.alloc(64, 'x'));
  await within(stray.gone, PROMPT_MS, 'garbage is dropped at once');
  t.equal(receiver.stats().strays, 1);
  t.ok(await isPending(receiver.ready));
  await channel(t, receiver, 1, syncBytes());
  await within(receiver.sync(), PROMPT_MS, 'sync()');
  await within(receiver.end(), PROMPT_MS, 'end()');
});

t.test('hundreds of silent connections do not keep the channels out', async (t) => {
  const { receiver } = await open(t);
  const silent: RawSource[] = [];
  for (let i = 0; i < 300; i++) silent.push(await RawSource.connect(t, receiver.address));
  // The oldest make room.
  await within(silent[0].gone, PROMPT_MS, 'the oldest is dropped');
  for (const id of [0, 1]) await channel(t, receiver, id, syncBytes());
  await within(receiver.sync(), PROMPT_MS, 'sync()');
  await within(Promise.all(silent.map((source) => source.gone)), PROMPT_MS, 'all are gone');
  t.equal(receiver.stats().strays, 300);
  await within(receiver.end(), PROMPT_MS, 'end()');
});

t.test('connections that come too late are not taken', async (t) => {
  const { receiver } = await open(t);
  for (const id of [0, 1]) await channel(t, receiver, id, syncBytes());
  await within(receiver.sync(), PROMPT_MS, 'sync()');
  await t.rejects(RawSource.connect(t, receiver.address), { code: 'ECONNREFUSED' });
  await within(receiver.end(), PROMPT_MS, 'end()');
});

// ---- what is borne ----

/** One lone channel that sends `packets`, and how often sync() is called. */
async function bears(
  t: Test,
  packets: Buffer[],
  options: Partial<ReceiverOptions> = {},
  syncs = 1,
): Promise<Opened & { source: RawSource }> {
  const opened = await open(t, { channels: 1, ...options });
  const source = await channel(t, opened.receiver, 0, ...packets);
  for (let i = 0; i < syncs; i++) await within(opened.receiver.sync(), PROMPT_MS, `sync() ${i}`);
  return { ...opened, source };
}

const pageAt = (ram: Buffer, index: number): Buffer => ram.subarray(index * PAGE, (index + 1) * PAGE);

const WITH_PAGES: Record<'none' | 'zlib' | 'zstd', PacketFields> = {
  none: { payload: patternPage(5) },
  zlib: { flags: ZLIB, payload: zlibPayload(patternPage(5)) },
  zstd: { flags: ZSTD, payload: zstdFrame(patternPage(5)) },
};
for (const compression of ['none', 'zlib', 'zstd'] as const) {
  t.test(`SYNC that carries pages is borne: ${compression}`, async (t) => {
    const fields = WITH_PAGES[compression];
    const { receiver, ram, source } = await bears(
      t,
      [packetBytes({ ...fields, flags: (fields.flags ?? 0) | SYNC, normal: [3 * PAGE] })],
      { compression },
    );
    t.ok(pageAt(ram, 3).equals(patternPage(5)), 'the page is in place when sync() returns');
    // QEMU 7.2 goes on with an empty packet, its fields stale.
    void source.send(
      packetBytes({ nextPacketSize: 524288, ramblock: 'stale' }),
      packetBytes({ zero: [3 * PAGE], flags: fields.flags ?? 0 }),
      syncBytes(),
    );
    await within(receiver.sync(), PROMPT_MS, 'the next sync()');
    t.ok(pageAt(ram, 3).equals(Buffer.alloc(PAGE)), 'a page that became zero');
    t.match(receiver.stats(), { packets: 4, normalPages: 1, zeroPages: 1, syncs: 2 });
    await within(receiver.end(), PROMPT_MS, 'end()');
  });
}

t.test('a packet without pages and without SYNC is ignored, whatever else it says', async (t) => {
  const { receiver } = await bears(t, [
    packetBytes({ pagesAlloc: 0 }),
    packetBytes({ nextPacketSize: 0xffffffff, ramblock: 'no such block' }),
    // Method bits count only where there are pages.
    packetBytes({ flags: ZSTD }),
    // Stale offsets.
    packetBytes({ normal: [2 ** 40], normalPages: 0 }),
    syncBytes(),
  ]);
  t.match(receiver.stats(), { packets: 5, normalPages: 0, zeroPages: 0, syncs: 1 });
  await within(receiver.end(), PROMPT_MS, 'end()');
});

t.test('flags above the known ones are not looked at', async (t) => {
  const { receiver, ram } = await bears(t, [
    packetBytes({ ...DATA, flags: 0xffffff80 }),
    packetBytes({ flags: 0xffffff81 }),
  ]);
  t.ok(pageAt(ram, 0).equals(patternPage(1)));
  await within(receiver.end(), PROMPT_MS, 'end()');
});

t.test('method none reads its pages whatever next_packet_size says', async (t) => {
  const { receiver, ram } = await bears(t, [
    packetBytes({ ...DATA, nextPacketSize: 0 }),
    packetBytes({ normal: [PAGE], payload: patternPage(2), nextPacketSize: 0xffffffff }),
    syncBytes(),
  ]);
  t.ok(pageAt(ram, 0).equals(patternPage(1)));
  t.ok(pageAt(ram, 1).equals(patternPage(2)));
  await within(receiver.end(), PROMPT_MS, 'end()');
});

t.test('the last offset of a block, and a full packet in any order, are taken', async (t) => {
  const random = new Random(2);
  const order = random.shuffle(Array.from({ length: RAM_PAGES }, (_, i) => i));
  const { receiver, ram } = await bears(t, [
    packetBytes({
      normal: order.map((page) => page * PAGE),
      payload: Buffer.concat(order.map((page) => patternPage(page))),
      // Exactly as many as are used.
      pagesAlloc: RAM_PAGES,
    }),
    syncBytes(),
  ]);
  for (let page = 0; page < RAM_PAGES; page++) {
    if (!pageAt(ram, page).equals(patternPage(page))) t.fail(`page ${page}`);
  }
  t.equal(receiver.received('pc.ram').count(), RAM_PAGES);
  t.equal(receiver.received('pc.bios').count(), 0);
  await within(receiver.end(), PROMPT_MS, 'end()');
});

t.test('a block name of 255 bytes is found, and byte 255 counts as NUL', async (t) => {
  const name = 'n'.repeat(255);
  const memory = new SharedArrayBuffer(PAGE);
  const { receiver } = await bears(t, [packetBytes({ ...DATA, ramblock: `${name}x` }), syncBytes()], {
    blocks: [{ name, memory }],
  });
  t.ok(Buffer.from(memory).equals(patternPage(1)));
  await within(receiver.end(), PROMPT_MS, 'end()');
});

t.test('the same page sent twice in a phase is borne: the last on a channel wins', async (t) => {
  const { receiver, ram } = await bears(t, [
    packetBytes({ normal: [0, PAGE, 0], payload: Buffer.concat([1, 2, 3].map(patternPage)) }),
    packetBytes({ normal: [PAGE], payload: patternPage(4) }),
    packetBytes({ normal: [2 * PAGE], payload: patternPage(5), zero: [2 * PAGE] }),
    syncBytes(),
  ]);
  t.ok(pageAt(ram, 0).equals(patternPage(3)));
  t.ok(pageAt(ram, 1).equals(patternPage(4)));
  t.ok(pageAt(ram, 2).equals(Buffer.alloc(PAGE)));
  await within(receiver.end(), PROMPT_MS, 'end()');
});

t.test('the same page on two channels in a phase is borne: one of the two wins', async (t) => {
  const { receiver, ram } = await open(t);
  for (const id of [0, 1]) {
    await channel(t, receiver, id, packetBytes({ normal: [0], payload: patternPage(id) }), syncBytes());
  }
  await within(receiver.sync(), PROMPT_MS, 'sync()');
  t.ok([0, 1].some((id) => pageAt(ram, 0).equals(patternPage(id))));
  await within(receiver.end(), PROMPT_MS, 'end()');
});

t.test('a channel that has read SYNC reads no further until sync() has seen all', async (t) => {
  const { receiver, ram } = await open(t);
  const next = [packetBytes({ normal: [0], payload: patternPage(2) }), syncBytes()];
  await channel(t, receiver, 0, packetBytes({ normal: [0], payload: patternPage(1) }), syncBytes(), ...next);
  const other = await channel(t, receiver, 1);
  const syncing = receiver.sync();
  await eventually(() => receiver.stats().channels[0].syncs === 1, 'channel 0 has read SYNC');
  t.ok(await isPending(syncing));
  t.ok(pageAt(ram, 0).equals(patternPage(1)), 'the next phase has not begun');
  t.equal(receiver.stats().channels[0].normalPages, 1);
  await other.send(syncBytes());
  await within(syncing, PROMPT_MS, 'sync()');
  await other.send(syncBytes());
  await within(receiver.sync(), PROMPT_MS, 'the next sync()');
  t.ok(pageAt(ram, 0).equals(patternPage(2)));
  await within(receiver.end(), PROMPT_MS, 'end()');
});

t.test('one SYNC too many at the very end is harmless', async (t) => {
  const { receiver } = await bears(t, [syncBytes(), syncBytes(), packetBytes(DATA)], {}, 1);
  await eventually(() => receiver.stats().syncs === 2, 'the second SYNC is read');
  await within(receiver.end(), PROMPT_MS, 'end()');
  await within(receiver.done, PROMPT_MS, 'done');
});

// ---- ends of channels ----

const FULL = packetBytes({ ...DATA, packetNum: 9n });
const CUT: Record<string, { bytes: Buffer; message: RegExp; packetNum?: number }> = {
  'in the first bytes of a header': { bytes: FULL.subarray(0, 5), message: /received 5, expected 12/ },
  'after magic, version and flags': { bytes: FULL.subarray(0, 12), message: /received 0, expected 1332/ },
  'one byte before the end of a header': {
    bytes: FULL.subarray(0, 1343),
    message: /received 1331, expected 1332/,
  },
  'before a payload': { bytes: FULL.subarray(0, 1344), message: /received 0, expected 4096/, packetNum: 9 },
  'one byte before the end of a payload': {
    bytes: FULL.subarray(0, FULL.length - 1),
    message: /received 4095, expected 4096/,
    packetNum: 9,
  },
  'inside a device-state header': {
    bytes: deviceStateBytes({ idstr: 'vfio', payload: Buffer.alloc(10) }).subarray(0, 100),
    message: /received 88, expected 264/,
  },
  'inside a device-state payload': {
    bytes: deviceStateBytes({ idstr: 'vfio', payload: Buffer.alloc(10) }).subarray(0, 280),
    message: /received 4, expected 10/,
  },
};
const VFIO = { devices: [{ idstr: 'vfio', instanceId: 0, load: (): void => undefined }] };

for (const [name, { bytes, message, packetNum }] of Object.entries(CUT)) {
  t.test(`an end ${name} is ERR_MULTIFD_EOF`, async (t) => {
    const { receiver } = await open(t, VFIO);
    const sources = [await channel(t, receiver, 0, syncBytes()), await channel(t, receiver, 1, syncBytes())];
    await within(receiver.sync(), PROMPT_MS, 'the first sync()');
    const pending = [hold(receiver.sync())];
    sources[0].end(bytes);
    const refusal: Refusal = { code: 'ERR_MULTIFD_EOF', message, channel: 0 };
    if (packetNum !== undefined) refusal.packetNum = packetNum;
    await fails(t, receiver, { refusal, pending, sources });
  });
}

t.test('a reset inside a packet is ERR_MULTIFD_CONNECTION', async (t) => {
  const { receiver } = await open(t);
  const sources = [await channel(t, receiver, 0, syncBytes()), await channel(t, receiver, 1, syncBytes())];
  await within(receiver.sync(), PROMPT_MS, 'the first sync()');
  const pending = [hold(receiver.sync())];
  await sources[1].send(FULL.subarray(0, 1400));
  await eventually(() => receiver.stats().channels[1].bytes >= 1344 + 1400, 'the bytes have come in');
  sources[1].reset();
  const refusal: Refusal = {
    code: 'ERR_MULTIFD_CONNECTION',
    message: /ECONNRESET/,
    channel: 1,
    packetNum: 9,
  };
  await fails(t, receiver, { refusal, pending, sources });
});

t.test('a reset between packets is ERR_MULTIFD_CONNECTION as well, without TLS', async (t) => {
  const { receiver } = await open(t);
  const sources = [await channel(t, receiver, 0, syncBytes()), await channel(t, receiver, 1, syncBytes())];
  await within(receiver.sync(), PROMPT_MS, 'the first sync()');
  sources[1].reset();
  const refusal: Refusal = { code: 'ERR_MULTIFD_CONNECTION', message: /ECONNRESET/, channel: 1 };
  await fails(t, receiver, { refusal, pending: [], sources });
});

t.test('an end before a header is clean: sync() and end() succeed', async (t) => {
  const { receiver, ram } = await open(t);
  for (const id of [0, 1]) {
    const source = await RawSource.connect(t, receiver.address);
    source.end(
      helloBytes({ id }),
      packetBytes({ normal: [id * PAGE], payload: patternPage(id) }),
      syncBytes(),
    );
  }
  await within(receiver.sync(), PROMPT_MS, 'sync()');
  for (const id of [0, 1]) t.ok(pageAt(ram, id).equals(patternPage(id)));
  await within(receiver.end(), PROMPT_MS, 'end()');
});

t.test('a channel that ends before a SYNC that is due is ERR_MULTIFD_EOF from sync()', async (t) => {
  const { receiver } = await open(t);
  const pending = [hold(receiver.sync()), hold(receiver.sync())];
  const staying = await channel(t, receiver, 0, syncBytes());
  const ending = await RawSource.connect(t, receiver.address);
  ending.end(helloBytes({ id: 1 }), FULL);
  const refusal: Refusal = { code: 'ERR_MULTIFD_EOF', message: /received 0, expected 1/, channel: 1 };
  await fails(t, receiver, { refusal, pending, sources: [staying, ending] });
});

t.test('channels that have ended with one SYNC give no second one', async (t) => {
  const { receiver } = await open(t);
  const sources: RawSource[] = [];
  for (const id of [0, 1]) {
    const source = await RawSource.connect(t, receiver.address);
    source.end(helloBytes({ id }), syncBytes());
    sources.push(source);
  }
  await within(receiver.sync(), PROMPT_MS, 'the first sync()');
  // Nobody asks for a SYNC, so nothing is wrong yet.
  t.ok(await isPending(receiver.done));
  const refusal: Refusal = { code: 'ERR_MULTIFD_EOF', message: /received 1, expected 2/, channel: 0 };
  await fails(t, receiver, { refusal, pending: [hold(receiver.sync())], sources });
});

t.test('a channel that goes right after its hello is in, and its SYNC is missed', async (t) => {
  const { receiver } = await open(t, { channels: 1 });
  const source = await RawSource.connect(t, receiver.address);
  source.end(helloBytes({ id: 0 }));
  await within(receiver.ready, PROMPT_MS, 'ready');
  const refusal: Refusal = { code: 'ERR_MULTIFD_EOF', message: /received 0, expected 1/, channel: 0 };
  await fails(t, receiver, { refusal, pending: [hold(receiver.sync())], sources: [source] });
});

// ---- time-outs ----

const STALL_MS = 300;

for (const [name, bytes] of Object.entries({
  'the first bytes of a header': FULL.subarray(0, 5),
  'a header': FULL.subarray(0, 700),
  'a payload': FULL.subarray(0, 3000),
  'a device-state payload': deviceStateBytes({ idstr: 'vfio', payload: Buffer.alloc(10) }).subarray(0, 280),
})) {
  t.test(`a peer that says no more inside ${name} is ERR_MULTIFD_STALL`, async (t) => {
    const { receiver } = await open(t, { ...VFIO, stallTimeoutMs: STALL_MS });
    const sources = [await channel(t, receiver, 0), await channel(t, receiver, 1)];
    await within(receiver.ready, PROMPT_MS, 'ready');
    await sources[1].send(bytes);
    const error = await failure(receiver.done, 'done');
    t.equal(error.code, 'ERR_MULTIFD_STALL');
    t.match(error.message, /inside a packet .* 300 ms: bytes: received \d+, expected \d+/);
    t.equal(error.channel, 1);
    await within(Promise.all(sources.map((source) => source.gone)), PROMPT_MS, 'every channel ends');
  });
}

for (const together of [false, true]) {
  const name = together ? 'together with the hello' : 'after SYNC';
  t.test(`a peer that stalls inside a packet begun ${name} is ERR_MULTIFD_STALL`, async (t) => {
    const { receiver } = await open(t, { channels: 1, stallTimeoutMs: STALL_MS });
    const begun = FULL.subarray(0, 5);
    const source = await channel(t, receiver, 0, syncBytes(), together ? begun : Buffer.alloc(0));
    await eventually(() => receiver.stats().syncs === 1, 'SYNC is read');
    if (!together) await source.send(begun);
    // The channel is paused all that time, which is no stall.
    await sleep(3 * STALL_MS);
    await within(receiver.sync(), PROMPT_MS, 'sync()');
    const error = await failure(receiver.done, 'done');
    t.equal(error.code, 'ERR_MULTIFD_STALL');
    t.match(error.message, /received 5, expected 12/);
  });
}

t.test('silence while a SYNC is due is ERR_MULTIFD_STALL', async (t) => {
  const { receiver } = await open(t, { stallTimeoutMs: STALL_MS });
  const sources = [await channel(t, receiver, 0, syncBytes()), await channel(t, receiver, 1)];
  const pending = [hold(receiver.sync()), hold(receiver.sync())];
  const refusal: Refusal = {
    code: 'ERR_MULTIFD_STALL',
    message: /waiting for SYNC packets, nothing came in/,
  };
  await fails(t, receiver, { refusal, pending, sources });
});

t.test('silence between packets is no stall while nothing is due', async (t) => {
  const { receiver } = await open(t, { channels: 1, stallTimeoutMs: STALL_MS });
  const source = await channel(t, receiver, 0, packetBytes(DATA));
  await within(receiver.ready, PROMPT_MS, 'ready');
  await sleep(3 * STALL_MS);
  void source.send(syncBytes());
  await within(receiver.sync(), PROMPT_MS, 'sync()');
  await within(receiver.end(), PROMPT_MS, 'end()');
});

t.test('a slow but steady peer is no stall', async (t) => {
  const { receiver, ram } = await open(t, { channels: 1, stallTimeoutMs: STALL_MS });
  const source = await channel(t, receiver, 0);
  const syncing = receiver.sync();
  const bytes = Buffer.concat([FULL, syncBytes()]);
  for (let at = 0; at < bytes.length; at += 450) {
    await source.send(bytes.subarray(at, at + 450));
    await sleep(STALL_MS / 6);
  }
  await within(syncing, PROMPT_MS, 'sync()');
  t.ok(pageAt(ram, 0).equals(patternPage(1)));
  await within(receiver.end(), PROMPT_MS, 'end()');
});

t.test('channels that do not follow the first in time are ERR_MULTIFD_TIMEOUT', async (t) => {
  const { receiver } = await open(t, { channels: 3, connectTimeoutMs: STALL_MS });
  const pending = [receiver.ready, hold(receiver.sync())];
  const sources = [await channel(t, receiver, 2, syncBytes())];
  // A stray is no channel.
  sources.push(await RawSource.connect(t, receiver.address));
  const refusal: Refusal = { code: 'ERR_MULTIFD_TIMEOUT', message: /within 300 ms: received 1, expected 3/ };
  await fails(t, receiver, { refusal, pending, sources });
});

t.test('no channel at all in time is ERR_MULTIFD_TIMEOUT, strays or not', async (t) => {
  const { receiver } = await open(t, { acceptTimeoutMs: STALL_MS });
  const pending = [receiver.ready, hold(receiver.sync())];
  const stray = await RawSource.connect(t, receiver.address);
  void stray.send(Buffer.from('QEVM'));
  const refusal: Refusal = { code: 'ERR_MULTIFD_TIMEOUT', message: /within 300 ms: received 0, expected 1/ };
  await fails(t, receiver, { refusal, pending, sources: [stray] });
});

t.test('once the first channel is in, acceptTimeoutMs is over and connectTimeoutMs counts', async (t) => {
  const { receiver } = await open(t, { acceptTimeoutMs: STALL_MS });
  await channel(t, receiver, 0, syncBytes());
  await sleep(2 * STALL_MS);
  await channel(t, receiver, 1, syncBytes());
  await within(receiver.sync(), PROMPT_MS, 'sync()');
  await within(receiver.end(), PROMPT_MS, 'end()');
});

t.test('without acceptTimeoutMs a receiver waits for its first channel', async (t) => {
  const { receiver } = await open(t, { connectTimeoutMs: STALL_MS, stallTimeoutMs: STALL_MS });
  const syncing = receiver.sync();
  await sleep(3 * STALL_MS);
  t.ok(await isPending(syncing));
  for (const id of [0, 1]) await channel(t, receiver, id, syncBytes());
  await within(syncing, PROMPT_MS, 'sync()');
  await within(receiver.end(), PROMPT_MS, 'end()');
});

// ---- device state ----

t.test('device state is given to its device, in order, before what follows on its channel', async (t) => {
  const seen: string[] = [];
  const device = (idstr: string, instanceId: number): object => ({
    idstr,
    instanceId,
    load: async (data: Uint8Array) => {
      const text = Buffer.from(data).toString('latin1');
      await sleep(20);
      // The bytes are the device's until its promise settles.
      seen.push(`${idstr}/${instanceId}: ${text} ${Buffer.from(data).toString('latin1') === text}`);
    },
  });
  const largest = Buffer.alloc(1000, 'z');
  const { receiver, ram } = await bears(
    t,
    [
      deviceStateBytes({ idstr: 'vfio', instanceId: 0xffffffff, payload: Buffer.from('a') }),
      packetBytes(DATA),
      deviceStateBytes({ idstr: 'vfio', instanceId: 0, payload: Buffer.from('b') }),
      deviceStateBytes({ idstr: 'v'.repeat(255), instanceId: 1, payload: largest }),
      syncBytes(),
    ],
    {
      deviceStateBytes: 1000,
      devices: [
        device('vfio', 0),
        device('vfio', 0xffffffff),
        device('v'.repeat(255), 1),
      ] as ReceiverOptions['devices'],
    },
  );
  t.same(seen, [
    'vfio/4294967295: a true',
    'vfio/0: b true',
    `${'v'.repeat(255)}/1: ${'z'.repeat(1000)} true`,
  ]);
  t.ok(pageAt(ram, 0).equals(patternPage(1)));
  t.match(receiver.stats(), { deviceStates: 3, packets: 5, syncs: 1, normalPages: 1 });
  await within(receiver.end(), PROMPT_MS, 'end()');
});

t.test('a device that takes its time is no stall', async (t) => {
  const load = async (): Promise<void> => sleep(4 * STALL_MS);
  const { receiver } = await bears(
    t,
    [deviceStateBytes({ idstr: 'vfio', payload: Buffer.from('a') }), syncBytes()],
    {
      stallTimeoutMs: STALL_MS,
      devices: [{ idstr: 'vfio', instanceId: 0, load }],
    },
  );
  t.match(receiver.stats(), { deviceStates: 1 });
  await within(receiver.end(), PROMPT_MS, 'end()');
});

for (const [name, load] of Object.entries({
  throws: (): void => {
    throw new RangeError('bad state');
  },
  rejects: async (): Promise<void> => {
    await sleep(5);
    throw new RangeError('bad state');
  },
})) {
  t.test(`a device whose load() ${name} is ERR_MULTIFD_HOOK`, async (t) => {
    const { receiver } = await open(t, { devices: [{ idstr: 'vfio', instanceId: 3, load }] });
    const sources = [await channel(t, receiver, 0, syncBytes()), await channel(t, receiver, 1)];
    const pending = [hold(receiver.sync())];
    void sources[1].send(
      deviceStateBytes({ idstr: 'vfio', instanceId: 3, payload: Buffer.from('a') }),
      syncBytes(),
    );
    const refusal: Refusal = {
      code: 'ERR_MULTIFD_HOOK',
      message: /load\(\) of device vfio instance 3 failed/,
      channel: 1,
    };
    const error = await fails(t, receiver, { refusal, pending, sources });
    t.match(error.cause, { name: 'RangeError', message: 'bad state' });
  });
}

t.test('a receiver that ends does not wait for a device that never does', async (t) => {
  const never = new Promise<void>(() => undefined);
  const { receiver } = await open(t, {
    channels: 1,
    devices: [{ idstr: 'vfio', instanceId: 0, load: () => never }],
  });
  const source = await channel(
    t,
    receiver,
    0,
    deviceStateBytes({ idstr: 'vfio', payload: Buffer.from('a') }),
  );
  const syncing = hold(receiver.sync());
  await within(receiver.ready, PROMPT_MS, 'ready');
  await sleep(50);
  await within(receiver.close(), PROMPT_MS, 'close()');
  t.equal((await failure(syncing, 'sync()')).code, 'ERR_MULTIFD_CLOSED');
  await within(source.gone, PROMPT_MS, 'the channel ends');
});

// ---- several at once ----

t.test(
  'of several refusals at the same time one is the error, and the others are attached to it or dropped',
  async (t) => {
    const { receiver } = await open(t, { channels: 4 });
    const sources: RawSource[] = [];
    for (let id = 0; id < 4; id++) sources.push(await channel(t, receiver, id));
    const syncing = receiver.sync();
    syncing.catch(() => undefined);
    await within(receiver.ready, PROMPT_MS, 'ready');
    for (const [id, source] of sources.entries())
      void source.send(packetBytes({ ...DATA, pagesAlloc: 200 + id }));
    const error = await failure(receiver.done, 'done');
    t.equal(error.code, 'ERR_MULTIFD_PAGES_ALLOC');
    t.match(error.message, new RegExp(`received ${200 + (error.channel as number)}, expected at most 128`));
    t.equal(await failure(syncing, 'sync()'), error);
    for (const later of error.suppressed) t.equal(later.code, 'ERR_MULTIFD_PAGES_ALLOC');
    t.notOk(error.suppressed.includes(error));
    await within(Promise.all(sources.map((source) => source.gone)), PROMPT_MS, 'every channel ends');
  },
);

t.test('no rejection was left unhandled', async (t) => {
  await sleep(20);
  t.same(unhandled, []);
});
