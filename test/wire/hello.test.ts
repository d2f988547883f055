import t from 'tap';
import { readCapture } from '../support/reference-decoder.js';
import { type MultifdError } from '../../src/errors.js';
import { Admission } from '../../src/transport/admission.js';
import {
  HELLO_BYTES,
  decodeHello,
  encodeHello,
  formatUuid,
  keyOfHello,
  parseUuid,
} from '../../src/wire/hello.js';

/** Hex with blanks and line ends, as in the specification's tables. */
function hex(text: string): Buffer {
  return Buffer.from(text.replaceAll(/\s/g, ''), 'hex');
}

const UUID = hex('00112233 4455 6677 8899 aabbccddeeff');
const NO_UUID = Buffer.alloc(16);

/** magic, version, uuid 00112233-4455-6677-8899-aabbccddeeff, id 5, 39 reserved bytes. */
const WITH_UUID = hex(`
  11223344 00000001 00112233 44556677 8899aabb ccddeeff 05 00000000000000
  00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000`);
/** The same for a VM without uuid, channel 0. */
const WITHOUT_UUID = hex(`
  11223344 00000001 00000000 00000000 00000000 00000000 00 00000000000000
  00000000 00000000 00000000 00000000 00000000 00000000 00000000 00000000`);

/** `bytes` with `value` in hex put at `at`. */
function patched(bytes: Buffer, ...changes: [at: number, value: string][]): Buffer {
  const copy = Buffer.from(bytes);
  for (const [at, value] of changes) copy.set(hex(value), at);
  return copy;
}

t.test('a hello is 64 bytes', async (t) => {
  t.equal(HELLO_BYTES, 64);
  t.equal(WITH_UUID.length, 64);
  t.equal(WITHOUT_UUID.length, 64);
});

t.test('a hello is encoded as the specification says', async (t) => {
  t.equal(encodeHello({ uuid: UUID, id: 5 }).toString('hex'), WITH_UUID.toString('hex'));
  t.equal(encodeHello({ uuid: NO_UUID, id: 0 }).toString('hex'), WITHOUT_UUID.toString('hex'));
  t.equal(encodeHello({ uuid: UUID, id: 255 })[24], 255);
});

t.test('a hello is decoded as the specification says', async (t) => {
  t.same(decodeHello(WITH_UUID, { uuid: UUID, channels: 6 }), { uuid: UUID, id: 5 });
  t.same(decodeHello(WITHOUT_UUID, { uuid: NO_UUID, channels: 1 }), { uuid: NO_UUID, id: 0 });
});

t.test('a key lies among the reserved bytes, and whoever has another is a stranger', async (t) => {
  const key = hex('00112233445566778899aabbccddee01');
  const bytes = encodeHello({ uuid: UUID, id: 5 }, key);
  t.equal(bytes.toString('hex'), patched(WITH_UUID, [32, key.toString('hex')]).toString('hex'));
  t.same(decodeHello(bytes, { uuid: UUID, channels: 6 }), { uuid: UUID, id: 5 });
  t.same(keyOfHello(bytes), key);
  const keyed = new Admission(6, UUID, key);
  t.notOk(keyed.isStranger(bytes));
  t.ok(keyed.isStranger(WITH_UUID));
  t.notOk(new Admission(6, UUID).isStranger(bytes), 'where no key is asked for');
});

t.test('the decoded uuid does not change with the bytes that it came from', async (t) => {
  const bytes = Buffer.from(WITH_UUID);
  const { uuid } = decodeHello(bytes, { uuid: UUID, channels: 6 });
  bytes.fill(0);
  t.same(uuid, UUID);
});

t.test("the hellos of real captures are the encoder's own", async (t) => {
  for (const id of [0, 1]) {
    for (const name of ['q100-none', 'q72-zstd']) {
      const bytes = readCapture(`${name}.ch${id}`).subarray(0, 64);
      t.same(decodeHello(bytes, { uuid: NO_UUID, channels: 2 }), { uuid: NO_UUID, id });
      t.equal(encodeHello({ uuid: NO_UUID, id }).toString('hex'), bytes.toString('hex'));
    }
  }
});

t.test('reserved bytes are not looked at', async (t) => {
  const bytes = Buffer.from(WITH_UUID);
  bytes.fill(0xff, 25);
  t.same(decodeHello(bytes, { uuid: UUID, channels: 6 }), { uuid: UUID, id: 5 });
});

t.test('each wrong field is refused with what came and what was expected', async (t) => {
  const expected = { uuid: UUID, channels: 6 };
  const cases: [what: string, change: [number, string], code: string, received: string, expected: string][] =
    [
      ["the main stream's magic", [0, '5145564d'], 'ERR_MULTIFD_MAGIC', '0x5145564d', '0x11223344'],
      ['magic one too high', [0, '11223345'], 'ERR_MULTIFD_MAGIC', '0x11223345', '0x11223344'],
      ['magic little-endian', [0, '44332211'], 'ERR_MULTIFD_MAGIC', '0x44332211', '0x11223344'],
      ['magic of all ones', [0, 'ffffffff'], 'ERR_MULTIFD_MAGIC', '0xffffffff', '0x11223344'],
      ['version 0', [4, '00000000'], 'ERR_MULTIFD_VERSION', 'received 0', 'expected 1'],
      ['version 2', [4, '00000002'], 'ERR_MULTIFD_VERSION', 'received 2', 'expected 1'],
      ['version little-endian', [4, '01000000'], 'ERR_MULTIFD_VERSION', 'received 16777216', 'expected 1'],
      [
        'the first byte of the uuid',
        [8, '01'],
        'ERR_MULTIFD_UUID',
        'received 01112233-4455-6677-8899-aabbccddeeff',
        'expected 00112233-4455-6677-8899-aabbccddeeff',
      ],
      [
        'the last byte of the uuid',
        [23, 'fe'],
        'ERR_MULTIFD_UUID',
        'received 00112233-4455-6677-8899-aabbccddeefe',
        'expected 00112233-4455-6677-8899-aabbccddeeff',
      ],
      ['an id of `channels`', [24, '06'], 'ERR_MULTIFD_CHANNEL_ID', 'received 6', 'expected less than 6'],
      ['the highest id', [24, 'ff'], 'ERR_MULTIFD_CHANNEL_ID', 'received 255', 'expected less than 6'],
    ];
  for (const [what, change, code, received, wanted] of cases) {
    const error = t.throws(
      () => decodeHello(patched(WITH_UUID, change), expected),
      { code },
      what,
    ) as MultifdError;
    t.match(error.message, received, what);
    t.match(error.message, wanted, what);
  }
});

t.test('the id may be up to channels - 1', async (t) => {
  for (const channels of [1, 2, 255]) {
    const at = (id: number): Buffer => patched(WITH_UUID, [24, id.toString(16).padStart(2, '0')]);
    t.equal(decodeHello(at(channels - 1), { uuid: UUID, channels }).id, channels - 1);
    t.throws(() => decodeHello(at(channels), { uuid: UUID, channels }), { code: 'ERR_MULTIFD_CHANNEL_ID' });
  }
});

t.test('a VM with a uuid and one without never match', async (t) => {
  t.throws(() => decodeHello(WITH_UUID, { uuid: NO_UUID, channels: 6 }), {
    code: 'ERR_MULTIFD_UUID',
    message: /received 00112233-4455-6677-8899-aabbccddeeff, expected none/,
  });
  t.throws(() => decodeHello(WITHOUT_UUID, { uuid: UUID, channels: 6 }), {
    code: 'ERR_MULTIFD_UUID',
    message: /received none, expected 00112233-4455-6677-8899-aabbccddeeff/,
  });
});

t.test('of several wrong fields the first is named: magic, version, uuid, id', async (t) => {
  const wrong: [number, string][] = [
    [0, '5145564d'],
    [4, '00000002'],
    [8, 'ff'],
    [24, 'ff'],
  ];
  const codes = ['ERR_MULTIFD_MAGIC', 'ERR_MULTIFD_VERSION', 'ERR_MULTIFD_UUID', 'ERR_MULTIFD_CHANNEL_ID'];
  for (const [i, code] of codes.entries()) {
    const bytes = patched(WITH_UUID, ...wrong.slice(i));
    t.throws(() => decodeHello(bytes, { uuid: UUID, channels: 6 }), { code });
  }
});

t.test('a uuid is parsed from its text and formatted again', async (t) => {
  t.same(parseUuid('00112233-4455-6677-8899-aabbccddeeff'), UUID);
  t.same(parseUuid('00112233-4455-6677-8899-AABBCCDDEEFF'), UUID);
  t.equal(formatUuid(UUID), '00112233-4455-6677-8899-aabbccddeeff');
  t.equal(formatUuid(new Uint8Array(UUID)), '00112233-4455-6677-8899-aabbccddeeff');
  t.equal(formatUuid(NO_UUID), 'none');
  t.same(parseUuid('00000000-0000-0000-0000-000000000000'), NO_UUID);
});

t.test('what is no uuid is not parsed', async (t) => {
  for (const text of [
    '',
    'none',
    '00112233445566778899aabbccddeeff',
    '{00112233-4455-6677-8899-aabbccddeeff}',
    '00112233-4455-6677-8899-aabbccddeef',
    '00112233-4455-6677-8899-aabbccddeefff',
    '00112233-4455-6677-8899-aabbccddeefg',
    '0011223-34455-6677-8899-aabbccddeeff',
    ' 00112233-4455-6677-8899-aabbccddeeff',
    '00112233-4455-6677-8899-aabbccddeeff\n',
  ]) {
    t.equal(parseUuid(text), undefined, JSON.stringify(text));
  }
});
