/** The fast test for zero against its plain twin. */
import { once } from 'node:events';
import os from 'node:os';
import { Worker } from 'node:worker_threads';
import t from 'tap';
import { isZeroRange, isZeroRangePlain } from '../../src/ram/zero-page.js';
import { ALL } from '../support/some.js';

/** Integers of 0 to below `limit`, the same in every run: an LCG with the constants of Numerical Recipes. */
function seeded(seed: number): (limit: number) => number {
  let x = seed >>> 0;
  return (limit) => {
    x = (Math.imul(x, 1664525) + 1013904223) >>> 0;
    return Math.floor((x / 2 ** 32) * limit);
  };
}

/** All page sizes, and the longest range there is. */
const LENGTHS = [4096, 8192, 16384, 32768, 65536, 524288];

/** Places at which a range of `length` bytes may differ: ends, middle, borders of words and of cache lines. */
function positions(length: number, random: (limit: number) => number): number[] {
  const places = new Set<number>();
  for (const border of [0, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, length / 4, length / 2, length]) {
    for (const by of [-9, -8, -7, -4, -2, -1, 0, 1, 2, 4, 7, 8, 9]) places.add(border + by);
  }
  for (let i = 0; i < 64; i++) places.add(random(length));
  return [...places].filter((place) => place >= 0 && place < length);
}

t.test('a range of zeroes is zero, wherever it starts', async (t) => {
  for (const length of LENGTHS) {
    const bytes = Buffer.alloc(length + 8192);
    for (const start of [0, 1, 7, 8, 4095, 4096, 8192]) {
      t.equal(isZeroRange(bytes, start, length), true);
      t.equal(isZeroRangePlain(bytes, start, length), true);
    }
  }
});

t.test('one byte that is not zero is seen at every place, and gone when it is gone', async (t) => {
  for (const length of LENGTHS) {
    const random = seeded(length);
    const bytes = Buffer.alloc(length + 4096 + 13);
    const missed: string[] = [];
    let tried = 0;
    for (const start of [0, 13, 4096]) {
      for (const position of positions(length, random)) {
        const value = [0x01, 0x80, 0xff, 1 + random(255)][random(4)];
        bytes[start + position] = value;
        if (isZeroRange(bytes, start, length)) missed.push(`${value} at ${start} + ${position}`);
        if (isZeroRangePlain(bytes, start, length)) missed.push(`plain: ${value} at ${start} + ${position}`);
        bytes[start + position] = 0;
        if (!isZeroRange(bytes, start, length)) missed.push(`0 at ${start} + ${position}`);
        tried++;
      }
    }
    t.same(missed, [], `${tried} places in ${length} bytes`);
    t.ok(tried > 300);
  }
});

t.test('every single place of a page', async (t) => {
  const bytes = Buffer.alloc(3 * 4096);
  const missed: number[] = [];
  for (let position = 0; position < 4096; position++) {
    bytes[4096 + position] = 1;
    if (isZeroRange(bytes, 4096, 4096)) missed.push(position);
    bytes[4096 + position] = 0;
  }
  t.same(missed, []);
});

t.test('every place of short ranges of any length at any start', async (t) => {
  const bytes = Buffer.alloc(128);
  const missed: string[] = [];
  for (let length = 1; length <= 40; length++) {
    for (let start = 0; start < 16; start++) {
      for (let position = 0; position < bytes.length; position++) {
        bytes[position] = 1;
        const inside = position >= start && position < start + length;
        if (isZeroRange(bytes, start, length) === inside) missed.push(`${position}: ${length} at ${start}`);
        if (isZeroRangePlain(bytes, start, length) === inside)
          missed.push(`plain ${position}: ${length} at ${start}`);
        bytes[position] = 0;
      }
    }
  }
  t.same(missed, []);
});

t.test('bytes beside the range do not count', async (t) => {
  for (const length of LENGTHS) {
    const bytes = Buffer.alloc(length + 2 * 4096, 0xff);
    bytes.fill(0, 4096, 4096 + length);
    t.equal(isZeroRange(bytes, 4096, length), true);
    t.equal(isZeroRangePlain(bytes, 4096, length), true);
    t.equal(isZeroRange(bytes, 4095, length), false);
    t.equal(isZeroRange(bytes, 4097, length), false);
  }
});

t.test('the fast version and the plain one say the same of random ranges', async (t) => {
  const random = seeded(0x12345678);
  const bytes = Buffer.alloc(8 * 4096);
  const different: string[] = [];
  let zero = 0;
  for (let round = 0; round < 2000; round++) {
    bytes.fill(0);
    for (let i = random(4); i > 0; i--) bytes[random(bytes.length)] = random(256);
    const length = 1 + random(16384);
    const start = random(bytes.length - length + 1);
    const plain = isZeroRangePlain(bytes, start, length);
    if (plain) zero++;
    if (isZeroRange(bytes, start, length) !== plain) different.push(`round ${round}: ${length} at ${start}`);
  }
  t.same(different, []);
  t.ok(zero > 200 && zero < 1800, `both answers come often enough: ${zero} of 2000 are zero`);
});

t.test('shared memory, and a view that begins inside its buffer, are read in the right place', async (t) => {
  const buffer = new SharedArrayBuffer(4 * 4096);
  const all = new Uint8Array(buffer);
  const view = Buffer.from(buffer, 4096, 2 * 4096);
  all.fill(0xff, 0, 4096);
  t.equal(isZeroRange(view, 0, 8192), true);
  all[2 * 4096] = 1;
  t.equal(isZeroRange(view, 0, 4096), true);
  t.equal(isZeroRange(view, 4096, 4096), false);
});

/** A guest: told so, it paints the front of its memory with a pattern, after a pause that is never the same. */
const PAINTER = `
  const { workerData } = require('node:worker_threads');
  const { memory, control, frontBytes, pattern } = workerData;
  const words = new Int32Array(control);
  const front = Buffer.from(memory, 0, frontBytes);
  const paint = Buffer.alloc(frontBytes, Buffer.from(pattern));
  let seed = 1;
  for (;;) {
    // Asleep it would come too late each time.
    while (Atomics.load(words, 0) === 0);
    if (Atomics.load(words, 0) === 2) break;
    seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0;
    for (let i = seed >>> 17; i > 0; i--) Atomics.load(words, 1);
    paint.copy(front);
    Atomics.store(words, 0, 0);
  }
`;

/** Takes processor time, so that a look is interrupted now and then, and all of the painting falls in between. */
const BUSY = `
  const words = new Int32Array(require('node:worker_threads').workerData);
  while (Atomics.load(words, 0) !== 2);
`;

/** Beside what a second has. */
const FEWEST_LOOKS = 100;

t.test('a guest that writes meanwhile does not make other pages zero', async (t) => {
  const size = 2 ** 23;
  const frontBytes = 2 ** 20;
  // It begins and ends with zeroes, as all that is looked at first.
  const pattern = Buffer.of(0, 0xff, 0, 0);
  const memory = new SharedArrayBuffer(size);
  const bytes = Buffer.from(memory);
  bytes.fill(pattern, frontBytes);
  const control = new SharedArrayBuffer(8);
  const words = new Int32Array(control);
  const painter = new Worker(PAINTER, { eval: true, workerData: { memory, control, frontBytes, pattern } });
  const threads = [painter];
  for (let i = 1; i < os.availableParallelism(); i++)
    threads.push(new Worker(BUSY, { eval: true, workerData: control }));
  await Promise.all(threads.map((thread) => once(thread, 'online')));
  const late = performance.now() + (ALL ? 5000 : 1000);
  let scans = 0;
  let wrong = 0;
  // On a slow day for longer: so many there are to be.
  while (performance.now() < late || scans <= FEWEST_LOOKS) {
    bytes.fill(0, 0, frontBytes);
    Atomics.store(words, 0, 1);
    scans++;
    if (isZeroRange(bytes, 0, size)) wrong++;
    while (Atomics.load(words, 0) === 1);
  }
  Atomics.store(words, 0, 2);
  await Promise.all(threads.map((thread) => once(thread, 'exit')));
  t.equal(wrong, 0, `${scans} looks`);
});
