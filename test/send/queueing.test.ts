/** Queueing on the calling thread: what is refused, back-pressure, order, hand-over, and an event loop that turns. */
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import t, { type Test } from 'tap';
import { createSender, type Sender, type SenderOptions } from '../../src/index.js';
import { captureServer, type CaptureServer } from '../support/capture-server.js';
import { decodeChannel } from '../support/reference-decoder.js';
import { within } from '../support/within.js';

const PAGE = 4096;
const MIB = 2 ** 20;
const WAIT_MS = 30_000;

async function open(
  t: Test,
  options: Partial<SenderOptions> = {},
  server?: CaptureServer,
): Promise<{ sender: Sender; server: CaptureServer }> {
  const to = server ?? (await captureServer(t));
  const sender = await createSender({
    address: to.address,
    channels: 1,
    blocks: [
      { name: 'pc.ram', memory: new SharedArrayBuffer(16 * PAGE) },
      { name: 'vga', memory: new ArrayBuffer(4 * PAGE) },
    ],
    ...options,
  });
  t.teardown(() => sender.close());
  return { sender, server: to };
}

/** Offsets in pages, packet by packet, of the one channel. */
async function packetsOf(server: CaptureServer): Promise<[string, number[]][]> {
  const [bytes] = await server.ended(1);
  const { packets } = await decodeChannel(bytes, { pageSize: PAGE, compression: 'none' });
  const found: [string, number[]][] = [];
  for (const packet of packets) {
    if (packet.kind === 'ram' && packet.offsets.length > 0) {
      found.push([packet.ramblock, packet.offsets.map((offset) => Number(offset) / PAGE)]);
    }
  }
  return found;
}

function turn(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve));
}

/** Counts turns of the event loop. */
function countTurns(t: Test): { turns: number } {
  const counter = { turns: 0 };
  let timer: NodeJS.Immediate;
  const again = (): void => {
    counter.turns++;
    timer = setImmediate(again);
  };
  timer = setImmediate(again);
  t.teardown(() => clearImmediate(timer));
  return counter;
}

// ---- what is refused ----

t.test('a block that does not exist is refused with what was given and what is allowed', async (t) => {
  const { sender } = await open(t);
  const { sender: other } = await open(t);
  for (const [given, text] of [
    ['pc.rom', '"pc.rom"'],
    ['', '""'],
    [other.blocks[0], 'one of another session, "pc.ram"'],
    [null, 'null'],
    [0, '0'],
  ] as [string, string][]) {
    const refusal = {
      name: 'MultifdError',
      code: 'ERR_MULTIFD_BLOCK',
      message: `no such RAM block: given ${text}, allowed pc.ram, vga`,
    };
    await t.rejects(sender.queuePage(given, 0), refusal);
    await t.rejects(sender.queueRange(given, 0, PAGE), refusal);
  }
});

t.test('an offset or a length that is not page-aligned is refused', async (t) => {
  const { sender } = await open(t);
  const allowed = `allowed multiples of ${PAGE} from 0 on`;
  for (const offset of [1, PAGE - 1, PAGE + 0.5, -PAGE, -1, NaN, Infinity, 2 ** 53, '0', undefined]) {
    const given = `RAM block pc.ram: given offset ${offset}`;
    const refusal = { code: 'ERR_MULTIFD_RANGE', message: `${given}, length ${PAGE}, ${allowed}` };
    await t.rejects(sender.queuePage('pc.ram', offset as number), refusal, `offset ${offset}`);
    await t.rejects(sender.queueRange('pc.ram', offset as number, PAGE), refusal, `offset ${offset}`);
  }
  for (const length of [1, PAGE - 1, PAGE + 1, -PAGE, NaN, 2 ** 60, '4096', undefined]) {
    await t.rejects(
      sender.queueRange('pc.ram', PAGE, length as number),
      {
        code: 'ERR_MULTIFD_RANGE',
        message: `RAM block pc.ram: given offset ${PAGE}, length ${length}, ${allowed}`,
      },
      `length ${length}`,
    );
  }
});

t.test('pages outside the block are refused, the last ones are not', async (t) => {
  const { sender, server } = await open(t);
  for (const [offset, length] of [
    [16 * PAGE, PAGE],
    [15 * PAGE, 2 * PAGE],
    [0, 17 * PAGE],
    [2 ** 40, PAGE],
    [17 * PAGE, 0],
  ]) {
    const message = `RAM block pc.ram: given offset ${offset} + length ${length}, allowed at most ${16 * PAGE}`;
    await t.rejects(sender.queueRange('pc.ram', offset, length), { code: 'ERR_MULTIFD_RANGE', message });
    if (length === PAGE) {
      await t.rejects(sender.queuePage('pc.ram', offset), { code: 'ERR_MULTIFD_RANGE', message });
    }
  }
  await sender.queuePage('pc.ram', 15 * PAGE);
  await sender.queueRange('vga', 3 * PAGE, PAGE);
  await sender.queueRange('pc.ram', 0, 0);
  await sender.queueRange('pc.ram', 16 * PAGE, 0);
  await within(sender.end(), WAIT_MS, 'end()');
  t.same(await packetsOf(server), [
    ['pc.ram', [15]],
    ['vga', [3]],
  ]);
});

t.test('the page size of the session decides what is aligned', async (t) => {
  const { sender } = await open(t, {
    pageSize: 65536,
    blocks: [{ name: 'pc.ram', memory: new SharedArrayBuffer(4 * 65536) }],
  });
  await t.rejects(sender.queuePage('pc.ram', PAGE), { message: /allowed multiples of 65536/ });
  await sender.queuePage('pc.ram', 3 * 65536);
});

t.test('wrong device state is refused with what was given and what is allowed', async (t) => {
  const { sender } = await open(t, { deviceStateBytes: 1000 });
  const data = Buffer.alloc(10);
  const idstr = (given: string): { code: string; message: string } => ({
    code: 'ERR_MULTIFD_OPTION',
    message: `option idstr: given ${given}, allowed 1 to 255 printable ASCII characters`,
  });
  await t.rejects(sender.queueDeviceState('', 0, data), idstr('""'));
  await t.rejects(sender.queueDeviceState('x'.repeat(256), 0, data), idstr(JSON.stringify('x'.repeat(256))));
  await t.rejects(sender.queueDeviceState('ä', 0, data), idstr('"ä"'));
  await t.rejects(sender.queueDeviceState('a\0b', 0, data), idstr('"a\\u0000b"'));
  await t.rejects(sender.queueDeviceState(7 as unknown as string, 0, data), idstr('7'));
  for (const id of [-1, 2 ** 32, 1.5, NaN]) {
    await t.rejects(sender.queueDeviceState('vfio', id, data), {
      code: 'ERR_MULTIFD_OPTION',
      message: `option instanceId: given ${id}, allowed an integer from 0 to 4294967295`,
    });
  }
  for (const [wrong, given] of [
    [Buffer.alloc(0), '0'],
    [Buffer.alloc(1001), '1001'],
  ] as [Buffer, string][]) {
    await t.rejects(sender.queueDeviceState('vfio', 0, wrong), {
      code: 'ERR_MULTIFD_OPTION',
      message: `option data.length: given ${given}, allowed an integer from 1 to 1000`,
    });
  }
  // Their bytes would be taken for something else, or not be taken at all.
  for (const wrong of [
    new Uint16Array(4),
    new ArrayBuffer(8),
    new DataView(new ArrayBuffer(8)),
    'text',
    [1],
    undefined,
  ]) {
    const call = sender.queueDeviceState('vfio', 0, wrong as unknown as Uint8Array);
    await t.rejects(call, { code: 'ERR_MULTIFD_OPTION' }, String(wrong?.constructor.name));
  }
  await within(sender.queueDeviceState('vfio', 0, Buffer.alloc(1000)), WAIT_MS, 'the largest');
});

t.test('a refused call does no harm to those before and after it', async (t) => {
  const { sender, server } = await open(t);
  await sender.queuePage('pc.ram', 0);
  await t.rejects(sender.queuePage('pc.ram', 1));
  await t.rejects(sender.queueRange('pc.ram', 0, 1e9 * PAGE));
  await t.rejects(sender.queuePage('none', 0));
  await t.rejects(sender.queueDeviceState('', 0, Buffer.alloc(1)));
  await sender.queuePage('pc.ram', PAGE);
  await within(sender.sync(), WAIT_MS, 'sync()');
  await within(sender.end(), WAIT_MS, 'end()');
  t.same(await packetsOf(server), [['pc.ram', [0, 1]]]);
});

t.test('after end() and after close() every call is refused', async (t) => {
  for (const how of ['end', 'close'] as const) {
    const { sender } = await open(t);
    await within(sender[how](), WAIT_MS, how);
    for (const call of [
      () => sender.queuePage('pc.ram', 0),
      () => sender.queueRange('pc.ram', 0, PAGE),
      () => sender.queueDeviceState('vfio', 0, Buffer.alloc(1)),
      () => sender.flush(),
      () => sender.sync(),
    ]) {
      await t.rejects(call(), { code: 'ERR_MULTIFD_STATE' });
    }
    t.equal(sender.error, undefined);
  }
});

// ---- hand-over ----

t.test('flush() hands over what is there, and nothing if nothing is', async (t) => {
  const { sender, server } = await open(t);
  await sender.flush();
  await sender.queuePage('pc.ram', 2 * PAGE);
  await sender.queuePage('pc.ram', 5 * PAGE);
  await server.until(() => server.bytes() === 64, 'the hello');
  for (let n = 0; n < 20; n++) await turn();
  t.equal(server.bytes(), 64, 'the slot is kept until it is full');
  await sender.flush();
  await server.until(() => server.bytes() === 64 + 1344, 'the packet of two zero pages');
  await sender.flush();
  await sender.flush();
  await sender.queuePage('pc.ram', 7 * PAGE);
  await sender.sync();
  await within(sender.end(), WAIT_MS, 'end()');
  t.same(await packetsOf(server), [
    ['pc.ram', [2, 5]],
    ['pc.ram', [7]],
  ]);
});

t.test('end() flushes', async (t) => {
  const { sender, server } = await open(t);
  await sender.queuePage('pc.ram', 2 * PAGE);
  await within(sender.end(), WAIT_MS, 'end()');
  t.same(await packetsOf(server), [['pc.ram', [2]]]);
});

t.test('sync() waits for every channel, also for one whose peer reads nothing', async (t) => {
  const server = await captureServer(t, { hold: true, keep: false });
  const { sender } = await open(t, { channels: 2, deviceStateBytes: 32 * MIB }, server);
  // One channel after the other: the first gets next to nothing, the second more than the kernel takes.
  await sender.queuePage('pc.ram', 0);
  await sender.flush();
  await sender.queueDeviceState('dev', 0, Buffer.alloc(32 * MIB));
  let isDone = false;
  const syncing = sender.sync().then(() => (isDone = true));
  for (const late = Date.now() + WAIT_MS; sender.stats().channels[0].syncs === 0;) {
    if (Date.now() > late) throw new Error('the first channel writes no SYNC');
    await turn();
  }
  for (let n = 0; n < 20; n++) await turn();
  t.notOk(isDone);
  server.release();
  await within(syncing, WAIT_MS, 'sync()');
});

t.test('a page that is queued again in the next phase goes out once, not on every channel', async (t) => {
  const { sender } = await open(t, { channels: 3 });
  for (let phase = 1; phase <= 3; phase++) {
    await sender.queuePage('pc.ram', 2 * PAGE);
    await within(sender.sync(), WAIT_MS, 'sync()');
    t.equal(sender.stats().zeroPages, phase);
  }
});

t.test('a change of the block hands the slot over', async (t) => {
  const { sender, server } = await open(t);
  for (const [name, page] of [
    ['pc.ram', 0],
    ['pc.ram', 1],
    ['vga', 1],
    ['pc.ram', 2],
    ['vga', 2],
    ['vga', 3],
  ] as const) {
    await sender.queuePage(name, page * PAGE);
  }
  await within(sender.end(), WAIT_MS, 'end()');
  t.same(await packetsOf(server), [
    ['pc.ram', [0, 1]],
    ['vga', [1]],
    ['pc.ram', [2]],
    ['vga', [2, 3]],
  ]);
});

t.test('idle channels are taken in turn', async (t) => {
  const server = await captureServer(t);
  const { sender } = await open(t, { channels: 4 }, server);
  for (let n = 0; n < 8; n++) {
    await sender.queuePage('pc.ram', n * PAGE);
    await within(sender.sync(), WAIT_MS, 'sync()');
  }
  t.same(
    sender.stats().channels.map(({ zeroPages }) => zeroPages),
    [2, 2, 2, 2],
  );
});

t.test('calls that are not awaited are done in the order they were made', async (t) => {
  const { sender, server } = await open(t, {
    blocks: [{ name: 'pc.ram', memory: new SharedArrayBuffer(1000 * PAGE) }],
  });
  const order: number[] = [];
  const calls: Promise<void>[] = [];
  for (let page = 0; page < 990; page++) {
    if (page % 7 === 3) {
      calls.push(sender.queueRange('pc.ram', page * PAGE, 3 * PAGE));
      order.push(page, page + 1, page + 2);
      page += 2;
    } else {
      calls.push(sender.queuePage('pc.ram', page * PAGE));
      order.push(page);
    }
    if (page % 100 === 0) calls.push(sender.flush());
  }
  calls.push(sender.sync(), sender.end());
  await within(Promise.all(calls), WAIT_MS, 'all calls');
  t.same(
    (await packetsOf(server)).flatMap(([, pages]) => pages),
    order,
  );
});

t.test('a page may be given by its block object', async (t) => {
  const { sender, server } = await open(t);
  const [ram, vga] = sender.blocks;
  await sender.queuePage(ram, PAGE);
  await sender.queueRange(vga, 0, 2 * PAGE);
  await within(sender.end(), WAIT_MS, 'end()');
  t.same(await packetsOf(server), [
    ['pc.ram', [1]],
    ['vga', [0, 1]],
  ]);
});

t.test('sync() comes behind device state and pages that were queued before and not waited for', async (t) => {
  const { sender, server } = await open(t);
  const calls: Promise<void>[] = [];
  for (let i = 0; i < 20; i++) calls.push(sender.queueDeviceState('vfio', i, Buffer.alloc(1000, 1)));
  calls.push(sender.queueRange('pc.ram', 0, 16 * PAGE), sender.sync());
  await within(Promise.all(calls), WAIT_MS, 'all calls');
  await within(sender.end(), WAIT_MS, 'end()');
  const [bytes] = await server.ended(1);
  const { packets } = await decodeChannel(bytes, { pageSize: PAGE, compression: 'none' });
  t.equal(packets.length, 22);
  t.match(packets[21], { kind: 'ram', flags: 1 }, 'SYNC is the last');
});

t.test('end() sends device state and pages that were queued before and not waited for', async (t) => {
  const dir = fs.mkdtempSync(path.join(os.tmpdir(), 'multifd-test-'));
  t.teardown(() => fs.rmSync(dir, { recursive: true }));
  const server = await captureServer(t, { path: path.join(dir, 'socket'), hold: true });
  const { sender } = await open(t, {}, server);
  const calls: Promise<void>[] = [];
  for (let i = 0; i < 5; i++) calls.push(sender.queueDeviceState('vfio', i, Buffer.alloc(MIB, 1)));
  calls.push(sender.queueRange('pc.ram', 0, 16 * PAGE), sender.queueRange('vga', 0, PAGE));
  const ends = Promise.allSettled([...calls, sender.end()]);
  for (let n = 0; n < 100; n++) await turn();
  server.release();
  t.same(
    (await within(ends, WAIT_MS, 'all calls')).map(({ status }) => status),
    new Array(8).fill('fulfilled'),
  );
  const [bytes] = await server.ended(1);
  t.equal(bytes.length, 64 + 5 * (276 + MIB) + 2 * 1344, 'all of it was sent');
});

t.test(
  'device state queued while an orderly end waits for its channels does not cut them short',
  async (t) => {
    const dir = fs.mkdtempSync(path.join(os.tmpdir(), 'multifd-test-'));
    t.teardown(() => fs.rmSync(dir, { recursive: true }));
    // A unix socket holds a quarter of a megabyte: of three packets one is on its way, one made, one handed over.
    const server = await captureServer(t, { path: path.join(dir, 'socket'), hold: true });
    const { sender } = await open(
      t,
      {
        zeroPageDetection: 'none',
        blocks: [{ name: 'pc.ram', memory: new SharedArrayBuffer(3 * 128 * PAGE) }],
      },
      server,
    );
    await within(sender.queueRange('pc.ram', 0, 3 * 128 * PAGE), WAIT_MS, 'queueRange()');
    const ended = Promise.allSettled([sender.end()]);
    for (let n = 0; n < 20; n++) await turn();
    const late = Promise.allSettled([sender.queueDeviceState('vfio', 0, Buffer.alloc(1))]);
    for (let n = 0; n < 20; n++) await turn();
    server.release();
    t.match(await within(late, WAIT_MS, 'the late call'), [
      { status: 'rejected', reason: { code: /^ERR_MULTIFD_(STATE|CLOSED)$/ } },
    ]);
    t.match(await within(ended, WAIT_MS, 'end()'), [{ status: 'fulfilled' }]);
    const [bytes] = await server.ended(1);
    t.equal(bytes.length, 64 + 3 * (1344 + 128 * PAGE), 'every page was sent');
  },
);

// ---- back-pressure, and the event loop ----

for (const kind of ['shared', 'private'] as const) {
  t.test(
    `queueing ${kind} pages to a destination that does not read waits, and the event loop turns`,
    async (t) => {
      const server = await captureServer(t, { hold: true, keep: false });
      const size = 64 * MIB;
      const { sender } = await open(
        t,
        {
          channels: 2,
          zeroPageDetection: 'none',
          blocks: [
            {
              name: 'pc.ram',
              memory: kind === 'shared' ? new SharedArrayBuffer(size) : new ArrayBuffer(size),
            },
          ],
        },
        server,
      );
      let settled = false;
      const work = sender.queueRange('pc.ram', 0, size).then(() => (settled = true));
      const counter = countTurns(t);
      // Until nothing moves any more.
      for (let bytes = -1; sender.stats().bytes !== bytes;) {
        bytes = sender.stats().bytes;
        await new Promise((resolve) => setTimeout(resolve, 100));
      }
      t.equal(settled, false);
      t.ok(sender.stats().bytes < size, `${sender.stats().bytes} bytes are with the sockets`);
      const before = counter.turns;
      for (let n = 0; n < 200; n++) await turn();
      t.ok(counter.turns >= before + 199, 'the event loop turns');
      t.equal(settled, false);
      server.release();
      await within(work, WAIT_MS, 'queueRange()');
      await within(sender.sync(), WAIT_MS, 'sync()');
      t.equal(sender.stats().normalPages, size / PAGE);
      await within(sender.end(), WAIT_MS, 'end()');
      await server.ended(2);
      t.equal(server.bytes(), sender.stats().bytes);
    },
  );
}

t.test('single pages wait as well when nobody reads', async (t) => {
  const server = await captureServer(t, { hold: true, keep: false });
  const size = 64 * MIB;
  const { sender } = await open(
    t,
    { zeroPageDetection: 'none', blocks: [{ name: 'pc.ram', memory: new SharedArrayBuffer(size) }] },
    server,
  );
  let queued = 0;
  const work = (async () => {
    for (; queued < size / PAGE; queued++) await sender.queuePage('pc.ram', queued * PAGE);
  })();
  for (let before = -1; queued !== before;) {
    before = queued;
    await new Promise((resolve) => setTimeout(resolve, 100));
  }
  t.ok(queued < size / PAGE, `${queued} pages were taken`);
  server.release();
  await within(work, WAIT_MS, 'queuePage() of all pages');
  await within(sender.sync(), WAIT_MS, 'sync()');
  t.equal(sender.stats().normalPages, size / PAGE);
});

/** The turns that the loop gets while a large guest is queued as fast as the channels take it. */
const LOOP_CASES: [string, Partial<SenderOptions>, (sender: Sender, pages: number) => Promise<void>][] = [
  [
    'a range, zero pages found by the channels',
    {},
    (sender, pages) => sender.queueRange('pc.ram', 0, pages * PAGE),
  ],
  [
    'a range, mode legacy',
    { zeroPageDetection: 'legacy', onZeroPages: () => {} },
    (sender, pages) => sender.queueRange('pc.ram', 0, pages * PAGE),
  ],
  ['single pages, zero pages found by the channels', { channels: 4 }, queueEach],
  ['single pages, mode legacy', { zeroPageDetection: 'legacy', onZeroPages: () => {} }, queueEach],
  [
    'one page again and again',
    {},
    async (sender, pages) => {
      for (let n = 0; n < pages; n++) await sender.queuePage('pc.ram', 0);
    },
  ],
];

async function queueEach(sender: Sender, pages: number): Promise<void> {
  for (let page = 0; page < pages; page++) await sender.queuePage('pc.ram', page * PAGE);
}

for (const [name, options, work] of LOOP_CASES) {
  t.test(`the event loop turns while pages are queued: ${name}`, async (t) => {
    const server = await captureServer(t, { keep: false });
    const pages = 2 ** 18;
    const { sender } = await open(
      t,
      { ...options, blocks: [{ name: 'pc.ram', memory: new SharedArrayBuffer(pages * PAGE) }] },
      server,
    );
    const counter = countTurns(t);
    await within(work(sender, pages), WAIT_MS, 'queueing');
    t.ok(counter.turns >= 5, `${counter.turns} turns`);
    await within(sender.sync(), WAIT_MS, 'sync()');
    await within(sender.end(), WAIT_MS, 'end()');
  });
}

t.test('the event loop turns while zero pages of mode legacy are reported', async (t) => {
  const server = await captureServer(t, { keep: false });
  const pages = 2 ** 18;
  const counter = countTurns(t);
  const seen: number[] = [];
  const { sender } = await open(
    t,
    {
      zeroPageDetection: 'legacy',
      onZeroPages: () => void seen.push(counter.turns),
      blocks: [{ name: 'pc.ram', memory: new SharedArrayBuffer(pages * PAGE) }],
    },
    server,
  );
  // Every second page: as many runs as there can be.
  for (let page = 0; page < pages; page += 2) await sender.queuePage('pc.ram', page * PAGE);
  await within(sender.sync(), WAIT_MS, 'sync()');
  t.equal(seen.length, pages / 2);
  const turns = seen[seen.length - 1] - seen[0];
  t.ok(turns >= 5, `${turns} turns between the first and the last report`);
});
