import t from 'tap';
import { ByteReader } from '../../src/stream/byte-reader.js';
import { STREAM_ERRORS, type StreamError } from '../../src/stream/codes.js';
import { MainStreamReader } from '../../src/stream/main-stream.js';
import { commandName } from '../../src/stream/names.js';
import { FileSource } from '../../src/stream/positioned-file.js';
import type { MainItem } from '../../src/stream/records.js';
import { Random } from '../support/random.js';
import { within } from '../support/within.js';
import {
  CAPTURED_BLOCKS,
  MAIN_CAPTURES,
  MemoryFile,
  chunked,
  hex,
  ofKind,
  parse,
  rawOf,
  readMain,
} from './support.js';

const PAGE = 4096;

const HEADER = "'QEVM' 00000003";
const CONFIGURATION = "07 00000009 'machine-1'";
const START = "01 00000007 03 'ram' 00000000 00000004";
/** One block of four pages, `a`. */
const MEM_SIZE = "0000000000004004 01 'a' 0000000000004000";
const FLUSH = '0000000000000200';
const EOS = '0000000000000010';
const FOOTER = '7e 00000007';
const PART = '02 00000007';
const END = '03 00000007';
const SETUP = `${HEADER} ${CONFIGURATION} ${START} ${MEM_SIZE} ${FLUSH} ${EOS} ${FOOTER}`;
const FINISH = `${END} ${FLUSH} ${EOS} ${FOOTER}`;
const TAIL = "04 00000000 'whatever' 00";

/** Items without their bytes. */
function fieldsOf(items: readonly MainItem[]): Record<string, unknown>[] {
  return items.map(({ raw: _raw, ...rest }) => ({
    ...rest,
    data: 'data' in rest ? rest.data.toString('hex') : undefined,
  }));
}

t.test('every main capture has the records of its table, and its bytes are all there', async (t) => {
  for (const [name, eos, flush, zero, size] of MAIN_CAPTURES) {
    const bytes = readMain(name);
    t.equal(bytes.length, size, name);
    const items = await parse(bytes);
    t.equal(ofKind(items, 'eos').length, eos, `${name}: EOS`);
    t.equal(ofKind(items, 'flush').length, flush, `${name}: FLUSH`);
    t.equal(
      ofKind(items, 'zero').reduce((sum, { offsets }) => sum + offsets.length, 0),
      zero,
      `${name}: ZERO`,
    );
    t.equal(ofKind(items, 'page').length, 0);
    t.ok(rawOf(items).equals(bytes), `${name}: raw`);
    let at = 0;
    for (const item of items) {
      t.equal(item.at, at);
      at += item.raw.length;
    }
    const [memSize] = ofKind(items, 'mem-size');
    t.equal(memSize.total, 4530176);
    t.same(
      memSize.blocks,
      CAPTURED_BLOCKS.map(([block, usedLength]) => ({ name: block, usedLength })),
    );
    const [configuration] = ofKind(items, 'configuration');
    const is72 = name.startsWith('q72') || name.endsWith('machine72');
    t.same(configuration.configuration, { machine: is72 ? 'pc-i440fx-7.2' : 'pc-i440fx-10.0' });
    t.same(
      ofKind(items, 'command').map(({ command, data }) => [command, data.length]),
      is72 ? [] : [[11, 0]],
    );
    t.same(
      ofKind(items, 'section').map(({ section }) => section),
      ['start', 'part', 'end'],
    );
    const syncs = [...ofKind(items, 'eos'), ...ofKind(items, 'flush')].filter(({ sync }) => sync);
    t.equal(syncs.length, 3, `${name}: as many sync points as SYNC packets on each channel`);
    // The first device section.
    t.equal(ofKind(items, 'tail')[0].raw.toString('latin1', 6, 11), 'timer');
  }
});

t.test('what the reader knows of a stream, and when', async (t) => {
  for (const [name, marker, sectionId] of [
    ['q100-none', 'flush', 1],
    ['q72-none', 'eos', 2],
  ] as const) {
    const stream = new MainStreamReader(new ByteReader(chunked(readMain(name))));
    t.equal(stream.configuration, undefined);
    t.equal(stream.marker, undefined);
    while ((await stream.next())?.kind !== 'eos');
    t.equal(stream.marker, marker);
    t.equal(stream.sectionId, sectionId);
    t.equal(stream.blocks.length, 6);
    t.equal(stream.pageSize, PAGE);
    t.equal(stream.mappedRam, false);
    t.equal(stream.inTail, false);
    await stream.next();
    t.equal(stream.footers, true);
    while ((await stream.next())?.kind !== 'tail');
    t.equal(stream.inTail, true);
    while ((await stream.next()) !== undefined);
    t.equal(await stream.next(), undefined, 'the end stays the end');
  }
});

t.test('a stream written by hand has all kinds of items', async (t) => {
  const page = Buffer.alloc(PAGE, 0x5a);
  const bytes = Buffer.concat([
    hex(`${HEADER} ${CONFIGURATION} 08 0001 0000 08 0002 0004 00000001 ${START}`),
    hex(`0000000000006004 01 'a' 0000000000004000 02 'bb' 0000000000002000 ${FLUSH} ${EOS} ${FOOTER}`),
    hex(`${PART} 0000000000000002 01 'a' 00  0000000000001022 00  0000000000003022 00`),
    hex("0000000000001002 02 'bb' 00"),
    hex(`0000000000000028`),
    page,
    hex("0000000000002008 01 'a'"),
    page,
    hex(`${EOS} ${FOOTER} 08 000b 0000 08 1234 0003 010203`),
    hex(`${END} 0000000000001022 00 ${FLUSH} ${FLUSH} ${EOS} ${FOOTER} ${TAIL}`),
  ]);
  const items = await parse(bytes);
  t.ok(rawOf(items).equals(bytes));
  t.match(fieldsOf(items), [
    { kind: 'header', at: 0 },
    { kind: 'configuration', at: 8, configuration: { machine: 'machine-1' } },
    { kind: 'command', at: 22, command: 1, data: '' },
    { kind: 'command', command: 2, data: '00000001' },
    { kind: 'section', section: 'start', sectionId: 7 },
    {
      kind: 'mem-size',
      total: 0x6000,
      blocks: [
        { name: 'a', usedLength: 0x4000 },
        { name: 'bb', usedLength: 0x2000 },
      ],
    },
    { kind: 'flush', sync: true },
    { kind: 'eos', section: 'start', sync: false },
    { kind: 'footer', sectionId: 7 },
    { kind: 'section', section: 'part', sectionId: 7 },
    { kind: 'zero', block: 'a', offsets: [0, 0x1000, 0x3000], continued: false },
    { kind: 'zero', block: 'bb', offsets: [0x1000], continued: false },
    { kind: 'page', block: 'bb', offset: 0, continued: true, data: page.toString('hex') },
    { kind: 'page', block: 'a', offset: 0x2000, continued: false, data: page.toString('hex') },
    { kind: 'eos', section: 'part', sync: false },
    { kind: 'footer' },
    { kind: 'command', command: 11, data: '' },
    { kind: 'command', command: 0x1234, data: '010203' },
    { kind: 'section', section: 'end' },
    { kind: 'zero', block: 'a', offsets: [0x1000], continued: true },
    { kind: 'flush', sync: true },
    { kind: 'flush', sync: true },
    { kind: 'eos', section: 'end' },
    { kind: 'footer' },
    { kind: 'tail' },
  ]);
  t.equal(items.length, 25);
});

/** Items, with rows of ZERO records cut into single ones and the tail joined: what cutting must not change. */
function normalised(items: readonly MainItem[]): unknown[] {
  const all: unknown[] = [];
  const tail: Buffer[] = [];
  for (const item of items) {
    if (item.kind === 'tail') tail.push(item.raw);
    else if (item.kind === 'zero') {
      for (const [i, offset] of item.offsets.entries())
        all.push([item.block, offset, item.continued || i > 0]);
    } else all.push({ ...item, raw: item.raw.toString('hex') });
  }
  return [...all, Buffer.concat(tail).toString('latin1')];
}

t.test('a stream gives the same items when it is cut at any byte', async (t) => {
  const zeros = "0000000000000002 01 'a' 00  0000000000001022 00  0000000000002022 00";
  const bytes = Buffer.concat([
    hex(`${SETUP} 08 0002 0004 00000001 ${PART} ${zeros} 0000000000000008 01 'a'`),
    Buffer.alloc(PAGE, 1),
    hex(`${EOS} ${FOOTER} ${FINISH} ${TAIL}`),
  ]);
  const expected = JSON.stringify(normalised(await parse(bytes)));
  const page = bytes.indexOf(Buffer.alloc(PAGE, 1));
  for (let at = 1; at < bytes.length; at++) {
    // Within the page one byte is as good as another.
    if (at === page + 10) at = page + PAGE - 10;
    const items = await parse(bytes, [at, bytes.length]);
    if (!rawOf(items).equals(bytes) || JSON.stringify(normalised(items)) !== expected) t.fail(`cut at ${at}`);
  }
  const single = await parse(bytes, [1]);
  t.equal(JSON.stringify(normalised(single)), expected, 'byte by byte');
  t.ok(rawOf(single).equals(bytes));
});

t.test('captures give the same items in chunks of any size', async (t) => {
  const random = new Random(3);
  for (const name of ['q100-none-legacyzero', 'q72-none']) {
    const bytes = readMain(name);
    const expected = JSON.stringify(normalised(await parse(bytes)));
    for (const largest of [1, 20, 5000]) {
      const sizes = Array.from({ length: 30000 }, () => 1 + random.below(largest));
      const items = await parse(bytes, [...sizes, 1000]);
      t.equal(JSON.stringify(normalised(items)), expected, `${name}, up to ${largest} bytes`);
      t.ok(rawOf(items).equals(bytes));
    }
  }
});

t.test(
  'an end before the footer of END is an error wherever it comes, and one after it is none',
  async (t) => {
    const zeros = "0000000000000002 01 'a' 00  0000000000001022 00";
    const bytes = hex(`${SETUP} ${PART} ${zeros} ${EOS} ${FOOTER} 08 0002 0004 00000001 ${FINISH}`);
    for (let length = 0; length < bytes.length; length++) {
      await t.rejects(parse(bytes.subarray(0, length)), {
        code: STREAM_ERRORS.eof,
        message: new RegExp(`^main stream ended at byte ${length}, in `),
      });
    }
    t.equal((await parse(bytes)).at(-1)?.kind, 'footer');
  },
);

t.test('the configuration may have subsections', async (t) => {
  const uuid = '00112233445566778899aabbccddeeff';
  const subsections = `
    05 1e 'configuration/target-page-bits' 00000001 0000000e
    05 1a 'configuration/capabilities' 00000001 00000002 0f 'x-ignore-shared' 03 'foo'
    05 12 'configuration/uuid' 00000001 ${uuid}`;
  const memSize = "0000000000008004 01 'a' 0000000000008000 fffffffffffff000";
  const bytes = hex(
    `${HEADER} ${CONFIGURATION} ${subsections} ${START} ${memSize} ${EOS} ${FOOTER} ${FINISH}`,
  );
  const stream = new MainStreamReader(new ByteReader(chunked(bytes, 3)));
  const items: MainItem[] = [];
  for (let item = await stream.next(); item; item = await stream.next()) items.push(item);
  t.same(stream.configuration, {
    machine: 'machine-1',
    targetPageBits: 14,
    capabilities: ['x-ignore-shared', 'foo'],
    uuid: hex(uuid),
  });
  t.equal(stream.pageSize, 16384);
  t.same(stream.blocks, [{ name: 'a', usedLength: 0x8000, address: 0xfffffffffffff000n }]);
  t.ok(rawOf(items).equals(bytes));
});

t.test('a machine may send no configuration, and no footers', async (t) => {
  const bare = `${HEADER} ${START} ${MEM_SIZE} ${EOS} ${PART} ${EOS} ${END} ${EOS}`;
  for (const tail of ['', '7e', TAIL]) {
    const bytes = hex(`${bare} ${tail}`);
    const stream = new MainStreamReader(new ByteReader(chunked(bytes)));
    const items: MainItem[] = [];
    for (let item = await stream.next(); item; item = await stream.next()) items.push(item);
    t.equal(stream.configuration, undefined);
    t.equal(stream.footers, false);
    t.equal(ofKind(items, 'eos').filter(({ sync }) => sync).length, 3, 'EOS is the marker');
    t.ok(Buffer.concat(ofKind(items, 'tail').map(({ raw }) => raw)).equals(hex(tail)));
  }
});

t.test('a host page size shows itself, in the middle of the list and at its end', async (t) => {
  const list = `0000000000403004 01 'a' 0000000000200000 0000000000200000
    01 'b' 0000000000001000  01 'c' 0000000000200000 0000000000200000  01 'd' 0000000000002000 0000000000001000`;
  const bytes = hex(`${HEADER} ${START} ${list} ${FLUSH} ${EOS} ${FOOTER} ${FINISH}`);
  for (const size of [1, 1000]) {
    const items = await parse(bytes, [size]);
    t.same(ofKind(items, 'mem-size')[0].blocks, [
      { name: 'a', usedLength: 0x200000, hostPageSize: 0x200000 },
      { name: 'b', usedLength: 0x1000 },
      { name: 'c', usedLength: 0x200000, hostPageSize: 0x200000 },
      { name: 'd', usedLength: 0x2000, hostPageSize: 0x1000 },
    ]);
    t.ok(rawOf(items).equals(bytes));
  }
});

/** Gives what push() has brought, and waits for more. */
function trickle(): { read: () => Promise<Buffer | null>; push(bytes: Buffer): void } {
  const chunks: Buffer[] = [];
  let wake: (() => void) | undefined;
  return {
    read: async () => {
      while (chunks.length === 0) await new Promise<void>((resolve) => (wake = resolve));
      return chunks.shift() ?? null;
    },
    push: (bytes) => {
      chunks.push(bytes);
      wake?.();
    },
  };
}

t.test('an item comes out with its last byte: who sends it may hold back the next one', async (t) => {
  const named = "0000000000201004 01 'a' 0000000000200000 0000000000200000 01 'b' 0000000000001000";
  const huge = "0000000000200004 01 'a' 0000000000200000";
  const shared = "0000000000001004 01 'a' 0000000000001000 00000000fffc0000";
  const ignoring = "05 1a 'configuration/capabilities' 00000001 00000001 0f 'x-ignore-shared'";
  const finish = [END, FLUSH, EOS, FOOTER, "04 00000000 'what'", 'ff'];
  // What a configuration has shows by the byte behind it.
  const streams: Record<string, string[]> = {
    'a block list': [HEADER, `${CONFIGURATION} 08`, '0001 0000', START, MEM_SIZE, FLUSH, EOS, FOOTER],
    'a block list with a page size at its end': [HEADER, START, huge, '0000000000200000', EOS, FOOTER],
    'a block list with a page size before its end': [HEADER, START, named, FLUSH, EOS, FOOTER],
    'addresses, and no footer': [HEADER, `${CONFIGURATION} ${ignoring} 01`, START.slice(2), shared, EOS],
    'no footer': [HEADER, START, MEM_SIZE, FLUSH, EOS, PART, "0000000000000002 01 'a' 00", EOS],
    'rows, and a page': [HEADER, START, MEM_SIZE, EOS, FOOTER, PART, "0000000000001002 01 'a' 00"].concat([
      '0000000000000022 00',
      `0000000000000028 ${'5a'.repeat(PAGE)}`,
      FLUSH,
      EOS,
      FOOTER,
    ]),
  };
  for (const [what, pieces] of Object.entries(streams)) {
    const source = trickle();
    const stream = new MainStreamReader(new ByteReader(source.read));
    const footers = pieces.includes(FOOTER);
    let sent = 0;
    for (const piece of [...pieces, ...finish.filter((one) => footers || one !== FOOTER)]) {
      const bytes = hex(piece);
      sent += bytes.length;
      source.push(bytes);
      const item = await within(stream.next(), 5000, `${what}: the item of ${piece.slice(0, 60)}`);
      const end = (item?.at ?? 0) + (item?.raw.length ?? 0);
      t.equal(end, item?.kind === 'configuration' ? sent - 1 : sent, what);
    }
  }
});

t.test('hundreds of thousands of ZERO records come in long rows', async (t) => {
  const count = 300000;
  const zeros = Buffer.alloc(9 * count);
  for (let i = 0; i < count; i++) zeros.writeUIntBE(i * PAGE + 0x22, 9 * i + 2, 6);
  const bytes = Buffer.concat([
    hex(`${HEADER} ${START} 0000000080000004 01 'a' 0000000080000000 ${EOS} ${FOOTER} ${PART}`),
    hex("0000000000000002 01 'a' 00"),
    zeros,
    hex(`${EOS} ${FOOTER} ${FINISH}`),
  ]);
  const items = ofKind(await parse(bytes, [65536]), 'zero');
  const offsets = items.flatMap((item) => item.offsets);
  t.equal(offsets.length, count + 1);
  t.ok(offsets.slice(1).every((offset, i) => offset === i * PAGE));
  t.ok(items.length < 100, `${items.length} items`);
  t.ok(items.every((item) => item.offsets.length <= 8192));
  t.ok(items.every((item) => item.offsets.length === (item.raw.length - (item.continued ? 0 : 2)) / 9));
});

t.test('a row of ZERO records ends before one that is wrong, and that one is refused', async (t) => {
  const row = "0000000000000002 01 'a' 00  0000000000001022 00";
  const at = hex(`${SETUP} ${PART} ${row}`).length;
  for (const [next, message] of [
    ['0000000000004022 00', /address in "a": received 16384, expected at most 12288/],
    ['0000000000001022 01', /fill of a ZERO record: received 1, expected 0/],
    ['0000000000001062 00', /flags 0x062 \(ZERO \| CONTINUE \| XBZRLE\)/],
  ] as const) {
    const stream = new MainStreamReader(new ByteReader(chunked(hex(`${SETUP} ${PART} ${row} ${next}`))));
    let item = await stream.next();
    while (item?.kind !== 'zero') item = await stream.next();
    t.same(item.offsets, [0, 0x1000]);
    await t.rejects(stream.next(), { message });
    await t.rejects(
      parse(hex(`${SETUP} ${PART} ${row} ${next}`)),
      { message: new RegExp(`^main stream at byte ${at}: `) },
      'the error names the byte',
    );
  }
});

interface Refusal {
  what: string;
  bytes: string;
  error: StreamError;
  message: RegExp;
}

const PAGES = `${SETUP} ${PART}`;
const REFUSALS: Refusal[] = [
  {
    what: 'another magic',
    bytes: "'QEVN' 00000003",
    error: 'magic',
    message: /byte 0: magic: received 0x5145564e, expected 0x5145564d/,
  },
  {
    what: "a channel's magic",
    bytes: '11223344 00000001',
    error: 'magic',
    message: /received 0x11223344/,
  },
  {
    what: 'version 2',
    bytes: "'QEVM' 00000002",
    error: 'magic',
    message: /byte 4: version: received 2, expected 3/,
  },
  {
    what: 'a machine name without bytes',
    bytes: `${HEADER} 07 00000000`,
    error: 'limit',
    message: /byte 9: bytes of the machine name: received 0, expected 1 to 255/,
  },
  {
    what: 'a machine name of 256 bytes',
    bytes: `${HEADER} 07 00000100`,
    error: 'limit',
    message: /received 256, expected 1 to 255/,
  },
  {
    what: 'a machine name that a terminal would act on',
    bytes: `${HEADER} 07 00000003 1b 5b 4a`,
    error: 'format',
    message: /machine name: received 0x1b5b4a, expected printable ASCII/,
  },
  {
    what: 'a subsection that is not known',
    bytes: `${HEADER} ${CONFIGURATION} 05 11 'configuration/foo' 00000001`,
    error: 'unsupported',
    message:
      /byte 22: configuration subsection: received "configuration\/foo", expected configuration\/target/,
  },
  {
    what: 'a subsection a second time',
    bytes: `${HEADER} ${CONFIGURATION} 05 1a 'configuration/capabilities' 00000001 00000000
            05 1a 'configuration/capabilities' 00000001 00000000`,
    error: 'unsupported',
    message: /received "configuration\/capabilities", expected configuration\/uuid$/,
  },
  {
    what: 'a subsection after the last one',
    bytes: `${HEADER} ${CONFIGURATION} 05 12 'configuration/uuid' 00000001 00112233445566778899aabbccddeeff
            05 12 'configuration/uuid' 00000001 00112233445566778899aabbccddeeff`,
    error: 'unsupported',
    message: /expected no further one/,
  },
  {
    what: "a subsection's version 2",
    bytes: `${HEADER} ${CONFIGURATION} 05 12 'configuration/uuid' 00000002`,
    error: 'unsupported',
    message: /version of configuration\/uuid: received 2, expected 1/,
  },
  {
    what: 'pages of 2 KiB',
    bytes: `${HEADER} ${CONFIGURATION} 05 1e 'configuration/target-page-bits' 00000001 0000000b`,
    error: 'pageSize',
    message: /target page bits: received 11, expected 12 to 16/,
  },
  {
    what: 'pages of 128 KiB',
    bytes: `${HEADER} ${CONFIGURATION} 05 1e 'configuration/target-page-bits' 00000001 00000011`,
    error: 'pageSize',
    message: /received 17/,
  },
  {
    what: '65 capabilities',
    bytes: `${HEADER} ${CONFIGURATION} 05 1a 'configuration/capabilities' 00000001 00000041`,
    error: 'limit',
    message: /number of capabilities: received 65, expected at most 64/,
  },
  {
    what: 'a capability without a name',
    bytes: `${HEADER} ${CONFIGURATION} 05 1a 'configuration/capabilities' 00000001 00000001 00`,
    error: 'format',
    message: /name of a capability: received no bytes, expected printable ASCII/,
  },
  {
    what: 'mapped-ram on a connection',
    bytes: `${HEADER} ${CONFIGURATION} 05 1a 'configuration/capabilities' 00000001 00000001 0a 'mapped-ram'`,
    error: 'unsupported',
    message: /byte 8: capability mapped-ram: received on, on a connection, expected off, or a file/,
  },
  {
    what: 'a second configuration',
    bytes: `${HEADER} ${CONFIGURATION} ${CONFIGURATION}`,
    error: 'format',
    message: /byte 22: section: received CONFIGURATION, expected COMMAND, or a section of ram/,
  },
  {
    what: 'EOF before ram',
    bytes: `${HEADER} ${CONFIGURATION} 00`,
    error: 'format',
    message: /section: received EOF/,
  },
  {
    what: 'a VM description before ram',
    bytes: `${HEADER} 06`,
    error: 'format',
    message: /section: received VMDESCRIPTION/,
  },
  {
    what: 'a section type that is not known',
    bytes: `${HEADER} 2a`,
    error: 'format',
    message: /section: received 0x2a/,
  },
  {
    what: 'START of another live section',
    bytes: `${HEADER} 01 00000003 05 'block' 00000000 00000001`,
    error: 'unsupported',
    message: /section before ram's END: received START of "block" 0, expected START of "ram" 0, or one of /,
  },
  {
    what: 'FULL of an early device',
    bytes: `${HEADER} 04 00000003 03 'dev' 00000002 00000001`,
    error: 'unsupported',
    message: /received FULL of "dev" 2, expected START of "ram" 0/,
  },
  {
    what: 'FULL of ram',
    bytes: `${HEADER} 04 00000007 03 'ram' 00000000 00000004`,
    error: 'unsupported',
    message: /received FULL of "ram" 0/,
  },
  {
    what: 'a device between the sections of ram',
    bytes: `${SETUP} 04 00000003 03 1b5b4a 00000000 00000001`,
    error: 'unsupported',
    message: /received FULL of "\\x1b\[J" 0/,
  },
  {
    what: 'another instance of ram',
    bytes: `${HEADER} 01 00000007 03 'ram' 00000001 00000004`,
    error: 'unsupported',
    message: /received START of "ram" 1/,
  },
  {
    what: 'version 3 of ram',
    bytes: `${HEADER} 01 00000007 03 'ram' 00000000 00000003`,
    error: 'unsupported',
    message: /version of section ram: received 3, expected 4/,
  },
  {
    what: 'a second START',
    bytes: `${SETUP} ${START}`,
    error: 'format',
    message: /received a second START of ram, expected PART or END/,
  },
  { what: 'PART before START', bytes: `${HEADER} ${PART}`, error: 'format', message: /received PART of 7/ },
  { what: 'END before START', bytes: `${HEADER} ${END}`, error: 'format', message: /received END of 7/ },
  {
    what: 'PART of another section',
    bytes: `${SETUP} 02 00000008`,
    error: 'unsupported',
    message: /section id of PART: received 8, expected 7/,
  },
  {
    what: "a footer's other id",
    bytes: `${HEADER} ${START} ${MEM_SIZE} ${EOS} 7e 00000008`,
    error: 'format',
    message: /section id of a footer: received 8, expected 7/,
  },
  {
    what: 'a footer that is missing when START had one',
    bytes: `${SETUP} ${PART} ${EOS} ${END}`,
    error: 'format',
    message: /end of a section: received END, expected its footer/,
  },
  {
    what: 'a footer when START had none',
    bytes: `${HEADER} ${START} ${MEM_SIZE} ${EOS} ${PART} ${EOS} ${FOOTER}`,
    error: 'format',
    message: /section: received FOOTER/,
  },
  {
    what: 'PACKAGED',
    bytes: `${HEADER} 08 0007 0004 00000000`,
    error: 'unsupported',
    message: /command: received PACKAGED, expected no postcopy/,
  },
  {
    what: 'LISTEN',
    bytes: `${SETUP} 08 0004 0000`,
    error: 'unsupported',
    message: /received POSTCOPY_LISTEN/,
  },
  { what: 'COLO', bytes: `${HEADER} 08 0008 0000`, error: 'unsupported', message: /received ENABLE_COLO/ },
  {
    what: 'RECV_BITMAP',
    bytes: `${HEADER} 08 000a 0000`,
    error: 'unsupported',
    message: /received RECV_BITMAP/,
  },
  {
    what: 'a PING of 3 bytes',
    bytes: `${HEADER} 08 0002 0003 000000`,
    error: 'format',
    message: /bytes of command PING: received 3, expected 4/,
  },
  {
    what: 'SWITCHOVER_START with data',
    bytes: `${SETUP} 08 000b 0001 00`,
    error: 'format',
    message: /bytes of command SWITCHOVER_START: received 1, expected 0/,
  },
  {
    what: 'a START without block list',
    bytes: `${HEADER} ${START} ${EOS}`,
    error: 'format',
    message: /first record of ram: received flags 0x010 \(EOS\), expected MEM_SIZE/,
  },
  {
    what: 'a second block list',
    bytes: `${PAGES} ${MEM_SIZE}`,
    error: 'format',
    message: /received a second MEM_SIZE/,
  },
  {
    what: 'no RAM at all',
    bytes: `${HEADER} ${START} 0000000000000004`,
    error: 'limit',
    message: /RAM in all: received 0,/,
  },
  {
    what: 'RAM of more than 2^32 pages',
    bytes: `${HEADER} ${START} 0000100000001004`,
    error: 'limit',
    message: /RAM in all: received 17592186048512, expected a multiple of 4096, 1 to 4294967296 pages/,
  },
  {
    what: 'RAM of 2^64 - 1 page',
    bytes: `${HEADER} ${START} fffffffffffff004`,
    error: 'limit',
    message: /RAM in all/,
  },
  {
    what: 'a block without a name',
    bytes: `${HEADER} ${START} 0000000000004004 00`,
    error: 'format',
    message: /name of a RAM block: received no bytes/,
  },
  {
    what: 'a block with a name that is no text',
    bytes: `${HEADER} ${START} 0000000000004004 01 07`,
    error: 'format',
    message: /name of a RAM block: received 0x07, expected printable ASCII/,
  },
  {
    what: 'a block of no bytes',
    bytes: `${HEADER} ${START} 0000000000004004 01 'a' 0000000000000000`,
    error: 'format',
    message: /RAM block "a": used_length: received 0, expected a multiple of 4096, 1 to 16384/,
  },
  {
    what: 'a block of half a page',
    bytes: `${HEADER} ${START} 0000000000004004 01 'a' 0000000000000800`,
    error: 'format',
    message: /used_length: received 2048/,
  },
  {
    what: 'a block larger than all RAM',
    bytes: `${HEADER} ${START} 0000000000004004 01 'a' 0000000000005000`,
    error: 'format',
    message: /used_length: received 20480/,
  },
  {
    what: 'a block of 2^63 bytes',
    bytes: `${HEADER} ${START} 0000000000004004 01 'a' 8000000000000000`,
    error: 'limit',
    message: /used_length: received 0x8000000000000000, expected at most 2\^53 - 1/,
  },
  {
    what: 'two blocks of one name',
    bytes: `${HEADER} ${START} 0000000000004004 01 'a' 0000000000001000 01 'a' 0000000000003000`,
    error: 'format',
    message: /RAM block "a": received a second one of this name/,
  },
  {
    what: 'a host page size that is no power of two',
    bytes: `${HEADER} ${START} ${MEM_SIZE} 0000000000003000`,
    error: 'format',
    message: /RAM block "a": page_size: received 12288, expected a power of two, at least 4096/,
  },
  {
    what: 'a record with a block that is not known',
    bytes: `${PAGES} 0000000000000002 01 'b' 00`,
    error: 'block',
    message: /block of a record: received "b", expected a block of the block list/,
  },
  {
    what: 'a record with an empty block id',
    bytes: `${PAGES} 0000000000000008 00`,
    error: 'block',
    message: /received ""/,
  },
  {
    what: 'CONTINUE before any block',
    bytes: `${PAGES} 0000000000000022 00`,
    error: 'block',
    message: /received CONTINUE, expected a name: no block has been named yet/,
  },
  { what: 'PAGE with CONTINUE', bytes: `${PAGES} 0000000000000028`, error: 'block', message: /CONTINUE/ },
  {
    what: 'a ZERO record behind its block',
    bytes: `${PAGES} 0000000000004002 01 'a' 00`,
    error: 'offset',
    message: /address in "a": received 16384, expected at most 12288/,
  },
  {
    what: 'a PAGE record behind its block',
    bytes: `${PAGES} 0000000000004008 01 'a'`,
    error: 'offset',
    message: /received 16384/,
  },
  {
    what: 'an address above 2^53',
    bytes: `${PAGES} fffffffffffff008 01 'a'`,
    error: 'offset',
    message: /received 18446744073709548000/,
  },
  {
    what: 'a ZERO record that fills with 1',
    bytes: `${PAGES} 0000000000001002 01 'a' 01`,
    error: 'format',
    message: /fill of a ZERO record: received 1, expected 0/,
  },
  {
    what: 'XBZRLE',
    bytes: `${PAGES} 0000000000001040 01 'a' 01 0001 00`,
    error: 'unsupported',
    message: /flags 0x040 \(XBZRLE\)/,
  },
  {
    what: 'XBZRLE with CONTINUE',
    bytes: `${PAGES} 0000000000001060`,
    error: 'unsupported',
    message: /flags 0x060 \(CONTINUE \| XBZRLE\)/,
  },
  {
    what: 'COMPRESS_PAGE',
    bytes: `${PAGES} 0000000000001100 01 'a' 00000001 00`,
    error: 'unsupported',
    message: /flags 0x100 \(COMPRESS_PAGE\)/,
  },
  { what: 'HOOK', bytes: `${PAGES} 0000000000000080`, error: 'unsupported', message: /flags 0x080 \(HOOK\)/ },
  { what: 'no flags', bytes: `${PAGES} 0000000000001000`, error: 'format', message: /flags 0x000, expected/ },
  { what: 'flags not known', bytes: `${PAGES} 0000000000000401`, error: 'format', message: /flags 0x401/ },
  {
    what: 'two records in one',
    bytes: `${PAGES} 000000000000000a`,
    error: 'format',
    message: /ZERO \| PAGE/,
  },
  {
    what: 'EOS with CONTINUE',
    bytes: `${PAGES} 0000000000000030`,
    error: 'format',
    message: /EOS \| CONTINUE/,
  },
  {
    what: 'EOS with an address',
    bytes: `${PAGES} 0000000000001010`,
    error: 'format',
    message: /address of EOS: received 4096, expected 0/,
  },
  {
    what: 'MULTIFD_FLUSH with an address',
    bytes: `${PAGES} 0000000100000200`,
    error: 'format',
    message: /address of MULTIFD_FLUSH: received 4294967296, expected 0/,
  },
];

for (const { what, bytes, error, message } of REFUSALS) {
  t.test(`refused: ${what}`, async (t) => {
    for (const size of [1, 1000]) {
      await t.rejects(parse(hex(bytes), [size]), { code: STREAM_ERRORS[error], message });
    }
    // What follows does not matter.
    await t.rejects(parse(Buffer.concat([hex(bytes), Buffer.alloc(100)])), { code: STREAM_ERRORS[error] });
  });
}

t.test('a list of 4096 blocks is read, and one more is refused', async (t) => {
  const listOf = (count: number): Buffer => {
    const total = Buffer.alloc(8);
    total.writeBigUInt64BE(BigInt(count * PAGE + 4));
    const entry = (i: number): Buffer => {
      const name = `/objects/${'x'.repeat(238)}-${i.toString().padStart(5, '0')}`;
      return Buffer.concat([Buffer.of(name.length), Buffer.from(name), hex('0000000000001000')]);
    };
    return Buffer.concat([total, ...Array.from({ length: count }, (_, i) => entry(i))]);
  };
  const around = (list: Buffer): Buffer =>
    Buffer.concat([hex(`${HEADER} ${START}`), list, hex(`${EOS} ${FOOTER} ${FINISH}`)]);
  const bytes = around(listOf(4096));
  const items = await parse(bytes, [100, 10000]);
  t.equal(ofKind(items, 'mem-size')[0].blocks.length, 4096);
  t.ok(rawOf(items).equals(bytes));
  await t.rejects(parse(around(listOf(4097))), {
    code: STREAM_ERRORS.limit,
    message: /RAM blocks: received more than 4096, expected at most 4096/,
  });
  // All of it is here at once.
  let turns = 0;
  let timer = setImmediate(function next() {
    turns++;
    timer = setImmediate(next);
  });
  await parse(bytes);
  clearImmediate(timer);
  t.ok(turns >= 30, `the event loop has turned ${turns} times meanwhile`);
});

t.test('the page size of the options is used where the stream has none', async (t) => {
  const pages = (size: number): Buffer =>
    Buffer.concat([
      hex(`${HEADER} ${START} 0000000000040004 01 'a' 0000000000040000 ${EOS} ${FOOTER} ${PART}`),
      hex("0000000000030008 01 'a'"),
      Buffer.alloc(size, 1),
      hex(`${EOS} ${FOOTER} ${FINISH}`),
    ]);
  const items = await parse(pages(65536), [1000], { pageSize: 65536 });
  t.equal(ofKind(items, 'page')[0].data.length, 65536);
  await t.rejects(parse(pages(4096), [1000], { pageSize: 65536 }), { code: STREAM_ERRORS.eof });
  for (const pageSize of [0, 2048, 4095, 131072, NaN]) {
    t.throws(() => new MainStreamReader(new ByteReader(chunked(Buffer.alloc(0))), { pageSize }), {
      code: STREAM_ERRORS.pageSize,
    });
  }
});

/** A mapped-ram file: header, entry of `a` at 0x5e, bitmap at 0x83, pages at 0x100000, then what is given. */
function mappedFile(header: string, after: string): MemoryFile {
  const capabilities = "05 1a 'configuration/capabilities' 00000001 00000001 0a 'mapped-ram'";
  const bytes = hex(`${HEADER} ${CONFIGURATION} ${capabilities} ${START} ${MEM_SIZE} ${header}`);
  const file = Buffer.alloc(0x104000);
  bytes.copy(file);
  return new MemoryFile(Buffer.concat([file, hex(after)]));
}
const MAPPED = '00000001 0000000000001000 00000000000000a0 0000000000100000';

async function parseFile(file: MemoryFile): Promise<MainItem[]> {
  const stream = new MainStreamReader(new ByteReader(new FileSource(file, 0)));
  const items: MainItem[] = [];
  for (let item = await stream.next(); item; item = await stream.next()) items.push(item);
  return items;
}

t.test('the stream of a mapped-ram file goes on behind the pages', async (t) => {
  const file = mappedFile(
    MAPPED,
    `${EOS} ${FOOTER} ${PART} ${EOS} ${FOOTER} ${END} ${EOS} ${FOOTER} ${TAIL}`,
  );
  const items = await parseFile(file);
  const [memSize] = ofKind(items, 'mem-size');
  t.same(memSize.blocks, [
    {
      name: 'a',
      usedLength: 0x4000,
      mapped: { version: 1, pageSize: 4096, bitmapOffset: 0xa0, pagesOffset: 0x100000 },
    },
  ]);
  t.equal(memSize.raw.toString('hex'), hex(`${MEM_SIZE} ${MAPPED}`).toString('hex'));
  t.ok(
    ofKind(items, 'eos').every(({ sync }) => !sync),
    'there are no sync points',
  );
  t.equal(ofKind(items, 'eos')[0].at, 0x104000);
  t.ok(ofKind(items, 'tail')[0].raw.equals(hex(TAIL)));
});

t.test('a mapped-ram file is refused for what is wrong in it', async (t) => {
  const rest = `${EOS} ${FOOTER}`;
  const cases: [what: string, header: string, after: string, error: StreamError, message: RegExp][] = [
    [
      'version 2',
      MAPPED.replace('00000001', '00000002'),
      rest,
      'unsupported',
      /RAM block "a": mapped-ram version: received 2, expected at most 1/,
    ],
    [
      'a page size that none has',
      MAPPED.replace('1000', '1800'),
      rest,
      'pageSize',
      /mapped-ram page_size: received 6144, expected 4096/,
    ],
    [
      'pages that are not aligned',
      MAPPED.replace('0000000000100000', '0000000000100800'),
      rest,
      'file',
      /pages_offset: received 1050624, expected a multiple of 4096/,
    ],
    [
      'pages before their header',
      MAPPED.replace('0000000000100000', '0000000000000000'),
      rest,
      'file',
      /pages_offset: received 0, expected at least 1/,
    ],
    [
      'pages at 2^53',
      MAPPED.replace('0000000000100000', '001ffffffffff000'),
      rest,
      'limit',
      /pages_offset: received 001ffffffffff000, expected less than 2\^53/,
    ],
    [
      'a bitmap at 2^64',
      MAPPED.replace('00000000000000a0', 'ffffffffffffffff'),
      rest,
      'limit',
      /bitmap_offset: received ffffffffffffffff/,
    ],
    [
      'pages behind the end of the file',
      MAPPED.replace('0000000000100000', '0000001000000000'),
      rest,
      'eof',
      /ended at byte 68719493120, in a record/,
    ],
    ['a ZERO record', MAPPED, "0000000000000002 01 'a' 00", 'format', /in a mapped-ram file: .*ZERO/],
    ['a PAGE record', MAPPED, "0000000000000008 01 'a'", 'format', /PAGE/],
    ['MULTIFD_FLUSH', MAPPED, FLUSH, 'format', /MULTIFD_FLUSH/],
  ];
  for (const [what, header, after, error, message] of cases) {
    await t.rejects(parseFile(mappedFile(header, after)), { code: STREAM_ERRORS[error], message }, what);
  }
});

t.test('commands have names', async (t) => {
  t.equal(commandName(11), 'SWITCHOVER_START');
  t.equal(commandName(4660), '4660');
});
