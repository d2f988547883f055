/** progress(): stats as the channels push them. */
import t, { type Test } from 'tap';
import type { Stats } from '../../src/index.js';
import { createReceiver } from '../../src/recv/receiver.js';
import { createSender, type Sender } from '../../src/send/sender.js';
import type { Control } from '../../src/shared/control.js';
import { captureServer, type CaptureServer } from '../support/capture-server.js';
import { within } from '../support/within.js';

const PAGE = 4096;
const MIB = 2 ** 20;
const WAIT_MS = 30_000;

async function open(t: Test, server?: CaptureServer, maxBandwidth = 0): Promise<Sender> {
  const to = server ?? (await captureServer(t, { keep: false }));
  const sender = await createSender({
    address: to.address,
    maxBandwidth,
    zeroPageDetection: 'none',
    blocks: [{ name: 'pc.ram', memory: new SharedArrayBuffer(64 * MIB) }],
  });
  t.teardown(() => sender.close());
  return sender;
}

/** How often the channels are asked to post; 0: not at all. */
function asked(sender: Sender): number {
  return (sender as unknown as { control: Control }).control.progressMs;
}

async function collect(items: AsyncIterable<Stats>): Promise<Stats[]> {
  const seen: Stats[] = [];
  for await (const item of items) seen.push(item);
  return seen;
}

function sleep(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

t.test(
  'items come while pages are sent, each further than the one before; the last one is the final state',
  async (t) => {
    const sender = await open(t, undefined, 40 * MIB);
    const items = collect(sender.progress({ intervalMs: 20 }));
    await within(sender.queueRange('pc.ram', 0, 16 * MIB), WAIT_MS, 'queueRange()');
    await within(sender.sync(), WAIT_MS, 'sync()');
    await within(sender.end(), WAIT_MS, 'end()');
    const seen = await within(items, WAIT_MS, 'the end of the items');
    t.ok(seen.length > 5, `${seen.length} items`);
    for (let i = 1; i < seen.length; i++) {
      if (seen[i].bytes < seen[i - 1].bytes || seen[i].elapsedMs < seen[i - 1].elapsedMs) t.fail(`item ${i}`);
    }
    t.ok(seen.filter(({ bytes }, i) => i > 0 && bytes > seen[i - 1].bytes).length > 3, 'they show it moving');
    t.same({ ...seen[seen.length - 1] }, { ...sender.stats() });
    t.equal(seen[seen.length - 1].normalPages, (16 * MIB) / PAGE);
  },
);

t.test('the first item comes at once, and none while nothing moves', async (t) => {
  const sender = await open(t);
  const items = sender.progress({ intervalMs: 5 });
  const first = await within(items.next(), WAIT_MS, 'the first item');
  t.equal(first.done, false);
  t.equal((first.value as Stats).packets, 0);
  let pushed = 0;
  const second = items.next().then((item) => {
    pushed++;
    return item;
  });
  await sleep(300);
  t.equal(pushed, 0);
  await sender.queueRange('pc.ram', 0, MIB);
  await within(sender.sync(), WAIT_MS, 'sync()');
  const { value } = await within(second, WAIT_MS, 'the second item');
  t.ok((value as Stats).packets > 0);
  await within(items.return(), WAIT_MS, 'return()');
});

t.test(
  'between two items lies at least the interval: with a long one there are the first and the last',
  async (t) => {
    const sender = await open(t);
    const items = collect(sender.progress({ intervalMs: 2 ** 31 - 1 }));
    await within(sender.queueRange('pc.ram', 0, 64 * MIB), WAIT_MS, 'queueRange()');
    await within(sender.end(), WAIT_MS, 'end()');
    t.equal((await within(items, WAIT_MS, 'the end of the items')).length, 2);
  },
);

t.test('the items end with close() and with a failure, without throwing: done has the error', async (t) => {
  for (const how of ['close', 'fail'] as const) {
    const server = await captureServer(t, { hold: true, keep: false });
    const sender = await open(t, server);
    const items = collect(sender.progress({ intervalMs: 10 }));
    const work = Promise.allSettled([sender.queueRange('pc.ram', 0, 64 * MIB)]);
    await sleep(50);
    if (how === 'close') await within(sender.close(), WAIT_MS, 'close()');
    else server.destroy();
    const seen = await within(items, WAIT_MS, `the end of the items after ${how}`);
    t.ok(seen.length >= 2);
    await within(work, WAIT_MS, 'queueRange()');
    if (how === 'close') await within(sender.done, WAIT_MS, 'done');
    else await t.rejects(within(sender.done, WAIT_MS, 'done'), { code: 'ERR_MULTIFD_CONNECTION' });
    t.same({ ...seen[seen.length - 1] }, { ...sender.stats() });
  }
});

t.test('of an ended session there is one item, its final state', async (t) => {
  const sender = await open(t);
  await sender.queuePage('pc.ram', 0);
  await within(sender.end(), WAIT_MS, 'end()');
  const seen = await within(collect(sender.progress()), WAIT_MS, 'the items');
  t.same(seen.length, 1);
  t.equal(seen[0].normalPages, 1);
});

t.test('breaking out early leaves nothing behind', async (t) => {
  const sender = await open(t);
  t.equal(asked(sender), 0);
  for await (const item of sender.progress({ intervalMs: 30 })) {
    t.equal(item.packets, 0);
    t.equal(asked(sender), 30);
    break;
  }
  t.equal(asked(sender), 0, 'the channels post no more');
  await t.rejects(
    (async () => {
      for await (const item of sender.progress({ intervalMs: 30 })) throw new Error(`item ${item.packets}`);
    })(),
    { message: 'item 0' },
  );
  t.equal(asked(sender), 0);
  await within(sender.queueRange('pc.ram', 0, MIB), WAIT_MS, 'queueRange()');
  await within(sender.end(), WAIT_MS, 'end()');
});

t.test('nothing is asked of the channels before the first item is taken', async (t) => {
  const sender = await open(t);
  const items = sender.progress();
  t.equal(asked(sender), 0);
  await items.next();
  t.equal(asked(sender), 200, 'the default interval');
  await items.return();
  t.equal(asked(sender), 0);
});

t.test('several may look on, each at its own interval', async (t) => {
  const sender = await open(t, undefined, 40 * MIB);
  const often = collect(sender.progress({ intervalMs: 20 }));
  const seldom = collect(sender.progress({ intervalMs: 100_000 }));
  const one = sender.progress({ intervalMs: 50 });
  await one.next();
  t.equal(asked(sender), 20, 'the shortest interval');
  await one.return();
  await within(sender.queueRange('pc.ram', 0, 16 * MIB), WAIT_MS, 'queueRange()');
  await within(sender.end(), WAIT_MS, 'end()');
  t.ok((await within(often, WAIT_MS, 'the items')).length > 5);
  t.equal((await within(seldom, WAIT_MS, 'the items')).length, 2);
  t.equal(asked(sender), 0);
});

t.test('a wrong interval is refused with what was given and what is allowed', async (t) => {
  const sender = await open(t);
  for (const wrong of [0, -1, 1.5, 2 ** 31, NaN, '5']) {
    await t.rejects(sender.progress({ intervalMs: wrong as number }).next(), {
      code: 'ERR_MULTIFD_OPTION',
      message: `option intervalMs: given ${wrong}, allowed an integer from 1 to 2147483647`,
    });
  }
  await t.rejects(sender.progress({ interval: 5 } as { intervalMs?: number }).next(), {
    code: 'ERR_MULTIFD_OPTION',
    message: /^option interval: .*; did you mean intervalMs\?$/,
  });
  t.equal(asked(sender), 0);
});

t.test('a receiver shows its progress as well', async (t) => {
  const receiver = await createReceiver({
    address: 'tcp:127.0.0.1:0',
    blocks: [{ name: 'pc.ram', memory: new SharedArrayBuffer(64 * MIB) }],
  });
  t.teardown(() => receiver.close());
  const items = collect(receiver.progress({ intervalMs: 20 }));
  const sender = await createSender({
    address: receiver.address,
    maxBandwidth: 40 * MIB,
    zeroPageDetection: 'none',
    blocks: [{ name: 'pc.ram', memory: new SharedArrayBuffer(64 * MIB) }],
  });
  t.teardown(() => sender.close());
  await within(sender.queueRange('pc.ram', 0, 16 * MIB), WAIT_MS, 'queueRange()');
  await within(Promise.all([sender.sync(), receiver.sync()]), WAIT_MS, 'sync');
  await within(Promise.all([sender.end(), receiver.end()]), WAIT_MS, 'ends');
  const seen = await within(items, WAIT_MS, 'the items');
  t.ok(seen.length > 5, `${seen.length} items`);
  t.ok(seen.some(({ normalPages }) => normalPages > 0 && normalPages < (16 * MIB) / PAGE));
  t.same({ ...seen[seen.length - 1] }, { ...receiver.stats() });
});
