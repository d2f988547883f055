/**
 * zeroCopySend: what it is refused with, that all kinds of memory arrive as they are queued, that nothing is read behind a
 * sync() or used again before it is released, and what becomes of a channel that is stopped meanwhile.
 */
import { execFile } from 'node:child_process';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import t, { type Test } from 'tap';
import {
  createReceiver,
  createSender,
  relayMigration,
  sendMigration,
  type Sender,
  type SenderOptions,
} from '../../src/index.js';
import { findKoffi, whyNoKoffi } from '../../src/native/koffi.js';
import { captureServer } from '../support/capture-server.js';
import { CONTENTS, Guest } from '../support/guest.js';
import {
  Leftovers,
  PAGE,
  PROMPT_MS,
  RawDestination,
  TCP,
  eventually,
  failure,
  hold,
  isPending,
} from '../support/raw-channel.js';
import { Random } from '../support/random.js';
import { decodeChannel } from '../support/reference-decoder.js';
import { CREDENTIALS } from '../support/tls-peers.js';
import { within } from '../support/within.js';

const MiB = 2 ** 20;
const FAR_MS = 60_000;
const hasKoffi = findKoffi() !== undefined;
const memory = new SharedArrayBuffer(MiB);
const BLOCKS = [{ name: 'pc.ram', memory }];
/** Nobody listens there, and nobody is asked. */
const NOWHERE = 'tcp:127.0.0.1:1';

const unhandled: unknown[] = [];
process.on('unhandledRejection', (reason) => unhandled.push(reason));

async function open(
  t: Test,
  options: Partial<SenderOptions> & Pick<SenderOptions, 'address'>,
): Promise<Sender> {
  const all = { blocks: BLOCKS, stallTimeoutMs: FAR_MS, channels: 1, zeroCopySend: true, ...options };
  const sender = await within(createSender(all), PROMPT_MS, 'createSender()');
  t.teardown(() => within(sender.close(), PROMPT_MS, 'close()'));
  return sender;
}

// ---- what it is refused with ----

const REFUSED: [how: Pick<Partial<SenderOptions>, 'address' | 'compression' | 'tls'>, allowed: string][] = [
  [{ compression: 'zlib' }, 'with compression none, not zlib: a codec makes new bytes'],
  [{ compression: 'zstd' }, 'with compression none, not zstd: a codec makes new bytes'],
  [{ tls: CREDENTIALS }, 'without TLS: it makes new bytes'],
  [{ address: 'unix:/nowhere/at/all' }, 'over TCP: a unix socket cannot'],
];

for (const [how, allowed] of REFUSED) {
  t.test(`allowed ${allowed.split(':')[0]}: refused before anything is opened`, async (t) => {
    const message = `option zeroCopySend: given true, allowed ${allowed}`;
    const { address = NOWHERE, ...more } = how;
    const options = { ...more, zeroCopySend: true };
    const calls = {
      createSender: hold(createSender({ ...options, address, blocks: BLOCKS })),
      sendMigration: hold(sendMigration({ ...options, to: address, file: '/nowhere/at/all' })),
      relayMigration: hold(relayMigration({ listen: 'tcp:127.0.0.1:0', to: address, out: options })),
    };
    for (const [name, call] of Object.entries(calls)) {
      const error = await failure(call, name);
      t.same([error.code, error.message], ['ERR_MULTIFD_OPTION', message], name);
    }
  });
}

t.test('what is neither true nor false is refused', async (t) => {
  for (const zeroCopySend of [1, 'yes', null] as unknown as boolean[]) {
    const error = await failure(
      createSender({ address: NOWHERE, blocks: BLOCKS, zeroCopySend }),
      'createSender()',
    );
    t.equal(error.code, 'ERR_MULTIFD_OPTION');
    t.match(error.message, /^option zeroCopySend: given .*, allowed true or false$/);
  }
});

t.test('without koffi it is refused in one sentence, and left off it is not asked for', async (t) => {
  const script = `
    import { createSender } from ${JSON.stringify(new URL('../../lib/index.js', import.meta.url).href)};
    const blocks = [{ name: 'pc.ram', memory: new SharedArrayBuffer(4096) }];
    for (const zeroCopySend of [true, false]) {
      const error = await createSender({ address: '${NOWHERE}', blocks, zeroCopySend }).catch((error) => error);
      console.log(error.code + ' ' + error.message);
    }
    process.exit();`;
  const args = ['--no-addons', '--input-type=module', '-e', script];
  const env = { ...process.env, NODE_OPTIONS: '' };
  const { stdout } = await promisify(execFile)(process.execPath, args, { env, timeout: FAR_MS });
  const [refused, off] = stdout.split('\n');
  t.match(refused, /^ERR_MULTIFD_RUNTIME option zeroCopySend: it needs the package koffi, .*$/);
  t.match(off, /^ERR_MULTIFD_CONNECT /);
});

if (!hasKoffi) {
  t.test('this machine has no koffi', async (t) => {
    const refused = await failure(
      createSender({ address: NOWHERE, blocks: BLOCKS, zeroCopySend: true }),
      'createSender()',
    );
    t.same([refused.code, refused.message], ['ERR_MULTIFD_RUNTIME', `option zeroCopySend: ${whyNoKoffi()}`]);
  });
} else {
  // ---- what arrives ----

  for (const zeroPageDetection of ['multifd', 'none'] as const) {
    t.test(`all kinds of memory arrive, phase after phase, detection ${zeroPageDetection}`, async (t) => {
      const random = new Random(3);
      const guest = new Guest(t, PAGE);
      guest.add('pc.ram', 'shared-odd', 'shared', 700);
      guest.add('rom', 'private', 'private', 300);
      guest.add('vga', 'file-offset', 'file', 3000);
      const receiver = await createReceiver({
        address: TCP,
        channels: 3,
        blocks: guest.blocks.map((block) => block.destination.options),
        devices: [{ idstr: 'vfio', instanceId: 0, load: (data) => void t.equal(data.length, 70_000) }],
      });
      t.teardown(() => receiver.close());
      const blocks = guest.blocks.map((block) => block.source.options);
      const sender = await open(t, { address: receiver.address, channels: 3, blocks, zeroPageDetection });
      for (let phase = 0; phase < 4; phase++) {
        for (const block of guest.blocks) {
          for (let page = 0; page < block.pageCount; page += 1 + random.below(phase === 0 ? 1 : 20)) {
            guest.writePage(block, page, CONTENTS[random.below(CONTENTS.length)], random);
            await sender.queuePage(block.name, page * PAGE);
            // Again within the phase: the last content counts.
            if (random.below(40) > 0) continue;
            guest.writePage(block, page, 'text', random);
            await sender.queuePage(block.name, page * PAGE);
          }
        }
        await sender.queueDeviceState('vfio', 0, Buffer.alloc(70_000, phase + 1));
        await within(Promise.all([sender.sync(), receiver.sync()]), PROMPT_MS, 'sync()');
        t.same(guest.differences(), [], `phase ${phase}`);
      }
      const { zeroCopyPackets, zeroCopyCopied, packets } = sender.stats();
      t.ok(zeroCopyPackets > 0 && zeroCopyPackets < packets, `${zeroCopyPackets} of ${packets} packets`);
      t.ok(zeroCopyCopied <= zeroCopyPackets, `${zeroCopyCopied} copied all the same`);
      await within(Promise.all([sender.end(), receiver.end()]), PROMPT_MS, 'end()');
    });
  }

  t.test('packets lie on the wire as without it, and those with pages are counted', async (t) => {
    const guest = new Guest(t, PAGE);
    const random = new Random(4);
    const block = guest.add('pc.ram', 'shared', 'shared', 1000);
    for (let page = 0; page < block.pageCount; page++)
      guest.writePage(block, page, CONTENTS[random.below(CONTENTS.length)], random);
    const server = await captureServer(t);
    const blocks = [block.source.options];
    const sender = await open(t, { address: server.address, channels: 2, blocks });
    await sender.queueRange('pc.ram', 0, block.twin.length);
    await sender.queueDeviceState('vfio', 0, Buffer.alloc(1000, 1));
    await within(sender.sync(), PROMPT_MS, 'sync()');
    const { zeroCopyPackets, zeroCopyCopied, bytes } = sender.stats();
    await within(sender.end(), PROMPT_MS, 'end()');
    let withPages = 0;
    let total = 0;
    for (const captured of await server.ended(2)) {
      const { packets } = await decodeChannel(captured, { pageSize: PAGE, compression: 'none' });
      withPages += packets.filter((packet) => packet.kind === 'ram' && packet.normalPages > 0).length;
      total += captured.length;
    }
    t.ok(withPages > 0);
    t.equal(zeroCopyPackets, withPages);
    t.ok(zeroCopyCopied <= zeroCopyPackets);
    t.equal(bytes, total);
  });

  // ---- who owns the bytes ----

  // Shared: less than the socket's own buffer, so that all is with the kernel and nothing acknowledged. The others: more, so
  // that slots and buffers are used again.
  for (const [kind, pages] of [
    ['shared', 512],
    ['private', 1024],
    ['file', 1024],
  ] as const) {
    t.test(`${kind} memory that is written to behind a sync() does not change what was sent`, async (t) => {
      const random = new Random(6);
      const guest = new Guest(t, PAGE);
      const block = guest.add('pc.ram', kind, 'shared', pages);
      for (let page = 0; page < block.pageCount; page++) guest.writePage(block, page, 'random', random);
      const expected = Buffer.from(block.twin);
      const server = await captureServer(t, { hold: true });
      const sender = await open(t, { address: server.address, blocks: [block.source.options] });
      const size = block.twin.length;
      const moved = (async () => {
        await sender.queueRange('pc.ram', 0, size);
        await sender.sync();
        for (let page = 0; page < block.pageCount; page++) guest.writePage(block, page, 'text', random);
        await sender.end();
      })();
      await sleep(200);
      server.release();
      await within(moved, PROMPT_MS, 'the migration');
      const [bytes] = await server.ended(1);
      const { packets } = await decodeChannel(bytes, { pageSize: PAGE, compression: 'none' });
      const arrived = Buffer.alloc(size);
      for (const packet of packets) {
        if (packet.kind !== 'ram') continue;
        for (const [i, page] of packet.pages.entries()) arrived.set(page, Number(packet.offsets[i]));
      }
      const different = [];
      for (let at = 0; at < size; at += PAGE)
        if (!arrived.subarray(at, at + PAGE).equals(expected.subarray(at, at + PAGE)))
          different.push(at / PAGE);
      t.same(different, []);
    });
  }

  t.test('sync() waits until what it ends is acknowledged', async (t) => {
    const server = await captureServer(t, { hold: true });
    // Less than the socket's own buffer, so that the kernel has it all at once; more than the peer's takes.
    const size = 2 * MiB;
    const ram = new SharedArrayBuffer(size);
    Buffer.from(ram).fill(7);
    const sender = await open(t, { address: server.address, blocks: [{ name: 'pc.ram', memory: ram }] });
    await within(sender.queueRange('pc.ram', 0, size), PROMPT_MS, 'queueRange()');
    const syncing = hold(sender.sync());
    await sleep(100);
    t.ok(await isPending(syncing));
    server.release();
    await within(syncing, PROMPT_MS, 'sync()');
  });

  // ---- ends ----

  const big = new SharedArrayBuffer(48 * MiB);
  Buffer.from(big).fill(3);
  const BIG = [{ name: 'pc.ram', memory: big }];

  t.test('an abort while the kernel has pages resets the connection: nothing of them follows', async (t) => {
    const leftovers = new Leftovers();
    let received = 0;
    const destination = await RawDestination.listen(t, TCP, (socket) => {
      socket.on('data', (chunk) => (received += chunk.length));
      socket.pause();
    });
    const abort = new AbortController();
    const { signal } = abort;
    const sender = await open(t, { address: destination.address, blocks: BIG, signal });
    const queueing = hold(sender.queueRange('pc.ram', 0, big.byteLength));
    await eventually(() => sender.stats().zeroCopyPackets > 2, 'packets are with the kernel');
    abort.abort();
    t.equal((await failure(queueing, 'queueRange()')).code, 'ERR_MULTIFD_ABORTED');
    t.equal((await failure(sender.done, 'done')).code, 'ERR_MULTIFD_ABORTED');
    const [socket] = destination.sockets;
    const ended = new Promise<void>((resolve) => socket.once('end', resolve).once('close', resolve));
    socket.resume();
    await within(ended, PROMPT_MS, 'the end of the connection');
    t.ok(received < MiB, `${received} bytes: those that were with the peer already`);
    await destination.close();
    t.same(await leftovers.found(), []);
  });

  t.test(
    'close() while sync() waits for completions is ERR_MULTIFD_CLOSED, and leaves nothing',
    async (t) => {
      const leftovers = new Leftovers();
      const destination = await RawDestination.listen(t, TCP, () => undefined);
      const sender = await open(t, { address: destination.address, blocks: BIG });
      await within(sender.queueRange('pc.ram', 0, 2 * MiB), PROMPT_MS, 'queueRange()');
      const syncing = hold(sender.sync());
      t.ok(await isPending(syncing));
      await within(sender.close(), PROMPT_MS, 'close()');
      t.equal((await failure(syncing, 'sync()')).code, 'ERR_MULTIFD_CLOSED');
      await destination.close();
      t.same(await leftovers.found(), []);
    },
  );

  for (const [name, blocks, inSync] of [
    ['shared memory, in sync()', BIG, true],
    [
      'private memory, whose slot is not given back',
      [{ name: 'pc.ram', memory: new ArrayBuffer(2 * MiB) }],
      false,
    ],
  ] as const) {
    t.test(`a peer that ends its side while pages are out is noticed at once: ${name}`, async (t) => {
      const destination = await RawDestination.listen(t, TCP, () => undefined);
      const { address } = destination;
      const sender = await open(t, { address, blocks: [...blocks], zeroPageDetection: 'none' });
      const queueing = hold(sender.queueRange('pc.ram', 0, 2 * MiB));
      if (inSync) await within(queueing, PROMPT_MS, 'queueRange()');
      const waiting = inSync ? hold(sender.sync()) : queueing;
      await eventually(() => sender.stats().zeroCopyPackets > 0, 'pages are with the kernel');
      await sleep(50);
      t.ok(await isPending(waiting));
      destination.sockets[0].end();
      t.match(await failure(waiting, name), {
        code: 'ERR_MULTIFD_CONNECTION',
        message: /the peer closed the channel/,
      });
      await destination.close();
    });
  }

  t.test('a peer that acknowledges nothing more is a stall of sync() as well', async (t) => {
    const destination = await RawDestination.listen(t, TCP, () => undefined);
    const { address } = destination;
    const sender = await open(t, { address, blocks: BIG, stallTimeoutMs: 300 });
    await within(sender.queueRange('pc.ram', 0, 2 * MiB), PROMPT_MS, 'queueRange()');
    const error = await failure(sender.sync(), 'sync()');
    t.equal(error.code, 'ERR_MULTIFD_STALL');
    t.match(error.message, /the peer has read nothing for 300 ms/);
    await destination.close();
  });

  t.test(
    'between phases an idle channel takes no processor time for what the kernel says late',
    async (t) => {
      const server = await captureServer(t, { hold: true });
      const sender = await open(t, { address: server.address, blocks: BIG });
      await within(sender.queueRange('pc.ram', 0, MiB), PROMPT_MS, 'queueRange()');
      await within(sender.flush(), PROMPT_MS, 'flush()');
      await eventually(() => sender.stats().zeroCopyPackets === 2, 'both packets are with the kernel');
      server.release();
      await within(
        server.until(() => server.bytes() > MiB, 'all bytes'),
        PROMPT_MS,
        'all bytes',
      );
      await eventually(
        () => sender.stats().zeroCopyCopied === 2,
        'the completions are read, without any call',
      );
      const { idleMs: before } = sender.stats();
      const { user, system } = process.cpuUsage();
      await sleep(500);
      const after = process.cpuUsage({ user, system });
      const busy = (after.user + after.system) / 1000;
      t.ok(sender.stats().idleMs > before, 'the channel is idle');
      t.ok(busy < 250, `${busy} ms of processor time in 500 ms`);
    },
  );

  // ---- too little memory that may be locked ----

  interface Outcome {
    equal: boolean;
    zeroCopyPackets: number;
    code?: string;
    message?: string;
  }

  const run = promisify(execFile);
  const fixture = fileURLToPath(new URL('../fixtures/zero-copy-session.js', import.meta.url));
  const isRoot = process.getuid?.() === 0;
  // Root may lock what it likes, unless it has given up that.
  const drop = isRoot ? ['setpriv', '--bounding-set=-ipc_lock', '--inh-caps=-ipc_lock'] : [];

  async function withLimit(kib: number, channels: number): Promise<Outcome> {
    const shell = [
      'sh',
      '-c',
      `ulimit -l ${kib} && exec "$0" "$@"`,
      process.execPath,
      fixture,
      String(channels),
    ];
    const [command, ...args] = [...drop, ...shell];
    const env = { ...process.env, NODE_OPTIONS: '' };
    const { stdout } = await run(command, args, { env, timeout: FAR_MS, cwd: path.dirname(fixture) });
    return JSON.parse(stdout) as Outcome;
  }

  t.test('a process that may lock no page is told the limit, and what a send needs', async (t) => {
    const { code, message, equal } = await withLimit(8, 2);
    t.equal(code, 'ERR_MULTIFD_RUNTIME');
    t.match(
      message,
      /^channel \d: zeroCopySend: the kernel may keep no more pages of this process: 12288 bytes are needed for a send, .*; RLIMIT_MEMLOCK is 8192 bytes .*leave zeroCopySend off$/,
    );
    t.notOk(equal);
  });

  t.test('a process that may lock little sends all the same, again and again', async (t) => {
    const { code, message, equal, zeroCopyPackets } = await withLimit(256, 2);
    t.same([code, message], [undefined, undefined]);
    t.ok(equal);
    t.equal(zeroCopyPackets, 48);
  });
}

t.test('no rejection was left unhandled', async (t) => t.same(unhandled, []));
