/** What a review by fresh eyes found: each of these went wrong once. */
import dns from 'node:dns';
import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import t from 'tap';
import { createReceiver, createSender, type SenderOptions } from '../../src/index.js';
import {
  Leftovers,
  PAGE,
  PROMPT_MS,
  RawDestination,
  TCP,
  failure,
  fillUntilStuck,
  hold,
  temporaryDirectory,
} from '../support/raw-channel.js';
import { within } from '../support/within.js';

const ram = (size = 2 ** 20): { name: string; memory: SharedArrayBuffer }[] => [
  { name: 'pc.ram', memory: new SharedArrayBuffer(size) },
];

t.test('a peer that reads nothing is a stall after the time-out, not after twice that', async (t) => {
  const destination = await RawDestination.listen(t, TCP, () => {});
  const stallTimeoutMs = 1000;
  const memory = new SharedArrayBuffer(64 * 2 ** 20);
  new Uint8Array(memory).fill(1);
  const sender = await createSender({
    address: destination.address,
    blocks: [{ name: 'pc.ram', memory }],
    channels: 1,
    stallTimeoutMs,
  });
  t.teardown(() => sender.close());
  await fillUntilStuck(sender, 'pc.ram');
  const stuck = performance.now();
  const { code } = await failure(sender.done, 'done');
  const waited = performance.now() - stuck;
  t.equal(code, 'ERR_MULTIFD_STALL');
  t.ok(waited < 1.7 * stallTimeoutMs, `after ${waited.toFixed(0)} ms`);
});

t.test('an abort while a name is looked up', async (t) => {
  // A resolver that takes its time; with a host name, Node's net asks it.
  const lookup = dns.lookup;
  t.teardown(() => {
    dns.lookup = lookup;
  });
  let answered = false;
  dns.lookup = ((...args: unknown[]) => {
    const done = args.at(-1) as (error: null, address: string, family: number) => void;
    setTimeout(() => {
      answered = true;
      done(null, '127.0.0.1', 4);
    }, 700);
  }) as unknown as typeof dns.lookup;
  const abort = new AbortController();
  const receiving = hold(createReceiver({ address: 'tcp:localhost:0', blocks: ram(), signal: abort.signal }));
  await sleep(50);
  abort.abort();
  const { code } = await failure(receiving, 'createReceiver()');
  t.equal(code, 'ERR_MULTIFD_ABORTED');
  t.notOk(answered, 'before the resolver answers');
  await sleep(900);
  t.notOk(process.getActiveResourcesInfo().includes('TCPServerWrap'), 'nobody listens afterwards');
});

t.test('close() and abort while many threads start leave no descriptor', async (t) => {
  const warm = await createReceiver({ address: TCP, blocks: ram(), channels: 4 });
  await warm.close();
  const leftovers = new Leftovers();
  const receiver = await createReceiver({ address: TCP, blocks: ram(), channels: 64 });
  await receiver.close();
  const destination = await RawDestination.listen(t, TCP, (socket) => socket.resume());
  for (const ms of [5, 60]) {
    const signal = AbortSignal.timeout(ms);
    const opening = createSender({ address: destination.address, blocks: ram(), channels: 64, signal });
    t.equal((await failure(opening, 'createSender()')).code, 'ERR_MULTIFD_ABORTED');
  }
  await destination.close();
  t.same(await leftovers.found(), []);
});

t.test('threads that are ended while they load their modules leave none of the files open', async (t) => {
  const opened = (): string[] =>
    fs
      .readdirSync('/proc/self/fd')
      .flatMap((fd) => {
        try {
          return fs.readlinkSync(`/proc/self/fd/${fd}`);
        } catch {
          return [];
        }
      })
      .filter((file) => /\.(c?js|node|json)$/.test(file));
  const before = opened();
  const compressions = ['none', 'zlib', 'zstd'] as const;
  for (let i = 0; i < 30; i++) {
    const compression = compressions[i % 3];
    const receiver = await createReceiver({ address: TCP, blocks: ram(), channels: 4, compression });
    // From before their first module to behind their last, on any machine.
    await sleep((i * 37) % 400);
    await receiver.close();
    t.equal(receiver.error, undefined);
  }
  t.same(opened(), before);
});

t.test('the calling thread goes on while 64 channels start', async (t) => {
  const destination = await RawDestination.listen(t, TCP, (socket) => socket.resume());
  let turns = 0;
  const ticking = setInterval(() => turns++, 1);
  t.teardown(() => clearInterval(ticking));
  const sender = await createSender({ address: destination.address, blocks: ram(), channels: 64 });
  // One for each handful of threads at the least.
  t.ok(turns >= 16, `${turns} turns`);
  await sender.close();
});

t.test('idle and busy time grow while a channel waits', async (t) => {
  const receiver = await createReceiver({ address: TCP, blocks: ram(), channels: 1 });
  const sender = await createSender({ address: receiver.address, blocks: ram(), channels: 1 });
  await within(receiver.ready, PROMPT_MS, 'ready');
  await sleep(300);
  for (const side of [sender, receiver]) {
    const { idleMs, busyMs, elapsedMs } = side.stats();
    t.ok(idleMs >= 200 && idleMs <= elapsedMs, `idle ${idleMs} of ${elapsedMs} ms`);
    t.ok(busyMs < 200);
  }
  await within(Promise.all([sender.end(), receiver.end()]), PROMPT_MS, 'end()');
  const after = sender.stats();
  await sleep(50);
  t.equal(sender.stats().idleMs, after.idleMs, 'and stand still after the end');
});

/** Does this Node make a shared buffer of so many bytes? */
function canHave(bytes: number): boolean {
  try {
    return new SharedArrayBuffer(bytes, { maxByteLength: bytes }).byteLength === bytes;
  } catch {
    return false;
  }
}

t.test('addresses and memory that cannot be had', async (t) => {
  const long = `unix:/tmp/${'x'.repeat(120)}` as const;
  const options: SenderOptions = { address: 'tcp:127.0.0.1:1', blocks: ram() };
  for (const call of [
    createReceiver({ address: long, blocks: ram() }),
    createSender({ ...options, address: long }),
    createReceiver({ address: { path: '/tmp/a\0b' }, blocks: ram() }),
  ]) {
    const { code, message } = await failure(call, 'a path');
    t.equal(code, 'ERR_MULTIFD_OPTION');
    t.match(message, /given "a path of \d+ bytes", allowed at most 107/);
  }
  const much = { ...options, channels: 255, deviceStateBytes: 2 ** 26 };
  const { code, message } = await failure(createSender(much), 'much memory');
  if (canHave(257 * 2 ** 26)) {
    // Newer ones have as much address space as that for one buffer: the session is made, and nobody listens.
    t.equal(code, 'ERR_MULTIFD_CONNECT');
    t.match(message, /cannot connect/);
  } else {
    t.equal(code, 'ERR_MULTIFD_OPTION');
    t.match(message, /deviceStateBytes: given 255 channels/);
  }
  const nameless = [{ name: Object.create(null) as string, memory: new SharedArrayBuffer(PAGE) }];
  t.equal(
    (await failure(createSender({ ...options, blocks: nameless }), 'a name')).code,
    'ERR_MULTIFD_BLOCK',
  );
});

t.test('files that are no RAM', async (t) => {
  const directory = temporaryDirectory(t);
  const empty = path.join(directory, 'empty');
  fs.writeFileSync(empty, '');
  const pipe = path.join(directory, 'pipe');
  execFileSync('mkfifo', [pipe]);
  for (const [file, message] of [
    [empty, /file size: received 0, expected at least 1048576/],
    [pipe, /neither a regular file nor a device/],
    [directory, /neither a regular file nor a device/],
    [path.join(directory, 'missing'), /ENOENT/],
  ] as const) {
    const error = await failure(
      createReceiver({ address: TCP, blocks: [{ name: 'pc.ram', file, size: 2 ** 20 }] }),
      file,
    );
    t.equal(error.code, 'ERR_MULTIFD_IO');
    t.match(error.message, message);
  }
});

t.test('private memory that was transferred away is an error on either side', async (t) => {
  for (const side of ['source', 'destination']) {
    const memory = { source: new ArrayBuffer(4 * PAGE), destination: new ArrayBuffer(4 * PAGE) };
    new Uint8Array(memory.source).fill(7);
    const receiver = await createReceiver({
      address: TCP,
      blocks: [{ name: 'pc.ram', memory: memory.destination }],
    });
    t.teardown(() => receiver.close());
    const sender = await createSender({
      address: receiver.address,
      blocks: [{ name: 'pc.ram', memory: memory.source }],
    });
    t.teardown(() => sender.close());
    structuredClone(null, { transfer: [memory[side as keyof typeof memory]] });
    const moving = Promise.all([
      sender.queueRange('pc.ram', 0, 4 * PAGE).then(() => sender.sync()),
      hold(receiver.sync()),
    ]);
    const { code, message } = await failure(moving, side);
    t.equal(code, 'ERR_MULTIFD_BLOCK', side);
    t.match(message, /detached/);
  }
});

t.test('a RAM block of the other session is told as such', async (t) => {
  const receiver = await createReceiver({ address: TCP, blocks: ram() });
  t.teardown(() => receiver.close());
  const sender = await createSender({ address: receiver.address, blocks: ram() });
  t.teardown(() => sender.close());
  const { code, message } = await failure(receiver.zeroRange(sender.blocks[0], 0, PAGE), 'zeroRange()');
  t.equal(code, 'ERR_MULTIFD_BLOCK');
  t.match(message, /given one of another session, "pc\.ram", allowed pc\.ram$/);
});
