import t from 'tap';
import { ByteReader } from '../../src/stream/byte-reader.js';
import { STREAM_ERRORS } from '../../src/stream/codes.js';
import { type MainStreamDescription, describeMainStream } from '../../src/stream/describe-main-stream.js';
import { MAIN_CAPTURES, chunked, hex, readMain } from './support.js';

const describe = (bytes: Buffer): Promise<MainStreamDescription> =>
  describeMainStream(new ByteReader(chunked(bytes, 1000)));

t.test('a capture is described with the counts of its table', async (t) => {
  for (const [name, , flush, zero] of MAIN_CAPTURES) {
    const description = await describe(readMain(name));
    t.match(description, {
      pageSize: 4096,
      marker: flush > 0 ? 'flush' : 'eos',
      sections: 3,
      zeroRecords: zero,
      pageRecords: 0,
      flushRecords: flush,
      syncPoints: 3,
    });
    t.match(description.machine, /^pc-i440fx-(7\.2|10\.0)$/);
    t.equal(description.blocks.length, 6);
    t.equal(description.vmDescription?.devices.length, 31);
    t.equal(description.problem, undefined);
  }
});

t.test('a capture that is cut is described up to there', async (t) => {
  const whole = readMain('q100-none');
  const inConfiguration = await describe(whole.subarray(0, 15));
  t.match(inConfiguration, { machine: '', problem: { code: STREAM_ERRORS.eof } });
  const inRecords = await describe(whole.subarray(0, 250));
  t.match(inRecords, { machine: 'pc-i440fx-10.0', sections: 3, syncPoints: 3, commands: [11] });
  t.match(inRecords.problem, { code: STREAM_ERRORS.eof, message: /ended at byte 250/ });
  t.equal(inRecords.tailBytes, undefined);
  const inTail = await describe(whole.subarray(0, 1000));
  t.equal(inTail.problem, undefined);
  t.equal(inTail.tailBytes, 1000 - 262);
  t.equal(inTail.vmDescription, undefined);
});

t.test('pages are counted, and what is no migration stream is refused', async (t) => {
  const start =
    "'QEVM' 00000003 01 00000007 03 'ram' 00000000 00000004 0000000000001004 01 'a' 0000000000001000";
  const bytes = Buffer.concat([
    hex(`${start} 0000000000000010 03 00000007 0000000000000008 01 'a'`),
    Buffer.alloc(4096),
    hex('0000000000000010'),
  ]);
  t.match(await describe(bytes), { pageRecords: 1, syncPoints: 2, tailBytes: 0, capabilities: [] });
  await t.rejects(describe(Buffer.alloc(8)), { code: STREAM_ERRORS.magic });
  const broken = new Error('reset');
  const reader = new ByteReader(() => Promise.reject(broken));
  await t.rejects(describeMainStream(reader), broken);
});
