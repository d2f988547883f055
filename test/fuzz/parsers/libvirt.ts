/** The head of what libvirt saves: header, the domain's XML, cookie. */
import { describeDomain } from '../../../src/libvirt/domain-xml.js';
import { readSaveImage } from '../../../src/libvirt/save-image.js';
import { MemoryFile } from '../../stream/support.js';
import { HEAD, HEADER_BYTES } from '../../libvirt/images.js';
import { Fault, bytes, cut, tokens, type Fuzzer, type Seed } from '../contract.js';

const HEADER = ['=16', '-4', '-4', '-4', '-4', '-4'];
const DOCUMENT =
  '<!-- <name>no</name> --><domain type="kvm" id=\'1\'>\n<name>tiny &amp; sch&#xf6;n</name><uuid>00112233-4455-6677-8899-aabbccddeeff</uuid><os><name>x</name></os><x a=">"/></domain>';

function swapped(): Seed {
  const head = Buffer.from(HEAD);
  for (let at = 16; at < 36; at += 4) head.subarray(at, at + 4).swap32();
  return [
    ...cut(head.subarray(0, HEADER_BYTES), ['=16', '+4', '+4', '+4', '+4', '+4']),
    bytes(head.subarray(HEADER_BYTES)),
  ];
}

function own(): Seed {
  const head = Buffer.from(HEAD.subarray(0, HEADER_BYTES));
  head.writeUInt32LE(Buffer.byteLength(DOCUMENT) + 1, 20);
  head.writeUInt32LE(0, 32);
  return [...cut(head, HEADER), ...tokens(DOCUMENT), bytes(Buffer.from('\0'))];
}

function lines(text: Buffer): Seed {
  const seed: Seed = [];
  for (let from = 0; from < text.length;) {
    const to = text.indexOf('\n', from) + 1 || text.length;
    seed.push(bytes(text.subarray(from, to)));
    from = to;
  }
  return seed;
}

const fuzzer: Fuzzer = {
  name: 'libvirt',
  what: "libvirt's save images: header, the domain's XML",
  runs: 4000,
  most: { bytes: 65536, perByte: 8 },
  words: [
    '<',
    '>',
    '/>',
    '</',
    '<!--',
    '-->',
    '<![CDATA[',
    ']]>',
    '<?',
    '?>',
    '"',
    "'",
    '&#x110000;',
    '&#0;',
    '&amp;',
    '<name>',
    '</name>',
    '<uuid>',
    '\0',
  ].map((word) => Buffer.from(word)),
  seeds: () => [
    own(),
    swapped(),
    [...cut(HEAD.subarray(0, HEADER_BYTES), HEADER), ...lines(HEAD.subarray(HEADER_BYTES))],
  ],
  open: () => ({
    async run(input) {
      await describeDomain(input.toString('latin1', HEADER_BYTES));
      const image = await readSaveImage(new MemoryFile(input));
      if (image !== undefined && image.streamOffset > input.length)
        throw new Fault(`a stream from ${image.streamOffset} on`);
    },
  }),
};
export default fuzzer;
