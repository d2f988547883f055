import t from 'tap';
import { ByteReader } from '../../src/stream/byte-reader.js';
import { STREAM_ERRORS } from '../../src/stream/codes.js';
import { MainStreamReader } from '../../src/stream/main-stream.js';
import {
  decodeResumeBody,
  decodeResumePages,
  encodeResumeAnswer,
  encodeResumePages,
  encodeResumeSection,
  randomKey,
} from '../../src/stream/resume-section.js';
import { readReturnPath } from '../../src/stream/return-path.js';
import { chunked, collect, hex } from './support.js';

const TOKEN = hex('00112233445566778899aabbccddeeff');
const SECTION = hex(
  "04 00000001 0e 'multifd-resume' 00000000 00000001 00112233445566778899aabbccddeeff 00000002 0a0b0c0d 7e 00000001",
);
const HEADER = hex("'QEVM' 00000003 07 00000009 'model-1.0'");
const ANSWER = hex('4d46 0014 00000007 00112233445566778899aabbccddeeff');

t.test('the section that asks is the bytes of its picture', async (t) => {
  const request = { token: TOKEN, attempt: 2, rounds: 0x0a0b0c0d };
  t.equal(encodeResumeSection(request).toString('hex'), SECTION.toString('hex'));
  for (const size of [1, 5, 1000]) {
    const reader = new ByteReader(chunked(Buffer.concat([HEADER, SECTION]), size), { name: 'main stream' });
    const stream = new MainStreamReader(reader, { takesResume: true });
    const kinds: string[] = [];
    for (;;) {
      const item = await stream.next();
      if (item === undefined) break;
      kinds.push(item.kind);
      if (item.kind === 'other-section') t.equal(item.idstr, 'multifd-resume');
      if (item.kind === 'other-data') t.same(decodeResumeBody(item.raw), request);
      if (item.kind === 'footer') break;
    }
    t.same(kinds, ['header', 'configuration', 'other-section', 'other-data', 'footer']);
  }
});

t.test('the answer is the bytes of its picture, and of no other length', async (t) => {
  t.equal(encodeResumeAnswer({ completed: 7, key: TOKEN }).toString('hex'), ANSWER.toString('hex'));
  const read = (bytes: Buffer): Promise<object[]> =>
    collect(readReturnPath(new ByteReader(chunked(bytes, 3), { name: 'return path' })));
  t.match(await read(ANSWER), [{ kind: 'resume', completed: 7, key: TOKEN }]);
  await t.rejects(read(hex('4d46 0013')), {
    code: STREAM_ERRORS.returnPath,
    message: /bytes of message 19782: received 19, expected 20/,
  });
});

t.test('whoever does not take it refuses it by name, and says which option it is of', async (t) => {
  const reader = new ByteReader(chunked(Buffer.concat([HEADER, SECTION]), 1000), { name: 'main stream' });
  const stream = new MainStreamReader(reader);
  await stream.next();
  await stream.next();
  await t.rejects(stream.next(), {
    code: STREAM_ERRORS.unsupported,
    message:
      /received FULL of "multifd-resume" 0, expected none: the source has option resumable, which only/,
  });
});

t.test('two keys are never the same', async (t) => {
  t.equal(randomKey().length, 16);
  t.notSame(randomKey(), randomKey());
});

t.test('pages that have come are the bytes of their picture', async (t) => {
  const bytes = hex("4d47 0013 06 'pc.ram' 00000400 80000001 00000000");
  t.equal(
    encodeResumePages('pc.ram', 1024, Int32Array.of(-0x7fffffff, 0)).toString('hex'),
    bytes.toString('hex'),
  );
  const [message] = await collect(readReturnPath(new ByteReader(chunked(bytes, 4), { name: 'return path' })));
  t.match(message, { kind: 'resume-pages' });
  const decoded = decodeResumePages((message as { data: Buffer }).data);
  t.same(decoded, { block: 'pc.ram', firstWord: 1024, words: Uint32Array.of(0x80000001, 0) });
  for (const cut of [
    hex(''),
    hex("06 'pc.ra'"),
    hex("06 'pc.ram' 000000"),
    hex("06 'pc.ram' 00000000 000000"),
  ])
    t.throws(() => decodeResumePages(cut), { code: STREAM_ERRORS.returnPath });
});
