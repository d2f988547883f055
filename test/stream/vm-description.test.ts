import t from 'tap';
import { STREAM_ERRORS } from '../../src/stream/codes.js';
import {
  MAX_VM_DESCRIPTION_BYTES,
  TailScanner,
  type VmDescription,
  locateDevices,
  parseVmDescription,
  sectionBytes,
} from '../../src/stream/vm-description.js';
import { TailEndFinder } from '../../src/stream/tail-end.js';
import { Random } from '../support/random.js';
import { MAIN_CAPTURES, hex, ofKind, parse, readMain } from './support.js';

async function tailOf(name: string): Promise<Buffer> {
  return Buffer.concat(ofKind(await parse(readMain(name)), 'tail').map(({ raw }) => raw));
}

/** 00 06 u32 n, JSON */
function described(json: string): Buffer {
  const head = hex('00 06 00000000');
  head.writeUInt32BE(Buffer.byteLength(json), 2);
  return Buffer.concat([head, Buffer.from(json)]);
}

const JSON_TEXT =
  '{"page_size": 4096, "devices": [{"name": "timer", "instance_id": 0, "version": 2, "fields": []}]}';
/** The section of that device, with its footer. */
const SECTION = hex("04 00000009 05 'timer' 00000000 00000002 7e 00000009");

t.test("every capture's tail ends with a description that fits its sections", async (t) => {
  for (const [name] of MAIN_CAPTURES) {
    const tail = await tailOf(name);
    const scanner = new TailScanner();
    t.equal(scanner.push(tail), true, name);
    t.equal(scanner.exact, true);
    t.equal(scanner.bytes, tail.length);
    const { description, jsonOffset } = scanner;
    t.equal(description?.pageSize, 4096);
    t.equal(description?.devices.length, 31);
    t.match(description?.devices[0], { name: 'timer', instanceId: 0, version: 2, bytes: 24 });
    t.ok(description?.devices.some((device) => device.name === 'dma' && device.instanceId === 1));
    t.equal(tail.toString('latin1', jsonOffset, (jsonOffset ?? 0) + 2), '{"');
    const sections = locateDevices(tail, description as VmDescription, true);
    t.equal(sections?.length, 31);
    t.match(sections?.[0], { name: 'timer', instanceId: 0, version: 2, offset: 19, bytes: 24 });
    t.same(
      sections?.map(({ version }) => version),
      description?.devices.map(({ version }) => version),
      'the sections have the versions that the description gives',
    );
  }
});

t.test('the end of a tail is found at its last byte and not before, however it is cut', async (t) => {
  const random = new Random(5);
  for (const name of ['q100-none', 'q72-none']) {
    const tail = await tailOf(name);
    for (const largest of [1, 7, 1000, 40000]) {
      const scanner = new TailScanner();
      for (let at = 0; at < tail.length;) {
        const next = Math.min(at + 1 + random.below(largest), tail.length);
        const complete = scanner.push(tail.subarray(at, next));
        if (complete !== (next === tail.length)) t.fail(`${name}: ${complete} at ${next} of ${tail.length}`);
        at = next;
      }
      t.ok(scanner.exact, `${name}, up to ${largest} bytes`);
    }
  }
});

t.test('a piece is not kept: its bytes may change once it was pushed', async (t) => {
  const tail = Buffer.concat([SECTION, described(JSON_TEXT)]);
  const scanner = new TailScanner();
  const piece = Buffer.alloc(10);
  for (let at = 0; at < tail.length; at += 10) {
    const length = tail.copy(piece, 0, at, at + 10);
    scanner.push(piece.subarray(0, length));
    piece.fill(0xee);
  }
  t.equal(scanner.exact, true);
  t.match(scanner.description, { devices: [{ name: 'timer', instanceId: 0, version: 2, bytes: 0 }] });
});

t.test('every cut into three finds the end', async (t) => {
  const tail = Buffer.concat([SECTION, described(JSON_TEXT)]);
  for (let a = 0; a < 60; a++) {
    for (let b = a; b < 60; b++) {
      const scanner = new TailScanner();
      const results = [tail.subarray(0, a), tail.subarray(a, b), tail.subarray(b)].map((piece) =>
        scanner.push(piece),
      );
      if (results[0] || results[1] || !results[2] || !scanner.exact) t.fail(`${a}, ${b}: ${results}`);
    }
  }
});

t.test('what looks like a description inside the device state is given up when more follows', async (t) => {
  const fake = described(JSON_TEXT);
  const scanner = new TailScanner();
  t.equal(scanner.push(Buffer.concat([Buffer.from('state'), fake])), true, 'at this moment it is the end');
  t.equal(scanner.exact, false, 'but the sections before it are not those that it lists');
  t.equal(scanner.push(SECTION), false);
  t.equal(scanner.description, undefined);
  t.equal(scanner.jsonOffset, undefined);
  t.equal(scanner.exact, false);
  t.equal(scanner.push(fake), true);
  t.equal(scanner.jsonOffset, 5 + fake.length + SECTION.length + 6);
});

t.test('heads inside heads, and heads with zero bytes in their length, are told apart', async (t) => {
  // n = 0x00065b20 would be a candidate of its own, if what follows were `{"`.
  for (const before of [
    '00',
    '0006',
    '000600',
    '00060006',
    '0006000000',
    '000600000061',
    "00060000000a '{' 00",
  ]) {
    const scanner = new TailScanner();
    scanner.push(hex(before));
    t.equal(scanner.push(described(JSON_TEXT)), true, before);
    t.equal(scanner.jsonOffset, hex(before).length + 6);
  }
  // 0x10000 bytes: two zero bytes in the length, and one at its end.
  for (const length of [0x10000, 0x20100, 0x600]) {
    const json = `{"devices": []${' '.repeat(length - 15)}}`;
    const scanner = new TailScanner();
    t.equal(scanner.push(described(json)), true);
    t.equal(scanner.exact, true, 'no devices, and nothing but EOF before the description');
  }
});

t.test(
  'a description with white space after its brace is found, cut anywhere: QEMU before 6.0',
  async (t) => {
    const old =
      '{ "page_size" : 4096, "devices" : [ { "name" : "timer", "instance_id" : 0, "version" : 2, "fields" : [ ] } ] }';
    for (const json of [old, JSON_TEXT.replace('{', '{\n\t'), JSON_TEXT.replace('{', '{ \r\n')]) {
      const tail = Buffer.concat([SECTION, described(json)]);
      for (let cut = 0; cut < tail.length; cut++) {
        const scanner = new TailScanner();
        if (scanner.push(tail.subarray(0, cut))) t.fail(`complete at ${cut} of ${tail.length}`);
        if (!scanner.push(tail.subarray(cut)) || !scanner.exact) t.fail(`not found when cut at ${cut}`);
      }
      const scanner = new TailScanner();
      for (const byte of tail) scanner.push(Buffer.of(byte));
      t.equal(scanner.exact, true, 'byte by byte');
      t.match(scanner.description, { pageSize: 4096, devices: [{ name: 'timer', bytes: 0 }] });
    }
  },
);

t.test('what is no description is not taken for one', async (t) => {
  const cases: Record<string, Buffer> = {
    'no JSON': described('{"devices": [}'),
    'JSON without devices': described('{"page_size": 4096}'),
    'devices without names': described('{"devices": [{"instance_id": 0}]}'),
    'a brace and no name': described('{ }'),
    'a brace and a number': described('{1}'),
    'a list': described('["devices"]'),
    'a length one too small': Buffer.concat([described('{"devices": []}'), Buffer.from('}')]),
    'a length one too large': described('{"devices": []} ').subarray(0, -1),
    'no type byte': hex('00 05 0000000f \'{"devices": []}\''),
    'no EOF': hex('01 06 0000000f \'{"devices": []}\''),
    'a zero byte in it': described('{"devices": ["\0"]}'),
    'nothing before the length': described('{"devices": []}').subarray(1),
  };
  for (const [what, bytes] of Object.entries(cases)) {
    t.equal(new TailScanner().push(bytes), false, what);
    const scanner = new TailScanner();
    for (const byte of bytes) scanner.push(Buffer.of(byte));
    t.equal(scanner.complete, false, `${what}, byte by byte`);
  }
});

t.test('a tail without footers is exact too', async (t) => {
  const bare = SECTION.subarray(0, SECTION.length - 5);
  const scanner = new TailScanner();
  scanner.push(Buffer.concat([bare, described(JSON_TEXT)]));
  t.equal(scanner.exact, true);
  scanner.push(Buffer.of(1));
  t.equal(scanner.exact, false);
});

t.test('a length above the limit is none, whatever comes', async (t) => {
  const scanner = new TailScanner({ maxBytes: 100 });
  t.equal(scanner.push(described(`{"devices": []${' '.repeat(85)}}`)), true, '100 bytes');
  t.equal(new TailScanner({ maxBytes: 99 }).push(described(`{"devices": []${' '.repeat(85)}}`)), false);
  const hostile = new TailScanner();
  hostile.push(hex("00 06 ffffffff '{\"'"));
  for (let i = 0; i < 100; i++) t.equal(hostile.push(Buffer.alloc(1000, 0x20)), false);
});

t.test('the last byte tells whether a tail may end without a description', async (t) => {
  const scanner = new TailScanner();
  t.equal(scanner.endsWithEof, false);
  scanner.push(SECTION);
  t.equal(scanner.endsWithEof, false);
  scanner.push(hex('00'));
  t.equal(scanner.endsWithEof, true);
  t.equal(scanner.complete, false);
  t.equal(scanner.push(Buffer.alloc(0)), false);
});

t.test('sizes add up over arrays and subsections, and are missing where one is', async (t) => {
  const parse = (device: string): unknown =>
    parseVmDescription(Buffer.from(`{"devices": [{"name": "d", "instance_id": 3, ${device}}]}`)).devices[0];
  const nested = (depth: number): string =>
    depth === 0
      ? ''
      : `"subsections": [{"vmsd_name": "s", "fields": [{"size": 1}] ${depth > 1 ? ',' : ''}${nested(depth - 1)}}]`;
  t.same(parse('"fields": [{"size": 4}, {"size": 2, "array_len": 100}]'), {
    name: 'd',
    instanceId: 3,
    bytes: 204,
  });
  t.match(
    parse('"version": 7, "subsections": [{"vmsd_name": "d/sub", "version": 1, "fields": [{"size": 9}]}]'),
    {
      version: 7,
      bytes: 1 + 1 + 5 + 4 + 9,
    },
  );
  t.match(parse(nested(31)), { bytes: 31 * 8 });
  t.match(parse(nested(32)), { bytes: undefined }, 'too deep');
  t.match(parse('"fields": [{"name": "x"}]'), { bytes: undefined });
  t.match(parse('"fields": [{"size": -1}]'), { bytes: undefined });
  t.match(parse('"fields": [{"size": 1, "array_len": "2"}]'), { bytes: undefined });
  t.match(parse('"fields": [{"size": 9007199254740991, "array_len": 2}]'), { bytes: undefined });
  t.match(parse('"subsections": [{"fields": []}]'), { bytes: undefined });
  t.match(parse('"version": 1.5'), { version: undefined, bytes: 0 });
});

t.test('a description that is none is refused', async (t) => {
  const cases: [json: string, message: RegExp][] = [
    ['', /received no JSON/],
    ['\x1b[J', /received no JSON: "[\x20-\x7e]*"$/],
    ['[]', /received JSON without a list of devices/],
    ['null', /without a list of devices/],
    ['{"devices": {}}', /without a list of devices/],
    [
      '{"devices": [{"name": "a", "instance_id": 0}, 1]}',
      /a device \(number 1\) without name or instance id/,
    ],
    ['{"devices": [{"name": 1, "instance_id": 0}]}', /number 0/],
    ['{"devices": [{"name": "a", "instance_id": -1}]}', /number 0/],
  ];
  for (const [json, message] of cases) {
    t.throws(() => parseVmDescription(Buffer.from(json)), { code: STREAM_ERRORS.vmDescription, message });
  }
  t.throws(() => parseVmDescription(Buffer.alloc(MAX_VM_DESCRIPTION_BYTES + 1)), {
    code: STREAM_ERRORS.vmDescription,
    message: /received 16777217 bytes, expected at most 16777216/,
  });
  const deep = `{"devices": ${'['.repeat(1e6)}`;
  t.throws(() => parseVmDescription(Buffer.from(deep)), { code: STREAM_ERRORS.vmDescription });
});

t.test('sections are located only if they are exactly those that are described', async (t) => {
  const description: VmDescription = { devices: [{ name: 'timer', instanceId: 0, version: 2, bytes: 3 }] };
  const good = hex("04 00000009 05 'timer' 00000000 00000002 aabbcc 7e 00000009 00");
  t.same(locateDevices(good, description, true), [
    { name: 'timer', instanceId: 0, version: 2, offset: 19, bytes: 3 },
  ]);
  t.equal(sectionBytes(description, true), good.length);
  t.equal(sectionBytes({ devices: [{ name: 'x', instanceId: 0 }] }, true), undefined);
  for (let at = 0; at < good.length; at++) {
    const bad = Buffer.from(good);
    bad[at] ^= 0x40;
    const isChecked = at !== 1 && !(at >= 11 && at < 22);
    // The version and the state are not described exactly; the section id is held against the footer's.
    if (isChecked) t.equal(locateDevices(bad, description, true), undefined, `byte ${at}`);
    t.equal(locateDevices(good.subarray(0, at), description, true), undefined, `cut at ${at}`);
  }
  const bare = hex("04 00000009 05 'timer' 00000000 00000002 aabbcc 00");
  t.equal(locateDevices(bare, description, false)?.length, 1);
  t.equal(sectionBytes(description, false), bare.length);
  t.equal(locateDevices(good, { devices: [{ name: 'timer', instanceId: 0 }] }, true), undefined);
  t.same(locateDevices(hex('00'), { devices: [] }, true), []);
});

/** Shapes of JSON of which JSON.parse() makes up to 30 times its size. */
function large(): Record<string, string> {
  const bytes = 2 ** 21;
  const filled = (begin: string, unit: string, end: string): string => {
    const count = Math.floor((bytes - begin.length - end.length) / unit.length);
    return begin + unit.repeat(count) + end;
  };
  const nested = (count: number, begin: string, end: string): string =>
    `{"a": ${begin.repeat(count)}0${end.repeat(count)}, "devices": []}`;
  return {
    'many arrays': filled('{"a": [', '[],', '0], "devices": []}'),
    'many devices': filled('{"devices": [', '{"name":"","instance_id":0},', '{"name":"","instance_id":0}]}'),
    'many keys': filled('{', '"abcdefg":0,', '"devices": []}'),
    'many fields': filled('{"devices": [{"name":"","instance_id":0,"fields":[', '{"size":9},', '{}]}]}'),
    'many lists of devices': filled('{', '"devices":[],', '"devices": []}'),
    'deep arrays': nested(bytes / 2 - 100, '[', ']'),
    'deep objects': nested(bytes / 6 - 100, '{"":', '}'),
    'deep subsections': `{"devices": [{"name":"","instance_id":0,${'"subsections":[{'.repeat(5e4)}${'}]'.repeat(5e4)}}]}`,
    'a long string': filled('{"a": "', 'x', '", "devices": []}'),
    'a long number': filled('{"devices": [{"name":"","instance_id":0,"version":', '1', '}]}'),
    'a long configuration': filled('{"configuration": {"subsections": [', '[],', '0]}, "devices": []}'),
  };
}

t.test('a large description, of whatever shape, is read while it comes and never in one piece', (t) => {
  // What JSON.parse() is given takes its time in one turn of the event loop: a name, at the most.
  let longest = 0;
  t.intercept(JSON, 'parse', {
    value: (text: string): unknown => {
      longest = Math.max(longest, text.length);
      return '';
    },
  });
  for (const [shape, json] of Object.entries(large())) {
    const tail = described(json);
    const scanner = new TailScanner({ keepJson: false });
    const finder = new TailEndFinder();
    for (let at = 0; at < tail.length; at += 65536) {
      scanner.push(tail.subarray(at, at + 65536));
      finder.push(tail.subarray(at, at + 65536));
    }
    t.equal(scanner.complete, true, shape);
    t.equal(finder.end(true).description?.devices === undefined, false, shape);
  }
  t.ok(longest < 2048, `${longest} at once`);
  t.end();
});

t.test('the JSON is kept byte for byte, but of a relay', (t) => {
  const tail = Buffer.concat([hex("00060006 00 06 00000010 '{\"'"), SECTION, described(JSON_TEXT)]);
  for (const pieceBytes of [1, 5, 1000]) {
    const scanner = new TailScanner();
    const bare = new TailScanner({ keepJson: false });
    for (let at = 0; at < tail.length; at += pieceBytes) {
      scanner.push(tail.subarray(at, at + pieceBytes));
      bare.push(tail.subarray(at, at + pieceBytes));
    }
    t.equal(scanner.json?.toString(), JSON_TEXT);
    t.equal(bare.complete, true);
    t.equal(bare.jsonOffset, tail.length - JSON_TEXT.length);
    t.equal(bare.json, undefined);
    t.equal(bare.description, undefined);
  }
  t.end();
});

t.test('a description above the limit is told as soon as so much of it has come', (t) => {
  const json = `{"devices": [${'{"name": "a", "instance_id": 0}, '.repeat(100)}{"name": "b", "instance_id": 1}]}`;
  const tail = described(json);
  const scanner = new TailScanner({ maxBytes: 1000 });
  scanner.push(tail.subarray(0, 6 + 1000));
  t.equal(scanner.tooLong, undefined, 'it may be something else yet');
  scanner.push(tail.subarray(6 + 1000, 6 + 1001));
  t.equal(scanner.tooLong, json.length);
  t.equal(scanner.push(tail.subarray(6 + 1001)), false);
  t.equal(scanner.json, undefined);
  const finder = new TailEndFinder(1000);
  finder.push(tail);
  finder.push(Buffer.alloc(10));
  t.match(finder.end(true), { bytes: tail.length, tooLong: json.length, description: undefined });
  t.end();
});

t.test('sums are those of the plain way, over JSON.parse()', (t) => {
  const random = new Random(7);
  const pick = <T>(...values: T[]): T => values[random.below(values.length)];
  const count = (): unknown => pick<unknown>(1, 2, 300, 0, -1, 1.5, '1', 2 ** 53, null, [1], {}, true, 1e3);
  const pairs = (...all: [string, () => unknown][]): string =>
    `{${all
      .filter(() => random.below(12) > 0)
      .flatMap((pair) => (random.below(12) === 0 ? [pair, pair] : [pair]))
      .map(([key, value]) => `"${key}": ${String(value())}`)
      .join(', ')}}`;
  const number = (): unknown => (random.below(6) > 0 ? random.below(1000) : JSON.stringify(count()));
  const list = (one: () => unknown) => (): unknown =>
    random.below(15) > 0
      ? `[${Array.from({ length: random.below(4) }, one).join(', ')}]`
      : pick('7', 'null', '{}', '"a"', '[1]', '[[]]');
  const name = (): string =>
    pick('"a"', '"\\u00fcb"', '"\u00fcb"', '"\\"\\\\"', '"s/virtio-mem-device-early"');
  const field = (): unknown =>
    pairs(['size', number], ...pick<[string, () => unknown][]>([], [['array_len', number]]));
  const state = (depth: number): [string, () => unknown][] => [
    ['version', number],
    ['fields', list(field)],
    ...(depth < 3
      ? ([['subsections', list(() => pairs(['vmsd_name', name], ...state(depth + 1)))]] as [
          string,
          () => unknown,
        ][])
      : []),
  ];
  let good = 0;
  for (let round = 0; round < 5000; round++) {
    const json = pairs(
      ['page_size', number],
      ['devices', list(() => pairs(['name', name], ['instance_id', number], ...state(0)))],
    );
    const expected = plainDescription(json);
    let received: VmDescription | undefined;
    try {
      received = parseVmDescription(Buffer.from(json));
      good++;
    } catch {
      // None.
    }
    if (JSON.stringify(received) !== JSON.stringify(expected))
      t.fail(`${JSON.stringify(received)} of ${json}`);
    const scanner = new TailScanner({ keepJson: false });
    if (scanner.push(described(json)) !== (expected !== undefined)) t.fail(`${scanner.complete} of ${json}`);
  }
  t.ok(good > 1000, `${good} were descriptions`);
  t.end();
});

/** As it is told in vm-description.ts, with all of it in memory. */
function plainDescription(json: string): VmDescription | undefined {
  type Any = Record<string, unknown> | undefined;
  const isObject = (value: unknown): value is Record<string, unknown> =>
    typeof value === 'object' && value !== null && !Array.isArray(value);
  const count = (value: unknown): number =>
    Number.isSafeInteger(value) && (value as number) >= 0 ? (value as number) : NaN;
  const list = (value: unknown): Any[] =>
    Array.isArray(value) ? value.map((one: unknown) => (isObject(one) ? one : undefined)) : [];
  const bytesOf = (state: Any): number => {
    const fields = list(state?.fields).map(
      (field) =>
        count(field?.size) * (field !== undefined && 'array_len' in field ? count(field.array_len) : 1),
    );
    const subsections = list(state?.subsections).map((one) =>
      typeof one?.vmsd_name === 'string' ? 6 + Buffer.byteLength(one.vmsd_name) + bytesOf(one) : NaN,
    );
    const sum = [...fields, ...subsections].reduce((all, one) => all + one, 0);
    return Number.isSafeInteger(sum) ? sum : NaN;
  };
  const all = JSON.parse(json) as { page_size?: unknown; devices?: unknown };
  if (!Array.isArray(all.devices)) return undefined;
  const defined = (key: string, value: number): object => (Number.isNaN(value) ? {} : { [key]: value });
  const devices = list(all.devices).map((device) => ({
    name: device?.name as string,
    instanceId: count(device?.instance_id),
    ...defined('version', count(device?.version)),
    ...defined('bytes', bytesOf(device)),
  }));
  if (devices.some((one) => typeof one.name !== 'string' || Number.isNaN(one.instanceId))) return undefined;
  return { ...defined('pageSize', count(all.page_size)), devices };
}
