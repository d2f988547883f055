/** What each end runs once before the guest stands still is what it runs then. */
import t from 'tap';
import { encodeDeviceSection, encodeEnd, readDeviceSections } from '../../src/live/device-sections.js';
import { rehearseLoading, rehearseSaving } from '../../src/live/rehearsal.js';
import { ByteReader } from '../../src/stream/byte-reader.js';

const CONFIGURATION = { machine: 'rehearsed-1.0', targetPageBits: 12 };

t.test('what a source rehearses is what a device without a byte of state is sent as', async (t) => {
  const bytes = rehearseSaving(CONFIGURATION, 4096);
  const device = { idstr: 'rehearsal', instanceId: 0, version: 1 };
  const state = { device, data: Buffer.alloc(0) };
  const expected = [...encodeDeviceSection(1, state), encodeEnd([state], CONFIGURATION, 4096)];
  t.same(bytes, Buffer.concat(expected));
  const reader = new ByteReader(() => Promise.resolve(bytes));
  const states = await readDeviceSections(reader, {
    expected: { devices: [device], reserve: () => undefined, whole: () => [] },
    footers: true,
    maxDescription: 1000,
  });
  t.equal(states.length, 1);
  t.equal(reader.position, bytes.length);
});

t.test('a destination reads it without a word, for each page size', async (t) => {
  for (const pageSize of [4096, 65536]) await t.resolves(rehearseLoading('rehearsed-1.0', pageSize));
});
