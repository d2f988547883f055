/** A packet's pages into a file: held against writing them one by one, in the packet's order. */
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import t, { type Test } from 'tap';
import type { BlockDescription } from '../../src/ram/block.js';
import { FileBlock } from '../../src/ram/file-block.js';
import { FilePages } from '../../src/recv/file-pages.js';
import { Random } from '../support/random.js';

const PAGE = 4096;
const PACKET = 128;
const PAGES = 600;

interface Opened {
  file: FileBlock;
  /** All of it. */
  read: () => Buffer;
}

function open(t: Test): Opened {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'multifd-file-pages-'));
  const fd = fs.openSync(path.join(folder, 'ram'), 'w+');
  t.teardown(() => {
    fs.closeSync(fd);
    fs.rmSync(folder, { recursive: true });
  });
  fs.ftruncateSync(fd, PAGES * PAGE);
  const block = { name: 'ram', kind: 'file', size: PAGES * PAGE, base: 0, fd, fresh: false };
  return {
    file: new FileBlock(block as BlockDescription),
    read: () => {
      const all = Buffer.alloc(PAGES * PAGE);
      fs.readSync(fd, all, 0, all.length, 0);
      return all;
    },
  };
}

/** Counts calls; `most` bytes are taken by each at most. */
function watchWrites(t: Test, most = Infinity): { calls: number } {
  const watched = { calls: 0 };
  const { writeSync, writevSync } = fs;
  fs.writeSync = ((fd: number, from: Buffer, at: number, length: number, position: number) => {
    watched.calls++;
    return writeSync(fd, from, at, Math.min(length, most), position);
  }) as typeof fs.writeSync;
  fs.writevSync = ((fd: number, pieces: Buffer[], position: number) => {
    watched.calls++;
    const all = Buffer.concat(pieces);
    return writeSync(fd, all, 0, Math.min(all.length, most), position);
  }) as typeof fs.writevSync;
  t.teardown(() => Object.assign(fs, { writeSync, writevSync }));
  return watched;
}

function payloadOf(random: Random): Buffer {
  const payload = Buffer.alloc(PACKET * PAGE);
  for (let i = 0; i < payload.length; i += 4) payload.writeUInt32LE(random.below(2 ** 32), i);
  return payload;
}

/** Forwards, then backwards, as QEMU sorts out zero pages: `zero` of 128 pages. */
function swapped(first: number, isZero: (page: number) => boolean): number[] {
  const pages = Array.from({ length: PACKET }, (_, i) => first + i);
  let end = pages.length;
  for (let i = 0; i < end;) {
    if (!isZero(pages[i])) i++;
    else if (isZero(pages[end - 1])) end--;
    else [pages[i], pages[end - 1]] = [pages[end - 1], pages[i]];
  }
  return pages.slice(0, end);
}

t.test('whatever the order of a packet, each page comes to its place', (t) => {
  const random = new Random(11);
  const { file, read } = open(t);
  const pages = new FilePages(PAGE, PACKET);
  const want = Buffer.alloc(PAGES * PAGE);
  const payload = payloadOf(random);
  let wrong = 0;
  for (let round = 0; round < 60; round++) {
    // The payload's own bytes change, as the next packet's do; in a buffer of a codec's as well.
    const bytes = round % 3 === 0 ? payloadOf(random) : payload;
    bytes.fill(round + 1, 0, PACKET * PAGE - 64 * random.below(64));
    for (let i = 0; i < PACKET; i++) bytes.writeUInt32LE(random.below(2 ** 32), i * PAGE);
    const count = 1 + random.below(PACKET);
    const first = random.below(PAGES - PACKET);
    const run = 1 + random.below(40);
    const list =
      round % 2 === 0
        ? swapped(first, (page) => Math.floor(page / run) % 2 === 0)
        : // Any order, and some of them twice: the last one counts.
          Array.from({ length: count }, () => random.below(PAGES));
    const sorted = pages.write(file, Uint32Array.from(list), list.length, bytes);
    list.forEach((page, i) => bytes.copy(want, page * PAGE, i * PAGE, (i + 1) * PAGE));
    const ascending = [...list].sort((a, b) => a - b);
    if (ascending.some((page, i) => sorted[i] !== page)) wrong++;
    if (!read().equals(want)) wrong++;
  }
  t.equal(wrong, 0);
  t.end();
});

t.test("neighbours in the file are one call, as in QEMU's packets that are half zero", (t) => {
  const { file } = open(t);
  const pages = new FilePages(PAGE, PACKET);
  const payload = Buffer.alloc(PACKET * PAGE, 1);
  const watched = watchWrites(t);
  const list = Uint32Array.from(swapped(0, (page) => page >= 30 && page < 90));
  t.equal(list[30], 127, 'backwards from there on');
  pages.write(file, list, list.length, payload);
  t.equal(watched.calls, 2);
  pages.write(
    file,
    Uint32Array.from({ length: PACKET }, (_, i) => i),
    PACKET,
    payload,
  );
  t.equal(watched.calls, 3);
  t.end();
});

t.test('a write that takes less than all of it goes on behind that', (t) => {
  const { file, read } = open(t);
  const pages = new FilePages(PAGE, PACKET);
  const payload = payloadOf(new Random(12));
  watchWrites(t, 3 * PAGE + 100);
  const list = Array.from({ length: PACKET }, (_, i) => PACKET - 1 - i);
  pages.write(file, Uint32Array.from(list), PACKET, payload);
  const all = read();
  t.ok(
    list.every(
      (page, i) => all.compare(payload, i * PAGE, (i + 1) * PAGE, page * PAGE, (page + 1) * PAGE) === 0,
    ),
  );
  t.end();
});

t.test("a write that fails is the block's error", (t) => {
  const { file } = open(t);
  const { writevSync } = fs;
  fs.writevSync = () => {
    throw Object.assign(new Error('ENOSPC: no space left on device, writev'), { code: 'ENOSPC' });
  };
  t.teardown(() => Object.assign(fs, { writevSync }));
  const pages = new FilePages(PAGE, PACKET);
  t.throws(() => pages.write(file, Uint32Array.of(8, 7), 2, Buffer.alloc(2 * PAGE)), {
    code: 'ERR_MULTIFD_IO',
    message: /RAM block "ram": write at 28672.*ENOSPC/,
  });
  t.end();
});
