import t from 'tap';
import { MultifdError } from '../../src/errors.js';
import {
  MAX_PAGE_SIZE,
  MIN_PAGE_SIZE,
  RAMBlock,
  type RAMBlockOptions,
  makeBlocks,
} from '../../src/ram/block.js';

const PAGE = 4096;

t.test('a page is 4 KiB to 64 KiB', async (t) => {
  t.equal(MIN_PAGE_SIZE, 4096);
  t.equal(MAX_PAGE_SIZE, 65536);
});

t.test('a SharedArrayBuffer is used in place', async (t) => {
  const memory = new SharedArrayBuffer(4 * PAGE);
  const block = new RAMBlock({ name: 'pc.ram', memory }, 2, PAGE);
  t.match(block, { name: 'pc.ram', index: 2, size: 16384, pageCount: 4, kind: 'shared', base: 0 });
  t.equal(block.memory?.buffer, memory);
  t.equal(block.path, undefined);
  const description = block.describe();
  t.strictSame(Object.keys(description).sort(), ['base', 'buffer', 'kind', 'name', 'size']);
  t.match(description, { name: 'pc.ram', size: 16384, kind: 'shared', base: 0 });
  t.equal(description.buffer, memory);
});

t.test('a part of a SharedArrayBuffer is used in place', async (t) => {
  const memory = new SharedArrayBuffer(4 * PAGE);
  for (const part of [new Uint8Array(memory, 100, 2 * PAGE), Buffer.from(memory, 100, 2 * PAGE)]) {
    const block = new RAMBlock({ name: 'pc.ram', memory: part }, 0, PAGE);
    t.match(block, { size: 8192, pageCount: 2, kind: 'shared', base: 100 });
    t.equal(block.memory?.buffer, memory);
    t.equal(block.describe().buffer, memory);
    t.equal(block.describe().base, 100);
  }
});

t.test('an ArrayBuffer, or a part of one, is private memory, which does not leave its thread', async (t) => {
  const memory = new ArrayBuffer(4 * PAGE);
  const whole = new RAMBlock({ name: 'pc.ram', memory }, 0, PAGE);
  t.match(whole, { size: 16384, pageCount: 4, kind: 'private', base: 0 });
  t.equal(whole.memory?.buffer, memory);
  const part = new RAMBlock({ name: 'pc.ram', memory: new Uint8Array(memory, 3 * PAGE) }, 0, PAGE);
  t.match(part, { size: 4096, pageCount: 1, kind: 'private', base: 12288 });
  t.equal(part.memory?.buffer, memory);
  t.strictSame(part.describe(), { name: 'pc.ram', size: 4096, kind: 'private', base: 12288 });
});

t.test('a file is named by its path, offset and size', async (t) => {
  const block = new RAMBlock({ name: 'pc.ram', file: '/dev/shm/ram', size: 2 * PAGE }, 0, PAGE);
  t.match(block, { size: 8192, pageCount: 2, kind: 'file', base: 0, path: '/dev/shm/ram' });
  t.equal(block.memory, undefined);
  const behind = new RAMBlock({ name: 'pc.ram', file: '/dev/shm/ram', offset: 12345, size: PAGE }, 0, PAGE);
  // Channel threads are told its descriptor, once it is open, and never its name.
  t.strictSame(behind.describe(), { name: 'pc.ram', size: 4096, kind: 'file', base: 12345 });
  const open = new RAMBlock({ name: 'pc.ram', file: { fd: 7 }, size: PAGE }, 0, PAGE);
  t.strictSame(open.describe(), { name: 'pc.ram', size: 4096, kind: 'file', base: 0, fd: 7 });
});

t.test('a description can be posted to a channel thread', async (t) => {
  const memory = new SharedArrayBuffer(PAGE);
  const blocks = makeBlocks(
    [
      { name: 'a', memory },
      { name: 'b', memory: new ArrayBuffer(PAGE) },
      { name: 'c', file: '/x', size: PAGE },
    ],
    PAGE,
  );
  for (const block of blocks.filter(({ kind }) => kind !== 'shared')) {
    t.strictSame(structuredClone(block.describe()), block.describe());
  }
  t.match(structuredClone({ ...blocks[0].describe(), buffer: undefined }), { name: 'a', kind: 'shared' });
});

t.test('with memory the size may be given, if it is the same', async (t) => {
  const memory = new SharedArrayBuffer(2 * PAGE);
  t.equal(new RAMBlock({ name: 'pc.ram', memory, size: 2 * PAGE }, 0, PAGE).size, 8192);
});

t.test('a block is some whole pages of the session, up to 2^32', async (t) => {
  const of = (size: number, pageSize: number): RAMBlock =>
    new RAMBlock({ name: 'r', file: '/x', size }, 0, pageSize);
  t.equal(of(PAGE, PAGE).pageCount, 1);
  t.equal(of(65536, PAGE).pageCount, 16);
  t.equal(of(65536, 65536).pageCount, 1);
  t.equal(of(2 ** 44, PAGE).pageCount, 2 ** 32);
  t.equal(of(2 ** 48, 65536).pageCount, 2 ** 32);
});

t.test('a name is 1 to 255 printable ASCII characters', async (t) => {
  for (const name of ['a', '/rom@etc/acpi/tables', ' ', '~', 'x'.repeat(255), '"quoted"']) {
    t.equal(new RAMBlock({ name, file: '/x', size: PAGE }, 0, PAGE).name, name);
  }
  for (const name of [
    '',
    'x'.repeat(256),
    'é',
    'a\n',
    'a\0',
    '\x1f',
    '\x7f',
    '\u{1f4be}',
    undefined,
    null,
    7,
    ['a'],
  ]) {
    const options = { name, file: '/x', size: PAGE } as unknown as RAMBlockOptions;
    t.throws(
      () => new RAMBlock(options, 0, PAGE),
      { code: 'ERR_MULTIFD_BLOCK', message: /name must be 1 to 255 printable ASCII characters/ },
      JSON.stringify(name),
    );
  }
});

t.test('what does not describe a block is refused with the name of the block and the reason', async (t) => {
  const memory = new SharedArrayBuffer(2 * PAGE);
  const file = '/x';
  const cases: [options: unknown, message: string][] = [
    [{}, 'give either memory or file'],
    [{ memory, file }, 'give either memory or file'],
    [
      { size: PAGE, stream: true },
      'unknown property stream, allowed name, memory, file, offset, size, fresh',
    ],
    [{ memory: null }, 'memory must be a SharedArrayBuffer, an ArrayBuffer or a Uint8Array'],
    [{ memory: new DataView(memory) }, 'memory must be'],
    [{ memory: new Uint16Array(memory) }, 'memory must be'],
    [{ memory: 'pc.ram' }, 'memory must be'],
    [{ memory: 8192 }, 'memory must be'],
    [{ memory, offset: 0 }, 'offset goes with file'],
    [{ memory, size: PAGE }, 'size is 4096, but memory has 8192 bytes'],
    [{ memory, size: 3 * PAGE }, 'size is 12288, but memory has 8192 bytes'],
    [{ memory: new Uint8Array(memory, 0, PAGE), size: 2 * PAGE }, 'size is 8192, but memory has 4096 bytes'],
    [{ memory: new SharedArrayBuffer(0) }, 'size must be a positive multiple of the page size 4096, not 0'],
    [
      { memory: new SharedArrayBuffer(4095) },
      'size must be a positive multiple of the page size 4096, not 4095',
    ],
    [{ memory: new ArrayBuffer(4097) }, 'size must be a positive multiple of the page size 4096, not 4097'],
    [{ file, size: 0 }, 'size must be a positive multiple of the page size 4096, not 0'],
    [{ file, size: -PAGE }, 'size must be a positive multiple of the page size 4096, not -4096'],
    [{ file, size: 4097 }, 'size must be a positive multiple of the page size 4096, not 4097'],
    [{ file, size: 4096.5 }, 'size must be a positive multiple of the page size 4096, not 4096.5'],
    [{ file, size: NaN }, 'size must be a positive multiple of the page size 4096, not NaN'],
    [{ file, size: Infinity }, 'size must be a positive multiple of the page size 4096, not Infinity'],
    [{ file, size: '4096' }, 'size must be a positive multiple of the page size 4096, not 4096'],
    [{ file, size: 2 ** 44 + PAGE }, 'size must be at most 4294967296 pages'],
    [{ file }, 'size is needed with file'],
    [{ file: '', size: PAGE }, 'file must be a path'],
    [{ file: null, size: PAGE }, 'file must be a path'],
    [{ file: 3, size: PAGE }, 'file must be a path'],
    [{ file, size: PAGE, offset: -1 }, 'offset must be an integer of 0 or more, not -1'],
    [{ file, size: PAGE, offset: 0.5 }, 'offset must be an integer of 0 or more, not 0.5'],
    [{ file, size: PAGE, offset: 2 ** 53 }, 'offset must be an integer of 0 or more, not 9007199254740992'],
    [{ file, size: PAGE, offset: '0' }, 'offset must be an integer of 0 or more, not 0'],
  ];
  for (const [options, why] of cases) {
    const described = { name: 'pc.ram', ...(options as object) } as RAMBlockOptions;
    const error = t.throws(() => new RAMBlock(described, 0, PAGE), MultifdError) as MultifdError;
    t.equal(error.code, 'ERR_MULTIFD_BLOCK');
    t.ok(error.message.startsWith(`RAM block "pc.ram": ${why}`), `${error.message} -- ${why}`);
  }
});

t.test('the size is measured in pages of the session', async (t) => {
  const memory = new SharedArrayBuffer(65536 + 4096);
  t.equal(new RAMBlock({ name: 'r', memory }, 0, 4096).pageCount, 17);
  t.throws(() => new RAMBlock({ name: 'r', memory }, 0, 65536), { message: /page size 65536, not 69632/ });
});

t.test('blocks are made in their order', async (t) => {
  const blocks = makeBlocks(
    [
      { name: 'pc.ram', memory: new SharedArrayBuffer(PAGE) },
      { name: 'pc.rom', memory: new SharedArrayBuffer(PAGE) },
      { name: 'PC.RAM', memory: new SharedArrayBuffer(PAGE) },
    ],
    PAGE,
  );
  t.same(
    blocks.map(({ name, index }) => [name, index]),
    [
      ['pc.ram', 0],
      ['pc.rom', 1],
      ['PC.RAM', 2],
    ],
  );
});

t.test('no block, a block twice, or what is no list of blocks, is refused', async (t) => {
  const one = (name: string): RAMBlockOptions => ({ name, file: '/x', size: PAGE });
  const cases: [blocks: unknown, message: string][] = [
    [[], 'blocks must be an array of at least one RAM block'],
    [undefined, 'blocks must be an array of at least one RAM block'],
    [null, 'blocks must be an array of at least one RAM block'],
    [one('a'), 'blocks must be an array of at least one RAM block'],
    [new Set([one('a')]), 'blocks must be an array of at least one RAM block'],
    [[one('a'), null], 'blocks[1] must be an object'],
    [['pc.ram'], 'blocks[0] must be an object'],
    [[undefined], 'blocks[0] must be an object'],
    [[one('a'), one('b'), one('a')], 'RAM block "a" is there twice'],
    [[one('a'), one('')], 'RAM block "": name must be'],
  ];
  for (const [blocks, message] of cases) {
    const error = t.throws(() => makeBlocks(blocks as RAMBlockOptions[], PAGE), MultifdError) as MultifdError;
    t.equal(error.code, 'ERR_MULTIFD_BLOCK');
    t.ok(error.message.startsWith(message), `${error.message} -- ${message}`);
  }
});
