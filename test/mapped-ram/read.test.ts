import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { STREAM_ERRORS } from '../../src/stream/codes.js';
import { encodeMappedRamHeader } from '../../src/stream/block-list.js';
import {
  type MappedRamDescription,
  type MappedRamProblemKind,
  requireSound,
} from '../../src/mapped-ram/description.js';
import { readPageRuns, readTail } from '../../src/mapped-ram/pages.js';
import { readMappedRam } from '../../src/mapped-ram/read.js';
import { sizeOf } from '../../src/stream/positioned-file.js';
import { Random } from '../support/random.js';
import { readCapture } from '../support/reference-decoder.js';
import {
  CAPTURED_BLOCKS,
  FILE_CAPTURES,
  MemoryFile,
  NO_DEVICES,
  blockContent,
  collect,
  hex,
  readMig,
} from '../stream/support.js';

const PAGE = 4096;

for (const name of FILE_CAPTURES) {
  t.test(`${name}: blocks, places, counts and pc.ram are QEMU's`, async (t) => {
    const bytes = readMig(name);
    const file = new MemoryFile(bytes);
    const description = await readMappedRam(file);
    t.same(description.problems, []);
    t.doesNotThrow(() => requireSound(description));
    t.match(description, {
      fileSize: 10602588,
      offset: 0,
      machine: 'pc-i440fx-10.0',
      capabilities: ['mapped-ram'],
      configuration: { machine: 'pc-i440fx-10.0', capabilities: ['mapped-ram'] },
      pageSize: PAGE,
      sectionId: 1,
      footers: true,
      switchoverStart: true,
      streamOffset: 0xa01000,
      presentPages: 100,
      zeroPages: 1006,
    });
    t.same(
      description.blocks.map(({ name: block, usedLength }) => [block, usedLength]),
      CAPTURED_BLOCKS,
    );
    t.match(description.blocks[0], {
      pageCount: 1024,
      bitmapOffset: 0x8e,
      bitmapBytes: 128,
      pagesOffset: 0x100000,
    });
    t.match(description.blocks[1], { bitmapOffset: 0x500039, pagesOffset: 0x600000, zeroPages: 30 });
    t.equal(description.vmDescription?.devices.length, 31);
    // 5 bytes of END, EOS, footer before the tail; PART and START likewise, and the command.
    const { tailOffset = 0, tailBytes = 0 } = description;
    t.equal(bytes.toString('latin1', tailOffset + 6, tailOffset + 11), 'timer');
    t.equal(tailOffset + tailBytes, bytes.length);
    t.ok(Buffer.concat(await collect(readTail(file, description))).equals(bytes.subarray(tailOffset)));

    const [pcram] = description.blocks;
    t.ok((await blockContent(file, pcram)).equals(readCapture('pcram')));
  });
}

t.test('runs are maximal, ascending and complete, whatever the bitmap', async (t) => {
  const random = new Random(9);
  for (const pageCount of [1, 8, 9, 64, 1000, 8 * 2 ** 20 + 70]) {
    const bytes = Buffer.alloc(8 * Math.ceil(pageCount / 64));
    // Long runs and short ones; the largest has its border in the middle of a run.
    for (let at = 0; at < bytes.length;) {
      const kind = random.below(3);
      const length = 1 + random.below(pageCount > 10000 && kind < 2 ? 100000 : 30);
      bytes.fill([0x00, 0xff, random.below(256)][kind], at, Math.min(at + length, bytes.length));
      at += length;
    }
    const block = {
      name: 'a',
      usedLength: pageCount * PAGE,
      pageCount,
      bitmapOffset: 3,
      bitmapBytes: bytes.length,
      pagesOffset: 0,
    };
    const file = new MemoryFile(Buffer.concat([Buffer.alloc(3), bytes]));
    let next = 0;
    let last: boolean | undefined;
    let wrong = 0;
    for await (const { page, count, present } of readPageRuns(file, block)) {
      if (page !== next || present === last || count === 0) wrong++;
      // Both ends of each run, and a page within.
      for (const i of [page, page + (count >> 1), page + count - 1]) {
        if (((bytes[i >> 3] >> (i & 7)) & 1) !== Number(present)) wrong++;
      }
      next += count;
      last = present;
    }
    t.equal(wrong, 0, `${pageCount} pages`);
    t.equal(next, pageCount);
    t.ok(file.largestRead <= 2 ** 20);
  }
});

t.test('a path may be given, and an offset', async (t) => {
  const directory = mkdtempSync(join(tmpdir(), 'multifd-'));
  t.teardown(() => rmSync(directory, { recursive: true }));
  const path = join(directory, 'a.mig');
  const before = await handmade();
  writeFileSync(path, before.bytes);
  const plain = await readMappedRam(path);
  t.same(plain.problems, []);
  await t.rejects(readMappedRam(join(directory, 'none')), {
    code: STREAM_ERRORS.io,
    message: /none.*ENOENT/,
  });
  await t.rejects(readMappedRam(directory), { code: STREAM_ERRORS.io });

  const moved = await handmade({ offset: 0x3000 });
  const description = await readMappedRam(moved, { offset: 0x3000 });
  t.same(description.problems, []);
  t.equal(description.offset, 0x3000);
  t.equal(description.blocks[0].pagesOffset, 0x100000);
  t.equal(description.presentPages, plain.presentPages);
});

interface Handmade {
  offset?: number;
  /** Fields of the header of block `a` and `b`, instead of the right ones. */
  a?: { version?: number; pageSize?: number; bitmapOffset?: number; pagesOffset?: number };
  b?: { version?: number; pageSize?: number; bitmapOffset?: number; pagesOffset?: number };
  bitmap?: string;
  /** used_length of `b`, if not a page. */
  bLength?: number;
  tail?: string;
  footers?: boolean;
  machine?: string;
}

const TAIL = `04 00000000 'whatever' ${NO_DEVICES}`;

/**
 * Two blocks, 100 pages and 1 page, laid out by hand: `a` at 1 MiB, the entry of `b` behind it, `b` at 2 MiB. Of `a`
 * pages 0 and 99 are present, of `b` none.
 */
async function handmade(options: Handmade = {}): Promise<MemoryFile> {
  const { offset = 0, footers = true, bLength = PAGE, machine = 'm' } = options;
  const u64 = (value: number): string => value.toString(16).padStart(16, '0');
  const file = new MemoryFile();
  const write = async (at: number, bytes: Buffer): Promise<number> => {
    await file.write(bytes, 0, bytes.length, at);
    return at + bytes.length;
  };
  let at = await write(
    offset,
    hex(`'QEVM' 00000003 07 0000000${machine.length} '${machine}' 05 1a 'configuration/capabilities' 00000001 00000001 0a 'mapped-ram'
      01 00000007 03 'ram' 00000000 00000004 ${u64(0x64000 + bLength + 4)} 01 'a' 0000000000064000`),
  );
  const a = { version: 1, pageSize: PAGE, bitmapOffset: at + 28, pagesOffset: 0x100000, ...options.a };
  await write(at, encodeMappedRamHeader(a));
  await write(at + 28, hex(options.bitmap ?? '0100000000000000 0000000008000000'));
  at = await write(a.pagesOffset + 100 * PAGE, hex(`01 'b' ${u64(bLength)}`));
  const b = { version: 1, pageSize: PAGE, bitmapOffset: at + 28, pagesOffset: 0x200000, ...options.b };
  await write(at, encodeMappedRamHeader(b));
  const end = footers ? '0000000000000010 7e 00000007' : '0000000000000010';
  await write(b.pagesOffset + bLength, hex(`${end} 03 00000007 ${end} ${options.tail ?? TAIL}`));
  return file;
}

const kindsOf = ({ problems }: MappedRamDescription): [MappedRamProblemKind, boolean][] =>
  problems.map(({ kind, fatal }) => [kind, fatal]);

t.test('a file made by hand is sound', async (t) => {
  const description = await readMappedRam(await handmade());
  t.same(description.problems, []);
  t.match(description.blocks, [
    { name: 'a', presentPages: 2, zeroPages: 98 },
    { name: 'b', presentPages: 0, zeroPages: 1 },
  ]);
  t.match(description, { presentPages: 2, zeroPages: 99, switchoverStart: false, sectionId: 7 });
  t.same(description.vmDescription, { devices: [] });
  t.equal(description.tailBytes, hex(TAIL).length);
  t.same((await readMappedRam(await handmade({ footers: false }))).problems, [], 'without footers');
  const { footers, tailBytes } = await readMappedRam(await handmade({ footers: false }));
  t.equal(footers, false);
  t.equal(tailBytes, hex(TAIL).length);
});

t.test(
  'what is wrong in a file is listed, and fatal where it keeps the file from being loaded',
  async (t) => {
    const cases: [what: string, file: Handmade, problem: [MappedRamProblemKind, boolean], message: RegExp][] =
      [
        [
          'version 2',
          { a: { version: 2 } },
          ['header', true],
          /RAM block "a": mapped-ram version: received 2/,
        ],
        ['another page size', { b: { pageSize: 8192 } }, ['header', true], /"b": .*page_size: received 8192/],
        ['pages not aligned', { b: { pagesOffset: 0x200800 } }, ['header', true], /a multiple of 4096/],
        [
          'a bitmap behind the end of the file',
          { b: { bitmapOffset: 2 ** 40 } },
          ['outside', true],
          /end of the bitmap of "b": received 1099511627784, expected at most 2101/,
        ],
        [
          'a bitmap in the pages',
          { b: { bitmapOffset: 0x101000 } },
          ['overlap', true],
          /the bitmap of "b": received 1052672 to 1052680, over pages of "a" \(1048576 to 1458176\)/,
        ],
        [
          'a bitmap in the stream',
          { a: { bitmapOffset: 4 } },
          ['overlap', true],
          /the bitmap of "a": .* over the stream \(0 to/,
        ],
        [
          'one bitmap for two blocks',
          { b: { bitmapOffset: 0x8a } },
          ['overlap', true],
          /the bitmap of "[ab]": .* over the bitmap of/,
        ],
        [
          'bits behind the last page',
          { bitmap: '0100000000000000 0000000018000080' },
          ['trailing-bits', false],
          /bitmap of "a": received 2 bits behind the last page, expected none/,
        ],
        ['a tail that is cut', { tail: "04 00000000 'wha'" }, ['tail', true], /the file may be cut/],
        ['no tail at all', { tail: '' }, ['tail', true], /neither a VM description nor EOF/],
        [
          'no VM description',
          { tail: "04 00000000 'any' 7e 00000003 00" },
          ['tail', false],
          /EOF at the most/,
        ],
        ['cut at a zero', { tail: "04 00000000 'whatever' 00" }, ['tail', true], /neither a VM description/],
        ['cut in a footer', { tail: "04 00000000 'any' 7e 00000003" }, ['tail', true], /neither a VM/],
        [
          'pages of b before its entry',
          { b: { pagesOffset: 0x100000 } },
          ['stream', true],
          /RAM block "b": pages_offset: received 1048576, expected at least 145/,
        ],
        [
          'pages of b at the end of the world',
          { b: { pagesOffset: 2 ** 53 - 8192 } },
          ['stream', true],
          /in a record/,
        ],
      ];
    for (const [what, options, problem, message] of cases) {
      // The file is written as if the offsets were right, but for what the reader follows.
      const far = (options.b?.pagesOffset ?? 0) > 2 ** 40;
      const file = await handmade(far ? {} : options);
      if (far) {
        const at = file.bytes.indexOf(hex("01 'b' 0000000000001000")) + 10;
        file.bytes.writeBigUInt64BE(BigInt(options.b?.pagesOffset ?? 0), at + 20);
      }
      const description = await readMappedRam(file);
      const found = description.problems.find(({ kind }) => kind === problem[0]);
      t.equal(found?.fatal, problem[1], what);
      t.match(found?.message, message, what);
      const [first] = description.problems.filter(({ fatal }) => fatal);
      if (problem[1]) {
        const expected = { code: STREAM_ERRORS.file, message: first.message };
        t.throws(() => requireSound(description), expected, what);
      } else t.doesNotThrow(() => requireSound(description), what);
    }
  },
);

t.test('the page size is what the first mapped-ram header says, where nothing before it does', async (t) => {
  for (const pageSize of [4096, 8192, 16384]) {
    const file = await handmade({ a: { pageSize }, b: { pageSize }, bLength: 16384 });
    const description = await readMappedRam(file);
    t.same(description.problems, []);
    t.equal(description.pageSize, pageSize);
    t.same(
      description.blocks.map(({ pageCount }) => pageCount),
      [0x64000 / pageSize, 16384 / pageSize],
    );
  }
  const pc = await handmade({ a: { pageSize: 8192 }, b: { pageSize: 8192 }, bLength: 16384, machine: 'pc' });
  t.match(kindsOf(await readMappedRam(pc)), [['header', true]], "a machine's name is before it");
  const none = await handmade({ a: { pageSize: 2 ** 17 }, bLength: 16384 });
  t.match(kindsOf(await readMappedRam(none)), [['header', true]]);
});

t.test('a sound file may lie on a block device, or have bytes behind its end', async (t) => {
  const whole = readMig('q100-mappedram-single');
  const { tailBytes, tailOffset } = await readMappedRam(new MemoryFile(whole));
  for (const behind of [Buffer.alloc(2 ** 20), Buffer.alloc(3, 0xff), whole.subarray(0, 5000), whole]) {
    for (const isDevice of [false, true]) {
      const file = new MemoryFile(Buffer.concat([whole, behind]));
      if (isDevice) file.stat = async () => ({ size: 0, isBlockDevice: () => true });
      const description = await readMappedRam(file);
      t.same(description.problems, []);
      t.match(description, {
        tailBytes,
        tailOffset,
        fileSize: whole.length + behind.length,
        unreadBytes: behind.length,
      });
      t.equal(description.vmDescription?.devices.length, 31);
      t.ok(Buffer.concat(await collect(readTail(file, description))).equals(whole.subarray(tailOffset)));
    }
  }
  const nothing = await handmade({ tail: "04 00000003 'any' 7e 00000003 00" });
  const { length } = nothing.bytes;
  await nothing.truncate(length + 100);
  const description = await readMappedRam(nothing);
  t.same(kindsOf(description), [['tail', false]], 'without VM description');
  t.equal(description.unreadBytes, 100);

  const device = new MemoryFile(whole.subarray(0, 0x600000));
  device.stat = async () => ({ size: 0, isBlockDevice: () => true });
  t.match(
    await readMappedRam(device),
    { fileSize: 0x600000, problems: [{ fatal: true }] },
    'too small a device',
  );
  for (const size of [0, 1, 2, 3, 512, 1000, 4097]) {
    const file = new MemoryFile(Buffer.alloc(size));
    file.stat = async () => ({ size: 0, isBlockDevice: () => true });
    t.equal(await sizeOf(file), size);
  }
});

t.test('a file that is cut anywhere has a problem, and what could be read is there', async (t) => {
  const whole = await handmade();
  const entryB = whole.bytes.indexOf(hex("01 'b' 0000000000001000"));
  const lengths = [61, 80, 100, 130, 150, 0x100000, 0x140000, entryB + 5, entryB + 20, entryB + 38, 0x200fff];
  for (const length of [...lengths, whole.bytes.length - 1]) {
    const description = await readMappedRam(new MemoryFile(whole.bytes.subarray(0, length)));
    t.ok(description.problems.length > 0, `${length} bytes`);
    t.equal(description.machine, 'm');
    t.throws(() => requireSound(description), { code: STREAM_ERRORS.file });
    t.equal(
      description.blocks.length,
      length < 130 ? 0 : length < entryB + 38 ? 1 : 2,
      `blocks of ${length}`,
    );
    if (length > 150) t.equal(description.blocks[0].presentPages, 2);
    if (length === whole.bytes.length - 1) t.same(kindsOf(description), [['tail', true]]);
    if (description.tailOffset === undefined) {
      await t.rejects(collect(readTail(whole, description)), { code: STREAM_ERRORS.file });
    }
  }
  for (const length of [0, 4, 7, 8, 12, 40]) {
    await t.rejects(readMappedRam(new MemoryFile(whole.bytes.subarray(0, length))), {
      code: STREAM_ERRORS.eof,
    });
  }
});

t.test('what is no mapped-ram file is refused', async (t) => {
  await t.rejects(readMappedRam(new MemoryFile(Buffer.alloc(100))), { code: STREAM_ERRORS.magic });
  await t.rejects(readMappedRam(new MemoryFile(readCapture('q100-none.main'))), {
    code: STREAM_ERRORS.file,
    message: /received a migration stream without capability mapped-ram, expected mapped-ram/,
  });
  const bare = hex("'QEVM' 00000003 01 00000007 03 'ram' 00000000 00000004 0000000000001004");
  await t.rejects(readMappedRam(new MemoryFile(bare)), { message: /received no configuration/ });
  await t.rejects(readMappedRam(new MemoryFile(hex("'QEVM' 00000003 07 00000000"))), {
    code: STREAM_ERRORS.limit,
  });
});

t.test('a hostile file costs no memory, and ends', async (t) => {
  // 16 TiB of RAM in one block, its bitmap of 512 MiB and its pages said to be in a small file.
  const start = `'QEVM' 00000003 07 00000001 'm' 05 1a 'configuration/capabilities' 00000001 00000001 0a 'mapped-ram'
    01 00000007 03 'ram' 00000000 00000004`;
  const huge = new MemoryFile(
    Buffer.concat([
      hex(`${start} 0000100000000004 01 'a' 0000100000000000 00000001 0000000000001000 0000000000001000`),
      hex('0000000000100000'),
      Buffer.alloc(10000),
    ]),
  );
  t.match((await readMappedRam(huge)).problems, [{ kind: 'stream', message: /option maxRam/ }]);
  const description = await readMappedRam(huge, { maxRam: 2 ** 44 });
  t.same(kindsOf(description), [
    ['stream', true],
    ['outside', true],
    ['outside', true],
  ]);
  t.ok(huge.largestRead <= 65536);

  // 4096 blocks whose bitmaps are one: each is a problem, and 100 are enough.
  const blocks: Buffer[] = [];
  const file = new MemoryFile();
  const first = hex(`${start} 0000000001000004`);
  let at = first.length;
  for (let i = 0; i < 4096; i++) {
    const name = i.toString().padStart(4, '0');
    const pagesOffset = Math.ceil((at + 41) / PAGE) * PAGE;
    const header = encodeMappedRamHeader({ version: 1, pageSize: PAGE, bitmapOffset: 0x1000, pagesOffset });
    blocks.push(Buffer.concat([hex(`04 '${name}' 0000000000001000`), header]));
    at = pagesOffset + PAGE;
  }
  await file.truncate(at);
  await file.write(first, 0, first.length, 0);
  at = first.length;
  for (const block of blocks) {
    await file.write(block, 0, block.length, at);
    at = Math.ceil((at + 41) / PAGE) * PAGE + PAGE;
  }
  const end = hex(`0000000000000010 7e 00000007 03 00000007 0000000000000010 7e 00000007 ${NO_DEVICES}`);
  await file.write(end, 0, end.length, at);
  const overlapping = await readMappedRam(file);
  t.equal(overlapping.blocks.length, 4096);
  t.equal(overlapping.problems.length, 100);
  t.ok(overlapping.problems.every(({ kind }) => kind === 'overlap'));
});

t.test('sections without end are a problem, not a wait', async (t) => {
  const command = hex('08 0063 0000');
  const file = await handmade();
  const { streamOffset = 0 } = await readMappedRam(file);
  const commands = Buffer.alloc(5 * 100, command);
  const end = '0000000000000010 7e 00000007';
  const rest = Buffer.concat([hex(end), commands]);
  await file.write(rest, 0, rest.length, streamOffset);
  const description = await readMappedRam(file, { maxSections: 100 });
  t.same(kindsOf(description), [['stream', true]]);
  t.match(description.problems[0].message, /sections: received more than 100, expected at most 100/);
  t.match((await readMappedRam(file, { maxSections: 101 })).problems[0].message, /ended at byte/);
});

t.test('reading past a file that became shorter is an error', async (t) => {
  const file = await handmade();
  const description = await readMappedRam(file);
  const cut = new MemoryFile(file.bytes.subarray(0, 120));
  await t.rejects(collect(readPageRuns(cut, description.blocks[0])), {
    code: STREAM_ERRORS.eof,
    message: /bitmap of "a": received \d+ bytes, expected 16/,
  });
  await t.rejects(collect(readTail(cut, description)), {
    code: STREAM_ERRORS.eof,
    message: /tail: received 0/,
  });
});

t.test('an error of the file is no problem of its content', async (t) => {
  const file = await handmade();
  const read = file.read.bind(file);
  file.read = (into, offset, length, position) =>
    position > 100
      ? Promise.reject(new Error('broken disk'))
      : read(into, offset, Math.min(length, 50), position);
  await t.rejects(readMappedRam(file), { code: STREAM_ERRORS.io, message: /read at \d+: broken disk/ });
  file.stat = () => Promise.reject(new Error('no size'));
  await t.rejects(readMappedRam(file), { code: STREAM_ERRORS.io, message: /no size/ });
});
