/** The state of devices that has come, as load() is given it: all of it, and in memory once. */
import t from 'tap';
import { PIECE_BYTES, PIECE_HEAD_BYTES, fillPieceHead } from '../../src/live/device-pieces.js';
import {
  encodeDeviceSection,
  encodeEnd,
  readDeviceSections,
  type DeviceState,
} from '../../src/live/device-sections.js';
import { IncomingDevices, load } from '../../src/live/incoming-devices.js';
import type { CheckedDestinationDevice } from '../../src/live/destination-options.js';
import { ByteReader } from '../../src/stream/byte-reader.js';

const MIB = 2 ** 20;
const PIECES = 192;

function deviceOf(loads: (data: Buffer) => void): CheckedDestinationDevice {
  return { idstr: 'cpu', instanceId: 0, version: 1, given: { idstr: 'cpu', load: loads } };
}

/** KiB, which only grow: before, and when all has been loaded. */
const peak = (): number => process.resourceUsage().maxRSS;

t.test('over the channels: pieces are given back while they are put together', async (t) => {
  let loaded!: Buffer;
  const device = deviceOf((data) => (loaded = data));
  const devices = new IncomingDevices([device], PIECES * MIB);
  const payload = Buffer.alloc(PIECE_HEAD_BYTES + PIECE_BYTES);
  const before = peak();
  for (let index = PIECES; index-- > 0;) {
    fillPieceHead(payload, index);
    payload.fill(index + 1, PIECE_HEAD_BYTES);
    devices.take('cpu', 0, index === PIECES - 1 ? payload.subarray(0, PIECE_HEAD_BYTES + 5) : payload);
  }
  const bytes = (PIECES - 1) * PIECE_BYTES + 5;
  const parts = devices.whole(device, { bytes, pieces: PIECES });
  const all = [...parts];
  await load({ device, version: 1, parts });
  t.equal(loaded.length, bytes);
  t.ok(
    Array.from({ length: PIECES }, (_, i) => loaded[i * PIECE_BYTES]).every((byte, i) => byte === i + 1),
    'all in their order',
  );
  t.ok(
    all.every(({ buffer }) => buffer.byteLength === 0),
    'nothing is left of the pieces',
  );
  t.notOk((loaded.buffer as ArrayBuffer).resizable, 'what is loaded is an ordinary Buffer');
  t.ok(peak() - before < 1.5 * PIECES * 1024, `${peak() - before} KiB`);
});

t.test('a single piece is given as an ordinary Buffer too', async (t) => {
  let loaded!: Buffer;
  const device = deviceOf((data) => (loaded = data));
  const devices = new IncomingDevices([device], MIB);
  const payload = Buffer.alloc(PIECE_HEAD_BYTES + 3, 7);
  fillPieceHead(payload, 0);
  devices.take('cpu', 0, payload);
  await load({ device, version: 1, parts: devices.whole(device, { bytes: 3, pieces: 1 }) });
  t.same([...loaded], [7, 7, 7]);
  t.notOk((loaded.buffer as ArrayBuffer).resizable);
});

t.test('over the main stream: it goes to its place at once', async (t) => {
  let loaded!: Buffer;
  const device = deviceOf((data) => (loaded = data));
  const data = Buffer.alloc(3 * MIB + 1, 5);
  const state: DeviceState = { device, data };
  const bytes = Buffer.concat([
    ...encodeDeviceSection(1, state),
    ...[encodeEnd([state], { machine: 'm-1' }, 4096)],
  ]);
  const chunks = async function* (): AsyncGenerator<Buffer> {
    for (let at = 0; at < bytes.length; at += 50_000) yield bytes.subarray(at, at + 50_000);
  };
  const [received] = await readDeviceSections(new ByteReader(chunks()), {
    expected: new IncomingDevices([device], 4 * MIB),
    footers: true,
    maxDescription: MIB,
  });
  const [one, ...others] = received.parts;
  t.equal(others.length, 0);
  await load(received);
  t.equal(loaded, one, 'no copy');
  t.ok(loaded.equals(data));
});

t.test('a device with stream gets ordinary Buffers, part by part', async (t) => {
  const loaded: Buffer[] = [];
  const device: CheckedDestinationDevice = {
    ...deviceOf(() => {}),
    given: {
      idstr: 'cpu',
      stream: true,
      load: async (parts: AsyncIterable<Buffer>) => {
        for await (const part of parts) loaded.push(part);
      },
    },
  };
  const devices = new IncomingDevices([device], 2 * MIB);
  t.equal(devices.reserve(device, 5), undefined);
  const payload = Buffer.alloc(PIECE_HEAD_BYTES + 3, 7);
  fillPieceHead(payload, 0);
  devices.take('cpu', 0, payload);
  await load({ device, version: 1, parts: devices.whole(device, { bytes: 3, pieces: 1 }) });
  t.same(loaded, [Buffer.alloc(3, 7)]);
  t.notOk((loaded[0].buffer as ArrayBuffer).resizable);
});
