/** The seek table: what is written, by the published format, and every way in which one may lie. */
import t from 'tap';
import { encodeSeekTable, readSeekTable, type FrameSize } from '../../src/packed/seek-table.js';
import type { ReadableFile } from '../../src/stream/positioned-file.js';

function fileOf(bytes: Buffer): ReadableFile {
  return {
    read: (buffer, offset, length, position) =>
      Promise.resolve({ bytesRead: bytes.copy(buffer, offset, position, position + length) }),
    stat: () => Promise.resolve({ size: bytes.length }),
  };
}

const MAGIC = Buffer.from('28b52ffd', 'hex');
const FRAMES: FrameSize[] = [
  { packed: 100, plain: 1000 },
  { packed: 12, plain: 0 },
  { packed: 50, plain: 3000 },
];

function packed(frames: readonly FrameSize[] = FRAMES, change = (table: Buffer): Buffer => table): Buffer {
  const body = Buffer.alloc(frames.reduce((sum, frame) => sum + frame.packed, 0));
  MAGIC.copy(body);
  return Buffer.concat([body, change(encodeSeekTable(frames))]);
}

t.test('it is written as the format has it, byte for byte', async (t) => {
  const table = encodeSeekTable([{ packed: 0x1234, plain: 0x100000 }]);
  t.equal(table.toString('hex'), '5e2a4d1811000000' + '3412000000001000' + '0100000000' + 'b1ea928f');
});

t.test('each byte is found in its frame, also beside a frame that holds none', async (t) => {
  const table = await readSeekTable(fileOf(packed()));
  t.equal(table?.count, 3);
  t.equal(table?.plainBytes, 4000);
  t.equal(table?.packedBytes, 162);
  t.same(table?.largest, { plain: 3000, packed: 100 });
  t.equal(table?.frameOf(0), 0);
  t.equal(table?.frameOf(999), 0);
  t.equal(table?.frameOf(1000), 2);
  t.equal(table?.frameOf(3999), 2);
  t.equal(table?.packedOffset(2), 112);
});

t.test('a table with checksums is read as one without', async (t) => {
  const plain = encodeSeekTable(FRAMES);
  const entries = FRAMES.map((_, i) =>
    Buffer.concat([plain.subarray(8 + 8 * i, 16 + 8 * i), Buffer.from('01020304', 'hex')]),
  );
  const footer = plain.subarray(-9);
  footer[4] = 0x80;
  const head = Buffer.from(plain.subarray(0, 8));
  head.writeUInt32LE(12 * FRAMES.length + 9, 4);
  const body = packed().subarray(0, 162);
  const table = await readSeekTable(fileOf(Buffer.concat([body, head, ...entries, footer])));
  t.equal(table?.plainBytes, 4000);
});

t.test('what is no zstd file is none, and one without a table is refused with what to do', async (t) => {
  t.equal(await readSeekTable(fileOf(Buffer.from('QEVM, and so on'))), undefined);
  t.equal(await readSeekTable(fileOf(Buffer.from('QE'))), undefined);
  const refused = { code: 'ERR_MULTIFD_STREAM', message: /zstd file: .*multifd pack.*zstd -d/ };
  await t.rejects(readSeekTable(fileOf(Buffer.concat([MAGIC, Buffer.alloc(100)]))), refused);
  await t.rejects(readSeekTable(fileOf(MAGIC)), refused);
  await t.rejects(readSeekTable(fileOf(packed().subarray(0, -1))), refused, 'cut');
});

const u32 = (at: number, value: number) => (table: Buffer) => {
  table.writeUInt32LE(value >>> 0, at < 0 ? table.length + at : at);
  return table;
};
const LIES: Record<string, [Buffer, RegExp]> = {
  'one more frame than there is': [packed(FRAMES, u32(-9, 4)), /seek table: head/],
  'more frames than any file has room for': [
    packed(FRAMES, u32(-9, 0xffffffff)),
    /frames: received 4294967295/,
  ],
  'more frames than this file has room for': [packed(FRAMES, u32(-9, 1000)), /bytes: received 8017/],
  'a reserved bit': [
    packed(FRAMES, (table) => {
      table[table.length - 5] = 0x04;
      return table;
    }),
    /descriptor: received 4/,
  ],
  'another magic before it': [packed(FRAMES, u32(0, 0x184d2a50)), /seek table: head/],
  'another length': [packed(FRAMES, u32(4, 34)), /seek table: head/],
  'frames that end before it': [packed(FRAMES, u32(8, 99)), /bytes of all frames: received 161/],
  'frames that end behind it': [packed(FRAMES, u32(8, 101)), /bytes of all frames: received 163/],
  'a frame above the bound': [
    packed(FRAMES, u32(12, 2 ** 24 + 1)),
    /plain bytes of frame 0: received 16777217/,
  ],
  'a frame that has grown': [packed(FRAMES, u32(12, 3)), /packed bytes of frame 0: received 100/],
};
for (const [name, [bytes, message]] of Object.entries(LIES)) {
  t.test(`${name} is refused`, async (t) => {
    await t.rejects(readSeekTable(fileOf(bytes)), {
      name: 'MultifdError',
      code: 'ERR_MULTIFD_STREAM',
      message,
    });
  });
}
