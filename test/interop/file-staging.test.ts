/**
 * A race of the past: a packet of zero pages, held back, took a turn of the two staging buffers without waiting for the
 * write under way, and the next packet was read from the file over bytes that were still being sent.
 */
import crypto from 'node:crypto';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import t from 'tap';
import { createReceiver, createSender } from '../../src/index.js';

const RUN = 524288;
const RUNS = 96;
const ROUNDS = 6;

t.test('file-backed RAM whose batches are random and zero in turn arrives whole', async (t) => {
  const directory = fs.mkdtempSync(path.join(os.tmpdir(), 'multifd-staging-'));
  t.teardown(() => fs.rmSync(directory, { recursive: true, force: true }));
  const file = path.join(directory, 'ram');
  const expected = Buffer.alloc(RUN * RUNS);
  for (let i = 0; i < RUNS; i += 2) crypto.randomFillSync(expected, i * RUN, RUN);
  fs.writeFileSync(file, expected);
  const size = expected.length;
  for (const channels of [1, 2]) {
    const memory = new SharedArrayBuffer(size);
    await using receiver = await createReceiver({
      address: { port: 0 },
      channels,
      blocks: [{ name: 'pc.ram', memory }],
    });
    await using sender = await createSender({
      address: receiver.address,
      channels,
      blocks: [{ name: 'pc.ram', file, size }],
    });
    for (let round = 0; round < ROUNDS; round++) {
      Buffer.from(memory).fill(0xaa);
      await sender.queueRange('pc.ram', 0, size);
      await Promise.all([sender.sync(), receiver.sync()]);
      t.ok(Buffer.from(memory).equals(expected), `${channels} channels, round ${round}`);
    }
  }
});
