/** What a destination makes a source spend by what it says: it may say as much as it likes. */
import { setImmediate as turnEventLoop } from 'node:timers/promises';
import t from 'tap';
import { Answer } from '../../src/migration/answer.js';
import { ByteReader, TURN_CALLS } from '../../src/stream/byte-reader.js';
import { STREAM_ERRORS } from '../../src/stream/codes.js';
import { encodeResumePages } from '../../src/stream/resume-section.js';
import { encodeMessage, encodePong, encodeShut } from '../../src/stream/return-path.js';
import { BufferMeter } from '../fuzz/measure.js';

const MESSAGES = 30_000;

const FLOODS: [what: string, message: Buffer][] = [
  ['PONGs that nobody asked for', encodePong(7)],
  ['messages of postcopy', encodeMessage(4, Buffer.alloc(512))],
  ['pages that it has', encodeResumePages('pc.ram', 0, new Int32Array(1024).fill(-1))],
];

for (const [what, message] of FLOODS) {
  t.test(
    `${what}, tens of thousands: each costs its own bytes, and the SHUT behind them counts`,
    async (t) => {
      const chunk = Buffer.concat(Array<Buffer>(Math.floor(65536 / message.length)).fill(message));
      const all = Math.min(MESSAGES * message.length, 2 ** 25);
      let left = all;
      const reader = new ByteReader(async () => {
        if (left < 0) return null;
        left -= chunk.length;
        return left < 0 ? encodeShut(3) : chunk;
      });
      const meter = new BufferMeter();
      meter.begin();
      t.teardown(() => meter.end());
      let pages = 0;
      const answer = new Answer(reader, () => pages++);
      t.equal(await answer.shut, 3);
      t.equal(pages > 0, message.length > 4096);
      // Each message is made once, for who passes it on.
      t.ok(meter.bytes <= 2 * all + 2 ** 16, `${meter.bytes} bytes of Buffers for ${all}`);
    },
  );
}

t.test('a message that says to be longer than any is refused before it is read', async (t) => {
  for (const [type, most] of [
    [4, 512],
    [0x4d47, 2 ** 15],
  ]) {
    const head = (length: number): Buffer => encodeMessage(type, Buffer.alloc(length)).subarray(0, 4);
    const shut = async (length: number): Promise<number> => {
      let said: Buffer | null = Buffer.concat([head(length), Buffer.alloc(length), encodeShut(1)]);
      if (length > most) said = head(length);
      const reader = new ByteReader(async () => {
        const bytes = said;
        said = null;
        return bytes;
      });
      return new Answer(reader).shut;
    };
    t.equal(await shut(most), 1);
    await t.rejects(shut(most + 1), { message: `received ${most + 1}, expected at most ${most}` });
  }
});

t.test('the event loop turns while messages are read that are all here', async (t) => {
  for (const message of [encodePong(7), encodeMessage(4, Buffer.alloc(0))]) {
    const count = 2 ** 13;
    let said: Buffer | null = Buffer.concat([...Array<Buffer>(count).fill(message), encodeShut(3)]);
    const reader = new ByteReader(async () => {
      const bytes = said;
      said = null;
      return bytes;
    });
    let isOver = false;
    const shut = new Answer(reader).shut.finally(() => (isOver = true));
    let turns = 0;
    for (; !isOver; turns++) await turnEventLoop();
    t.equal(await shut, 3);
    t.ok(turns >= count / TURN_CALLS, `${turns} turns`);
  }
});

t.test('a message of a type that is none is refused, as a QEMU does it', async (t) => {
  for (const type of [8, 9, 0xffff]) {
    const reader = new ByteReader(
      (async function* () {
        yield encodeMessage(type, Buffer.alloc(0));
      })(),
    );
    await t.rejects(new Answer(reader).shut, {
      code: STREAM_ERRORS.returnPath,
      message: `message: received type ${type}, expected type 1 to 7`,
    });
  }
});
