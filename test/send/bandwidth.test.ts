/** maxBandwidth: what has been sent is held against the time that was measured, never a time against a constant. */
import { performance } from 'node:perf_hooks';
import t, { type Test } from 'tap';
import { createSender, type Sender } from '../../src/index.js';
import { captureServer, type CaptureServer } from '../support/capture-server.js';
import { within } from '../support/within.js';

const PAGE = 4096;
const MIB = 2 ** 20;
const WAIT_MS = 30_000;
const CHANNELS = 2;
const PACKET_BYTES = 1344 + 524288;
/** What may go out at once after a pause: 100 ms of the rate. */
const BURST_SECONDS = 0.1;
/**
 * Packets that the bucket has not seen yet when one more is let through: with each channel one handed over and one in
 * the making, and the one itself.
 */
const UNSEEN_BYTES = (2 * CHANNELS + 1) * PACKET_BYTES;

async function open(t: Test, maxBandwidth: number, mib: number): Promise<[Sender, CaptureServer]> {
  const server = await captureServer(t, { keep: false });
  const sender = await createSender({
    address: server.address,
    channels: CHANNELS,
    maxBandwidth,
    // Memory that nobody has written to costs nothing, and travels as pages of zeros.
    zeroPageDetection: 'none',
    blocks: [{ name: 'pc.ram', memory: new SharedArrayBuffer(mib * MIB) }],
  });
  t.teardown(() => sender.close());
  return [sender, server];
}

/** Looks every 5 ms whether more than allowed has been sent since now. */
function watch(t: Test, sender: Sender, rate: number, unseenBytes = UNSEEN_BYTES): { stop: () => number } {
  const since = performance.now();
  const before = sender.stats().bytes;
  let looks = 0;
  const look = (): void => {
    // The count first: what is sent after it is covered by the time.
    const bytes = sender.stats().bytes - before;
    const seconds = (performance.now() - since) / 1000;
    const allowed = rate * (seconds + BURST_SECONDS) + unseenBytes;
    looks++;
    if (bytes > allowed) t.fail(`${bytes} bytes after ${seconds} s, allowed ${allowed}`);
  };
  const timer = setInterval(look, 5);
  t.teardown(() => clearInterval(timer));
  return {
    stop: () => {
      look();
      clearInterval(timer);
      return looks;
    },
  };
}

t.test('what has been sent stays below the rate times the time, and a burst', async (t) => {
  const rate = 20 * MIB;
  const [sender, server] = await open(t, rate, 24);
  const watching = watch(t, sender, rate);
  await within(sender.queueRange('pc.ram', 0, 24 * MIB), WAIT_MS, 'queueRange()');
  await within(sender.sync(), WAIT_MS, 'sync()');
  t.ok(watching.stop() > 10, 'it was looked at while it ran');
  await sender.end();
  await server.ended(CHANNELS);
  t.equal(server.bytes(), CHANNELS * (64 + 1344) + 48 * PACKET_BYTES);
});

t.test('single pages are held to the rate too', async (t) => {
  const rate = 8 * MIB;
  const [sender] = await open(t, rate, 6);
  const watching = watch(t, sender, rate);
  const work = async (): Promise<void> => {
    for (let page = 0; page < (6 * MIB) / PAGE; page++) await sender.queuePage('pc.ram', page * PAGE);
    await sender.sync();
  };
  await within(work(), WAIT_MS, 'pages and sync');
  t.ok(watching.stop() > 5);
});

t.test('a pause does not save up more than the burst', async (t) => {
  const rate = 40 * MIB;
  const [sender] = await open(t, rate, 32);
  await sender.queuePage('pc.ram', 0);
  await sender.sync();
  await new Promise((resolve) => setTimeout(resolve, 700));
  const watching = watch(t, sender, rate);
  await within(sender.queueRange('pc.ram', PAGE, 31 * MIB), WAIT_MS, 'queueRange()');
  t.ok(watching.stop() > 10);
});

t.test('a limit can be set while it runs', async (t) => {
  const rate = 16 * MIB;
  const [sender] = await open(t, 0, 64);
  t.equal(sender.maxBandwidth, 0);
  await within(sender.queueRange('pc.ram', 0, 32 * MIB), WAIT_MS, 'queueRange() without a limit');
  await sender.sync();
  sender.maxBandwidth = rate;
  t.equal(sender.maxBandwidth, rate);
  const watching = watch(t, sender, rate);
  await within(sender.queueRange('pc.ram', 32 * MIB, 16 * MIB), WAIT_MS, 'queueRange() with a limit');
  t.ok(watching.stop() > 10);
});

t.test('a limit set in the midst of a call holds from then on', async (t) => {
  const rate = 16 * MIB;
  const [sender] = await open(t, 0, 1024);
  const work = sender.queueRange('pc.ram', 0, 1024 * MIB);
  work.catch(() => {});
  while (sender.stats().packets < 20) await new Promise((resolve) => setImmediate(resolve));
  sender.maxBandwidth = rate;
  // Without a limit a slot had the pages of 16 packets.
  const watching = watch(t, sender, rate, 16 * UNSEEN_BYTES);
  await new Promise((resolve) => setTimeout(resolve, 500));
  watching.stop();
  t.ok(sender.stats().packets < 400, 'most of it is still to be sent');
  await sender.close();
  await t.rejects(work, { code: 'ERR_MULTIFD_CLOSED' });
});

for (const [name, after] of [
  ['taken away', 0],
  ['raised', 2 ** 40],
] as const) {
  // One byte a second: without being woken a call would sleep a minute at a time.
  t.test(`a sleeping sender wakes when the limit is ${name}`, async (t) => {
    const [sender] = await open(t, 1, 8);
    let done = false;
    const work = sender.queueRange('pc.ram', 0, 8 * MIB).then(() => (done = true));
    const state = sender.queueDeviceState('vfio', 0, Buffer.alloc(1000));
    await new Promise((resolve) => setTimeout(resolve, 100));
    t.equal(done, false);
    sender.maxBandwidth = after;
    await within(Promise.all([work, state]), WAIT_MS, 'the calls that slept');
    await within(sender.sync(), WAIT_MS, 'sync()');
    t.same([sender.stats().normalPages, sender.stats().deviceStates], [2048, 1]);
    await within(sender.end(), WAIT_MS, 'end()');
  });
}

t.test('device state is held to the rate', async (t) => {
  const rate = 8 * MIB;
  const [sender] = await open(t, rate, 1);
  const watching = watch(t, sender, rate);
  const data = Buffer.alloc(256 * 1024);
  const work = Promise.all(Array.from({ length: 24 }, (_, i) => sender.queueDeviceState('vfio', i, data)));
  await within(work, WAIT_MS, 'device state');
  await within(sender.sync(), WAIT_MS, 'sync()');
  t.ok(watching.stop() > 5);
});

t.test('the event loop turns while a sender sleeps', async (t) => {
  const [sender] = await open(t, 1, 8);
  const work = sender.queueRange('pc.ram', 0, 8 * MIB);
  for (let turns = 0; turns < 1000; turns++) await new Promise((resolve) => setImmediate(resolve));
  sender.maxBandwidth = 0;
  await within(work, WAIT_MS, 'queueRange()');
  t.pass('1000 turns');
});

t.test('close() wakes a sleeping sender', async (t) => {
  const [sender] = await open(t, 1, 8);
  const calls = [sender.queueRange('pc.ram', 0, 8 * MIB), sender.sync(), sender.queuePage('pc.ram', 0)];
  const ends = Promise.allSettled(calls);
  await new Promise((resolve) => setTimeout(resolve, 50));
  await within(sender.close(), WAIT_MS, 'close()');
  for (const end of await within(ends, WAIT_MS, 'the calls')) {
    t.match(end, { status: 'rejected', reason: { code: 'ERR_MULTIFD_CLOSED' } });
  }
});

t.test('a wrong limit is refused, and the old one stays', async (t) => {
  const [sender] = await open(t, 1000, 1);
  for (const wrong of [-1, 1.5, NaN, Infinity, 2 ** 53, '10', null, undefined]) {
    t.throws(() => (sender.maxBandwidth = wrong as number), {
      code: 'ERR_MULTIFD_OPTION',
      message: `option maxBandwidth: given ${JSON.stringify(wrong) === 'null' ? String(wrong) : (JSON.stringify(wrong) ?? 'undefined')}, allowed an integer from 0 to ${Number.MAX_SAFE_INTEGER}`,
    });
  }
  t.equal(sender.maxBandwidth, 1000);
});
