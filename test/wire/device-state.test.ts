import t from 'tap';
import { type MultifdError } from '../../src/errors.js';
import {
  DEVICE_STATE_HEADER_BYTES,
  IDSTR_BYTES,
  fillDeviceState,
  unfillDeviceState,
} from '../../src/wire/device-state.js';

/** Hex with blanks and line ends, as in the specification's tables. */
function hex(text: string): Buffer {
  return Buffer.from(text.replaceAll(/\s/g, ''), 'hex');
}

/** magic, version, flags 0x40, idstr "0000:00:02.0/vfio", instance_id 7, next_packet_size 0x00100010. */
const VFIO = hex(`
  11223344 00000001 00000040
  303030303a30303a30322e302f7666696f ${'00'.repeat(239)}
  00000007 00100010`);
const VFIO_FIELDS = { idstr: '0000:00:02.0/vfio', instanceId: 7, nextPacketSize: 0x100010 };

/** The longest idstr, 255 characters, and the largest numbers. */
const LONGEST = hex(`
  11223344 00000001 00000040
  ${'78'.repeat(255)} 00
  ffffffff ffffffff`);
const LONGEST_FIELDS = { idstr: 'x'.repeat(255), instanceId: 0xffffffff, nextPacketSize: 0xffffffff };

const MAX = 2 ** 26;

function patched(bytes: Buffer, ...changes: [at: number, value: string][]): Buffer {
  const copy = Buffer.from(bytes);
  for (const [at, value] of changes) copy.set(hex(value), at);
  return copy;
}

t.test('a device-state header is 276 bytes', async (t) => {
  t.equal(DEVICE_STATE_HEADER_BYTES, 276);
  t.equal(IDSTR_BYTES, 256);
  t.equal(VFIO.length, 276);
  t.equal(LONGEST.length, 276);
});

t.test('a device-state header is filled as the specification says, whatever the buffer held', async (t) => {
  for (const stale of [0x00, 0xee]) {
    const header = Buffer.alloc(276, stale);
    fillDeviceState(header, VFIO_FIELDS);
    t.equal(header.toString('hex'), VFIO.toString('hex'));
    fillDeviceState(header, LONGEST_FIELDS);
    t.equal(header.toString('hex'), LONGEST.toString('hex'));
    fillDeviceState(header, VFIO_FIELDS);
    t.equal(header.toString('hex'), VFIO.toString('hex'), 'a long idstr leaves nothing behind');
  }
});

t.test('filling stays within the header', async (t) => {
  const around = Buffer.alloc(276 + 64, 0xee);
  fillDeviceState(around.subarray(32, 32 + 276), LONGEST_FIELDS);
  t.ok(around.subarray(0, 32).equals(Buffer.alloc(32, 0xee)));
  t.ok(around.subarray(32 + 276).equals(Buffer.alloc(32, 0xee)));
});

t.test('a device-state header is unfilled as the specification says', async (t) => {
  t.same(unfillDeviceState(VFIO, MAX), VFIO_FIELDS);
  t.same(unfillDeviceState(LONGEST, 0xffffffff), LONGEST_FIELDS);
});

t.test('bytes after the NUL of idstr are not looked at', async (t) => {
  t.same(unfillDeviceState(patched(VFIO, [12 + 18, 'ff'.repeat(238)]), MAX), VFIO_FIELDS);
});

t.test('next_packet_size may be 1 up to what the receiver takes', async (t) => {
  t.equal(unfillDeviceState(patched(VFIO, [272, '00000001']), MAX).nextPacketSize, 1);
  t.equal(unfillDeviceState(VFIO, 0x100010).nextPacketSize, 0x100010);
});

t.test('each wrong field is refused with what came and what was expected', async (t) => {
  const cases: [what: string, change: [number, string], code: string, received: string, expected: string][] =
    [
      ['magic', [0, '5145564d'], 'ERR_MULTIFD_MAGIC', '0x5145564d', '0x11223344'],
      ['version 0', [4, '00000000'], 'ERR_MULTIFD_VERSION', 'received 0', 'expected 1'],
      ['version 2', [4, '00000002'], 'ERR_MULTIFD_VERSION', 'received 2', 'expected 1'],
      ['SYNC', [8, '00000041'], 'ERR_MULTIFD_DEVICE_STATE', 'flags: received 0x41', 'SYNC (0x1) not set'],
      [
        'idstr of 256 characters',
        [12, '78'.repeat(256)],
        'ERR_MULTIFD_DEVICE_STATE',
        'idstr: received 256 bytes without NUL',
        'a NUL within the field',
      ],
      [
        'an empty payload',
        [272, '00000000'],
        'ERR_MULTIFD_DEVICE_STATE',
        'next_packet_size: received 0,',
        'expected 1 to 1048592',
      ],
      [
        'a payload one byte too large',
        [272, '00100011'],
        'ERR_MULTIFD_DEVICE_STATE',
        'next_packet_size: received 1048593,',
        'expected 1 to 1048592',
      ],
      [
        'the largest payload',
        [272, 'ffffffff'],
        'ERR_MULTIFD_DEVICE_STATE',
        'next_packet_size: received 4294967295,',
        'expected 1 to 1048592',
      ],
    ];
  for (const [what, change, code, received, expected] of cases) {
    const header = patched(VFIO, change);
    const error = t.throws(() => unfillDeviceState(header, 0x100010), { code }, what) as MultifdError;
    t.ok(error.message.includes(received), `${what}: ${error.message}`);
    t.ok(error.message.includes(expected), `${what}: ${error.message}`);
    t.equal(error.packetNum, undefined, 'a device-state packet carries no number');
  }
});

t.test('a receiver that takes no device state refuses a payload of one byte', async (t) => {
  t.throws(() => unfillDeviceState(patched(VFIO, [272, '00000001']), 0), {
    code: 'ERR_MULTIFD_DEVICE_STATE',
  });
});

t.test('of several wrong fields the first is named: magic, version, SYNC', async (t) => {
  const wrong: [number, string][] = [
    [0, '5145564d'],
    [4, '00000002'],
    [8, '00000041'],
    [12, '78'.repeat(256)],
    [272, '00000000'],
  ];
  const messages = [/packet magic/, /packet version/, /flags/];
  for (const [i, message] of messages.entries()) {
    t.throws(() => unfillDeviceState(patched(VFIO, ...wrong.slice(i)), MAX), { message });
  }
});
