/** QEMU's main stream, item by item, in chunks as they come; what is given out is, byte for byte, what came. */
import { ByteReader } from '../../../src/stream/byte-reader.js';
import { describeMainStream } from '../../../src/stream/describe-main-stream.js';
import { MainStreamReader } from '../../../src/stream/main-stream.js';
import { encodeResumeSection } from '../../../src/stream/resume-section.js';
import { chunked, hex } from '../../stream/support.js';
import { Fault, type Fuzzer } from '../contract.js';
import { itemsSeed, mainSeed } from '../seeds.js';

const BEGIN = "'QEVM' 00000003 07 00000009 'machine-1'";
const RAM_START = "01 00000007 03 'ram' 00000000 00000004 0000000000004004 01 'a' 0000000000004000";
const FLUSH_EOS = '0000000000000200 0000000000000010';
const REST = `${RAM_START} ${FLUSH_EOS} 7e 00000007 03 00000007 ${FLUSH_EOS} 7e 00000007
  03 00000003 03 7e 00000003 00 06 0000000f '{"devices": []}'`;
const EARLY = `04 00000003 24 '0000:00:03.0/virtio-mem-device-early' 00000000 00000001
  0000000140000000 0000000020000000 0000000000200000 00000000 0000000000000000
  ${'00'.repeat(32)} 7e 00000003`;
const BITMAPS = `01 00000009 0c 'dirty-bitmap' 00000000 00000001
  1c 05 'disk0' 06 'backup' 00010000 03
  14 05 7e00000003 00010000 01
  42 0000000000000800 00000800 01 7e 00000009`;

const fuzzer: Fuzzer = {
  name: 'main-stream',
  what: 'the main stream of a source: sections, block list, records, commands, other sections',
  runs: 1500,
  most: { bytes: 2 ** 21, perByte: 40 },
  words: [
    ...['00', '01', '02', '03', '04', '05', '06', '07', '08', '7e'].map((type) => Buffer.from(type, 'hex')),
    hex("03 'ram'"),
    hex(EARLY),
    hex(BITMAPS),
    hex(RAM_START),
    hex("0e 'multifd-resume'"),
    encodeResumeSection({ token: Buffer.alloc(16), attempt: 1, rounds: 0 }),
  ],
  async seeds() {
    const resume = encodeResumeSection({ token: Buffer.alloc(16, 7), attempt: 2, rounds: 3 });
    return [
      ...(await Promise.all(
        ['q100-none', 'q100-none-legacyzero', 'q72-none', 'q100-none-machine72'].map(mainSeed),
      )),
      await itemsSeed(hex(`${BEGIN} ${EARLY} ${REST}`)),
      await itemsSeed(hex(`${BEGIN} ${BITMAPS} ${REST}`)).catch(() => itemsSeed(hex(`${BEGIN} ${REST}`))),
      await itemsSeed(Buffer.concat([hex(BEGIN), resume, hex(REST)]), { takesResume: true }),
    ];
  },
  open: () => ({
    async run(input) {
      // Two ways for the same bytes: what one says must not depend on how they come.
      const given = await give(input, [1, 2, 3, 5, 8, 13, 100, 1000]);
      const whole = await give(input, [input.length]);
      if (given.error?.message !== whole.error?.message || given.bytes !== whole.bytes) {
        throw new Fault(
          `in pieces: ${given.bytes} ${given.error?.message}; at once: ${whole.bytes} ${whole.error?.message}`,
        );
      }
      await describeMainStream(new ByteReader(chunked(input)));
      if (whole.error !== undefined) throw whole.error;
    },
  }),
};
export default fuzzer;

/** @returns bytes that were given out, and what ended it */
async function give(input: Buffer, sizes: number[]): Promise<{ bytes: number; error?: Error }> {
  const stream = new MainStreamReader(new ByteReader(chunked(input, ...sizes)), { takesResume: true });
  let bytes = 0;
  try {
    for (let item = await stream.next(); item !== undefined; item = await stream.next()) {
      const { raw } = item;
      if (!raw.equals(input.subarray(bytes, bytes + raw.length))) {
        throw new Fault(`${item.kind} at ${item.at}: other bytes than came`);
      }
      bytes += raw.length;
    }
  } catch (error) {
    if ((error as Error).name !== 'MultifdError') throw error;
    return { bytes, error: error as Error };
  }
  if (bytes !== input.length) throw new Fault(`${bytes} of ${input.length} bytes were given out`);
  return { bytes };
}
