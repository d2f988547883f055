/**
 * All ways of queueing pages, drawn at random, with lengths from nothing to several packets and waits now and then, against
 * what the destination must hold after each sync().
 */
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import t from 'tap';
import { createReceiver, createSender, type Compression, type RAMBlockOptions } from '../../src/index.js';
import { Random } from '../support/random.js';
import { within } from '../support/within.js';
import { some } from '../support/some.js';

const PAGE = 4096;
const PAGES = 3000;
const BYTES = PAGES * PAGE;
const PHASES = 3;
const WAIT_MS = 30_000;
const KINDS = ['shared', 'file', 'private'] as const;

/** Runs of zero pages, of pages that show it in their first byte, and of those that show it in any other. */
function paint(bytes: Buffer, random: Random): void {
  for (let page = 0; page < PAGES;) {
    const run = Math.min(1 + random.below(400), PAGES - page);
    const kind = random.below(4);
    for (let i = page; i < page + run; i++) {
      const at = i * PAGE;
      bytes.fill(0, at, at + PAGE);
      if (kind === 1) bytes.fill(1 + random.below(255), at, at + PAGE);
      if (kind === 2) bytes[at + random.below(PAGE)] = 1;
      if (kind === 3) bytes.writeUInt32LE(i + 1, at + PAGE - 4);
    }
    page += run;
  }
}

const SEEDS = Array.from({ length: 12 }, (_, i) => i + 1);

for (const seed of some(SEEDS, 5)) {
  const compression = (['none', 'none', 'zstd', 'zlib'] as const satisfies Compression[])[seed % 4];
  const channels = 1 + (seed % 3);
  t.test(`${channels} channels, ${compression}, seed ${seed}`, async (t) => {
    const random = new Random(seed);
    const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'multifd-'));
    t.teardown(() => fs.rmSync(folder, { recursive: true, force: true }));
    const file = path.join(folder, 'ram');
    const sources: Record<(typeof KINDS)[number], Buffer> = {
      shared: Buffer.from(new SharedArrayBuffer(BYTES)),
      file: Buffer.alloc(BYTES),
      private: Buffer.from(new ArrayBuffer(BYTES)),
    };
    fs.writeFileSync(file, sources.file);
    const targets = KINDS.map(() => Buffer.from(new SharedArrayBuffer(BYTES)));
    const receiver = await createReceiver({
      address: { port: 0 },
      channels,
      compression,
      blocks: KINDS.map((name, i) => ({ name, memory: targets[i] })),
    });
    t.teardown(() => receiver.close());
    const sender = await createSender({
      address: receiver.address,
      channels,
      compression,
      blocks: KINDS.map((name): RAMBlockOptions =>
        name === 'file' ? { name, file, size: BYTES } : { name, memory: sources[name] },
      ),
    });
    t.teardown(() => sender.close());

    const expected = KINDS.map(() => Buffer.alloc(BYTES));
    for (let phase = 0; phase < PHASES; phase++) {
      for (const name of KINDS) paint(sources[name], random);
      fs.writeFileSync(file, sources.file);
      // In pieces, each queued once in one of all ways, or not at all; the blocks by turns.
      const at = KINDS.map(() => 0);
      const waits: Promise<void>[] = [];
      while (at.some((page) => page < PAGES)) {
        const i = random.below(KINDS.length);
        const page = at[i];
        const count = Math.min(random.below(random.below(3) === 0 ? 900 : 40), PAGES - page);
        const [offset, length] = [page * PAGE, count * PAGE];
        const way = random.below(8);
        at[i] += count;
        if (way < 5) {
          waits.push(sender.queueRange(KINDS[i], offset, length));
          sources[KINDS[i]].copy(expected[i], offset, offset, offset + length);
        } else if (way === 5) {
          waits.push(sender.queueZeroRange(KINDS[i], offset, length));
          expected[i].fill(0, offset, offset + length);
        } else if (way === 6) {
          for (let j = count - 1; j >= 0; j--) waits.push(sender.queuePage(KINDS[i], offset + j * PAGE));
          sources[KINDS[i]].copy(expected[i], offset, offset, offset + length);
        }
        if (random.below(4) > 0) await within(Promise.all(waits.splice(0)), WAIT_MS, 'queueing');
        if (random.below(10) === 0) waits.push(sender.flush());
      }
      await within(Promise.all([...waits, sender.sync(), receiver.sync()]), WAIT_MS, 'sync()');
      for (const [i, name] of KINDS.entries())
        t.ok(targets[i].equals(expected[i]), `${name}, phase ${phase}`);
    }
    await within(Promise.all([sender.end(), receiver.end()]), WAIT_MS, 'end()');
  });
}
