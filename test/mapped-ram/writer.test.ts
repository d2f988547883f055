import { createHash } from 'node:crypto';
import { mkdtempSync, rmSync, statSync } from 'node:fs';
import { open } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import t from 'tap';
import { PageBitmap } from '../../src/ram/bitmap.js';
import { ByteReader } from '../../src/stream/byte-reader.js';
import { STREAM_ERRORS } from '../../src/stream/codes.js';
import { machineRules } from '../../src/stream/machine.js';
import { MainStreamReader } from '../../src/stream/main-stream.js';
import { MainStreamBuilder, toSocketStream } from '../../src/stream/main-writer.js';
import type { MappedRamBlock } from '../../src/mapped-ram/layout.js';
import { MappedRamWriter, type MappedRamWriterOptions } from '../../src/mapped-ram/writer.js';
import { FileSource } from '../../src/stream/positioned-file.js';
import type { MappedRamDescription } from '../../src/mapped-ram/description.js';
import { readPageRuns, readTail } from '../../src/mapped-ram/pages.js';
import { readMappedRam } from '../../src/mapped-ram/read.js';
import type { MainItem } from '../../src/stream/records.js';
import { TailScanner } from '../../src/stream/vm-description.js';
import { analyze } from '../support/analyze.js';
import { applyPackets, decodeChannel, readCapture } from '../support/reference-decoder.js';
import {
  CAPTURED_BLOCKS,
  FILE_CAPTURES,
  MAIN_CAPTURES,
  MemoryFile,
  NO_DEVICES,
  blockContent,
  collect,
  hex,
  ofKind,
  parse,
  readMain,
  readMig,
} from '../stream/support.js';

const PAGE = 4096;
/** Subsections of the configuration that these captures have not. */
const PAGE_BITS = "05 1e 'configuration/target-page-bits' 00000001 0000000c";
const UUID = "05 12 'configuration/uuid' 00000001 00112233445566778899aabbccddeeff";

const sha256 = (bytes: Buffer): string => createHash('sha256').update(bytes).digest('hex');

/** The guest's memory after a capture: what both channels carry, put into zeroed blocks. */
async function memoryOf(name: string): Promise<Map<string, Buffer>> {
  const memory = new Map(CAPTURED_BLOCKS.map(([block, size]) => [block, Buffer.alloc(size)]));
  const compression = /zlib|zstd/.exec(name)?.[0] ?? 'none';
  for (const id of [0, 1]) {
    const channel = await decodeChannel(readCapture(`${name}.ch${id}`), {
      pageSize: PAGE,
      compression: compression as 'none' | 'zlib' | 'zstd',
    });
    applyPackets(channel.packets, memory, PAGE);
  }
  return memory;
}

/** Writes a file of a socket migration's items and the guest's memory, as a receiver would. */
async function writeFile(
  items: readonly MainItem[],
  memory: Map<string, Buffer>,
  file = new MemoryFile(),
  options?: MappedRamWriterOptions,
  scanner?: TailScanner,
): Promise<MemoryFile> {
  const writer = new MappedRamWriter(file, options);
  for (const item of items) await writer.accept(item);
  const bitmaps = new Map<string, PageBitmap>();
  for (const { name, pageCount, pagesOffset } of writer.blocks ?? []) {
    const bitmap = new PageBitmap(pageCount);
    const bytes = memory.get(name) as Buffer;
    for (let page = 0; page < pageCount; page++) {
      const data = bytes.subarray(page * PAGE, (page + 1) * PAGE);
      if (data.every((byte) => byte === 0)) continue;
      bitmap.testAndSet(page);
      await file.write(data, 0, PAGE, pagesOffset + page * PAGE);
    }
    bitmaps.set(name, bitmap);
  }
  const length = await writer.finish((block) => (bitmaps.get(block.name) as PageBitmap).words, scanner);
  t.equal(length, file.bytes.length);
  t.equal(length, writer.position);
  return file;
}

/** The items of a file's stream. */
async function itemsOf(file: MemoryFile): Promise<MainItem[]> {
  const stream = new MainStreamReader(new ByteReader(new FileSource(file, 0)));
  const items: MainItem[] = [];
  for (let item = await stream.next(); item; item = await stream.next()) items.push(item);
  return items;
}

t.test('a capture becomes a file that has all its memory and its device bytes', async (t) => {
  for (const [name] of MAIN_CAPTURES) {
    const items = await parse(readMain(name), [1000]);
    const memory = await memoryOf(name);
    const file = await writeFile(items, memory);
    const description = await readMappedRam(file);
    t.same(description.problems, [], name);
    t.same(
      description.blocks.map((block) => [block.name, block.usedLength]),
      CAPTURED_BLOCKS,
    );
    t.equal(description.vmDescription?.devices.length, 31);
    for (const block of description.blocks) {
      t.ok(
        (await blockContent(file, block)).equals(memory.get(block.name) as Buffer),
        `${name}: ${block.name}`,
      );
    }
    const tail = Buffer.concat(ofKind(items, 'tail').map(({ raw }) => raw));
    t.ok(Buffer.concat(await collect(readTail(file, description))).equals(tail), `${name}: tail`);
  }
});

t.test(
  "the file of QEMU 10.0's capture is, but for the description, the file that QEMU itself wrote",
  async (t) => {
    const ours = await writeFile(await parse(readMain('q100-none')), await memoryOf('q100-none'));
    const theirs = await readMappedRam(new MemoryFile(readMig('q100-mappedram-single')));
    const own = await readMappedRam(ours);
    t.same(own.blocks, theirs.blocks, 'the same places and counts');
    const same = ['machine', 'capabilities', 'pageSize', 'sectionId', 'footers', 'switchoverStart'] as const;
    for (const key of [...same, 'streamOffset', 'tailOffset'] as const) t.same(own[key], theirs[key], key);
    const bytes = readMig('q100-mappedram-single');
    for (const { bitmapOffset, bitmapBytes } of own.blocks) {
      const end = bitmapOffset + bitmapBytes;
      t.ok(ours.bytes.subarray(bitmapOffset, end).equals(bytes.subarray(bitmapOffset, end)), 'bitmap');
    }
    // The stream around the pages, byte for byte.
    t.ok(ours.bytes.subarray(0, 0x8e).equals(bytes.subarray(0, 0x8e)));
    t.ok(ours.bytes.subarray(0x500000, 0x500039).equals(bytes.subarray(0x500000, 0x500039)));
    const { streamOffset = 0, tailOffset = 0 } = own;
    t.ok(ours.bytes.subarray(streamOffset, tailOffset).equals(bytes.subarray(streamOffset, tailOffset)));
  },
);

t.test('a file of QEMU goes through reader and writer and comes out as it was', async (t) => {
  for (const name of FILE_CAPTURES) {
    const original = new MemoryFile(readMig(name));
    const description = await readMappedRam(original);
    const memory = new Map<string, Buffer>();
    for (const block of description.blocks) memory.set(block.name, await blockContent(original, block));
    const copy = await writeFile(await itemsOf(original), memory);
    t.ok(copy.bytes.equals(original.bytes), name);
  }
});

t.test("a file can be read by its VM description alone, as QEMU's own can", async (t) => {
  for (const name of FILE_CAPTURES) {
    const { ram, capabilities } = analyze(readMig(name));
    t.same(capabilities, ['mapped-ram'], "of QEMU's file");
    t.equal(ram.get('pc.ram'), sha256(readCapture('pcram')));
  }
  for (const [name] of MAIN_CAPTURES) {
    const stream = readMain(name);
    // Also with the subsections that other sources send: a uuid, page bits.
    for (const subsections of ['', PAGE_BITS, UUID, `${PAGE_BITS} ${UUID}`]) {
      const machineEnd = 8 + 5 + stream.readUInt32BE(9);
      const bytes = [stream.subarray(0, machineEnd), hex(subsections), stream.subarray(machineEnd)];
      const items = await parse(Buffer.concat(bytes), [1000]);
      const memory = await memoryOf(name);
      const scanner = new TailScanner();
      for (const { raw } of ofKind(items, 'tail')) scanner.push(raw);
      const file = await writeFile(items, memory, new MemoryFile(), {}, scanner);
      const analyzed = analyze(file.bytes);
      t.same(analyzed.capabilities, ['mapped-ram'], name);
      t.equal(analyzed.subsections.length, 1 + subsections.split('configuration/').length - 1);
      t.equal(analyzed.devices.length, 31);
      t.same(
        [...analyzed.ram],
        [...memory].map(([block, ram]) => [block, sha256(ram)]),
        'the same RAM',
      );
      const description = await readMappedRam(file);
      t.same(description.problems, []);
      t.equal(description.unreadBytes, 0);
      t.same(description.vmDescription, scanner.description);
    }
  }
});

t.test('socket migration to file to socket migration gives the same bytes again', async (t) => {
  for (const [name] of MAIN_CAPTURES) {
    const bytes = readMain(name);
    const items = await parse(bytes, [3000]);
    const file = await writeFile(items, await memoryOf(name));
    const rules = machineRules((await readMappedRam(file)).machine);
    const back = (await itemsOf(file)).map((item) => toSocketStream(item, rules));
    const without = items.filter(({ kind }) => kind !== 'zero').map(({ raw }) => raw);
    t.ok(Buffer.concat(back).equals(Buffer.concat(without)), `${name}: all but the ZERO records`);
    t.ok((await rebuilt(file)).equals(withOneZeroEach(items)), `${name}: built anew, with them`);
  }
});

/** What a sender in its machine's default mode makes of a file. */
async function rebuilt(file: MemoryFile): Promise<Buffer> {
  const description: MappedRamDescription = await readMappedRam(file);
  const rules = machineRules(description.machine);
  const builder = new MainStreamBuilder(description, rules);
  const pieces = [builder.setup(), builder.endSection(), builder.part()];
  // In the captures `zero-page-detection` is known by whether the file had ZERO records: all legacy ones have.
  for (const block of rules.zeroPageDetection === 'legacy' ? description.blocks : []) {
    for (const { page, count, present } of await collect(readPageRuns(file, block))) {
      if (present) continue;
      pieces.push(
        builder.zeros(
          block.name,
          Array.from({ length: count }, (_, i) => (page + i) * PAGE),
        ),
      );
    }
  }
  pieces.push(builder.endSection(), builder.end(), builder.endSection());
  return Buffer.concat([...pieces, ...(await collect(readTail(file, description)))]);
}

/** A machine of 10.0 sends ZERO records only when told to; the rebuilt stream has none then. */
function withOneZeroEach(items: readonly MainItem[]): Buffer {
  const [{ configuration }] = ofKind(items, 'configuration');
  const keepsZeros = configuration.machine.endsWith('7.2');
  return Buffer.concat(items.filter(({ kind }) => kind !== 'zero' || keepsZeros).map(({ raw }) => raw));
}

t.test('the file may begin at an offset, and has other page sizes', async (t) => {
  const items = await parse(readMain('q100-none'));
  const memory = await memoryOf('q100-none');
  const file = await writeFile(items, memory, new MemoryFile(), { offset: 0x123456 });
  const description = await readMappedRam(file, { offset: 0x123456 });
  t.same(description.problems, []);
  t.equal(description.blocks[0].pagesOffset, 0x200000);
  t.ok((await blockContent(file, description.blocks[0])).equals(readCapture('pcram')));
  t.throws(() => new MappedRamWriter(file, { offset: -1 }), { code: STREAM_ERRORS.file });
  t.throws(() => new MappedRamWriter(file, { pageSize: 1000 }), { code: STREAM_ERRORS.pageSize });
  // The configuration's page size wins.
  const bytes = hex(`'QEVM' 00000003 07 00000001 'm' 05 1e 'configuration/target-page-bits' 00000001 00000010
    01 00000007 03 'ram' 00000000 00000004 0000000000020004 01 'a' 0000000000020000 0000000000000010
    03 00000007 0000000000000010 ${NO_DEVICES}`);
  const large = new MemoryFile();
  const writer = new MappedRamWriter(large);
  for (const item of await parse(bytes)) await writer.accept(item);
  t.equal(writer.blocks?.[0].pageCount, 2);
  await writer.finish(() => Int32Array.of(2));
  const read = await readMappedRam(large);
  t.same(read.problems, []);
  t.match(read, { pageSize: 65536, presentPages: 1, zeroPages: 1, footers: false });
});

t.test('what the socket migration says of its blocks is kept or dropped as a file needs it', async (t) => {
  const shared = hex(`'QEVM' 00000003 07 00000001 'm'
    05 1a 'configuration/capabilities' 00000001 00000001 0f 'x-ignore-shared'
    01 00000007 03 'ram' 00000000 00000004 0000000000002004 01 'a' 0000000000002000 00000000fffe0000
    0000000000000010 03 00000007 0000000000000010 ${NO_DEVICES}`);
  const huge = hex(`'QEVM' 00000003 07 00000001 'm'
    01 00000007 03 'ram' 00000000 00000004 0000000000200004 01 'a' 0000000000200000 0000000000200000
    0000000000000010 03 00000007 0000000000000010 ${NO_DEVICES}`);
  for (const [bytes, address] of [
    [shared, 0xfffe0000n],
    [huge, undefined],
  ] as const) {
    const file = new MemoryFile();
    const writer = new MappedRamWriter(file);
    for (const item of await parse(bytes)) await writer.accept(item);
    await writer.finish((block) => new PageBitmap(block.pageCount).words);
    const description = await readMappedRam(file);
    t.same(description.problems, []);
    t.equal(description.blocks[0].address, address);
    const [{ blocks }] = ofKind(await itemsOf(file), 'mem-size');
    t.equal(blocks[0].hostPageSize, undefined);
  }
});

t.test('the file is sparse, and as long as RAM as soon as the blocks are known', async (t) => {
  const directory = mkdtempSync(join(tmpdir(), 'multifd-'));
  t.teardown(() => rmSync(directory, { recursive: true }));
  const path = join(directory, 'a.mig');
  const handle = await open(path, 'w+');
  // 4 GiB of RAM.
  const bytes = hex(`'QEVM' 00000003 07 00000001 'm' 01 00000007 03 'ram' 00000000 00000004
    0000000100000004 01 'a' 0000000100000000 0000000000000010 03 00000007 0000000000000010 ${NO_DEVICES}`);
  const writer = new MappedRamWriter(handle);
  for (const item of await parse(bytes)) {
    await writer.accept(item);
    if (item.kind === 'mem-size') t.equal((await handle.stat()).size, 2 ** 32 + 2 ** 20);
  }
  const length = await writer.finish((block) => new PageBitmap(block.pageCount).words);
  await handle.close();
  t.equal(statSync(path).size, length);
  t.ok(statSync(path).blocks * 512 < 2 ** 20, 'hardly any of it is on disk');
  const description = await readMappedRam(path);
  t.same(description.problems, []);
  t.match(description, { presentPages: 0, zeroPages: 2 ** 20 });
});

t.test(
  'a bitmap is looked at with turns of the event loop in between, and only blocks of the file with a bit are written',
  async (t) => {
    // 1 TiB: 32 MiB of bitmap.
    const bytes = hex(`'QEVM' 00000003 07 00000001 'm' 01 00000007 03 'ram' 00000000 00000004
    0000010000000004 01 'a' 0000010000000000 0000000000000010 03 00000007 0000000000000010 ${NO_DEVICES}`);
    const writes: { length: number; position: number; turn: number }[] = [];
    let turn = 0;
    let timer = setImmediate(function next() {
      turn++;
      timer = setImmediate(next);
    });
    t.teardown(() => clearImmediate(timer));
    const writer = new MappedRamWriter({
      write: async (_bytes, _offset, length, position) => {
        writes.push({ length, position, turn });
        return { bytesWritten: length };
      },
      truncate: async () => {},
    });
    for (const item of await parse(bytes)) await writer.accept(item);
    const [{ pageCount, bitmapOffset }] = writer.blocks as readonly MappedRamBlock[];
    const bitmap = new PageBitmap(pageCount);
    // Of each MiB: the last byte of a block, all of the next, the first byte of the one behind; and the very ends.
    const bits = Array.from({ length: 32 }, (_, mib) => {
      const block = mib * 2 ** 20 + 8192 - (bitmapOffset % 4096);
      return [block - 1, ...Array.from({ length: 4096 }, (_, i) => block + i), block + 4096];
    }).flat();
    for (const byte of [0, ...bits, pageCount / 8 - 1]) bitmap.testAndSet(8 * byte + 5);
    writes.length = 0;
    const begun = turn;
    await writer.finish(() => bitmap.words);
    const pieces = writes.filter(
      ({ position }) => position >= bitmapOffset && position < bitmapOffset + 2 ** 25,
    );
    const first = 4096 - (bitmapOffset % 4096);
    t.same(
      pieces.map(({ position, length }) => [position - bitmapOffset, length]),
      [
        [0, first + 3 * 4096],
        ...Array.from({ length: 31 }, (_, i) => [(i + 1) * 2 ** 20 + first, 3 * 4096]),
        [2 ** 25 - (bitmapOffset % 4096), bitmapOffset % 4096],
      ],
    );
    t.ok(turn - begun >= 31, `${turn - begun} turns`);
  },
);

t.test('a tail of any size is written in pieces, and many small items together', async (t) => {
  const file = new MemoryFile();
  const writes: number[] = [];
  const write = file.write.bind(file);
  file.write = (from, offset, length, position) => {
    writes.push(length);
    return write(from, offset, length, position);
  };
  const part = '02 00000007 0000000000000010';
  const bytes = Buffer.concat([
    hex(`'QEVM' 00000003 07 00000001 'm' 01 00000007 03 'ram' 00000000 00000004`),
    hex(`0000000000001004 01 'a' 0000000000001000 0000000000000010`),
    hex(part.repeat(10000)),
    hex('03 00000007 0000000000000010'),
    Buffer.alloc(1000000, 1),
    hex(NO_DEVICES),
  ]);
  const writer = new MappedRamWriter(file);
  for (const item of await parse(bytes, [1400])) await writer.accept(item);
  await writer.finish((block) => new PageBitmap(block.pageCount).words);
  t.ok(writes.length < 30, `${writes.length} writes`);
  t.ok(Math.max(...writes) < 70000);
  const description = await readMappedRam(file);
  t.same(description.problems, []);
  t.equal(description.tailBytes, 1000021);
});

t.test('calls that do not fit are refused', async (t) => {
  const items = await parse(readMain('q100-none'));
  const bitmapOf = (block: MappedRamBlock): Int32Array => new PageBitmap(block.pageCount).words;
  const state = { code: STREAM_ERRORS.state };
  const writer = new MappedRamWriter(new MemoryFile());
  await t.rejects(writer.finish(bitmapOf), state, 'before the block list');
  for (const item of items) {
    if (item.kind === 'section' && item.section === 'end') break;
    await writer.accept(item);
  }
  await t.rejects(writer.finish(bitmapOf), { ...state, message: /before ram's END/ });
  await t.rejects(writer.accept(ofKind(items, 'mem-size')[0]), { ...state, message: /second block list/ });
  await writer.accept(ofKind(items, 'eos')[2]);
  await t.rejects(
    writer.finish(() => new Int32Array(1)),
    { ...state, message: /words of the bitmap of "pc.ram": received 1, expected 32/ },
  );
  await t.rejects(writer.finish(bitmapOf), { ...state, message: /called before/ });
  await t.rejects(writer.accept(items[0]), { ...state, message: /header after finish/ });

  const bare = await parse(
    hex(`'QEVM' 00000003 01 00000007 03 'ram' 00000000 00000004
    0000000000001004 01 'a' 0000000000001000 0000000000000010 03 00000007 0000000000000010 ${NO_DEVICES}`),
  );
  const none = new MappedRamWriter(new MemoryFile());
  await t.rejects(
    (async () => {
      for (const item of bare) await none.accept(item);
    })(),
    { code: STREAM_ERRORS.unsupported, message: /without configuration/ },
  );
});

t.test('an error of the file names the place', async (t) => {
  const items = await parse(readMain('q100-none'));
  const acceptAll = async (file: MemoryFile): Promise<void> => {
    const writer = new MappedRamWriter(file);
    for (const item of items) await writer.accept(item);
  };
  const full = new MemoryFile();
  full.write = () => Promise.reject(Object.assign(new Error('ENOSPC: disk full'), { code: 'ENOSPC' }));
  await t.rejects(acceptAll(full), {
    code: STREAM_ERRORS.io,
    message: /write at 0: ENOSPC/,
    cause: { code: 'ENOSPC' },
  });
  const short = new MemoryFile();
  short.truncate = () => Promise.reject(new Error('EFBIG'));
  short.write = (_from, _offset, length) => Promise.resolve({ bytesWritten: Math.min(length, 10) });
  await t.rejects(acceptAll(short), { code: STREAM_ERRORS.io, message: /length 10489856 .*EFBIG/ });
});
