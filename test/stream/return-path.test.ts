import t from 'tap';
import { ByteReader } from '../../src/stream/byte-reader.js';
import { STREAM_ERRORS, type StreamError } from '../../src/stream/codes.js';
import {
  type ReturnPathMessage,
  encodePong,
  encodeShut,
  encodeSwitchoverAck,
  pingValue,
  readReturnPath,
} from '../../src/stream/return-path.js';
import { chunked, collect, hex, ofKind, parse } from './support.js';

const read = (bytes: Buffer, size = 1): Promise<ReturnPathMessage[]> =>
  collect(readReturnPath(new ByteReader(chunked(bytes, size), { name: 'return path' })));

t.test('PONG and SHUT are encoded as the specification says', async (t) => {
  t.equal(encodePong(1).toString('hex'), hex('0002 0004 00000001').toString('hex'));
  t.equal(encodePong(0xffffffff).toString('hex'), hex('0002 0004 ffffffff').toString('hex'));
  t.equal(encodeShut(0).toString('hex'), hex('0001 0004 00000000').toString('hex'));
  t.equal(encodeShut(1).toString('hex'), hex('0001 0004 00000001').toString('hex'));
});

t.test('messages are read however they are cut', async (t) => {
  const bytes = Buffer.concat([
    encodePong(7),
    encodeSwitchoverAck(),
    hex("0003 0012 0000000000000000 00001000 06 'pc.ram'".replace('0012', '0013')),
    encodeShut(2),
  ]);
  for (const size of [1, 3, 1000]) {
    const messages = await read(bytes, size);
    t.ok(Buffer.concat(messages.map(({ raw }) => raw)).equals(bytes), 'raw is every byte');
    t.match(messages, [
      { kind: 'pong', value: 7 },
      { kind: 'switchover-ack' },
      { kind: 'other', type: 3, data: hex("0000000000000000 00001000 06 'pc.ram'") },
      { kind: 'shut', status: 2 },
    ]);
  }
  t.same(await read(Buffer.alloc(0)), [], 'an end between two messages is the end');
});

t.test('a message that is wrong is refused', async (t) => {
  const cases: [bytes: string, error: StreamError, message: RegExp][] = [
    ['0001 0003 000000', 'returnPath', /return path at byte 0: bytes of message 1: received 3, expected 4/],
    ['0002 0004 00000001 0002 0008', 'returnPath', /at byte 8: bytes of message 2: received 8, expected 4/],
    ['0007 0001 00', 'returnPath', /message 7: received 1, expected 0/],
    ['0004 0201', 'returnPath', /message 4: received 513, expected at most 512/],
    ['0000 0000', 'returnPath', /message: received type 0, expected a type from 1 on/],
    ['0001', 'eof', /ended at byte 2, in a message's header: received 2, expected 4/],
    ['0001 0004 0000', 'eof', /ended at byte 6, in a message/],
  ];
  for (const [bytes, error, message] of cases) {
    await t.rejects(read(hex(bytes)), { code: STREAM_ERRORS[error], message });
  }
});

t.test("a PING's value is found, and only a PING's", async (t) => {
  const setup = "'QEVM' 00000003 08 0001 0000 08 0002 0004 0a0b0c0d 01 00000007 03 'ram' 00000000 00000004";
  const rest = "0000000000001004 01 'a' 0000000000001000 0000000000000010 03 00000007 0000000000000010";
  const items = await parse(hex(`${setup} ${rest}`));
  t.same(ofKind(items, 'command').map(pingValue), [undefined, 0x0a0b0c0d]);
});
