/** Receiver.zeroRange(): all of the range is zero then, and noted as received, and nothing beside it. */
import fs from 'node:fs';
import path from 'node:path';
import t from 'tap';
import { createReceiver, type RAMBlockOptions } from '../../src/index.js';

const PAGE = 4096;
/** More than is zeroed in one go, and no multiple of it. */
const PAGES = 400;
const SIZE = PAGES * PAGE;
const MARK = 0xaa;
/** First page and count. */
const RANGES: [number, number][] = [
  [3, 1],
  [10, 130],
  [141, 128],
  [PAGES - 1, 1],
];

interface Target {
  options: RAMBlockOptions;
  /** The block, and what lies around it. */
  read: () => { block: Buffer; around: Buffer };
}

function targets(folder: string): Record<string, Target> {
  const shared = new SharedArrayBuffer(SIZE);
  const owned = Buffer.alloc(SIZE);
  const file = path.join(folder, 'ram');
  for (const memory of [Buffer.from(shared), owned]) memory.fill(MARK);
  fs.writeFileSync(file, Buffer.alloc(3 * SIZE, MARK));
  return {
    shared: {
      options: { name: 'pc.ram', memory: shared },
      read: () => ({ block: Buffer.from(shared), around: Buffer.alloc(0) }),
    },
    private: {
      options: { name: 'pc.ram', memory: owned },
      read: () => ({ block: owned, around: Buffer.alloc(0) }),
    },
    file: {
      options: { name: 'pc.ram', file, offset: SIZE, size: SIZE },
      read: () => {
        const bytes = fs.readFileSync(file);
        const block = bytes.subarray(SIZE, 2 * SIZE);
        return { block, around: Buffer.concat([bytes.subarray(0, SIZE), bytes.subarray(2 * SIZE)]) };
      },
    },
  };
}

for (const [kind, { options, read }] of Object.entries(targets(t.testdir()))) {
  t.test(`zeroRange(), ${kind}: the range, the bitmap, and nothing beside them`, async (t) => {
    await using receiver = await createReceiver({ address: { port: 0 }, blocks: [options] });
    const received = receiver.received('pc.ram');
    const expected = Buffer.alloc(SIZE, MARK);
    let count = 0;
    for (const [first, pages] of RANGES) {
      await receiver.zeroRange('pc.ram', first * PAGE, pages * PAGE);
      expected.fill(0, first * PAGE, (first + pages) * PAGE);
      count += pages;
      const { block, around } = read();
      t.ok(block.equals(expected), `pages ${first} and ${pages} on`);
      t.ok(
        around.every((byte) => byte === MARK),
        'nothing around the block',
      );
      t.equal(received.count(), count);
    }
    for (const [first, pages] of RANGES) {
      t.ok(received.has(first * PAGE) && received.has((first + pages - 1) * PAGE));
      t.notOk(received.has((first - 1) * PAGE));
    }
  });
}
