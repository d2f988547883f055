/** The VM description at the end of a stream: found in a tail, read while it comes, and as a whole. */
import { TailEndFinder } from '../../../src/stream/tail-end.js';
import { locateDevices, parseVmDescription, sectionBytes } from '../../../src/stream/vm-description.js';
import { describeConfiguration } from '../../../src/stream/described-configuration.js';
import { Fault, bytes, json as cutJson, u32, type Fuzzer, type Seed } from '../contract.js';
import { readMain } from '../../stream/support.js';

const HEAD = Buffer.from('000600000000', 'hex');
const SECTION = Buffer.from('04000000030474657374000000000000000100ff7e00000003', 'hex');
const OWN = [
  '{"devices": []}',
  '{"page_size": 4096, "devices": [{"name": "test", "instance_id": 0, "vmsd_name": "test", "version": 1, "fields": [{"name": "a", "type": "uint8", "size": 1}, {"name": "b", "array_len": 2, "type": "uint8", "size": 1}], "subsections": [{"vmsd_name": "test/sub", "version": 1, "fields": []}]}]}',
  '{"configuration": {"vmsd_name": "configuration", "version": 1, "fields": [{"name": "len", "type": "uint32", "size": 4}, {"name": "name", "type": "buffer", "size": 9}]}, "page_size": 4096, "devices": []}',
];

/** Of a real one: its first devices. */
function captured(name: string): string {
  const main = readMain(name);
  const json = JSON.parse(main.subarray(main.lastIndexOf(Buffer.from('0006', 'hex')) + 6).toString()) as {
    devices: object[];
  };
  return JSON.stringify({
    ...json,
    devices: json.devices.filter((one) => JSON.stringify(one).length < 1500).slice(0, 4),
  });
}

function seedOf(json: string): Seed {
  return [
    bytes(SECTION),
    bytes(Buffer.of(0)),
    bytes(Buffer.of(6)),
    u32(Buffer.byteLength(json)),
    ...cutJson(json),
  ];
}

const fuzzer: Fuzzer = {
  name: 'description',
  what: "the VM description: found in a tail, read as it comes, and the machine's configuration in it",
  runs: 1000,
  most: { bytes: 2 ** 20, perByte: 80 },
  words: [
    '{',
    '}',
    '[',
    ']',
    ':',
    ',',
    '"',
    '\\',
    '\\u0000',
    '\\ud800',
    'null',
    'true',
    '-0',
    '1e999',
    '1e-7',
    '9007199254740993',
    '"devices"',
    '"fields"',
    '"size"',
    '"configuration"',
    '"subsections"',
    '"__proto__"',
    '"array_len"',
    '\xff',
  ].map((word) => Buffer.from(word, 'latin1')),
  seeds: () => [...OWN, captured('q100-none'), captured('q72-none')].map(seedOf),
  open: () => ({
    run(input) {
      const ends = [[input.length], [1], [7, 100, 3]].map((sizes) => {
        const finder = new TailEndFinder();
        for (let at = 0, i = 0; at < input.length; i++) {
          const size = sizes[i % sizes.length];
          if (finder.push(Buffer.from(input.subarray(at, at + size)))) break;
          at += size;
          // Byte by byte is slow: for the small ones.
          if (sizes[0] === 1 && i === 1000) sizes[0] = 4096;
        }
        return finder.end(true);
      });
      const [whole, ...others] = ends.map((end) => JSON.stringify(end));
      for (const other of others)
        if (other !== whole) throw new Fault(`at once: ${whole}; in pieces: ${other}`);
      if (ends[0].bytes > input.length)
        throw new Fault(`an end at ${ends[0].bytes} of ${input.length} bytes`);
      const head = input.indexOf(HEAD.subarray(0, 2));
      const json = head < 0 ? input : input.subarray(head + HEAD.length);
      const description = parseVmDescription(json);
      sectionBytes(description, true);
      locateDevices(input, description, true);
      // What is taken is JSON, and what is made of it is another description of the same devices.
      JSON.parse(json.toString());
      const described = describeConfiguration(json, { machine: 'pc-i440fx-10.0', capabilities: ['multifd'] });
      const again = parseVmDescription(described);
      if (JSON.stringify(again.devices) !== JSON.stringify(description.devices)) {
        throw new Fault(`described anew it has other devices: ${described.toString()}`);
      }
    },
  }),
};
export default fuzzer;
