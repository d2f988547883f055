import { PassThrough, Readable } from 'node:stream';
import t from 'tap';
import { ByteReader } from '../../src/stream/byte-reader.js';
import { STREAM_ERRORS } from '../../src/stream/codes.js';
import { FileSource } from '../../src/stream/positioned-file.js';
import { Random } from '../support/random.js';
import { MemoryFile, chunked, collect, hex } from './support.js';

const NUMBERS = hex('01  0203  04050607  00000001 00000002  001fffff ffffffff  aabb');

t.test('numbers are read the same however they are cut', async (t) => {
  for (let size = 1; size <= NUMBERS.length; size++) {
    const reader = new ByteReader(chunked(NUMBERS, size));
    t.equal(await reader.u8(), 1);
    t.equal(await reader.u16(), 0x0203);
    t.equal(await reader.u32(), 0x04050607);
    t.equal(reader.position, 7);
    t.equal(await reader.u64(), 2 ** 32 + 2);
    t.equal(await reader.u64(), Number.MAX_SAFE_INTEGER);
    t.equal((await reader.exactly(2)).toString('hex'), 'aabb');
    t.equal(reader.position, NUMBERS.length);
    t.equal((await reader.peek(1)).length, 0);
  }
});

t.test('a source may be a stream, a function or an object', async (t) => {
  const stream = new ByteReader(Readable.from([NUMBERS.subarray(0, 3), NUMBERS.subarray(3)]));
  t.equal((await stream.exactly(NUMBERS.length)).toString('hex'), NUMBERS.toString('hex'));
  t.equal(stream.canSeek, false);
  const late = new PassThrough();
  const waiting = new ByteReader(late).exactly(3);
  late.write(NUMBERS.subarray(0, 2));
  setImmediate(() => late.end(NUMBERS.subarray(2)));
  t.equal((await waiting).toString('hex'), '010203', 'a stream whose bytes come later');
  const { read } = chunked(NUMBERS, 5);
  const called = new ByteReader(async (max) => (max > 0 ? read(max) : null));
  t.equal((await called.exactly(NUMBERS.length)).toString('hex'), NUMBERS.toString('hex'));
  const file = new ByteReader(new FileSource(new MemoryFile(NUMBERS), 1), { start: 1 });
  t.equal(await file.u16(), 0x0203);
  t.equal(file.position, 3);
  t.equal(file.canSeek, true);
  const plain = new ByteReader(Readable.from([new Uint8Array([9, 8, 7])]));
  t.equal(await plain.u16(), 0x0908, 'a Uint8Array that is no Buffer');
});

t.test('an end too early says where, in what, and how much came', async (t) => {
  for (const size of [1, 2, 64]) {
    const reader = new ByteReader(chunked(hex('0102030405'), size), { name: 'capture', start: 100 });
    await reader.u16();
    await t.rejects(reader.exactly(8, 'a record'), {
      code: STREAM_ERRORS.eof,
      message: 'capture ended at byte 105, in a record: received 3, expected 8',
    });
  }
  const empty = new ByteReader(chunked(Buffer.alloc(0)));
  await t.rejects(empty.u8('a section'), {
    message: /main stream ended at byte 0, in a section: received 0/,
  });
});

t.test('a u64 of 2^53 and above is refused', async (t) => {
  const reader = new ByteReader(chunked(hex('00 0020000000000000 ffffffffffffffff')));
  await reader.u8();
  await t.rejects(reader.u64('a total'), {
    code: STREAM_ERRORS.limit,
    message: 'main stream at byte 1: a total: received 0x0020000000000000, expected at most 2^53 - 1',
  });
  await t.rejects(reader.u64(), { code: STREAM_ERRORS.limit });
});

t.test('peeking takes nothing, and gives less only at the end', async (t) => {
  const reader = new ByteReader(chunked(hex('01020304'), 1));
  t.equal((await reader.peek(2)).toString('hex'), '0102');
  t.equal((await reader.peek(9)).toString('hex'), '01020304');
  t.equal(reader.position, 0);
  t.equal(await reader.u32(), 0x01020304);
});

t.test('nothing is read ahead but the chunk that brings the last byte', async (t) => {
  const source = chunked(Buffer.alloc(100), 10);
  const reader = new ByteReader(source);
  await reader.exactly(10);
  t.equal(source.reads, 1);
  await reader.exactly(11);
  t.equal(source.reads, 3);
  t.equal(reader.buffered.length, 9);
  reader.skipBuffered(9);
  t.equal(reader.position, 30);
  t.equal(source.reads, 3);
  t.throws(() => reader.skipBuffered(1), RangeError);
});

t.test('no call may ask for more than the limit', async (t) => {
  const source = chunked(Buffer.alloc(100), 10);
  const reader = new ByteReader(source, { maxBytes: 50 });
  await t.rejects(reader.exactly(51), { code: STREAM_ERRORS.limit });
  await t.rejects(reader.peek(51), { code: STREAM_ERRORS.limit });
  t.equal(source.reads, 0, 'refused before anything is read');
  t.equal((await reader.exactly(50)).length, 50);
});

t.test('the rest comes to the end, what is buffered first', async (t) => {
  const bytes = Buffer.from(Array.from({ length: 100 }, (_, i) => i));
  const reader = new ByteReader(chunked(bytes, 7));
  await reader.exactly(10);
  await reader.peek(20);
  const rest = await collect(reader.rest());
  t.ok(Buffer.concat(rest).equals(bytes.subarray(10)));
  t.equal(reader.position, 100);
  t.same(await collect(reader.rest()), []);
});

t.test('what was handed out stays as it was, and what was recorded is what was taken', async (t) => {
  const random = new Random(7);
  const bytes = Buffer.alloc(20000);
  random.bytes(bytes);
  for (let lap = 0; lap < 20; lap++) {
    const sizes = Array.from({ length: 2000 }, () => 1 + random.below(lap < 10 ? 20 : 3000));
    const reader = new ByteReader(chunked(bytes, ...sizes));
    const views: [view: Buffer, from: number][] = [];
    while (reader.position < bytes.length - 600) {
      const from = reader.position;
      reader.record();
      for (let i = random.below(5); i >= 0; i--) {
        const at = reader.position;
        views.push([await reader.exactly(random.below(100)), at]);
        if (random.below(3) === 0) await reader.peek(random.below(100));
      }
      views.push([reader.recorded(), from]);
      if (random.below(2) === 0) views.push([await reader.exactly(1), reader.position - 1]);
    }
    t.ok(views.every(([view, from]) => view.equals(bytes.subarray(from, from + view.length))));
  }
});

t.test('recording ends with recorded()', async (t) => {
  const reader = new ByteReader(chunked(hex('010203'), 1));
  t.equal(reader.recorded().length, 0);
  reader.record();
  await reader.u8();
  t.equal(reader.recorded().toString('hex'), '01');
  t.equal(reader.recorded().length, 0);
});

t.test('seeking goes forward only, and only where the source can', async (t) => {
  const bytes = Buffer.from(Array.from({ length: 200 }, (_, i) => i));
  const reader = new ByteReader(new FileSource(new MemoryFile(bytes), 0));
  t.equal(await reader.u8(), 0);
  reader.record();
  t.equal(await reader.u16(), 0x0102);
  reader.seek(100);
  t.equal(reader.position, 100);
  t.equal(await reader.u8(), 100);
  reader.seek(150);
  t.equal(await reader.u8(), 150);
  t.equal(reader.recorded().toString('hex'), '01026496', 'recorded without what was passed over');
  reader.seek(160);
  t.equal(await reader.u8(), 160, 'within what is buffered');
  t.throws(() => reader.seek(160), {
    code: STREAM_ERRORS.format,
    message: /received 160, expected at least 161/,
  });
  reader.seek(1000);
  await t.rejects(reader.u8(), { message: /ended at byte 1000/ });
  const stream = new ByteReader(chunked(bytes, 10));
  await stream.u8();
  stream.seek(5);
  t.equal(await stream.u8(), 5);
  t.throws(() => stream.seek(50), { code: STREAM_ERRORS.unsupported, message: /cannot seek to byte 50/ });
});

t.test('an error of the source comes through as it is', async (t) => {
  const cause = new Error('reset');
  const reader = new ByteReader(() => Promise.reject(cause));
  await t.rejects(reader.u8(), cause);
});
