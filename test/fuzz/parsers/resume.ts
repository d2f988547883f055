/** How a source asks to carry on: its main stream is looked at up to its section, and nothing of it is taken. */
import { readResumeRequest } from '../../../src/live/resume-request.js';
import { ByteReader } from '../../../src/stream/byte-reader.js';
import { encodeResumeSection } from '../../../src/stream/resume-section.js';
import { chunked, hex } from '../../stream/support.js';
import { Fault, bytes, cut, u16, u8, type Fuzzer, type Seed } from '../contract.js';

const TOKEN = Buffer.alloc(16, 0x54);
const HEAD = hex("'QEVM' 00000003 07 00000009 'machine-1'");

/** @param commands before the section */
function seed(commands: Seed): Seed {
  return [
    ...cut(HEAD, ['+4', '+4', '+1', '+4', '=9']),
    ...commands,
    ...cut(encodeResumeSection({ token: TOKEN, attempt: 2, rounds: 3 }), [
      '+1',
      '+4',
      '+1',
      '=14',
      '+4',
      '+4',
      '=16',
      '+4',
      '+4',
    ]),
    bytes(Buffer.from('01')),
  ];
}

const fuzzer: Fuzzer = {
  name: 'resume',
  what: 'a source that asks to carry on: the begin of its main stream, its token',
  runs: 2000,
  most: { bytes: 2 ** 18, perByte: 60 },
  words: [hex("03 'ram'"), hex('08 0001 0000'), hex('04'), hex('01')],
  seeds: () => [seed([]), seed([u8(8), u16(1), u16(0), u8(8), u16(2), u16(4), bytes(Buffer.alloc(4))])],
  open: () => ({
    async run(input) {
      const reader = new ByteReader(chunked(input, 3, 20, 1));
      const { token } = await readResumeRequest({ reader } as never);
      if (token.length !== TOKEN.length) throw new Fault(`a token of ${token.length} bytes`);
      if (reader.position !== 0) throw new Fault(`${reader.position} bytes were taken`);
    },
  }),
};
export default fuzzer;
