/** stats(): what both sides count, held against the bytes that were on the wire. */
import net from 'node:net';
import t, { type Test } from 'tap';
import { createReceiver, createSender, type ChannelStats, type Stats } from '../../src/index.js';
import { captureServer } from '../support/capture-server.js';
import { CONTENTS, Guest } from '../support/guest.js';
import { Random } from '../support/random.js';
import { decodeChannel } from '../support/reference-decoder.js';
import { within } from '../support/within.js';

const PAGE = 4096;
const WAIT_MS = 30_000;
const KEYS: (keyof ChannelStats)[] = [
  'bytes',
  'packets',
  'normalPages',
  'zeroPages',
  'syncs',
  'deviceStates',
  'zeroCopyPackets',
  'zeroCopyCopied',
  'idleMs',
  'busyMs',
];

function makeGuest(t: Test, seed: number): Guest {
  const random = new Random(seed);
  const guest = new Guest(t, PAGE);
  guest.add('pc.ram', 'shared', 'shared', 300);
  guest.add('rom', 'private', 'private', 100);
  guest.add('vga', 'file', 'file', 200);
  for (const block of guest.blocks) {
    for (let page = 0; page < block.pageCount; page++) {
      guest.writePage(block, page, CONTENTS[random.below(CONTENTS.length)], random);
    }
  }
  return guest;
}

function checkSums(t: Test, stats: Stats, channels: number): void {
  t.equal(stats.channels.length, channels);
  for (const key of KEYS) {
    const sum = stats.channels.reduce((total, channel) => total + channel[key], 0);
    // Milliseconds are fractions, and a sum of fractions depends on the order.
    t.ok(Math.abs(stats[key] - sum) < 1e-6, `${key} is the sum over the channels`);
    t.ok(
      stats.channels.every((channel) => Number.isFinite(channel[key]) && channel[key] >= 0),
      `${key} of each channel`,
    );
  }
  t.equal(stats.pageBytes, (stats.normalPages + stats.zeroPages) * PAGE);
}

for (const compression of ['none', 'zlib', 'zstd'] as const) {
  t.test(
    `${compression}: the sender's counters match what a server took down, channel by channel`,
    async (t) => {
      const guest = makeGuest(t, 1);
      const server = await captureServer(t);
      const sender = await createSender({
        address: server.address,
        channels: 3,
        compression,
        blocks: guest.blocks.map((block) => block.source.options),
      });
      t.teardown(() => sender.close());
      const fresh = sender.stats();
      checkSums(t, fresh, 3);
      t.same([fresh.bytes, fresh.packets, fresh.pageBytes], [3 * 64, 0, 0], 'the hellos have been sent');

      for (const block of guest.blocks) await sender.queueRange(block.name, 0, block.twin.length);
      for (let i = 0; i < 5; i++) await sender.queueDeviceState('vfio', i, Buffer.alloc(1000 * (i + 1), 1));
      await within(sender.sync(), WAIT_MS, 'sync()');
      await within(sender.sync(), WAIT_MS, 'sync()');
      const stats = sender.stats();
      checkSums(t, stats, 3);
      t.equal(stats.normalPages + stats.zeroPages, 600);
      t.same([stats.syncs, stats.deviceStates], [6, 5]);
      t.ok(stats.elapsedMs > fresh.elapsedMs);
      t.equal(fresh.packets, 0, 'a snapshot does not change any more');

      await within(sender.end(), WAIT_MS, 'end()');
      const after = sender.stats();
      for (const [id, bytes] of (await server.ended(3)).entries()) {
        const { packets } = await decodeChannel(bytes, { pageSize: PAGE, compression });
        const ram = packets.filter((packet) => packet.kind === 'ram');
        const sum = (of: (packet: (typeof ram)[number]) => number): number =>
          ram.reduce((total, packet) => total + of(packet), 0);
        const { idleMs, busyMs, ...counted } = after.channels[id];
        t.same(counted, {
          bytes: bytes.length,
          packets: packets.length,
          normalPages: sum((packet) => packet.normalPages),
          zeroPages: sum((packet) => packet.zeroPages),
          syncs: sum((packet) => packet.flags & 1),
          deviceStates: packets.length - ram.length,
          zeroCopyPackets: 0,
          zeroCopyCopied: 0,
        });
        t.ok(idleMs > 0 && busyMs > 0, 'it has waited and worked');
        t.ok(idleMs + busyMs <= after.elapsedMs, 'no longer than there was time');
      }
      t.same({ ...sender.stats() }, { ...after }, 'after the end nothing changes any more, the time neither');
    },
  );
}

t.test('both sides count the same: bytes, packets, pages, syncs and device state', async (t) => {
  const guest = makeGuest(t, 2);
  const receiver = await createReceiver({
    address: 'tcp:127.0.0.1:0',
    channels: 3,
    compression: 'zlib',
    blocks: guest.blocks.map((block) => block.destination.options),
    devices: [{ idstr: 'vfio', instanceId: 0, load: () => {} }],
  });
  t.teardown(() => receiver.close());
  t.same([receiver.stats().bytes, receiver.stats().packets, receiver.stats().strays], [0, 0, 0]);
  const sender = await createSender({
    address: receiver.address,
    channels: 3,
    compression: 'zlib',
    blocks: guest.blocks.map((block) => block.source.options),
  });
  t.teardown(() => sender.close());
  for (let round = 0; round < 3; round++) {
    for (const block of guest.blocks) await sender.queueRange(block.name, 0, block.twin.length);
    await sender.queueDeviceState('vfio', 0, Buffer.alloc(5000));
    await within(Promise.all([sender.sync(), receiver.sync()]), WAIT_MS, 'sync');
    const sent = sender.stats();
    const came = receiver.stats();
    checkSums(t, came, 3);
    for (const key of KEYS.slice(0, 6)) t.equal(came[key], sent[key], `${key}, round ${round}`);
    for (let id = 0; id < 3; id++) {
      t.equal(came.channels[id].bytes, sent.channels[id].bytes, `bytes of channel ${id}, round ${round}`);
      t.equal(came.channels[id].packets, sent.channels[id].packets);
    }
    t.equal(came.pageBytes, (round + 1) * 600 * PAGE);
  }
  await within(Promise.all([sender.end(), receiver.end()]), WAIT_MS, 'ends');
  const last = receiver.stats();
  t.equal(last.deviceStates, 3);
  t.ok(
    last.channels.every(
      ({ idleMs, busyMs }) => idleMs > 0 && busyMs > 0 && idleMs + busyMs <= last.elapsedMs,
    ),
  );
  t.same({ ...receiver.stats() }, { ...last }, 'after the end nothing changes any more');
});

t.test('mode legacy: pages that are reported are not counted as sent', async (t) => {
  const guest = makeGuest(t, 3);
  const server = await captureServer(t);
  let reported = 0;
  const sender = await createSender({
    address: server.address,
    zeroPageDetection: 'legacy',
    onZeroPages: (_block, _offset, length) => void (reported += length / PAGE),
    blocks: guest.blocks.map((block) => block.source.options),
  });
  t.teardown(() => sender.close());
  for (const block of guest.blocks) await sender.queueRange(block.name, 0, block.twin.length);
  await within(sender.sync(), WAIT_MS, 'sync()');
  const { normalPages, zeroPages } = sender.stats();
  t.ok(reported > 0);
  t.same([normalPages + reported, zeroPages], [600, 0]);
});

t.test('connections that are no channels are counted as strays, and their bytes nowhere', async (t) => {
  const receiver = await createReceiver({
    address: 'tcp:127.0.0.1:0',
    blocks: [{ name: 'pc.ram', memory: new SharedArrayBuffer(PAGE) }],
  });
  t.teardown(() => receiver.close());
  const { port } = receiver.address as { port: number };
  for (const garbage of ['GET / HTTP/1.1\r\n\r\n'.repeat(10), '']) {
    const socket = net.connect(port, '127.0.0.1');
    const closed = new Promise<void>((resolve) => socket.once('close', () => resolve()));
    socket.on('error', () => {});
    socket.end(garbage);
    socket.resume();
    await within(closed, WAIT_MS, 'close of the stray');
  }
  t.same([receiver.stats().strays, receiver.stats().bytes], [2, 0]);
});
