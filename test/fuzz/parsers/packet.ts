/** Headers of packets: RAM and device state, as a receive channel decodes them. */
import { Headers } from '../../../src/recv/headers.js';
import { DEVICE_STATE_HEADER_BYTES, fillDeviceState } from '../../../src/wire/device-state.js';
import { MAX_PAYLOAD_BYTES } from '../../../src/wire/packet.js';
import { CAPTURED_BLOCKS } from '../../stream/support.js';
import { readCapture } from '../../support/reference-decoder.js';
import { Fault, cut, type Fuzzer, type Seed } from '../contract.js';
import { HEADER_BYTES, PAGE, cutHeader, packetsOf } from '../seeds.js';

const CAPTURES = ['q100-none', 'q100-none-legacyzero', 'q72-none', 'q100-zlib', 'q72-zstd'] as const;
const METHODS = ['none', 'zlib', 'zstd'] as const;
const DEVICE_BYTES = 4096;
const BLOCKS = CAPTURED_BLOCKS.map(([name, size]) => ({ name, size, kind: 'stream' as const, base: 0 }));

function deviceSeed(): Seed {
  const header = Buffer.alloc(DEVICE_STATE_HEADER_BYTES);
  fillDeviceState(header, { idstr: '0000:00:03.0/vfio', instanceId: 0, nextPacketSize: 100 });
  return cut(header, ['+4', '+4', '+4', '=256', '+4', '+4']);
}

const fuzzer: Fuzzer = {
  name: 'packet',
  what: 'headers of packets: RAM with each method, device state',
  runs: 4000,
  most: { bytes: 2 * HEADER_BYTES + 1024, perByte: 4 },
  words: CAPTURED_BLOCKS.map(([name]) => Buffer.from(`${name}\0`)),
  seeds: () => [
    ...CAPTURES.flatMap((name) =>
      [0, 1].flatMap((channel) => {
        const all = readCapture(`${name}.ch${channel}`).subarray(64);
        const first = packetsOf(all, all.length).slice(0, 4 * 139);
        // By the flags: a header is what has as many fields before the payload.
        return headersOf(first);
      }),
    ),
    deviceSeed(),
  ],
  open: () => {
    const all = METHODS.map(
      (compression) =>
        new Headers({
          pageSize: PAGE,
          compression,
          blocks: BLOCKS,
          deviceStateBytes: DEVICE_BYTES,
          devices: undefined,
        }),
    );
    return {
      run(input) {
        const bytes = Buffer.alloc(HEADER_BYTES);
        input.copy(bytes);
        const method = (bytes.readUInt32BE(8) & 0x3e) >> 1;
        const headers = all[method] ?? all[0];
        if (headers.isDeviceState(bytes, 0)) {
          bytes.copy(headers.start, 0, 0, 12);
          if (!headers.startsDeviceState()) throw new Fault('two answers to whether it is device state');
          bytes.copy(headers.deviceRest, 0, 12);
          const { nextPacketSize } = headers.unfillDevice();
          if (nextPacketSize < 1 || nextPacketSize > DEVICE_BYTES)
            throw new Fault(`payload of ${nextPacketSize}`);
          return;
        }
        const { block, pages, normalPages, zeroPages, nextPacketSize } = headers.unfill(bytes, 0);
        const listed = normalPages + zeroPages;
        if (listed > pages.length) throw new Fault(`${listed} pages`);
        if (nextPacketSize > MAX_PAYLOAD_BYTES) throw new Fault(`payload of ${nextPacketSize}`);
        if (listed === 0) return;
        const { size } = BLOCKS[block];
        const beyond = pages.subarray(0, listed).find((page) => page >= size / PAGE);
        if (beyond !== undefined) throw new Fault(`page ${beyond} of a block of ${size} bytes`);
      },
    };
  },
};
export default fuzzer;

/** Of some packets in a row. */
function headersOf(pieces: Seed): Seed[] {
  const whole = Buffer.concat(pieces.map(({ bytes }) => bytes));
  const seeds: Seed[] = [];
  for (let at = whole.indexOf('11223344', 0, 'hex'); at >= 0 && seeds.length < 4;) {
    if (at + HEADER_BYTES > whole.length) break;
    seeds.push(cutHeader(whole.subarray(at, at + HEADER_BYTES)));
    at = whole.indexOf('1122334400000001', at + HEADER_BYTES, 'hex');
  }
  return seeds;
}
