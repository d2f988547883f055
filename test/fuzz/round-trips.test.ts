/** What is written is read again as it was, whatever it is, and in whatever pieces it comes. Values by fast-check. */
import path from 'node:path';
import fc from 'fast-check';
import t, { type Test } from 'tap';
import { fillPieceHead, decodePiece, PIECE_HEAD_BYTES } from '../../src/live/device-pieces.js';
import { ParkedDevices } from '../../src/migration/parked-devices.js';
import { encodeDeviceSection, encodeEnd, readDeviceSections } from '../../src/live/device-sections.js';
import { IncomingDevices } from '../../src/live/incoming-devices.js';
import { formatQmpJson, parseQmpJson } from '../../src/qmp/json.js';
import { ByteReader } from '../../src/stream/byte-reader.js';
import { encodeConfiguration, encodeFileHeader } from '../../src/stream/configuration.js';
import {
  encodeCommand,
  encodeEos,
  encodeFlush,
  encodeFooter,
  encodeItem,
  encodeMemSize,
  encodePageRecord,
  encodeSection,
  encodeZeroRecords,
} from '../../src/stream/main-writer.js';
import { readMainStream } from '../../src/stream/main-stream.js';
import {
  decodeResumeBody,
  decodeResumePages,
  encodeResumeAnswer,
  encodeResumePages,
  encodeResumeSection,
} from '../../src/stream/resume-section.js';
import { encodePong, encodeShut, encodeSwitchoverAck, readReturnPath } from '../../src/stream/return-path.js';
import { decodeHello, encodeHello, formatUuid, parseUuid } from '../../src/wire/hello.js';
import {
  DEVICE_STATE_HEADER_BYTES,
  fillDeviceState,
  unfillDeviceState,
} from '../../src/wire/device-state.js';
import {
  fillPacket,
  packetHeaderBytes,
  PacketHeader,
  pagesPerPacket,
  unfillPacket,
} from '../../src/wire/packet.js';
import { chunked, collect } from '../stream/support.js';

const PAGE = 4096;
const FIXED = { seed: 17, numRuns: 300 };

const u32 = fc.nat(0xffffffff);
const sizes = fc.array(fc.integer({ min: 1, max: 50 }), { minLength: 1, maxLength: 8 });
const bytes = (length: number): fc.Arbitrary<Uint8Array> =>
  fc.uint8Array({ minLength: length, maxLength: length });
const some = fc.uint8Array({ maxLength: 300 });
const name = fc.string({
  unit: fc.integer({ min: 0x20, max: 0x7e }).map((code) => String.fromCharCode(code)),
  minLength: 1,
  maxLength: 255,
});

/** Holds for all values. */
async function holds<T extends [unknown, ...unknown[]]>(
  t: Test,
  values: { [I in keyof T]: fc.Arbitrary<T[I]> },
  check: (...given: T) => Promise<boolean> | boolean,
): Promise<void> {
  const property = fc.asyncProperty(...values, async (...given: T) => check(...given));
  const { failed, counterexample, errorInstance } = await fc.check(property, FIXED);
  if (failed) t.fail(`${fc.stringify(counterexample)}: ${String(errorInstance)}`);
  else t.ok(true);
}

function equal(a: Uint8Array, b: Uint8Array): boolean {
  return Buffer.from(a).equals(b);
}

t.test('a hello, whatever its uuid and key', async (t) => {
  await holds(t, [bytes(16), fc.nat(255), fc.option(bytes(16), { nil: undefined })], (uuid, id, key) => {
    const hello = decodeHello(encodeHello({ uuid, id }, key), { uuid, channels: 256 });
    const text = formatUuid(uuid);
    return (
      hello.id === id &&
      equal(hello.uuid, uuid) &&
      (text === 'none' || equal(parseUuid(text) as Buffer, uuid))
    );
  });
});

t.test('the header of a packet, at whatever page size and with whatever pages', async (t) => {
  const packet = fc.constantFrom(4096, 8192, 65536).chain((pageSize) => {
    const limit = pagesPerPacket(pageSize);
    return fc.record({
      pageSize: fc.constant(pageSize),
      pages: fc.uniqueArray(u32, { maxLength: Math.min(limit, 20) }),
      zero: fc.nat(20),
      packetNum: fc.nat(Number.MAX_SAFE_INTEGER),
    });
  });
  await holds(t, [packet], ({ pageSize, pages, zero, packetNum }) => {
    const zeroPages = Math.min(zero, pages.length);
    const normalPages = pages.length - zeroPages;
    const into = Buffer.alloc(packetHeaderBytes(pageSize), 0xff);
    const ramblock = Buffer.alloc(256);
    ramblock.write('a block');
    fillPacket(into, pageSize, {
      flags: 0,
      normalPages,
      zeroPages,
      nextPacketSize: 7,
      packetNum,
      ramblock,
      pages: Uint32Array.from(pages),
    });
    const header = new PacketHeader(pageSize);
    const findBlock = (name: string) =>
      name === 'a block' ? { index: 3, size: 2 ** 32 * pageSize } : undefined;
    unfillPacket(into, { pageSize, methodFlag: 0, findBlock }, header);
    const counts =
      header.normalPages === normalPages && header.zeroPages === zeroPages && header.packetNum === packetNum;
    return counts && pages.every((page, i) => header.pages[i] === page);
  });
});

t.test('the header of device state', async (t) => {
  await holds(t, [name, u32, fc.integer({ min: 1, max: 2 ** 26 })], (idstr, instanceId, nextPacketSize) => {
    const header = Buffer.alloc(DEVICE_STATE_HEADER_BYTES, 0xff);
    fillDeviceState(header, { idstr, instanceId, nextPacketSize });
    const read = unfillDeviceState(header, 2 ** 26);
    return read.idstr === idstr && read.instanceId === instanceId && read.nextPacketSize === nextPacketSize;
  });
});

t.test(
  'a main stream is the same items in whatever pieces it comes, and its items are its bytes',
  async (t) => {
    const record = fc.record({
      kind: fc.constantFrom('zero', 'page', 'flush'),
      page: fc.nat(9),
      continued: fc.boolean(),
    });
    await holds(
      t,
      [name, name, fc.array(record, { maxLength: 6 }), u32, some, sizes],
      async (machine, block, records, id, tail, cuts) => {
        let hasBlock = false;
        const body = records.map(({ kind, page, continued }) => {
          if (kind === 'flush') return encodeFlush();
          const goesOn = continued && hasBlock;
          hasBlock = true;
          if (kind === 'zero') return encodeZeroRecords(block, [page * PAGE], goesOn);
          return Buffer.concat([encodePageRecord(block, page * PAGE, goesOn), Buffer.alloc(PAGE, page)]);
        });
        const end = [encodeFlush(), encodeEos(), encodeFooter(id)];
        const stream = Buffer.concat([
          encodeFileHeader(),
          encodeConfiguration({ machine }),
          encodeCommand(1),
          encodeSection('start', id),
          encodeMemSize([{ name: block, usedLength: 10 * PAGE }]),
          ...end,
          encodeSection('part', id),
          ...body,
          ...end,
          encodeSection('end', id),
          ...end,
          tail,
        ]);
        const items = await collect(readMainStream(new ByteReader(chunked(stream, ...cuts))));
        const whole = Buffer.concat(items.map((item) => item.raw));
        return whole.equals(stream) && items.every((item) => encodeItem(item).equals(item.raw));
      },
    );
  },
);

t.test('messages of the return path, in whatever pieces', async (t) => {
  const words = fc.array(fc.integer(), { maxLength: 40 });
  await holds(
    t,
    [u32, u32, name, u32, words, bytes(16), sizes],
    async (pong, status, block, first, given, key, cuts) => {
      const stream = Buffer.concat([
        encodePong(pong),
        encodeSwitchoverAck(),
        encodeResumePages(block, first, Int32Array.from(given)),
        encodeResumeAnswer({ completed: first, key: Buffer.from(key) }),
        encodeShut(status),
      ]);
      const messages = await collect(readReturnPath(new ByteReader(chunked(stream, ...cuts))));
      const [one, , pages, answer, shut] = messages;
      if (
        one.kind !== 'pong' ||
        pages.kind !== 'resume-pages' ||
        answer.kind !== 'resume' ||
        shut.kind !== 'shut'
      )
        return false;
      const read = decodeResumePages(pages.data);
      const isSame =
        read.words.every((word, i) => word === given[i] >>> 0) && read.words.length === given.length;
      return (
        one.value === pong &&
        shut.status === status &&
        equal(answer.key, key) &&
        isSame &&
        read.block === block &&
        read.firstWord === first
      );
    },
  );
});

t.test('how a source asks to carry on', async (t) => {
  await holds(t, [bytes(16), u32, u32], (token, attempt, rounds) => {
    const section = encodeResumeSection({ token: Buffer.from(token), attempt, rounds });
    // Behind type, id, name, instance and version, and before the footer.
    const body = section.subarray(1 + 4 + 1 + 14 + 8, -5);
    const read = decodeResumeBody(body);
    return equal(read.token, token) && read.attempt === attempt && read.rounds === rounds;
  });
});

t.test(
  "devices' state, in sections and in pieces over the channels, comes out as it was, here and from a file",
  async (t) => {
    const folder = t.testdir({});
    await holds(
      t,
      [some, fc.uint8Array({ minLength: 1, maxLength: 300 }), fc.nat(3), sizes],
      async (first, second, instanceId, cuts) => {
        const devices = ['cpu', 'disk'].map((idstr) => ({ idstr, instanceId, version: 1 }));
        const size = { bytes: second.length, pieces: 1 };
        const states = [
          { device: devices[0], data: first },
          { device: devices[1], data: size },
        ];
        const payload = Buffer.alloc(PIECE_HEAD_BYTES + second.length);
        fillPieceHead(payload, 0);
        payload.set(second, PIECE_HEAD_BYTES);
        if (!equal(decodePiece(devices[1], payload).data, second)) return false;
        const configuration = { machine: 'vm', capabilities: [] };
        const tail = Buffer.concat([
          ...states.flatMap((state, id) => encodeDeviceSection(id, state)),
          encodeEnd(states, configuration, PAGE),
        ]);
        const checked = devices.map((device) => ({ ...device, given: {} })) as never;
        const incoming = new IncomingDevices(checked, 1000);
        incoming.take('disk', instanceId, payload);
        const options = { expected: incoming, footers: true, maxDescription: 10_000 };
        const read = await readDeviceSections(new ByteReader(chunked(tail, ...cuts)), options);
        if (!read.every(({ parts }, i) => equal(Buffer.concat(parts), [first, second][i]))) return false;
        const parked = new ParkedDevices(path.join(folder, 'vm.mig.part'));
        await parked.keep('disk', instanceId, payload);
        const file: Buffer[] = [];
        const pieces = (async function* () {
          yield tail;
        })();
        const whole = { configuration, pageSize: PAGE, footers: true, maxDescription: 10_000 };
        for await (const piece of parked.convert(pieces, whole)) file.push(piece);
        await parked.close();
        const again = { ...options, expected: new IncomingDevices(checked, 1000) };
        const fromFile = await readDeviceSections(
          new ByteReader(chunked(Buffer.concat(file), ...cuts)),
          again,
        );
        return fromFile.every(({ parts }, i) => equal(Buffer.concat(parts), [first, second][i]));
      },
    );
  },
);

t.test("QMP's JSON, integers of 64 bits among it", async (t) => {
  const big = fc.bigInt({ min: 2n ** 53n, max: 2n ** 64n - 1n });
  const plain = fc.string().filter((text) => !text.startsWith('\u0001'));
  const value = fc.letrec<{ any: unknown }>((tie) => ({
    any: fc.oneof(
      { maxDepth: 4 },
      fc.integer(),
      big,
      plain,
      fc.boolean(),
      fc.constant(null),
      fc.array(tie('any'), { maxLength: 4 }),
      fc.dictionary(plain, tie('any'), { maxKeys: 4, noNullPrototype: true }),
    ),
  })).any;
  const shown = (given: unknown): string =>
    JSON.stringify(given, (_, one: unknown) => (typeof one === 'bigint' ? `${one}n` : one));
  await holds(t, [value], (given) => shown(parseQmpJson(formatQmpJson(given))) === shown(given));
});
