/**
 * The devices' state of a source of ours: sections behind ram's END, pieces over the channels, and the digests of option
 * verify; at a destination, and on their way into a file. An input is
 *
 *     u8 pieces, each: u8 device, u16 length, bytes         DEVICE_STATE packets
 *     the sections, to the end
 */
import { IncomingDevices } from '../../../src/live/incoming-devices.js';
import { PIECE_HEAD_BYTES, fillPieceHead } from '../../../src/live/device-pieces.js';
import {
  encodeDeviceSection,
  encodeEnd,
  readDeviceSections,
  PROOF_DEVICE,
} from '../../../src/live/device-sections.js';
import {
  ExpectedWithProof,
  encodeProofHead,
  proofBytes,
  requireSame,
} from '../../../src/live/proof-section.js';
import { ParkedDevices } from '../../../src/migration/parked-devices.js';
import { ByteReader } from '../../../src/stream/byte-reader.js';
import { chunked } from '../../stream/support.js';
import { Fault, bytes, cut, u16, u8, type Fuzzer, type Seed } from '../contract.js';
import { PAGE } from '../seeds.js';

const DEVICES = [
  { idstr: 'cpu', instanceId: 0, version: 1 },
  { idstr: 'disk', instanceId: 3, version: 2 },
];
const BLOCKS = [
  { name: 'ram', size: 16 * PAGE, pageCount: 16 },
  { name: 'rom', size: 256 * PAGE, pageCount: 256 },
];
const CONFIGURATION = { machine: 'vm-1.0', capabilities: [] };
const MOST_DEVICE_BYTES = 100_000;
const MOST_DESCRIPTION = 4096;
const DIGESTS = Buffer.alloc(proofBytes(BLOCKS) - encodeProofHead(BLOCKS).length, 5);

function piecesSeed(pieces: [device: number, index: number, length: number][]): Seed {
  const seed: Seed = [u8(pieces.length)];
  for (const [device, index, length] of pieces) {
    const payload = Buffer.alloc(PIECE_HEAD_BYTES + length, index + 1);
    fillPieceHead(payload, index);
    seed.push(u8(device), u16(payload.length), ...cut(payload, ['+4', '+4', '+4']));
  }
  return seed;
}

function sectionsSeed(states: Parameters<typeof encodeEnd>[0], proof: boolean): Seed {
  const seed: Seed = [];
  const all = proof
    ? [...states, { device: PROOF_DEVICE, data: Buffer.concat([encodeProofHead(BLOCKS), DIGESTS]) }]
    : states;
  for (const [id, state] of all.entries()) {
    const [head, size, data, footer] = encodeDeviceSection(id, state);
    seed.push(...cut(head, ['+1', '+4', '+1', `=${head[5]}`, '+4', '+4']));
    seed.push(...(size.length === 4 ? cut(size, ['+4']) : cut(size, ['+4', '+8', '+4'])));
    seed.push(
      ...(state.device === PROOF_DEVICE
        ? cut(data, ['+4', '+1', '=3', '+8', '+1', '=3', '+8'])
        : [bytes(data)]),
    );
    seed.push(...cut(footer, ['+1', '+4']));
  }
  const end = encodeEnd(all, CONFIGURATION, PAGE);
  return [...seed, ...cut(end, ['+1', '+1', '+4'])];
}

const CPU = { device: DEVICES[0], data: Buffer.from('registers') };
const DISK = { device: DEVICES[1], data: Buffer.alloc(300, 9) };

const fuzzer: Fuzzer = {
  name: 'live-devices',
  what: "devices' state of a source of ours: sections, pieces over the channels, digests of option verify",
  runs: 2000,
  most: { bytes: 2 ** 19, perByte: 40 },
  words: ['00', '04', '7e', 'ffffffff'].map((word) => Buffer.from(word, 'hex')),
  seeds: () => [
    [...piecesSeed([]), ...sectionsSeed([CPU, DISK], true)],
    [
      ...piecesSeed([[1, 0, 500]]),
      ...sectionsSeed([CPU, { device: DEVICES[1], data: { bytes: 500, pieces: 1 } }], true),
    ],
  ],
  open: () => ({
    async run(input) {
      const devices = new IncomingDevices(
        DEVICES.map((device) => ({ ...device, given: {} })) as never,
        MOST_DEVICE_BYTES,
      );
      const parked = new ParkedDevices(undefined);
      let refused: Error | undefined;
      const keep = (error: Error): void => void (refused ??= error);
      let at = 1;
      for (let left = input.length === 0 ? 0 : input[0]; left > 0 && at + 3 <= input.length; left--) {
        const { idstr, instanceId } = DEVICES[input[at]] ?? { idstr: 'none', instanceId: 7 };
        const payload = input.subarray(at + 3, at + 3 + input.readUInt16BE(at + 1));
        at += 3 + payload.length;
        // As a channel does: what is refused ends the session, and here the rest is looked at all the same.
        await parked.keep(idstr, instanceId, payload).catch(keep);
        await (async () => devices.take(idstr, instanceId, payload))().catch(keep);
      }
      const tail = input.subarray(at);
      const reader = new ByteReader(chunked(tail, 1, 7, 100));
      const expected = new ExpectedWithProof(devices, BLOCKS);
      const states = await readDeviceSections(reader, {
        expected,
        footers: true,
        maxDescription: MOST_DESCRIPTION,
      }).catch(keep);
      let made = 0;
      const options = {
        configuration: CONFIGURATION,
        pageSize: PAGE,
        footers: true,
        maxDescription: MOST_DESCRIPTION,
      };
      await (async () => {
        for await (const piece of parked.convert(chunks(tail), options)) made += piece.length;
      })().catch(keep);
      if (states) {
        const kept = states.slice(0, -1).flatMap(({ parts }) => parts);
        const sum = kept.reduce((all, part) => all + part.length, 0);
        if (sum > MOST_DEVICE_BYTES) throw new Fault(`${sum} bytes of devices`);
        requireSame(BLOCKS, DIGESTS, Buffer.concat(states[states.length - 1].parts));
      }
      if (refused !== undefined) throw refused;
      if (made === 0) throw new Fault('nothing is left of a tail');
    },
  }),
};
export default fuzzer;

async function* chunks(tail: Buffer): AsyncGenerator<Buffer> {
  for (let at = 0; at < tail.length; at += 50) yield tail.subarray(at, at + 50);
}
