/**
 * As many channels as the one byte of a hello can name: 255 threads at each end, all in one process. They start, move a
 * guest whose pages are all different, and end; descriptors and threads are those of before.
 */
import { readdirSync } from 'node:fs';
import t from 'tap';
import { createReceiver, createSender } from '../../src/index.js';
import { pendingHusks } from '../../src/transport/descriptor.js';
import { Random } from '../support/random.js';
import { Leftovers, PAGE, TCP } from '../support/raw-channel.js';
import { within } from '../support/within.js';

const CHANNELS = 255;
const RAM_BYTES = 2 ** 25;
/** Only against hanging: on two idle cores it is a tenth of it. */
const LIMIT_MS = 200_000;

const threads = (): number => readdirSync('/proc/self/task').length;

t.test('255 channels start, migrate and end', async (t) => {
  const before = threads();
  const leftovers = new Leftovers();
  const source = new SharedArrayBuffer(RAM_BYTES);
  const destination = new SharedArrayBuffer(RAM_BYTES);
  const random = new Random(255);
  const words = new Uint32Array(source);
  for (let page = 0; page < RAM_BYTES / PAGE; page++) words[(page * PAGE) / 4] = random.next();
  const name = 'pc.ram';
  const receiver = await createReceiver({
    address: TCP,
    channels: CHANNELS,
    blocks: [{ name, memory: destination }],
  });
  const opening = createSender({
    address: receiver.address,
    channels: CHANNELS,
    blocks: [{ name, memory: source }],
  });
  const sender = await within(opening, LIMIT_MS, 'createSender()');
  await within(receiver.ready, LIMIT_MS, 'ready');
  t.ok(threads() >= before + 2 * CHANNELS, 'each channel has a thread at both ends');
  for (let round = 0; round < 2; round++) {
    await sender.queueRange(name, 0, RAM_BYTES);
    await within(Promise.all([sender.sync(), receiver.sync()]), LIMIT_MS, `sync() ${round}`);
    t.ok(Buffer.from(source).equals(Buffer.from(destination)), 'the RAM is equal');
    for (let page = round; page < RAM_BYTES / PAGE; page += 3) words[(page * PAGE) / 4 + 1] = random.next();
  }
  const { channels } = sender.stats();
  t.equal(channels.length, CHANNELS);
  t.strictSame(
    channels.filter(({ syncs }) => syncs !== 2),
    [],
    'every channel has had both syncs',
  );
  await within(Promise.all([sender.end(), receiver.end()]), LIMIT_MS, 'end()');
  // The kernel takes its time with 510 threads on a machine that is busy.
  t.strictSame(await leftovers.found(LIMIT_MS), [], 'nothing is left');
  t.equal(pendingHusks(), 0, 'no connection waits to be freed');
});
