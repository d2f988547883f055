/**
 * Many migrations in one process, one after the other: descriptors, threads and memory stay flat. Tcp and unix sockets
 * in turn, one and two channels, the methods in rotation, a refusal or an abort in between.
 */
import { readdirSync } from 'node:fs';
import path from 'node:path';
import v8 from 'node:v8';
import vm from 'node:vm';
import t, { type Test } from 'tap';
import { type Address, type Compression, createReceiver, createSender } from '../../src/index.js';
import { pendingHusks } from '../../src/transport/descriptor.js';
import { Random } from '../support/random.js';
import {
  Leftovers,
  PAGE,
  PROMPT_MS,
  RawSource,
  TCP,
  failure,
  helloBytes,
  hold,
  packetBytes,
  temporaryDirectory,
} from '../support/raw-channel.js';
import { within } from '../support/within.js';

const RAM_BYTES = 2 ** 20;
const METHODS: Compression[] = ['none', 'zlib', 'zstd'];
const MiB = 2 ** 20;
/**
 * What the heap of the allocator may wander, and far below what a leak would come to: the two sessions of a migration
 * hold about 7 MiB of their own, so 40 of them 280 MiB; with 150, a third of a MiB a migration is seen too.
 */
const MAX_GROWTH_BYTES = 48 * MiB;

/**
 * Shared memory that nobody holds any more waits for a collection, and V8 does not see that it presses. What is looked
 * for here is what a collection does not free.
 */
const COLLECT_EVERY = 10;
function collect(): void {
  v8.setFlagsFromString('--expose-gc');
  const gc = vm.runInNewContext('globalThis.gc') as () => void;
  for (let i = 0; i < 3; i++) gc();
}

/** Memory of the process, and of that what buffers hold, in bytes. */
function memory(): { rss: number; buffers: number } {
  collect();
  const { rss, arrayBuffers } = process.memoryUsage();
  return { rss, buffers: arrayBuffers };
}

const unhandled: unknown[] = [];
process.on('unhandledRejection', (reason) => unhandled.push(reason));

/** Noise, text, words and zero pages; every page says in which migration it was. */
function fillGuest(ram: Buffer, round: number): void {
  const random = new Random(round);
  for (let at = 0; at < ram.length; at += PAGE) {
    const page = ram.subarray(at, at + PAGE);
    const kind = random.below(4);
    if (kind === 0) page.fill(0);
    else if (kind === 1) random.bytes(page);
    else page.fill(`migration ${round}, page ${at / PAGE}; `);
  }
}

const source = new SharedArrayBuffer(RAM_BYTES);
const target = new SharedArrayBuffer(RAM_BYTES);

async function migrate(t: Test, address: Address, compression: Compression, round: number): Promise<void> {
  const ram = Buffer.from(source);
  fillGuest(ram, round);
  // Threads are what takes the time here.
  const channels = 1 + ((round >>> 1) & 1);
  const blocks = [{ name: 'pc.ram', memory: target }];
  const receiver = await createReceiver({ address, channels, compression, blocks });
  const sender = await within(
    createSender({
      address: receiver.address,
      channels,
      compression,
      blocks: [{ name: 'pc.ram', memory: source }],
    }),
    PROMPT_MS,
    `createSender() ${round}`,
  );
  await within(sender.queueRange('pc.ram', 0, RAM_BYTES), PROMPT_MS, `queueRange() ${round}`);
  await within(Promise.all([sender.sync(), receiver.sync()]), PROMPT_MS, `sync() ${round}`);
  ram.fill(round + 1, 0, PAGE);
  await within(sender.queuePage('pc.ram', 0), PROMPT_MS, `queuePage() ${round}`);
  await within(Promise.all([sender.sync(), receiver.sync()]), PROMPT_MS, `second sync() ${round}`);
  await within(Promise.all([sender.end(), receiver.end()]), PROMPT_MS, `end() ${round}`);
  if (!Buffer.from(target).equals(ram)) t.fail(`migration ${round}: the memory is different`);
}

/** One that fails: refused, or aborted. */
async function failing(t: Test, round: number, way: 'abort' | 'refusal'): Promise<void> {
  const abort = new AbortController();
  const receiver = await createReceiver({
    address: TCP,
    channels: 1,
    blocks: [{ name: 'pc.ram', memory: new SharedArrayBuffer(RAM_BYTES) }],
    signal: abort.signal,
  });
  const syncing = hold(receiver.sync());
  const source = await RawSource.connect(t, receiver.address);
  await source.send(
    helloBytes({ id: 0 }),
    packetBytes({ normal: [0], ramblock: way === 'abort' ? 'pc.ram' : 'x' }),
  );
  await within(receiver.ready, PROMPT_MS, `ready ${round}`).catch(() => undefined);
  if (way === 'abort') abort.abort();
  const { code } = await failure(syncing, `sync() ${round}`);
  const expected = way === 'abort' ? 'ERR_MULTIFD_ABORTED' : 'ERR_MULTIFD_RAMBLOCK';
  if (code !== expected) t.fail(`migration ${round}: ${code}, expected ${expected}`);
  await failure(receiver.done, `done ${round}`);
  await within(source.gone, PROMPT_MS, `the channel ends ${round}`);
}

const threads = (): number => readdirSync('/proc/self/task').length;

/**
 * @param migrations how many
 * @param warm after these everything that grows once has grown: heaps of the runtime, arenas of the allocator, pools of
 *   threads
 */
export function testMany(migrations: number, warm: number): void {
  t.test(`${migrations} migrations in one process leave descriptors, threads and memory flat`, (t) =>
    migrateMany(t, migrations, warm),
  );
}

async function migrateMany(t: Test, migrations: number, warm: number): Promise<void> {
  const directory = temporaryDirectory(t);
  let leftovers: Leftovers | undefined;
  let before = { rss: 0, buffers: 0 };
  let mostThreads = 0;
  for (let round = 0; round < migrations; round++) {
    if (round === warm) {
      leftovers = new Leftovers();
      before = memory();
      mostThreads = threads();
    }
    const address = round % 2 === 0 ? TCP : { path: path.join(directory, 'destination') };
    await migrate(t, address, METHODS[round % METHODS.length], round);
    if (round % 10 === 9) await failing(t, round, round % 20 === 9 ? 'abort' : 'refusal');
    if (round % COLLECT_EVERY === 0) collect();
    // A thread may still be on its way out; those of a whole migration may not.
    if (round > warm && threads() >= mostThreads + 4) t.fail(`migration ${round}: ${threads()} threads`);
  }
  t.same(await leftovers?.found(), [], 'nothing is left');
  t.ok(pendingHusks() <= 1, `${pendingHusks()} connections of the receiver wait to be freed`);
  const after = memory();
  const text = (bytes: number): string => `${(bytes / MiB).toFixed(1)} MiB`;
  t.ok(after.rss - before.rss < MAX_GROWTH_BYTES, `the process grew by ${text(after.rss - before.rss)}`);
  // What is not held by anybody is gone, so this has no play but for a buffer or two of a session's end.
  t.ok(after.buffers - before.buffers < 16 * MiB, `buffers grew by ${text(after.buffers - before.buffers)}`);
  t.same(unhandled, [], 'no rejection was left unhandled');
}
