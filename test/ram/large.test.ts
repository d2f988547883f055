/** Blocks above 4 GiB: more than a 32-bit offset, and on Node 20 more than one typed array can show. */
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import t from 'tap';
import { createReceiver, createSender } from '../../src/index.js';
import { Random } from '../support/random.js';
import { within } from '../support/within.js';

const GIB = 2 ** 30;
const SIZE = 4 * GIB + 64 * 2 ** 20;
const PAGE = 4096;
const WAIT_MS = 60_000;

/** Single bytes and pages of something large; all the rest is never touched, and takes no memory. */
interface Large {
  write(offset: number, bytes: Uint8Array): void;
  read(offset: number, length: number): Buffer;
}

function inMemory(buffer: SharedArrayBuffer): Large {
  return {
    write: (offset, bytes) => new Uint8Array(buffer, offset, bytes.length).set(bytes),
    read: (offset, length) => Buffer.from(new Uint8Array(buffer, offset, length)),
  };
}

function inFile(file: string): Large {
  fs.writeFileSync(file, '');
  fs.truncateSync(file, SIZE);
  return {
    write: (offset, bytes) => {
      const fd = fs.openSync(file, 'r+');
      fs.writeSync(fd, bytes, 0, bytes.length, offset);
      fs.closeSync(fd);
    },
    read: (offset, length) => {
      const bytes = Buffer.alloc(length);
      const fd = fs.openSync(file, 'r');
      fs.readSync(fd, bytes, 0, length, offset);
      fs.closeSync(fd);
      return bytes;
    },
  };
}

/** Runs of pages at both ends and over each border where something changes: a window of 1 GiB, 2^31, 2^32. */
const RUNS: [number, number][] = [
  [0, 3],
  [GIB / PAGE - 2, 4],
  [(2 * GIB) / PAGE - 3, 5],
  [(3 * GIB) / PAGE - 1, 2],
  [(4 * GIB) / PAGE - 2, 5],
  [SIZE / PAGE - 140, 140],
];
/** Queued one by one, in this order. */
const PAGES = [
  SIZE / PAGE - 200,
  5,
  (4 * GIB) / PAGE + 77,
  (4 * GIB) / PAGE - 77,
  GIB / PAGE + 9,
  (2 * GIB) / PAGE,
];

for (const compression of ['none', 'zlib'] as const) {
  t.test(
    `${compression}: pages of blocks above 4 GiB travel, file to memory and memory to file`,
    async (t) => {
      const dir = fs.mkdtempSync(path.join(os.tmpdir(), 'multifd-test-'));
      t.teardown(() => fs.rmSync(dir, { recursive: true }));
      const files = [path.join(dir, 'source'), path.join(dir, 'destination')];
      const buffers = [new SharedArrayBuffer(SIZE), new SharedArrayBuffer(SIZE)];
      const blocks = {
        'from-file': { source: inFile(files[0]), destination: inMemory(buffers[1]) },
        'from-memory': { source: inMemory(buffers[0]), destination: inFile(files[1]) },
      };
      const receiver = await createReceiver({
        address: 'tcp:127.0.0.1:0',
        compression,
        blocks: [
          { name: 'from-file', memory: buffers[1] },
          { name: 'from-memory', file: files[1], size: SIZE },
        ],
      });
      t.teardown(() => receiver.close());
      const sender = await createSender({
        address: receiver.address,
        compression,
        blocks: [
          { name: 'from-file', file: files[0], size: SIZE },
          { name: 'from-memory', memory: buffers[0] },
        ],
      });
      t.teardown(() => sender.close());

      const random = new Random(44);
      const all = new Set(PAGES);
      for (const [first, count] of RUNS) for (let i = 0; i < count; i++) all.add(first + i);
      /** `-1` for zero, else the seed of a page's bytes. */
      const contentOf = (seed: number): Buffer => {
        const bytes = Buffer.alloc(PAGE);
        if (seed >= 0) new Random(seed).bytes(bytes);
        return bytes;
      };
      const queue = async (name: string): Promise<void> => {
        for (const [first, count] of RUNS) await sender.queueRange(name, first * PAGE, count * PAGE);
        for (const page of PAGES) await sender.queuePage(name, page * PAGE);
      };
      for (let round = 0; round < 3; round++) {
        const seeds = new Map<string, number>();
        for (const [name, { source }] of Object.entries(blocks)) {
          for (const page of all) {
            // In the second round all is zero, in the others some of it.
            const seed = round === 1 || random.below(4) === 0 ? -1 : random.next();
            seeds.set(`${name} ${page}`, seed);
            source.write(page * PAGE, contentOf(seed));
          }
          await queue(name);
        }
        await within(Promise.all([sender.sync(), receiver.sync()]), WAIT_MS, 'sync');
        for (const [name, { destination }] of Object.entries(blocks)) {
          const wrong = [...all].filter(
            (page) =>
              !destination.read(page * PAGE, PAGE).equals(contentOf(seeds.get(`${name} ${page}`) as number)),
          );
          t.same(wrong, [], `${name}, round ${round}: pages that differ`);
          for (const page of [4, 6, GIB / PAGE + 8, (4 * GIB) / PAGE - 78, (4 * GIB) / PAGE + 3]) {
            t.ok(
              destination.read(page * PAGE, PAGE).equals(contentOf(-1)),
              `page ${page} beside is untouched`,
            );
          }
        }
      }
      for (const name of Object.keys(blocks)) {
        const received = receiver.received(name);
        t.equal(received.count(), all.size);
        t.ok([...all].every((page) => received.has(page * PAGE)));
        t.notOk(received.has((4 * GIB) / PAGE - 78));
      }
      await within(Promise.all([sender.end(), receiver.end()]), WAIT_MS, 'ends');
    },
  );
}

t.test('zero pages of a block above 4 GiB are found and reported in mode legacy', async (t) => {
  const source = new SharedArrayBuffer(SIZE);
  const destination = new SharedArrayBuffer(SIZE);
  const receiver = await createReceiver({
    address: 'tcp:127.0.0.1:0',
    blocks: [{ name: 'pc.ram', memory: destination }],
  });
  t.teardown(() => receiver.close());
  const reported: [number, number][] = [];
  const sender = await createSender({
    address: receiver.address,
    blocks: [{ name: 'pc.ram', memory: source }],
    zeroPageDetection: 'legacy',
    onZeroPages: async (block, offset, length) => {
      reported.push([offset / PAGE, length / PAGE]);
      await receiver.zeroRange(block.name, offset, length);
    },
  });
  t.teardown(() => sender.close());
  const first = (4 * GIB) / PAGE - 3;
  inMemory(source).write(first * PAGE, Buffer.of(1));
  inMemory(source).write((SIZE / PAGE - 1) * PAGE, Buffer.of(2));
  inMemory(destination).write((first + 1) * PAGE, Buffer.alloc(4 * PAGE, 0x5a));
  await sender.queueRange('pc.ram', first * PAGE, 6 * PAGE);
  await sender.queueRange('pc.ram', SIZE - 2 * PAGE, 2 * PAGE);
  await within(Promise.all([sender.sync(), receiver.sync()]), WAIT_MS, 'sync');
  t.same(reported, [
    [first + 1, 5],
    [SIZE / PAGE - 2, 1],
  ]);
  const got = inMemory(destination).read(first * PAGE, 6 * PAGE);
  t.equal(got[0], 1);
  t.ok(got.subarray(1).every((byte) => byte === 0));
  t.equal(inMemory(destination).read(SIZE - PAGE, 1)[0], 2);
  await within(Promise.all([sender.end(), receiver.end()]), WAIT_MS, 'ends');
});
