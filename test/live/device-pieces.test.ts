/** Pieces of devices' state as a source of ours would not send them: what is loaded is whole, or nothing is. */
import fs from 'node:fs';
import net from 'node:net';
import os from 'node:os';
import path from 'node:path';
import t, { type Test } from 'tap';
import {
  createMigrationDestination,
  receiveMigration,
  type Address,
  type MigrationDestination,
} from '../../src/index.js';
import { Pieces, decodePiece } from '../../src/live/device-pieces.js';
import { encodeDeviceSection, encodeEnd, type DeviceState } from '../../src/live/device-sections.js';
import { MAX_DEVICES } from '../../src/live/options.js';
import { ParkedDevices } from '../../src/migration/parked-devices.js';
import { DEVICE_STATE_HEADER_BYTES, fillDeviceState } from '../../src/wire/device-state.js';
import { encodeHello } from '../../src/wire/hello.js';
import { within } from '../support/within.js';
import { FULL, cpu, handSource, payloadOf, setup, tailOf, type Sent } from './hand-devices.js';
import { MACHINE, SIZE, WAIT_MS, failure } from './scene.js';

const SHUT_0 = Buffer.from('0001000400000000', 'hex');
const SHUT_1 = Buffer.from('0001000400000001', 'hex');
const small: DeviceState = {
  device: { idstr: 'cpu', instanceId: 0, version: 1 },
  data: Buffer.from('state'),
};

async function destination(
  t: Test,
  notes: string[],
  load: (data: Buffer) => void,
): Promise<MigrationDestination> {
  const made = await createMigrationDestination({
    listen: { host: '127.0.0.1', port: 0 },
    machine: MACHINE,
    blocks: [{ name: 'ram', memory: new SharedArrayBuffer(SIZE) }],
    channels: 1,
    maxDeviceBytes: 5 * FULL,
    devices: [{ idstr: 'cpu', load }],
    start: () => void notes.push('start'),
  });
  t.teardown(() => made.cancel());
  return made;
}

const whole = Buffer.concat([Buffer.alloc(FULL, 1), Buffer.alloc(FULL, 2), Buffer.alloc(9, 3)]);
const THREE = [{ index: 0 }, { index: 1 }, { index: 2, bytes: 9 }];

const TAKEN: Record<string, [Sent, Buffer]> = {
  'in order': [{ packets: THREE, says: [cpu(2 * FULL + 9, 3)] }, whole],
  'in any order': [{ packets: [THREE[2], THREE[0], THREE[1]], says: [cpu(2 * FULL + 9, 3)] }, whole],
  'the last one of full size': [
    { packets: [{ index: 1 }, { index: 0 }], says: [cpu(2 * FULL, 2)] },
    whole.subarray(0, 2 * FULL),
  ],
  'one of a byte': [{ packets: [{ index: 0, bytes: 1 }], says: [cpu(1, 1)] }, Buffer.of(1)],
  'none, in the form of a large state': [
    {
      tail: Buffer.concat([
        encodeDeviceSection(1, small)[0],
        Buffer.from('ffffffff' + '0000000000000005' + '00000000', 'hex'),
        Buffer.from('state' + '\x7e\0\0\0\x01', 'latin1'),
        encodeEnd([small], { machine: MACHINE }, 4096),
      ]),
    },
    Buffer.from('state'),
  ],
};

for (const [name, [sent, expected]] of Object.entries(TAKEN)) {
  t.test(`pieces, ${name}: loaded as a whole`, async (t) => {
    const notes: string[] = [];
    const there = await destination(t, notes, (data) => t.ok(data.equals(expected)));
    const back = handSource(t, there.address, sent);
    await within(there.done, WAIT_MS, 'done');
    t.same(notes, ['start']);
    t.ok(back().includes(SHUT_0));
  });
}

const says = [cpu(2 * FULL + 9, 3)];
const REFUSED: Record<string, [Sent, RegExp]> = {
  'one is missing': [
    { packets: [THREE[0], THREE[2]], says },
    /^device "cpu" 0: pieces of its state over the channels: received 2, expected 3$/,
  ],
  'none has come': [{ says }, /^device "cpu" 0: pieces of its state .*: received 0, expected 3$/],
  'one in the middle is missing, and one too many at the end': [
    { packets: [THREE[0], { index: 2 }, { index: 3, bytes: 9 }], says },
    /^device "cpu" 0: piece 1 of its state: received none, expected all of 0 to 2$/,
  ],
  'fewer bytes than said': [
    { packets: [THREE[0], THREE[1], { index: 2, bytes: 8 }], says },
    /^device "cpu" 0: bytes of its state over the channels: received 2097160, expected 2097161$/,
  ],
  'more pieces than said': [
    { packets: THREE, says: [cpu(2 * FULL, 2)] },
    /^device "cpu" 0: pieces of its state .*: received 3, expected 2$/,
  ],
  'one twice': [
    { packets: [THREE[0], THREE[0]], says },
    /device "cpu" 0: a piece of its state: index 0: received a second one, expected one$/,
  ],
  'a short one that is not the last': [
    { packets: [THREE[1], { index: 0, bytes: 9 }], says },
    /a piece of its state: index 0: bytes: received 9, expected 1048576: it is not the last$/,
  ],
  'one behind the last': [
    { packets: [THREE[2], { index: 3 }], says },
    /a piece of its state: index: received 3, expected below 2, which is the last/,
  ],
  'two short ones': [
    { packets: [THREE[2], { index: 1, bytes: 9 }, THREE[0]], says },
    /a piece of its state: index 1: bytes: received 9, expected 1048576: it is not the last$/,
  ],
  'larger than one may be': [
    { packets: [{ index: 0, bytes: FULL + 1 }], says },
    /a piece of its state: bytes: received 1048577, expected 1 to 1048576 behind a head of 12/,
  ],
  'larger than a packet may be': [
    { packets: [{ index: 0, bytes: FULL + 4096 }], says },
    /device-state next_packet_size: received 1052684, expected 1 to 1052672 \(option deviceStateBytes\)/,
  ],
  'without a byte': [
    { packets: [{ index: 0, bytes: 0 }], says },
    /a piece of its state: bytes: received 0, expected 1 to 1048576/,
  ],
  'without a head': [
    { packets: [{ payload: Buffer.from('state') }], says },
    /a piece of its state: bytes: received 0, expected 1 to 1048576/,
  ],
  'of another version': [
    { packets: [{ payload: Buffer.alloc(20, 1) }], says },
    /a piece of its state: version: received 16843009, expected 0$/,
  ],
  'with a flag, as the last one of VFIO': [
    { packets: [{ payload: Buffer.from('0000000000000000000000017878', 'hex') }], says },
    /a piece of its state: flags: received 1, expected 0$/,
  ],
  'of an unknown device': [
    { packets: [{ idstr: 'disk' }], says },
    /device: received "disk" 0, expected one of "cpu" 0 \(option devices\)$/,
  ],
  'of another instance': [
    { packets: [{ instanceId: 1 }], says },
    /device: received "cpu" 1, expected one of "cpu" 0 \(option devices\)$/,
  ],
  'of a device that sends its state on the main stream': [
    { packets: THREE, says: [small] },
    /^device "cpu" 0: pieces of its state over the channels: received 3, expected 0$/,
  ],
  'of a device that has no section': [
    { packets: THREE, says: [] },
    /^devices' state: received its end, expected a section of "cpu" 0/,
  ],
  'a section twice': [
    { packets: THREE, says: [says[0], says[0]] },
    /^device "cpu" 0: pieces of its state over the channels: received 0, expected 3$/,
  ],
  'more bytes than are let in': [
    { packets: [0, 1, 2, 3, 4, 5].map((index) => ({ index })), says },
    /device "cpu" 0: bytes of its state: received 1048576, expected at most 0 more \(option maxDeviceBytes, 5242880/,
  ],
  'as many as there are numbers': [
    { packets: THREE, says: [cpu(2 ** 52, 0xffffffff)] },
    /^device "cpu" 0: pieces of its state .*: received 3, expected 4294967295$|bytes of its state: received/,
  ],
  'behind the last SYNC': [
    { packets: THREE.slice(0, 2), late: THREE.slice(2), says },
    /^device "cpu" 0: pieces of its state over the channels: received 2, expected 3$|^main stream/,
  ],
};

for (const [name, [sent, message]] of Object.entries(REFUSED)) {
  t.test(`a piece, ${name}: refused, and nothing is loaded or started`, async (t) => {
    const notes: string[] = [];
    const there = await destination(t, notes, () => void notes.push('load'));
    const back = handSource(t, there.address, sent);
    const error = await failure(there.done);
    t.match(error.code, /^ERR_MULTIFD_(STREAM|DEVICE_STATE)$/);
    t.match(error.message.replace(/^channel \d: /, ''), message);
    t.same(notes, []);
    t.notOk(back().includes(SHUT_0));
    // By its connections at least: what a channel refuses comes while the main stream is being written.
    t.ok(back().includes(SHUT_1) || error.channel !== undefined, 'it is told');
  });
}

t.test('a state that is said to be larger than a Buffer is refused before it comes', async (t) => {
  const there = await createMigrationDestination({
    listen: { host: '127.0.0.1', port: 0 },
    machine: MACHINE,
    blocks: [{ name: 'ram', memory: new SharedArrayBuffer(SIZE) }],
    channels: 1,
    maxDeviceBytes: Number.MAX_SAFE_INTEGER,
    devices: [{ idstr: 'cpu', load: () => void t.fail('loaded') }],
    start: () => void t.fail('started'),
  });
  t.teardown(() => there.cancel());
  const head = encodeDeviceSection(1, small)[0];
  const claim = Buffer.from('ffffffff' + '001fffffffffffff' + '00000000', 'hex');
  handSource(t, there.address, { tail: Buffer.concat([head, claim]) });
  t.match(await failure(there.done), {
    code: 'ERR_MULTIFD_STREAM',
    message:
      /^device "cpu" 0: bytes of its state: received 9007199254740991, expected at most \d+, as Node's Buffers/,
  });
});

/** What a file is made of is judged likewise, but whoever resumes it says which devices he has. */
const LEFT_TO_LATER = ['of an unknown device', 'more bytes than are let in', 'as many as there are numbers'];
const PARKED: Record<string, [Sent, RegExp]> = {
  ...Object.fromEntries(Object.entries(REFUSED).filter(([name]) => !LEFT_TO_LATER.includes(name))),
  'of a device that has no section': [
    { packets: THREE, says: [] },
    /^devices' state: received its end, expected a section of "cpu" 0, whose state has come$/,
  ],
  'of another instance': [
    { packets: [{ instanceId: 1 }], says },
    /^device "cpu" 0: pieces of its state .*: received 0, expected 3$/,
  ],
  'none has come': [{ packets: [{ instanceId: 1 }], says }, /received 0, expected 3$/],
  'of no device': [
    { packets: [{ idstr: 'cpu', payload: payloadOf({}) }], tail: Buffer.of(0x55) },
    /^devices' state at byte 0: section: received/,
  ],
  'of a section that is cut': [
    { packets: THREE, tail: tailOf(says).subarray(0, 30) },
    /^devices' state ended|^nothing has moved|^main stream/,
  ],
};

for (const [name, [sent, message]] of Object.entries(PARKED)) {
  t.test(`a piece on its way into a file, ${name}: refused, and there is no file`, async (t) => {
    const dir = fs.mkdtempSync(path.join(os.tmpdir(), 'multifd-pieces-'));
    t.teardown(() => fs.rmSync(dir, { recursive: true }));
    let received!: ReturnType<typeof receiveMigration>;
    const address = await new Promise<Address>((resolve, reject) => {
      received = receiveMigration({
        address: { host: '127.0.0.1', port: 0 },
        channels: 1,
        out: path.join(dir, 'vm.mig'),
        stallTimeoutMs: 2000,
        onListening: resolve,
      });
      received.catch(reject);
    });
    const back = handSource(t, address, sent);
    const error = await failure(received);
    t.match(error.code, /^ERR_MULTIFD_(STREAM|DEVICE_STATE|STALL|EOF)$/);
    t.match(error.message.replace(/^channel \d: /, ''), message);
    t.notOk(back().includes(SHUT_0));
    t.same(fs.readdirSync(dir), []);
  });
}

t.test('a piece of a device whose name no device can have is refused', async (t) => {
  const there = await destination(t, [], () => void t.fail('loaded'));
  const main = net.connect(there.address as net.NetConnectOpts).on('error', () => {});
  const channel = net.connect(there.address as net.NetConnectOpts).on('error', () => {});
  t.teardown(() => [main, channel].forEach((socket) => socket.destroy()));
  main.write(setup());
  const header = Buffer.alloc(DEVICE_STATE_HEADER_BYTES);
  fillDeviceState(header, { idstr: 'c\npu', instanceId: 0, nextPacketSize: 13 });
  channel.write(Buffer.concat([encodeHello({ uuid: Buffer.alloc(16), id: 0 }), header, Buffer.alloc(13)]));
  t.match(await failure(there.done), {
    code: 'ERR_MULTIFD_DEVICE_STATE',
    message:
      'channel 0: device-state idstr: received "c\\x0apu", expected 1 to 255 printable ASCII characters',
  });
});

t.test('what is kept beside a file is of a bounded number of devices', async (t) => {
  const dir = fs.mkdtempSync(path.join(os.tmpdir(), 'multifd-pieces-'));
  t.teardown(() => fs.rmSync(dir, { recursive: true }));
  const parked = new ParkedDevices(path.join(dir, 'vm.mig.part'));
  t.teardown(() => parked.close());
  const payload = payloadOf({ bytes: 1 });
  for (let first = 0; first < MAX_DEVICES; first += 1000) {
    const ids = Array.from({ length: Math.min(1000, MAX_DEVICES - first) }, (_, i) => first + i);
    await Promise.all(ids.map((id) => parked.keep('cpu', id, payload)));
  }
  await t.rejects(parked.keep('cpu', MAX_DEVICES, payload), {
    code: 'ERR_MULTIFD_DEVICE_STATE',
    message: 'devices whose state comes over the channels: received more than 65534, expected at most 65534',
  });
  t.same(fs.readdirSync(dir), []);
});

t.test('a piece is one to 1 MiB, and what is kept comes in order', (t) => {
  const device = { idstr: 'cpu', instanceId: 0 };
  const pieces = new Pieces<string>(device);
  for (const [index, bytes] of [
    [2, 5],
    [0, FULL],
    [1, FULL],
  ])
    pieces.add(decodePiece(device, payloadOf({ index, bytes })), `piece ${index}`);
  t.equal(pieces.count, 3);
  t.same(pieces.whole({ bytes: 2 * FULL + 5, pieces: 3 }), ['piece 0', 'piece 1', 'piece 2']);
  t.throws(() => decodePiece(device, payloadOf({ bytes: FULL + 1 })), { code: 'ERR_MULTIFD_DEVICE_STATE' });
  t.throws(() => decodePiece(device, Buffer.alloc(12)), { code: 'ERR_MULTIFD_DEVICE_STATE' });
  t.equal(decodePiece(device, Buffer.alloc(13)).data.length, 1);
  t.end();
});
