/**
 * Sending without a copy, against a kernel made by hand: the order of the bytes, what waits for what, completions late, out
 * of order and not at all, too little locked memory, and no call once the descriptor is not ours any more.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import t, { type Test } from 'tap';
import { MultifdError } from '../../src/errors.js';
import type { Completion, SendResult } from '../../src/native/sockets.js';
import { ZeroCopyWriter } from '../../src/transport/zero-copy.js';
import { within } from '../support/within.js';

const WAIT_MS = 10_000;
const KIB = 1024;
const PACKET = 512 * KIB;

interface Call {
  kind: 'copy' | 'in place';
  bytes: number;
  more?: boolean;
}

/** A socket whose room, answers and completions the test decides. */
class Kernel {
  readonly taken: Buffer[] = [];
  readonly calls: Call[] = [];
  room = Infinity;
  /** Calls that are larger are refused; so are all while the book holds `locked`. */
  lockable = Infinity;
  completions: Completion[] = [];
  waits = 0;
  numbers = 0;
  fails: Error | undefined;

  sendCopy(pieces: readonly Uint8Array[], more: boolean): number | 'again' {
    return this.#take('copy', pieces, more) as number | 'again';
  }

  sendInPlace(pieces: readonly Uint8Array[]): SendResult {
    const bytes = pieces.reduce((sum, piece) => sum + piece.length, 0);
    if (bytes > this.lockable) return 'locked-memory';
    const sent = this.#take('in place', pieces);
    if (typeof sent === 'number') this.numbers++;
    return sent;
  }

  reap(): Completion[] {
    return this.completions.splice(0);
  }

  wait(): void {
    this.waits++;
  }

  waitForCompletion(): void {
    this.waits++;
  }

  get bytes(): Buffer {
    return Buffer.concat(this.taken);
  }

  #take(kind: Call['kind'], pieces: readonly Uint8Array[], more?: boolean): SendResult {
    if (this.fails !== undefined) throw this.fails;
    const all = Buffer.concat(pieces);
    const bytes = Math.min(all.length, this.room);
    if (bytes === 0) return 'again';
    this.room -= bytes;
    this.taken.push(all.subarray(0, bytes));
    this.calls.push({ kind, bytes, ...(more !== undefined && { more }) });
    return bytes;
  }
}

function setUp(kernel = new Kernel()) {
  const told = { sent: 0, copied: 0, broke: undefined as Error | undefined, open: true };
  const writer = new ZeroCopyWriter(kernel, {
    isOpen: () => told.open,
    broke: (error) => (told.broke = error),
    sent: (packets) => (told.sent += packets),
    copied: (packets) => (told.copied += packets),
  });
  return { kernel, told, writer };
}

let fill = 0;
function page(bytes: number): Uint8Array {
  return new Uint8Array(new SharedArrayBuffer(bytes)).fill(++fill);
}

/** Writes pieces: those of less than 4 KiB are headers. */
function write(writer: ZeroCopyWriter, pieces: readonly Uint8Array[]): Promise<void> {
  const arePages = pieces.map((piece) => piece.length >= 4 * KIB);
  return new Promise((resolve) => writer.write(pieces, arePages, resolve));
}

async function isPending(promise: Promise<unknown>): Promise<boolean> {
  let settled = false;
  void promise.then(() => (settled = true));
  for (let i = 0; i < 20; i++) await new Promise(setImmediate);
  return !settled;
}

async function ends(t: Test, promise: Promise<unknown>, what: string): Promise<void> {
  await within(promise, WAIT_MS, what);
  t.pass(what);
}

t.test('headers are copied and pages go in place, in the order they came', async (t) => {
  const { kernel, told, writer } = setUp();
  const pieces = [page(64), page(4 * KIB), page(8 * KIB), page(100), page(101), page(PACKET), page(10)];
  await ends(t, write(writer, pieces), 'written');
  t.ok(kernel.bytes.equals(Buffer.concat(pieces)));
  t.same(kernel.calls, [
    { kind: 'copy', bytes: 64, more: true },
    { kind: 'in place', bytes: 12 * KIB },
    { kind: 'copy', bytes: 201, more: true },
    { kind: 'in place', bytes: PACKET },
    { kind: 'copy', bytes: 10, more: false },
  ]);
  t.equal(told.sent, 2, 'packets');
  writer.stop();
});

t.test('what the socket takes in parts, and late, arrives as it was', async (t) => {
  const { kernel, told, writer } = setUp();
  kernel.room = 50;
  const pieces = [page(64), page(PACKET), page(64), page(4 * KIB)];
  const written = write(writer, pieces);
  t.ok(await isPending(written));
  for (let i = 0; i < 300; i++) {
    kernel.room += 3001;
    await new Promise(setImmediate);
  }
  await ends(t, written, 'written');
  t.ok(kernel.waits > 0, 'the kernel was asked when there is room');
  t.ok(kernel.bytes.equals(Buffer.concat(pieces)));
  t.equal(told.sent, 2, 'each packet is counted once, however many calls it took');
  for (let from = 0; from < kernel.numbers; from++) kernel.completions.push({ from, to: from, copied: true });
  await ends(t, writer.released(0), 'released');
  t.equal(told.copied, 2);
  t.notOk(writer.hasPages);
});

t.test('pages are released when the kernel has said so of all of them, in whatever order', async (t) => {
  const { kernel, told, writer } = setUp();
  await ends(
    t,
    write(writer, [page(64), page(PACKET), page(64), page(PACKET), page(64), page(PACKET)]),
    'written',
  );
  const released = writer.released(0);
  t.ok(writer.hasPages);
  kernel.completions = [{ from: 1, to: 2, copied: false }];
  t.ok(await isPending(released), 'the first is not done');
  kernel.completions = [{ from: 1, to: 2, copied: true }];
  t.ok(await isPending(released), 'nor by what was known already');
  kernel.completions = [{ from: 0, to: 0, copied: true }];
  await ends(t, released, 'released');
  t.same([told.sent, told.copied], [3, 1]);
});

t.test('what has no pages waits for none', async (t) => {
  const { writer } = setUp();
  await ends(t, writer.released(0), 'before any write');
  await ends(t, write(writer, [page(64)]), 'written');
  await ends(t, writer.released(0), 'released');
  t.notOk(writer.hasPages);
});

t.test('all writes but the last two: for buffers that are used again in turn', async (t) => {
  const { kernel, writer } = setUp();
  for (let i = 0; i < 3; i++) await ends(t, write(writer, [page(64), page(4 * KIB)]), `write ${i}`);
  await ends(t, writer.released(3), 'all but three');
  const first = writer.released(2);
  t.ok(await isPending(first));
  kernel.completions = [{ from: 0, to: 0, copied: false }];
  await ends(t, first, 'all but two');
  kernel.room = 0;
  const onItsWay = write(writer, [page(64), page(4 * KIB)]);
  await ends(t, writer.released(3), 'all but three, of which one is on its way');
  const second = writer.released(2);
  t.ok(await isPending(second), 'the write on its way is one of the last two');
  kernel.completions = [{ from: 1, to: 1, copied: false }];
  await ends(t, second, 'all but two');
  kernel.room = Infinity;
  await ends(t, onItsWay, 'written');
  writer.stop();
});

t.test('while nothing is waited for completions are taken away all the same', async (t) => {
  const { kernel, writer } = setUp();
  await ends(t, write(writer, [page(64), page(4 * KIB)]), 'written');
  await sleep(50);
  kernel.completions = [{ from: 0, to: 0, copied: false }];
  for (let i = 0; i < 1000 && kernel.completions.length > 0; i++) await sleep(5);
  t.same(kernel.completions, [], 'an event loop that polls the socket is not woken by them for ever');
  t.notOk(writer.hasPages);
});

t.test('with memory locked by calls that are on their way they are waited for', async (t) => {
  const { kernel, writer } = setUp();
  await ends(t, write(writer, [page(64), page(PACKET)]), 'written');
  kernel.lockable = 0;
  const pieces = [page(64), page(PACKET)];
  const written = write(writer, pieces);
  t.ok(await isPending(written));
  t.equal(kernel.calls.length, 3, 'the header is out');
  kernel.lockable = PACKET;
  kernel.completions = [{ from: 0, to: 0, copied: false }];
  await ends(t, written, 'written');
  t.same(kernel.calls.at(-1), { kind: 'in place', bytes: PACKET }, 'in one call, as large as ever');
  writer.stop();
});

t.test('with little memory to lock calls get smaller', async (t) => {
  const { kernel, told, writer } = setUp();
  kernel.lockable = 100 * KIB;
  const pieces = [page(64), page(PACKET)];
  const written = write(writer, pieces);
  // One at a time: the next has to wait for it.
  for (let from = 0; from < 8; from++) {
    kernel.completions.push({ from, to: from, copied: false });
    await new Promise(setImmediate);
  }
  await ends(t, written, 'written');
  t.ok(kernel.bytes.equals(Buffer.concat(pieces)));
  t.same(
    kernel.calls.slice(1).map(({ bytes }) => bytes),
    Array(8).fill(64 * KIB),
  );
  t.equal(told.sent, 1);
  writer.stop();
});

t.test('with none for a single page it is an error that says the limits and what is needed', async (t) => {
  const { kernel, told, writer } = setUp();
  kernel.lockable = 0;
  const written = write(writer, [page(64), page(PACKET)]);
  t.ok(await isPending(written), 'others may have it, and give it back');
  for (let i = 0; i < 1000 && told.broke === undefined; i++) await sleep(10);
  t.equal((told.broke as MultifdError).code, 'ERR_MULTIFD_RUNTIME');
  t.match(
    told.broke?.message,
    /^zeroCopySend: .* 12288 bytes are needed for a send.*; RLIMIT_MEMLOCK is (\d+ bytes|unlimited|unknown) .*optmem_max (\d+|unknown)\. .*leave zeroCopySend off$/,
  );
  t.same(kernel.calls.length, 1, 'nothing was copied in silence');
});

t.test('others that give back what they had locked let it go on', async (t) => {
  const { kernel, told, writer } = setUp();
  kernel.lockable = 0;
  const written = write(writer, [page(64), page(PACKET)]);
  await sleep(100);
  kernel.lockable = Infinity;
  await ends(t, written, 'written');
  t.equal(told.broke, undefined);
  writer.stop();
});

t.test('a call that fails is told once, and no other is made', async (t) => {
  const { kernel, told, writer } = setUp();
  kernel.fails = new MultifdError('ERR_MULTIFD_CONNECTION', 'sendmsg EPIPE: broken pipe');
  const written = write(writer, [page(64)]);
  t.equal(told.broke, kernel.fails);
  t.ok(await isPending(written));
  const { waits } = kernel;
  writer.write([page(64)], [false], () => t.fail('written'));
  await ends(t, writer.released(0), 'nothing is waited for');
  t.equal(kernel.waits, waits);
});

t.test('a completion that cannot be breaks the connection', async (t) => {
  const { kernel, told, writer } = setUp();
  await ends(t, write(writer, [page(64), page(4 * KIB)]), 'written');
  kernel.completions = [{ from: 5, to: 5, copied: false }];
  await ends(t, writer.released(0), 'nothing is waited for any more');
  t.equal((told.broke as MultifdError).code, 'ERR_MULTIFD_WORKER');
});

t.test('once the descriptor is closed nothing is asked of its number', async (t) => {
  const { kernel, told, writer } = setUp();
  await ends(t, write(writer, [page(64), page(PACKET)]), 'written');
  kernel.room = 0;
  void write(writer, [page(64), page(PACKET)]);
  const released = writer.released(0);
  told.open = false;
  const { waits } = kernel;
  kernel.completions = [{ from: 0, to: 0, copied: false }];
  kernel.room = Infinity;
  await ends(t, released, 'nothing is waited for');
  await sleep(50);
  t.equal(kernel.waits, waits);
  t.equal(kernel.completions.length, 1, 'not read');
  t.equal(kernel.calls.length, 2, 'not written');
  t.ok(writer.hasPages, 'what is with the kernel is not forgotten: it is to be reset');
});
