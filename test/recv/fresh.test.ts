/**
 * Blocks that are `fresh`: a zero page that comes in for the first time is neither read nor written. Shown with memory that
 * is not what it was said to be.
 */
import fs from 'node:fs';
import path from 'node:path';
import t from 'tap';
import { createReceiver, createSender, type RAMBlockOptions } from '../../src/index.js';

const PAGE = 4096;
const SIZE = 64 * PAGE;
const MARK = 0xaa;

/** A destination full of MARK, as a block's options, and how to look at it. */
function destinations(folder: string): Record<string, () => { block: RAMBlockOptions; read: () => Buffer }> {
  return {
    shared: () => {
      const memory = new SharedArrayBuffer(SIZE);
      Buffer.from(memory).fill(MARK);
      return { block: { name: 'pc.ram', memory }, read: () => Buffer.from(memory) };
    },
    private: () => {
      const memory = new Uint8Array(SIZE).fill(MARK);
      return { block: { name: 'pc.ram', memory }, read: () => Buffer.from(memory) };
    },
    file: () => {
      const file = path.join(folder, 'ram');
      fs.writeFileSync(file, Buffer.alloc(SIZE, MARK));
      return { block: { name: 'pc.ram', file, size: SIZE }, read: () => fs.readFileSync(file) };
    },
  };
}

for (const [kind, make] of Object.entries(destinations(t.testdir()))) {
  for (const fresh of [true, false]) {
    t.test(`${kind}, ${fresh ? 'fresh' : 'not fresh'}`, async (t) => {
      const { block, read } = make();
      const source = new SharedArrayBuffer(SIZE);
      const bytes = Buffer.from(source);
      // Page 3 has data, all others are zero.
      bytes.fill(1, 3 * PAGE, 4 * PAGE);
      await using receiver = await createReceiver({
        address: { port: 0 },
        blocks: [{ ...block, fresh }],
        channels: 2,
      });
      await using sender = await createSender({
        address: receiver.address,
        blocks: [{ name: 'pc.ram', memory: source }],
        channels: 2,
      });
      const pass = async (): Promise<void> => {
        await sender.queueRange('pc.ram', 0, SIZE);
        await Promise.all([sender.sync(), receiver.sync()]);
      };
      await pass();
      const untouched = Buffer.alloc(PAGE, fresh ? MARK : 0);
      t.ok(read().subarray(0, PAGE).equals(untouched), 'a zero page, the first time');
      t.ok(
        read()
          .subarray(3 * PAGE, 4 * PAGE)
          .equals(bytes.subarray(3 * PAGE, 4 * PAGE)),
        'a normal page',
      );
      t.equal(receiver.received('pc.ram').count(), 64, 'it has come in nevertheless');

      // It was a normal page before; and a zero page for the second time.
      bytes.fill(0);
      await pass();
      t.ok(
        read()
          .subarray(3 * PAGE, 4 * PAGE)
          .equals(Buffer.alloc(PAGE)),
        'a page that has become zero',
      );
      t.ok(read().subarray(0, PAGE).equals(Buffer.alloc(PAGE)), 'a zero page, the second time');
      await sender.end();
      await receiver.end();
    });
  }
}

t.test('a fresh file keeps its holes', async (t) => {
  const file = path.join(t.testdir(), 'ram');
  fs.writeFileSync(file, '');
  fs.truncateSync(file, SIZE);
  await using receiver = await createReceiver({
    address: { port: 0 },
    blocks: [{ name: 'pc.ram', file, size: SIZE, fresh: true }],
    channels: 1,
  });
  await using sender = await createSender({
    address: receiver.address,
    blocks: [{ name: 'pc.ram', memory: new SharedArrayBuffer(SIZE) }],
    channels: 1,
  });
  await sender.queueRange('pc.ram', 0, SIZE);
  await Promise.all([sender.sync(), receiver.sync()]);
  t.equal(fs.statSync(file).blocks, 0);
  await sender.end();
  await receiver.end();
});

t.test('it is true or false', async (t) => {
  const blocks = [{ name: 'pc.ram', memory: new SharedArrayBuffer(SIZE), fresh: 1 as unknown as boolean }];
  await t.rejects(createReceiver({ address: { port: 0 }, blocks }), { code: 'ERR_MULTIFD_BLOCK' });
});
