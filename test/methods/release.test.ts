/**
 * The memory of @mongodb-js/zstd's buffers, which lies outside the JavaScript heap: given back without the collector, and
 * without a flag that the embedder's process would see. In a process of its own: others call the collector.
 */
import { createRequire } from 'node:module';
import vm from 'node:vm';
import t, { type Test } from 'tap';
import { Releaser } from '../../src/methods/release.js';
import { createZstdReceiver, createZstdSender } from '../../src/methods/zstd.js';
import { Random } from '../support/random.js';

const PAGE = 4096;
const MiB = 2 ** 20;
const PACKET = 128 * PAGE;

/** Of little variety, so that a codec has a third of it to return. */
const noise = Buffer.alloc(PACKET);
new Random(1).bytes(noise);
for (let i = 0; i < PACKET; i++) noise[i] &= 0x0f;

/** The process grows little, though the codec returns 50 MiB or more, before the collector would be called. */
async function staysSmall(t: Test, run: (packets: number) => Promise<number>): Promise<void> {
  await run(5);
  const before = process.memoryUsage.rss();
  let peak = before;
  const watch = setInterval(() => {
    peak = Math.max(peak, process.memoryUsage.rss());
  }, 1);
  const bytes = await run(200);
  clearInterval(watch);
  const grown = (peak - before) / MiB;
  t.ok(grown < 12, `the process grew by ${grown.toFixed(1)} MiB for ${(bytes / MiB).toFixed(0)} MiB`);
}

t.test('a buffer that native code owns is given back', async (t) => {
  const { decompress, compress } = createRequire(import.meta.url)('@mongodb-js/zstd/bindings') as {
    compress(this: void, data: Buffer, level: number): Promise<Buffer>;
    decompress(this: void, data: Buffer): Promise<Buffer>;
  };
  const releaser = new Releaser();
  const payload = await compress(noise, 1);
  const decoded = await decompress(payload);
  t.ok(decoded.equals(noise));
  releaser.release(decoded);
  t.equal(decoded.length, 0, 'its memory is gone');
  const pooled = Buffer.from('of a pool');
  releaser.release(pooled);
  t.equal(pooled.toString(), 'of a pool', 'a buffer with neighbours is left alone');
  releaser.close();
  releaser.release(payload);
  t.ok(payload.length > 0, 'after the end nothing is released');
});

t.test('zstd without that of Node: sending holds a few payloads', async (t) => {
  await staysSmall(t, async (packets) => {
    const sender = createZstdSender(1, 'binding');
    let bytes = 0;
    // Two under way, as a channel has them.
    let earlier: Promise<Buffer> | undefined;
    for (let i = 0; i < packets; i++) {
      const made = sender.compress(noise) as Promise<Buffer>;
      if (earlier !== undefined) bytes += (await earlier).length;
      earlier = made;
    }
    bytes += (await earlier)?.length ?? 0;
    sender.close();
    return bytes;
  });
});

t.test('zstd without that of Node: a payload is valid until the third call after its own', async (t) => {
  const sender = createZstdSender(1, 'binding');
  const lent: Buffer[] = [];
  for (let i = 0; i < 8; i++) {
    const made = sender.compress(noise.subarray(i * PAGE, (i + 4) * PAGE));
    if (i >= 3) t.equal(lent[i - 3].length, 0, `payload ${i - 3} at call ${i}`);
    if (i >= 2) t.ok(lent[i - 2].length > 0, `payload ${i - 2} at call ${i}`);
    lent.push(await made);
  }
  sender.close();
});

t.test('zstd without that of Node: receiving holds one packet', async (t) => {
  const sender = createZstdSender(1, 'binding');
  const payload = Buffer.from(await sender.compress(noise));
  const raw = sender.raw([noise.subarray(0, PAGE)]);
  sender.close();
  for (const [packet, more] of [
    [payload, 0],
    [Buffer.concat([payload, ...raw]), PAGE],
  ] as const) {
    await staysSmall(t, async (packets) => {
      const receiver = createZstdReceiver(PAGE, 'binding');
      const into = Buffer.alloc(PACKET + more);
      for (let i = 0; i < packets; i++) {
        const own = await receiver.decompress(packet, into);
        if (!(own ?? into).subarray(0, PACKET).equals(noise)) t.fail(`packet ${i}`);
      }
      receiver.close();
      return packets * PACKET;
    });
  }
});

t.test("the embedder's process has no collector to call afterwards", (t) => {
  t.equal(vm.runInNewContext('typeof gc'), 'undefined');
  t.end();
});
