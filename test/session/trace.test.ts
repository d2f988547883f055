/** The events of node:diagnostics_channel under QEMU's names, with subscribers and without. */
import diagnostics from 'node:diagnostics_channel';
import net from 'node:net';
import t, { type Test } from 'tap';
import { TRACE_POINTS, type TracePoint } from '../../src/index.js';
import { createReceiver, type Receiver } from '../../src/recv/receiver.js';
import { createSender, type Sender } from '../../src/send/sender.js';
import type { Control } from '../../src/shared/control.js';
import { captureServer } from '../support/capture-server.js';
import { within } from '../support/within.js';

const PAGE = 4096;
const CHANNELS = 3;
const WAIT_MS = 30_000;

type Events = Map<TracePoint, Record<string, unknown>[]>;

/** Takes down what is published from now on. */
function listen(t: Test, points: readonly TracePoint[] = TRACE_POINTS): Events {
  const events: Events = new Map(TRACE_POINTS.map((point) => [point, []]));
  for (const point of points) {
    const take = (message: unknown): void => void events.get(point)?.push(message as Record<string, unknown>);
    diagnostics.subscribe(point, take);
    t.teardown(() => diagnostics.unsubscribe(point, take));
  }
  return events;
}

function of(events: Events, point: TracePoint): Record<string, unknown>[] {
  return events.get(point) as Record<string, unknown>[];
}

function ids(events: Events, point: TracePoint): number[] {
  return of(events, point)
    .map(({ id }) => id as number)
    .sort((a, b) => a - b);
}

async function open(t: Test): Promise<[Sender, Receiver]> {
  const receiver = await createReceiver({
    address: 'tcp:127.0.0.1:0',
    channels: CHANNELS,
    blocks: [{ name: 'pc.ram', memory: new SharedArrayBuffer(1000 * PAGE) }],
  });
  t.teardown(() => receiver.close());
  const source = new SharedArrayBuffer(1000 * PAGE);
  new Uint8Array(source).fill(1, 0, 500 * PAGE);
  const sender = await createSender({
    address: receiver.address,
    channels: CHANNELS,
    blocks: [{ name: 'pc.ram', memory: source }],
  });
  t.teardown(() => sender.close());
  return [sender, receiver];
}

async function migrate([sender, receiver]: [Sender, Receiver]): Promise<void> {
  for (let round = 0; round < 2; round++) {
    await sender.queueRange('pc.ram', 0, 1000 * PAGE);
    await within(Promise.all([sender.sync(), receiver.sync()]), WAIT_MS, 'sync');
  }
  await within(Promise.all([sender.end(), receiver.end()]), WAIT_MS, 'ends');
}

/** Do the channels of this session report what they do? */
function reports(session: Sender | Receiver): boolean {
  return (session as unknown as { control: Control }).control.trace;
}

t.test("the points have the names of QEMU's", async (t) => {
  t.same(TRACE_POINTS, [
    'multifd_new_send_channel_async',
    'multifd_send_thread_start',
    'multifd_send_thread_end',
    'multifd_send_fill',
    'multifd_send_sync_main',
    'multifd_send_sync_main_signal',
    'multifd_send_sync_main_wait',
    'multifd_send_error',
    'multifd_send_terminate_threads',
    'multifd_recv_new_channel',
    'multifd_recv_thread_start',
    'multifd_recv_thread_end',
    'multifd_recv_unfill',
    'multifd_recv_sync_main',
    'multifd_recv_sync_main_signal',
    'multifd_recv_sync_main_wait',
    'multifd_recv_terminate_threads',
  ]);
});

t.test('a migration publishes an event for each channel, packet and sync, on both sides', async (t) => {
  const events = listen(t);
  const sessions = await open(t);
  await migrate(sessions);
  const all = Array.from({ length: CHANNELS }, (_, id) => id);
  const twice = all.flatMap((id) => [id, id]);
  const [sent, came] = sessions.map((session) => session.stats());

  t.same(ids(events, 'multifd_new_send_channel_async'), all);
  t.match(of(events, 'multifd_new_send_channel_async')[0].address, /^tcp:127\.0\.0\.1:\d+$/);
  for (const side of ['send', 'recv'] as const) {
    t.same(ids(events, `multifd_${side}_thread_start`), all);
    t.same(ids(events, `multifd_${side}_thread_end`), all);
    t.same(
      of(events, `multifd_${side}_sync_main`).map(({ syncs }) => syncs),
      [1, 2],
    );
    t.same(ids(events, `multifd_${side}_sync_main_signal`), twice);
    t.same(ids(events, `multifd_${side}_sync_main_wait`), twice);
    t.equal(of(events, `multifd_${side}_terminate_threads`).length > 0, true);
  }
  t.same(ids(events, 'multifd_recv_new_channel'), all);
  t.same(of(events, 'multifd_send_error'), []);

  for (const [point, stats] of [
    ['multifd_send_fill', sent],
    ['multifd_recv_unfill', came],
  ] as const) {
    const packets = of(events, point);
    t.equal(packets.length, stats.packets, `one ${point} for each packet`);
    const sum = (key: string): number => packets.reduce((total, one) => total + (one[key] as number), 0);
    t.same([sum('normal'), sum('zero'), sum('nextPacketSize')], [1000, 1000, 1000 * PAGE]);
    t.equal(packets.filter(({ flags }) => flags === 1).length, stats.syncs);
    t.same(
      packets.map(({ packetNum }) => packetNum as number).sort((a, b) => a - b),
      packets.map((_, i) => i),
    );
  }
  // Event by event both sides say the same.
  const byNumber = (point: TracePoint): Record<string, unknown>[] =>
    of(events, point).sort((a, b) => (a.packetNum as number) - (b.packetNum as number));
  t.same(byNumber('multifd_send_fill'), byNumber('multifd_recv_unfill'));
});

t.test('without a subscriber the channels report nothing', async (t) => {
  const sessions = await open(t);
  for (const session of sessions) t.equal(reports(session), false);
  await migrate(sessions);
  for (const session of sessions) t.equal(reports(session), false);
});

t.test('a subscriber to what the calling thread does costs the channels nothing', async (t) => {
  const events = listen(t, ['multifd_send_sync_main', 'multifd_recv_sync_main', 'multifd_send_error']);
  const sessions = await open(t);
  for (const session of sessions) t.equal(reports(session), false);
  await migrate(sessions);
  t.equal(of(events, 'multifd_send_sync_main').length, 2);
  t.equal(of(events, 'multifd_recv_sync_main').length, 2);
});

t.test(
  'who subscribes in the midst of a session hears from then on, and who leaves is not waited on',
  async (t) => {
    const [sender, receiver] = await open(t);
    const round = async (): Promise<void> => {
      await sender.queueRange('pc.ram', 0, 1000 * PAGE);
      await within(Promise.all([sender.sync(), receiver.sync()]), WAIT_MS, 'sync');
    };
    const follows = async (on: boolean): Promise<void> => {
      const both = async (): Promise<void> => {
        while (reports(sender) !== on || reports(receiver) !== on)
          await new Promise((r) => setTimeout(r, 10));
      };
      await within(both(), WAIT_MS, `reports ${on}`);
    };
    await round();
    let heard = 0;
    const hear = (): void => void heard++;
    diagnostics.subscribe('multifd_send_fill', hear);
    t.teardown(() => diagnostics.unsubscribe('multifd_send_fill', hear));
    await follows(true);
    const before = sender.stats().packets;
    await round();
    const packets = sender.stats().packets - before;
    const all = async (): Promise<void> => {
      while (heard < packets) await new Promise((r) => setTimeout(r, 10));
    };
    await within(all(), WAIT_MS, 'an event for each packet');
    diagnostics.unsubscribe('multifd_send_fill', hear);
    await follows(false);
    await round();
    t.equal(heard, packets);
    await within(Promise.all([sender.end(), receiver.end()]), WAIT_MS, 'ends');
  },
);

t.test('a session that fails says so, once, with the code', async (t) => {
  const events = listen(t, ['multifd_send_error', 'multifd_send_terminate_threads']);
  const server = await captureServer(t);
  const sender = await createSender({
    address: server.address,
    channels: CHANNELS,
    blocks: [{ name: 'pc.ram', memory: new SharedArrayBuffer(PAGE) }],
  });
  t.teardown(() => sender.close());
  await server.until(() => server.bytes() === CHANNELS * 64, 'the hellos');
  server.destroy();
  // What is written before the sender hears of it is the kernel's.
  const syncs = async (): Promise<void> => {
    for (;;) await sender.sync();
  };
  await t.rejects(within(syncs(), WAIT_MS, 'sync()'), { code: 'ERR_MULTIFD_CONNECTION' });
  await t.rejects(within(sender.done, WAIT_MS, 'done'), { code: 'ERR_MULTIFD_CONNECTION' });
  const errors = of(events, 'multifd_send_error');
  t.equal(errors.length, 1);
  t.match(errors[0], { code: 'ERR_MULTIFD_CONNECTION', message: String, id: Number });
  t.match(of(events, 'multifd_send_terminate_threads'), [{ level: 2 }]);
});

t.test('a stray connection is told of, with the reason', async (t) => {
  const events = listen(t, ['multifd_recv_new_channel']);
  const receiver = await createReceiver({
    address: 'tcp:127.0.0.1:0',
    blocks: [{ name: 'pc.ram', memory: new SharedArrayBuffer(PAGE) }],
  });
  t.teardown(() => receiver.close());
  const socket = net.connect((receiver.address as { port: number }).port, '127.0.0.1');
  const closed = new Promise<void>((resolve) => socket.once('close', () => resolve()));
  socket.on('error', () => {});
  socket.end(Buffer.alloc(64, 'x'));
  socket.resume();
  await within(closed, WAIT_MS, 'close of the stray');
  t.match(of(events, 'multifd_recv_new_channel'), [{ stray: /hello magic/ }]);
});
