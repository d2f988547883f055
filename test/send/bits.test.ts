/** Pages of a bitmap, queued in one call: what arrives is what its bits say, whatever the runs are, on every way that a page goes. */
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import t from 'tap';
import { createReceiver, type Compression, type RAMBlockOptions } from '../../src/index.js';
import { PageBitmap } from '../../src/ram/bitmap.js';
import { createSender } from '../../src/send/sender.js';
import { Random } from '../support/random.js';
import { within } from '../support/within.js';

const PAGE = 4096;
/** Of several packets, and not a multiple of a word's bits. */
const PAGES = 5003;
const WAIT_MS = 30_000;

type Kind = 'shared' | 'private' | 'file';

/** Single pages, short runs, runs of several packets; by its end the last page. */
function draw(random: Random): PageBitmap {
  const bits = new PageBitmap(PAGES);
  for (let page = random.below(3); page < PAGES;) {
    const longest = [1, 1, 1, 40, 700][random.below(5)];
    const count = Math.min(1 + random.below(longest), PAGES - page);
    bits.setRange(page, count);
    page += count + 1 + random.below(20);
  }
  bits.setRange(PAGES - 1, 1);
  return bits;
}

function countOf(bits: PageBitmap): number {
  return [...bits.runs()].reduce((sum, { count }) => sum + count, 0);
}

const rows: { kind: Kind; compression: Compression; channels: number; more?: object }[] = [
  { kind: 'shared', compression: 'none', channels: 1 },
  { kind: 'shared', compression: 'none', channels: 3 },
  { kind: 'shared', compression: 'none', channels: 2, more: { maxBandwidth: 100e6 } },
  { kind: 'shared', compression: 'zlib', channels: 2 },
  { kind: 'private', compression: 'none', channels: 2 },
  { kind: 'file', compression: 'none', channels: 2 },
  { kind: 'shared', compression: 'none', channels: 2, more: { zeroPageDetection: 'none' } },
];

for (const [seed, { kind, compression, channels, more = {} }] of rows.entries()) {
  t.test(`${kind} memory, ${compression}, ${channels} channels ${JSON.stringify(more)}`, async (t) => {
    const random = new Random(seed + 1);
    const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'multifd-'));
    t.teardown(() => fs.rmSync(folder, { recursive: true, force: true }));
    const size = PAGES * PAGE;
    const from = kind === 'private' ? Buffer.alloc(size) : Buffer.from(new SharedArrayBuffer(size));
    const to = Buffer.from(new SharedArrayBuffer(size));
    const file = path.join(folder, 'ram');
    const source: RAMBlockOptions =
      kind === 'file' ? { name: 'ram', file, size } : { name: 'ram', memory: from };
    fs.writeFileSync(file, from);
    const receiver = await createReceiver({
      address: { port: 0 },
      channels,
      compression,
      blocks: [{ name: 'ram', memory: to }],
    });
    t.teardown(() => receiver.close());
    const sender = await createSender({
      address: receiver.address,
      channels,
      compression,
      blocks: [source],
      ...more,
    });
    t.teardown(() => sender.close());
    const expected = Buffer.alloc(size);
    let queued = 0;
    for (let phase = 0; phase < 3; phase++) {
      for (let page = 0; page < PAGES; page++) {
        const value = random.below(4) === 0 ? 0 : 1 + random.below(255);
        from.fill(value, page * PAGE, (page + 1) * PAGE);
      }
      fs.writeFileSync(file, from);
      const bits = draw(random);
      const count = countOf(bits);
      for (const { page, count } of bits.runs())
        from.copy(expected, page * PAGE, page * PAGE, (page + count) * PAGE);
      queued += count;
      const all = [sender.queueBits('ram', bits, count)];
      // A call behind it keeps its turn.
      if (phase === 1) all.push(sender.queueRange('ram', 0, PAGE));
      if (phase === 1) from.copy(expected, 0, 0, PAGE);
      if (phase === 1 && !bits.has(0)) queued++;
      const isTwice = phase === 1 && bits.has(0);
      await within(Promise.all(all), WAIT_MS, 'queueing');
      await within(Promise.all([sender.sync(), receiver.sync()]), WAIT_MS, 'sync');
      t.ok(to.equals(expected), `phase ${phase}: what is set, and nothing else`);
      // A page that is queued twice in a phase goes over every channel at its end.
      if (isTwice) queued += channels;
    }
    const { normalPages, zeroPages } = receiver.stats();
    t.equal(normalPages + zeroPages, queued);
  });
}

t.test('a bitmap without a bit queues nothing; one after the end is refused', async (t) => {
  const memory = new SharedArrayBuffer(PAGE);
  const blocks = [{ name: 'ram', memory }];
  const receiver = await createReceiver({ address: { port: 0 }, channels: 1, blocks });
  t.teardown(() => receiver.close());
  const sender = await createSender({ address: receiver.address, channels: 1, blocks });
  await sender.queueBits('ram', new PageBitmap(1), 0);
  await within(Promise.all([sender.sync(), receiver.sync()]), WAIT_MS, 'sync');
  t.equal(receiver.stats().normalPages + receiver.stats().zeroPages, 0);
  await sender.end();
  await t.rejects(sender.queueBits('ram', new PageBitmap(1), 0), { code: 'ERR_MULTIFD_STATE' });
});
