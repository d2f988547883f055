/** Packets to and from a file with O_DIRECT: the same bytes as page by page, in fewer requests, and no page of others touched. */
import fs from 'node:fs';
import path from 'node:path';
import t, { type Test } from 'tap';
import { isAligned, alignedBuffer } from '../../src/ram/aligned.js';
import { DirectPages } from '../../src/ram/direct-pages.js';
import { FileBlock } from '../../src/ram/file-block.js';
import { Random } from '../support/random.js';

const PAGE = 4096;
const PACKET = 128;
const BLOCK_PAGES = 1024;

interface Request {
  page: number;
  pages: number;
}

/** A block in memory that takes only what O_DIRECT takes, and notes it. */
class StrictBlock {
  readonly bytes = Buffer.alloc(BLOCK_PAGES * PAGE, 0x55);
  readonly requests: Request[] = [];

  read(into: Uint8Array, at: number, length: number, offset: number): void {
    this.#take(into, at, length, offset);
    this.bytes.copy(into, at, offset, offset + length);
  }

  write(from: Uint8Array, at: number, length: number, offset: number): void {
    this.#take(from, at, length, offset);
    this.bytes.set(from.subarray(at, at + length), offset);
  }

  #take(memory: Uint8Array, at: number, length: number, offset: number): void {
    if (!isAligned(memory, at)) throw new Error(`memory at ${memory.byteOffset + at}`);
    if (length % PAGE !== 0 || offset % PAGE !== 0) throw new Error(`${length} at ${offset}`);
    this.requests.push({ page: offset / PAGE, pages: length / PAGE });
  }
}

const asFile = (block: StrictBlock): FileBlock => block as unknown as FileBlock;

/** Pages whose bytes tell their number. */
function contents(pages: readonly number[], into: Buffer): Buffer {
  pages.forEach((page, i) => into.fill((page % 200) + 1, i * PAGE, (i + 1) * PAGE));
  return into;
}

function write(normal: readonly number[], zero: readonly number[], from: Buffer): StrictBlock {
  const block = new StrictBlock();
  const packet = {
    pages: Uint32Array.from([...normal, ...zero]),
    normalPages: normal.length,
    zeroPages: zero.length,
  };
  new DirectPages(PAGE).write(asFile(block), packet, contents(normal, from));
  return block;
}

function checkWritten(t: Test, block: StrictBlock, normal: readonly number[], zero: readonly number[]): void {
  const wrong: number[] = [];
  for (let page = 0; page < BLOCK_PAGES; page++) {
    const bytes = block.bytes.subarray(page * PAGE, (page + 1) * PAGE);
    const allowed = normal.includes(page) ? [(page % 200) + 1] : zero.includes(page) ? [0, 0x55] : [0x55];
    if (!allowed.some((value) => bytes.every((byte) => byte === value))) wrong.push(page);
  }
  t.same(wrong, [], 'each page has its bytes, and those of others have theirs');
}

const range = (first: number, count: number): number[] => Array.from({ length: count }, (_, i) => first + i);

t.test('pages that lie side by side are one request, from where they are', async (t) => {
  const from = alignedBuffer(PACKET * PAGE);
  const block = write(range(300, PACKET), [], from);
  t.same(block.requests, [{ page: 300, pages: PACKET }]);
  checkWritten(t, block, range(300, PACKET), []);
});

t.test('a packet whose last pages stand where zero pages were is put in order: one request', async (t) => {
  // As a QEMU sorts zero pages out: the last normal page takes the place of each.
  const normal = [0, 1, 11, 3, 4, 5, 10, 7, 8, 9];
  const zero = [2, 6];
  for (const from of [alignedBuffer(PACKET * PAGE), Buffer.alloc(PACKET * PAGE)]) {
    const block = write(normal, zero, from);
    t.same(block.requests, [{ page: 0, pages: 12 }]);
    checkWritten(t, block, normal, zero);
  }
});

t.test('pages that are not in the packet are left as they are, however few lie between', async (t) => {
  const normal = [10, 11, 13, 14];
  const block = write(normal, [], alignedBuffer(PACKET * PAGE));
  t.same(block.requests, [
    { page: 10, pages: 2 },
    { page: 13, pages: 2 },
  ]);
  checkWritten(t, block, normal, []);
});

t.test(
  'zeros go along while they are fewer than the data, and eight at most; none before or behind',
  async (t) => {
    const cases: [normal: number[], zero: number[], requests: [number, number][]][] = [
      [[4, 6], [3, 5, 7], [[4, 3]]],
      [
        [4, 7],
        [5, 6],
        [
          [4, 1],
          [7, 1],
        ],
      ],
      [[4, 5, 8], [6, 7], [[4, 5]]],
      // One after the other: 2 of data carry 2 zeros, and then no more before more data.
      [
        [0, 2, 5],
        [1, 3, 4],
        [
          [0, 3],
          [5, 1],
        ],
      ],
      [[...range(0, 20), 28], range(20, 8), [[0, 29]]],
      [
        [...range(0, 20), 29],
        range(20, 9),
        [
          [0, 20],
          [29, 1],
        ],
      ],
      [[], [1, 2, 3], []],
    ];
    for (const [normal, zero, requests] of cases) {
      const block = write(normal, zero, alignedBuffer(PACKET * PAGE));
      t.same(
        block.requests,
        requests.map(([page, pages]) => ({ page, pages })),
        `${normal} and zero ${zero}`,
      );
      checkWritten(t, block, normal, zero);
    }
  },
);

t.test('a page that is there twice has its last content, as page by page', async (t) => {
  const block = new StrictBlock();
  const from = contents([7, 8, 7], alignedBuffer(PACKET * PAGE)).fill(0x99, 2 * PAGE, 3 * PAGE);
  const packet = { pages: Uint32Array.of(7, 8, 7), normalPages: 3, zeroPages: 0 };
  new DirectPages(PAGE).write(asFile(block), packet, from);
  t.equal(block.bytes[7 * PAGE], 0x99);
  t.equal(block.bytes[8 * PAGE], 9);
});

t.test('packets of all kinds, seeded: no page is lost, none of others written', async (t) => {
  const random = new Random(14);
  for (let round = 0; round < 60; round++) {
    const first = random.below(BLOCK_PAGES - 4 * PACKET);
    const dense = 1 + random.below(4);
    const pages = range(first, PACKET * dense).filter(() => random.below(dense) === 0);
    random.shuffle(pages);
    const some = pages.slice(0, PACKET);
    const normalCount = random.below(some.length + 1);
    const [normal, zero] = [some.slice(0, normalCount), some.slice(normalCount)];
    const from = round % 2 === 0 ? alignedBuffer(PACKET * PAGE) : Buffer.alloc(PACKET * PAGE);
    const block = write(normal, zero, from);
    checkWritten(t, block, normal, zero);
    const written = block.requests.reduce((sum, request) => sum + request.pages, 0);
    t.ok(written <= 2 * normal.length, 'a file at most doubles');
  }
});

t.test('pages are read with what little lies between them, each to its place', async (t) => {
  const cases: [pages: number[], requests: [number, number][]][] = [
    [range(5, PACKET), [[5, PACKET]]],
    [[5, 7, 8, 25], [[5, 21]]],
    [
      [5, 23],
      [
        [5, 1],
        [23, 1],
      ],
    ],
    [
      [9, 8, 7],
      [
        [9, 1],
        [8, 1],
        [7, 1],
      ],
    ],
    [
      [7, 7],
      [
        [7, 1],
        [7, 1],
      ],
    ],
    // A MiB at most.
    [
      range(0, PACKET).map((i) => 4 * i),
      [
        [0, 253],
        [256, 253],
      ],
    ],
  ];
  for (const [pages, requests] of cases) {
    const block = new StrictBlock();
    contents(range(0, BLOCK_PAGES), block.bytes);
    const into = alignedBuffer(PACKET * PAGE);
    new DirectPages(PAGE).read(asFile(block), Uint32Array.from(pages), pages.length, into);
    t.same(
      block.requests,
      requests.map(([page, count]) => ({ page, pages: count })),
    );
    t.ok(into.subarray(0, pages.length * PAGE).equals(contents(pages, Buffer.alloc(pages.length * PAGE))));
  }
});

t.test('a file block with a second descriptor writes and reads by that one', async (t) => {
  const folder = t.testdir({ first: Buffer.alloc(2 * PAGE, 1), second: Buffer.alloc(2 * PAGE, 2) });
  const [fd, directFd] = ['first', 'second'].map((name) => fs.openSync(path.join(folder, name), 'r+'));
  t.teardown(() => [fd, directFd].forEach((descriptor) => fs.closeSync(descriptor)));
  const block = new FileBlock({ name: 'ram', size: 2 * PAGE, kind: 'file', base: 0, fd, directFd });
  t.equal(block.isDirect, true);
  const page = alignedBuffer(PAGE);
  block.read(page, 0, PAGE, 0);
  t.equal(page[0], 2);
  block.write(page.fill(3), 0, PAGE, PAGE);
  t.equal(fs.readFileSync(path.join(folder, 'first')).indexOf(3), -1);
  t.equal(fs.readFileSync(path.join(folder, 'second')).indexOf(3), PAGE);
});

t.test('a file that ends within a page is said to be short, as without O_DIRECT', async (t) => {
  const file = path.join(t.testdir({ ram: Buffer.alloc(PAGE + 100) }), 'ram');
  const fd = fs.openSync(file, 'r');
  t.teardown(() => fs.closeSync(fd));
  for (const directFd of [undefined, openDirectOr(t, file)]) {
    const block = new FileBlock({
      ...{ name: 'ram', size: 2 * PAGE, kind: 'file', base: 0, fd },
      ...(directFd !== undefined && { directFd }),
    });
    t.throws(() => block.read(alignedBuffer(2 * PAGE), 0, 2 * PAGE, 0), {
      code: 'ERR_MULTIFD_IO',
      message: 'RAM block "ram": bytes at 0: received 4196, expected 8192',
    });
  }
});

t.test('a full disk is an error of the block, and so is memory that the device refuses', async (t) => {
  const full = fs.openSync('/dev/full', 'r+');
  t.teardown(() => fs.closeSync(full));
  const block = (directFd: number): FileBlock =>
    new FileBlock({ name: 'ram', size: PAGE, kind: 'file', base: 0, fd: full, directFd });
  t.throws(() => block(full).write(alignedBuffer(PAGE), 0, PAGE, 0), {
    code: 'ERR_MULTIFD_IO',
    message: /^RAM block "ram": write at 0: ENOSPC/,
  });
  const file = path.join(t.testdir({ ram: Buffer.alloc(2 * PAGE) }), 'ram');
  const fd = openDirectOr(t, file);
  try {
    block(fd).write(alignedBuffer(2 * PAGE), 1, PAGE, 0);
    t.comment('O_DIRECT is nothing but a wish here');
  } catch (error) {
    t.match(error, {
      code: 'ERR_MULTIFD_IO',
      message: /^RAM block "ram": write at 0: received EINVAL, expected .* leave option directIo out$/,
    });
  }
});

/** Where the file system has O_DIRECT. */
function openDirectOr(t: Test, file: string): number {
  let fd: number;
  try {
    fd = fs.openSync(file, fs.constants.O_RDWR | fs.constants.O_DIRECT);
  } catch {
    fd = fs.openSync(file, 'r+');
  }
  t.teardown(() => fs.closeSync(fd));
  return fd;
}
