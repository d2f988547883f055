import t from 'tap';
import { STREAM_ERRORS } from '../../src/stream/codes.js';
import {
  MainStreamBuilder,
  type SocketStreamRules,
  encodeCommand,
  encodeItem,
  encodeZeroRecords,
  fileConfiguration,
  socketConfiguration,
  toFileStream,
  toSocketStream,
} from '../../src/stream/main-writer.js';
import type { MainItem } from '../../src/stream/records.js';
import { Random } from '../support/random.js';
import { MAIN_CAPTURES, chunked, collect, hex, ofKind, parse, readMain } from './support.js';
import { ByteReader } from '../../src/stream/byte-reader.js';
import { readMainStream } from '../../src/stream/main-stream.js';

const FLUSH: SocketStreamRules = { marker: 'flush', switchoverStart: true };
const EOS: SocketStreamRules = { marker: 'eos', switchoverStart: false };

t.test("every capture is encoded again byte for byte from its items' fields", async (t) => {
  const random = new Random(11);
  for (const [name] of MAIN_CAPTURES) {
    const bytes = readMain(name);
    const sizes = Array.from({ length: 500 }, () => 1 + random.below(2000));
    const items = await parse(bytes, sizes);
    const encoded = items.map(encodeItem);
    t.ok(Buffer.concat(encoded).equals(bytes), name);
    t.ok(
      items.every(({ raw }, i) => raw.equals(encoded[i])),
      `${name}, item by item`,
    );
  }
});

t.test('a stream with everything in it is encoded again byte for byte', async (t) => {
  const bytes = Buffer.concat([
    hex(`'QEVM' 00000003 07 00000009 'machine-1'
      05 1e 'configuration/target-page-bits' 00000001 0000000c
      05 1a 'configuration/capabilities' 00000001 00000000
      05 12 'configuration/uuid' 00000001 00112233445566778899aabbccddeeff
      08 0001 0000 08 0002 0004 00000001
      01 000000ff 03 'ram' 00000000 00000004
      0000000200001004 01 'a' 0000000000001000 01 'b' 0000000200000000 0000000000200000
      0000000000000200 0000000000000010 7e 000000ff
      02 000000ff 0000000000000002 01 'a' 00 0000000000000002 01 'b' 00 00000001fffff022 00 0000000000000022 00
      00000001fffff008 01 'b'`),
    Buffer.alloc(4096, 7),
    hex('00000001ffffe028'),
    Buffer.alloc(4096, 8),
    hex(`0000000000000010 7e 000000ff 08 7777 0002 abcd
      03 000000ff 0000000000000200 0000000000000010 7e 000000ff 00`),
  ]);
  const items = await parse(bytes, [50]);
  t.equal(Buffer.concat(items.map(encodeItem)).toString('hex'), bytes.toString('hex'));
});

t.test('ZERO records above 4 GiB, with and without a name', async (t) => {
  const offsets = [0xfffff000, 0x100000000, 0xffffffff000];
  t.equal(
    encodeZeroRecords('ab', offsets, false).toString('hex'),
    hex("00000000fffff002 02 'ab' 00 0000000100000022 00 00000ffffffff022 00").toString('hex'),
  );
  t.equal(
    encodeZeroRecords('ab', offsets, true).toString('hex'),
    hex('00000000fffff022 00 0000000100000022 00 00000ffffffff022 00').toString('hex'),
  );
  t.equal(encodeZeroRecords('ab', [], false).length, 0);
});

t.test('a name that cannot be written is refused', async (t) => {
  for (const name of ['', 'x'.repeat(256), 'line\n', 'ä']) {
    t.throws(() => encodeZeroRecords(name, [0], false), { code: STREAM_ERRORS.format }, name);
  }
  t.equal(encodeZeroRecords('x'.repeat(255), [0], false).length, 8 + 256 + 1);
});

t.test('the capability mapped-ram comes into a configuration and goes out of it', async (t) => {
  const uuid = Buffer.alloc(16, 1);
  t.same(fileConfiguration({ machine: 'm' }), { machine: 'm', capabilities: ['mapped-ram'] });
  t.same(fileConfiguration({ machine: 'm', uuid, capabilities: ['x-ignore-shared'] }), {
    machine: 'm',
    uuid,
    capabilities: ['x-ignore-shared', 'mapped-ram'],
  });
  t.same(fileConfiguration({ machine: 'm', capabilities: ['mapped-ram'] }), {
    machine: 'm',
    capabilities: ['mapped-ram'],
  });
  t.same(socketConfiguration({ machine: 'm', capabilities: ['mapped-ram'] }), { machine: 'm' });
  t.same(socketConfiguration({ machine: 'm', uuid, capabilities: ['x-ignore-shared', 'mapped-ram'] }), {
    machine: 'm',
    uuid,
    capabilities: ['x-ignore-shared'],
  });
  t.throws(() => fileConfiguration(undefined), {
    code: STREAM_ERRORS.unsupported,
    message: /without configuration/,
  });
});

/** A socket migration's item in the stream of a file; the block list is the writer's, here it stays as it is. */
const toFile = (item: MainItem): Buffer => (item.kind === 'mem-size' ? item.raw : toFileStream(item));

t.test('RAM, sync points, return path and postcopy are not of a file', async (t) => {
  const setup = "'QEVM' 00000003 07 00000001 'm'";
  const start = "01 00000007 03 'ram' 00000000 00000004";
  const list = "0000000000004004 01 'a' 0000000000004000";
  const end = '0000000000000010 7e 00000007';
  const bytes = Buffer.concat([
    hex(`${setup} 08 0001 0000 08 0002 0004 00000001 08 0003 0000 ${start} ${list} 0000000000000200 ${end}
      02 00000007 0000000000000002 01 'a' 00 0000000000001028`),
    Buffer.alloc(4096, 1),
    hex(`${end} 08 000b 0000 08 0063 0001 09 03 00000007 0000000000000200 ${end} 00`),
  ]);
  const items = await parse(bytes);
  const capability = "05 1a 'configuration/capabilities' 00000001 00000001 0a 'mapped-ram'";
  t.equal(
    Buffer.concat(items.map(toFile)).toString('hex'),
    hex(`${setup} ${capability} ${start} ${list} ${end} 02 00000007 ${end}
      08 000b 0000 08 0063 0001 09 03 00000007 ${end} 00`).toString('hex'),
  );
  t.throws(() => toFileStream(ofKind(items, 'mem-size')[0]), { code: STREAM_ERRORS.state });
});

t.test("a file's stream becomes a socket migration with one sync point a section", async (t) => {
  const setup = "'QEVM' 00000003 07 00000001 'm'";
  const start = "01 00000007 03 'ram' 00000000 00000004";
  const list = "0000000000004004 01 'a' 0000000000004000";
  const end = '0000000000000010 7e 00000007';
  const bytes = hex(`${setup} ${start} ${list} ${end} 02 00000007 ${end}
    08 0001 0000 08 0063 0000 08 000b 0000 03 00000007 ${end} 00`);
  const items = await parse(bytes);
  const convert = (rules: SocketStreamRules): string =>
    Buffer.concat(items.map((item) => toSocketStream(item, rules))).toString('hex');
  const flush = '0000000000000200';
  t.equal(
    convert(FLUSH),
    hex(`${setup} ${start} ${list} ${flush} ${end} 02 00000007 ${flush} ${end}
      08 0063 0000 08 000b 0000 03 00000007 ${flush} ${end} 00`).toString('hex'),
  );
  t.equal(
    convert(EOS),
    hex(`${setup} ${start} ${list} ${end} 02 00000007 ${end} 08 0063 0000 03 00000007 ${end} 00`).toString(
      'hex',
    ),
  );
});

t.test('a capture can be built again from its blocks, zero pages and tail', async (t) => {
  for (const [name, , flush] of MAIN_CAPTURES) {
    const bytes = readMain(name);
    const items = await parse(bytes);
    const [{ configuration }] = ofKind(items, 'configuration');
    const [{ blocks }] = ofKind(items, 'mem-size');
    const [{ sectionId }] = ofKind(items, 'section');
    const builder = new MainStreamBuilder(
      // What comes out of a file: with the capability, and with places in the file.
      {
        configuration: fileConfiguration(configuration),
        blocks: blocks.map((block) => ({
          ...block,
          mapped: { version: 1, pageSize: 4096, bitmapOffset: 100, pagesOffset: 1048576 },
        })),
        sectionId,
        footers: true,
      },
      flush > 0 ? FLUSH : EOS,
    );
    const pieces = [builder.setup(), builder.endSection(), builder.part()];
    for (const { block, offsets } of ofKind(items, 'zero')) {
      // Page by page or all together is the same.
      for (const offset of offsets.slice(0, 10)) pieces.push(builder.zeros(block, [offset]));
      pieces.push(builder.zeros(block, offsets.slice(10)));
    }
    pieces.push(builder.endSection(), builder.end(), builder.endSection());
    pieces.push(...ofKind(items, 'tail').map(({ raw }) => raw));
    t.ok(Buffer.concat(pieces).equals(bytes), name);
  }
});

t.test('a stream that is built is a stream that is read, whatever is in it', async (t) => {
  for (const rules of [FLUSH, EOS]) {
    for (const footers of [true, false]) {
      const blocks = [
        { name: 'a', usedLength: 0x10000, hostPageSize: 0x200000 },
        { name: 'b', usedLength: 0x20000 },
      ];
      const builder = new MainStreamBuilder(
        { configuration: undefined, blocks, sectionId: 3, footers },
        rules,
      );
      const bytes = Buffer.concat([
        builder.setup([encodeCommand(1), encodeCommand(2, hex('00000001'))]),
        builder.endSection(),
        builder.end(),
        builder.zeros('b', [0, 0x1000]),
        builder.zeros('b', []),
        builder.zeros('b', [0x2000]),
        builder.zeros('a', [0x3000]),
        builder.endSection(),
      ]);
      const items = await collect(readMainStream(new ByteReader(chunked(bytes, 1))));
      t.same(
        ofKind(items, 'command').map(({ command }) => command),
        rules.switchoverStart ? [1, 2, 11] : [1, 2],
      );
      t.same(ofKind(items, 'mem-size')[0].blocks, blocks);
      t.same(
        ofKind(items, 'zero').map(({ block, offsets }) => [block, offsets]),
        [
          ['b', [0]],
          ['b', [0x1000]],
          ['b', [0x2000]],
          ['a', [0x3000]],
        ],
      );
      const syncs = [...ofKind(items, 'eos'), ...ofKind(items, 'flush')].filter(({ sync }) => sync);
      t.equal(syncs.length, 2, 'one sync point a section');
    }
  }
});

t.test('building out of order is refused', async (t) => {
  const parts = {
    configuration: { machine: 'm' },
    blocks: [{ name: 'a', usedLength: 4096 }],
    sectionId: 1,
    footers: true,
  };
  const builder = new MainStreamBuilder(parts, FLUSH);
  const state = { code: STREAM_ERRORS.state };
  t.throws(() => builder.zeros('a', [0]), state);
  t.throws(() => builder.endSection(), state);
  builder.setup();
  t.throws(() => builder.part(), state);
  builder.endSection();
  t.throws(() => builder.endSection(), state);
});

t.test('SWITCHOVER_START comes once, before END, or earlier where that is asked for', (t) => {
  const parts = {
    configuration: { machine: 'm' },
    blocks: [{ name: 'a', usedLength: 4096 }],
    sectionId: 1,
    footers: true,
  };
  const [START, END] = ['08000b0000', '0300000001'];
  const whole = new MainStreamBuilder(parts, FLUSH);
  t.equal(whole.end().toString('hex'), START + END);
  const early = new MainStreamBuilder(parts, FLUSH);
  early.setup();
  t.equal(early.switchover().length, 0, 'not within a section');
  early.endSection();
  t.equal(early.switchover().toString('hex'), START);
  t.equal(early.switchover().length, 0);
  t.equal(early.end().toString('hex'), END);
  const old = new MainStreamBuilder(parts, EOS);
  t.equal(old.switchover().length, 0);
  t.equal(old.end().toString('hex'), END);
  t.end();
});
