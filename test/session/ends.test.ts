/**
 * Ends, in every state and of both sides: abort by an AbortSignal, close(), end(), `await using`. Whatever was pending
 * settles with the right error, nothing hangs, nothing is left behind, and the process can start over at once.
 */
import { getEventListeners } from 'node:events';
import { setTimeout as sleep } from 'node:timers/promises';
import t, { type Test } from 'tap';
import {
  type Receiver,
  type ReceiverOptions,
  type Sender,
  type SenderOptions,
  createReceiver,
  createSender,
} from '../../src/index.js';
import {
  Leftovers,
  PAGE,
  PAGES_PER_PACKET,
  PROMPT_MS,
  RawDestination,
  RawSource,
  TCP,
  deafListener,
  deviceStateBytes,
  eventually,
  failure,
  fillUntilStuck,
  helloBytes,
  hold,
  isPending,
  packetBytes,
  patternPage,
  syncBytes,
} from '../support/raw-channel.js';
import { within } from '../support/within.js';

const MiB = 2 ** 20;
/** More than the kernel buffers of a loopback connection take. */
const RAM_BYTES = 32 * MiB;
const FULL_PACKET = PAGES_PER_PACKET * PAGE;
const MORE_BYTES = 8 * FULL_PACKET;
/** Far beyond every limit of these tests: what comes earlier did not come from a time-out. */
const FAR_MS = 60_000;

const unhandled: unknown[] = [];
process.on('unhandledRejection', (reason) => unhandled.push(reason));

const memory = new SharedArrayBuffer(RAM_BYTES);
Buffer.from(memory).fill('guest memory ');

function senderOptions(options: Partial<SenderOptions> & Pick<SenderOptions, 'address'>): SenderOptions {
  return {
    blocks: [
      { name: 'pc.ram', memory },
      // For a scene to queue when pc.ram has filled the channel.
      { name: 'more', memory: new Uint8Array(memory, 0, MORE_BYTES) },
    ],
    channels: 1,
    stallTimeoutMs: FAR_MS,
    connectTimeoutMs: FAR_MS,
    ...options,
  };
}

function receiverOptions(options: Partial<ReceiverOptions> = {}): ReceiverOptions {
  return {
    address: TCP,
    blocks: [{ name: 'pc.ram', memory: new SharedArrayBuffer(MiB) }],
    channels: 2,
    stallTimeoutMs: FAR_MS,
    connectTimeoutMs: FAR_MS,
    ...options,
  };
}

/** A migration as it should be, of 1 MiB. */
async function migrate(t: Test): Promise<void> {
  const target = new SharedArrayBuffer(MiB);
  const blocks = [{ name: 'pc.ram', memory: target }];
  const receiver = await createReceiver({ address: TCP, channels: 1, blocks });
  t.teardown(() => receiver.close());
  const sender = await createSender({
    address: receiver.address,
    channels: 1,
    blocks: [{ name: 'pc.ram', memory: new Uint8Array(memory, 0, MiB) }],
  });
  t.teardown(() => sender.close());
  await within(sender.queueRange('pc.ram', 0, MiB), PROMPT_MS, 'queueRange()');
  await within(Promise.all([sender.sync(), receiver.sync()]), PROMPT_MS, 'sync()');
  await within(Promise.all([sender.end(), receiver.end()]), PROMPT_MS, 'end()');
  if (!Buffer.from(target).equals(Buffer.from(memory, 0, MiB))) t.fail('the next migration is different');
}

async function recovers(t: Test, leftovers: Leftovers): Promise<void> {
  t.same(await leftovers.found(), [], 'nothing is left');
  await migrate(t);
  t.same(await leftovers.found(), [], 'nothing is left of the next migration either');
  t.same(unhandled.splice(0), [], 'no rejection was left unhandled');
}

t.test('the process is warm', async (t) => {
  for (let i = 0; i < 2; i++) await migrate(t);
});

/** A session in some state, what is pending in it, and what has to be put away at the end. */
interface Scene<S> {
  session: S;
  pending: Promise<unknown>[];
  /** Peers, which see their connections end. */
  gone?: Promise<unknown>[];
  putAway?: () => Promise<void>;
}

/** Ends the session's scene by abort, and by close(), and looks at everything. */
function endsWell<S extends Sender | Receiver>(
  state: string,
  make: (t: Test, signal: AbortSignal) => Promise<Scene<S>>,
): void {
  t.test(`abort while ${state}`, async (t) => {
    const leftovers = new Leftovers();
    const abort = new AbortController();
    const { session, pending, gone = [], putAway } = await make(t, abort.signal);
    t.teardown(() => session.close());
    for (const promise of pending) hold(promise);
    const reason = new Error('enough');
    abort.abort(reason);
    const error = await failure(session.done, 'done');
    t.equal(error.code, 'ERR_MULTIFD_ABORTED', error.message);
    t.equal(error.message, 'aborted: enough');
    t.equal(error.cause, reason);
    for (const [i, promise] of pending.entries()) {
      t.equal(await failure(promise, `pending promise ${i}`), error, 'every promise has the same error');
    }
    t.equal(await failure(session.sync(), 'a later call'), error);
    t.equal(getEventListeners(abort.signal, 'abort').length, 0, 'the signal is let go');
    await within(Promise.all(gone), PROMPT_MS, 'every channel ends');
    await within(session.close(), PROMPT_MS, 'close()');
    await putAway?.();
    await recovers(t, leftovers);
  });

  t.test(`close() while ${state}`, async (t) => {
    const leftovers = new Leftovers();
    const abort = new AbortController();
    const { session, pending, gone = [], putAway } = await make(t, abort.signal);
    for (const promise of pending) hold(promise);
    await within(session.close(), PROMPT_MS, 'close()');
    for (const [i, promise] of pending.entries()) {
      const error = await failure(promise, `pending promise ${i}`);
      t.equal(error.code, 'ERR_MULTIFD_CLOSED', `pending promise ${i}: ${error.message}`);
    }
    await within(session.done, PROMPT_MS, 'done');
    t.equal(session.error, undefined);
    t.equal((await failure(session.sync(), 'a later call')).code, 'ERR_MULTIFD_STATE');
    t.equal(getEventListeners(abort.signal, 'abort').length, 0, 'the signal is let go');
    await within(Promise.all(gone), PROMPT_MS, 'every channel ends');
    await putAway?.();
    await recovers(t, leftovers);
  });
}

// ---- the sender ----

/** A sender whose peer never reads. */
async function deafened(
  t: Test,
  signal: AbortSignal,
  options: Partial<SenderOptions> = {},
): Promise<{ sender: Sender; putAway: () => Promise<void> }> {
  const destination = await RawDestination.listen(t, TCP, () => undefined);
  const sender = await createSender(senderOptions({ address: destination.address, signal, ...options }));
  return { sender, putAway: () => destination.close() };
}

endsWell('the sender is idle', async (t, signal) => {
  const { sender, putAway } = await deafened(t, signal, { channels: 2 });
  return { session: sender, pending: [], putAway };
});

endsWell('queueRange() waits for a channel', async (t, signal) => {
  const { sender, putAway } = await deafened(t, signal);
  await fillUntilStuck(sender, 'pc.ram');
  const pending = [sender.queueRange('more', 0, MORE_BYTES)];
  t.ok(await isPending(pending[0]));
  return { session: sender, pending, putAway };
});

endsWell('calls of the sender wait in line', async (t, signal) => {
  const { sender, putAway } = await deafened(t, signal);
  await fillUntilStuck(sender, 'pc.ram');
  const pending = [
    hold(sender.queueRange('more', 0, MORE_BYTES)),
    hold(sender.queuePage('pc.ram', 0)),
    hold(sender.queueRange('pc.ram', 0, PAGE)),
    hold(sender.flush()),
    hold(sender.sync()),
    hold(sender.end()),
  ];
  for (const promise of pending) t.ok(await isPending(promise));
  return { session: sender, pending, putAway };
});

endsWell('the sender is in sync()', async (t, signal) => {
  const { sender, putAway } = await deafened(t, signal);
  await fillUntilStuck(sender, 'pc.ram');
  const pending = [sender.sync()];
  t.ok(await isPending(pending[0]));
  return { session: sender, pending, putAway };
});

endsWell('the sender is in end()', async (t, signal) => {
  const { sender, putAway } = await deafened(t, signal);
  await fillUntilStuck(sender, 'pc.ram');
  const pending = [sender.end()];
  t.ok(await isPending(pending[0]));
  return { session: sender, pending, putAway };
});

endsWell('queueDeviceState() waits for a channel', async (t, signal) => {
  const { sender, putAway } = await deafened(t, signal);
  await fillUntilStuck(sender, 'pc.ram');
  // The first ones may be taken yet.
  for (let i = 0; i < 4; i++) {
    const queueing = hold(sender.queueDeviceState('vfio', 0, Buffer.alloc(MiB)));
    if (!(await isPending(queueing))) continue;
    const pending = [queueing, hold(sender.queueDeviceState('vfio', 1, Buffer.alloc(1)))];
    return { session: sender, pending, putAway };
  }
  throw new Error('nothing is pending');
});

endsWell('the sender waits for bandwidth', async (t, signal) => {
  const destination = await RawDestination.listen(t, TCP, (socket) => void socket.resume());
  const sender = await createSender(
    senderOptions({ address: destination.address, signal, maxBandwidth: 1000, channels: 2 }),
  );
  const pending = [sender.queueRange('more', 0, MORE_BYTES)];
  t.ok(await isPending(pending[0]));
  return { session: sender, pending, putAway: () => destination.close() };
});

endsWell('onZeroPages() takes for ever', async (t, signal) => {
  const destination = await RawDestination.listen(t, TCP, (socket) => void socket.resume());
  let called = false;
  const sender = await createSender(
    senderOptions({
      address: destination.address,
      signal,
      blocks: [{ name: 'pc.ram', memory: new SharedArrayBuffer(MiB) }],
      zeroPageDetection: 'legacy',
      onZeroPages: () => {
        called = true;
        return new Promise(() => undefined);
      },
    }),
  );
  await within(sender.queueRange('pc.ram', 0, MiB), PROMPT_MS, 'queueRange()');
  const pending = [sender.sync()];
  await eventually(() => called, 'onZeroPages() is called');
  return { session: sender, pending, putAway: () => destination.close() };
});

t.test('abort while the sender connects', async (t) => {
  const leftovers = new Leftovers();
  const listener = await deafListener(t);
  const abort = new AbortController();
  const { signal } = abort;
  const creating = hold(
    createSender(senderOptions({ address: { port: listener.port }, channels: 2, signal })),
  );
  t.ok(await isPending(creating));
  await sleep(200);
  abort.abort();
  const error = await failure(creating, 'createSender()');
  t.equal(error.code, 'ERR_MULTIFD_ABORTED');
  t.match(error.cause, { name: 'AbortError' });
  await listener.close();
  t.equal(getEventListeners(signal, 'abort').length, 0, 'the signal is let go');
  await recovers(t, leftovers);
});

// ---- the receiver ----

async function channel(t: Test, receiver: Receiver, id: number, ...pieces: Buffer[]): Promise<RawSource> {
  const source = await RawSource.connect(t, receiver.address);
  await source.send(helloBytes({ id }), ...pieces);
  return source;
}

/** A receiver of two channels on which the sources have sent something. */
async function receiving(
  t: Test,
  signal: AbortSignal,
  bytes: Buffer,
  options: Partial<ReceiverOptions> = {},
): Promise<{ session: Receiver; gone: Promise<unknown>[] }> {
  const receiver = await createReceiver(receiverOptions({ signal, ...options }));
  const page = packetBytes({ normal: [0], payload: patternPage(1) });
  const sources = [await channel(t, receiver, 0, page, bytes), await channel(t, receiver, 1, page, bytes)];
  await eventually(() => receiver.stats().normalPages === 2, 'a page has come in on each channel');
  return { session: receiver, gone: sources.map((source) => source.gone) };
}

endsWell('the receiver waits for its first channel', async (_t, signal) => {
  const receiver = await createReceiver(receiverOptions({ signal }));
  return { session: receiver, pending: [receiver.ready, hold(receiver.sync()), hold(receiver.sync())] };
});

endsWell('the receiver waits for its second channel', async (t, signal) => {
  const receiver = await createReceiver(receiverOptions({ signal }));
  const sources = [await channel(t, receiver, 1, syncBytes()), await RawSource.connect(t, receiver.address)];
  await eventually(() => receiver.stats().syncs === 1, 'the first is in');
  const pending = [receiver.ready, hold(receiver.sync()), hold(receiver.sync())];
  return { session: receiver, pending, gone: sources.map((source) => source.gone) };
});

endsWell('the receiver waits for packets', async (t, signal) => {
  return { ...(await receiving(t, signal, Buffer.alloc(0))), pending: [] };
});

endsWell('the receiver is in sync()', async (t, signal) => {
  const scene = await receiving(t, signal, Buffer.alloc(0));
  return { ...scene, pending: [hold(scene.session.sync()), hold(scene.session.sync())] };
});

endsWell('channels of the receiver wait for sync()', async (t, signal) => {
  const scene = await receiving(t, signal, Buffer.concat([syncBytes(), packetBytes({ zero: [0] })]));
  await eventually(() => scene.session.stats().syncs === 2, 'SYNC is read');
  return { ...scene, pending: [] };
});

endsWell('the receiver is inside a payload', async (t, signal) => {
  const part = packetBytes({ normal: [PAGE], payload: patternPage(2) }).subarray(0, 5000);
  const scene = await receiving(t, signal, part);
  await eventually(() => scene.session.stats().bytes >= 2 * (1344 + PAGE + 5000), 'the part has come in');
  return { ...scene, pending: [hold(scene.session.sync())] };
});

endsWell('a device of the receiver loads for ever', async (t, signal) => {
  let loading = 0;
  const load = (): Promise<void> => {
    loading++;
    return new Promise(() => undefined);
  };
  const state = deviceStateBytes({ idstr: 'vfio', payload: Buffer.of(1) });
  const scene = await receiving(t, signal, state, { devices: [{ idstr: 'vfio', instanceId: 0, load }] });
  await eventually(() => loading === 2, 'both load');
  return { ...scene, pending: [hold(scene.session.sync())] };
});

endsWell('the receiver zeroes a range', async (_t, signal) => {
  const large = new SharedArrayBuffer(512 * MiB);
  const bytes = Buffer.from(large);
  for (let at = 0; at < bytes.length; at += PAGE) bytes[at] = 1;
  const blocks = [{ name: 'pc.ram', memory: large }];
  const receiver = await createReceiver(receiverOptions({ signal, blocks }));
  // Many times the 2 ms after which it gives way.
  return { session: receiver, pending: [receiver.zeroRange('pc.ram', 0, large.byteLength)] };
});

// ---- before, after, and in the same moment ----

t.test('a signal that has fired already: neither end is opened', async (t) => {
  const leftovers = new Leftovers();
  const destination = await RawDestination.listen(t, TCP, (socket) => void socket.resume());
  for (const reason of [new TypeError('no'), 'a string', undefined]) {
    const signal = AbortSignal.abort(reason);
    for (const creating of [
      hold<unknown>(createSender(senderOptions({ address: destination.address, signal }))),
      hold<unknown>(createReceiver(receiverOptions({ signal }))),
    ]) {
      const error = await failure(creating, 'create');
      t.equal(error.code, 'ERR_MULTIFD_ABORTED');
      t.equal(error.cause, signal.reason);
      t.match(
        error.message,
        reason instanceof Error ? 'aborted: no' : reason === undefined ? /abort/ : 'aborted: a string',
      );
    }
    t.equal(getEventListeners(signal, 'abort').length, 0);
  }
  await destination.close();
  await recovers(t, leftovers);
});

t.test('a signal that fires in the moments after the call: neither end is opened', async (t) => {
  const leftovers = new Leftovers();
  const destination = await RawDestination.listen(t, TCP, (socket) => void socket.resume());
  for (const turns of [0, 1, 2, 5]) {
    for (const create of [
      (signal: AbortSignal) => createSender(senderOptions({ address: destination.address, signal })),
      (signal: AbortSignal) => createReceiver(receiverOptions({ signal })),
    ]) {
      const abort = new AbortController();
      const creating = hold<Sender | Receiver>(create(abort.signal));
      for (let i = 0; i < turns; i++) await Promise.resolve();
      abort.abort(new Error('quickly'));
      // A receiver may have been opened before; then it is gone soon.
      const error = await creating.then(
        (session) => failure(session.done, 'done'),
        (thrown: unknown) => failure(Promise.reject(thrown as Error), 'create'),
      );
      t.equal(error.message, 'aborted: quickly');
    }
  }
  await destination.close();
  await recovers(t, leftovers);
});

t.test('AbortSignal.timeout() ends both ends', async (t) => {
  const leftovers = new Leftovers();
  const signal = AbortSignal.timeout(500);
  const receiver = await createReceiver(receiverOptions({ signal }));
  // On a machine that is busy the sender may still be connecting then.
  const sender = createSender(senderOptions({ address: receiver.address, channels: 2, signal }));
  for (const done of [hold(receiver.done), hold(sender.then((session) => session.done))]) {
    const error = await failure(done, 'done');
    t.equal(error.code, 'ERR_MULTIFD_ABORTED');
    t.match(error.cause, { name: 'TimeoutError' });
  }
  await recovers(t, leftovers);
});

t.test('an abort after the end, or after close(), changes nothing', async (t) => {
  const leftovers = new Leftovers();
  for (const end of ['end', 'close'] as const) {
    const abort = new AbortController();
    const { signal } = abort;
    const receiver = await createReceiver(receiverOptions({ signal, channels: 1 }));
    const sender = await createSender(senderOptions({ address: receiver.address, signal }));
    await within(Promise.all([sender.sync(), receiver.sync()]), PROMPT_MS, 'sync()');
    await within(sender[end](), PROMPT_MS, end);
    await within(receiver[end](), PROMPT_MS, end);
    abort.abort();
    for (const session of [sender, receiver]) {
      await within(session.done, PROMPT_MS, 'done');
      t.equal(session.error, undefined);
      await within(session.close(), PROMPT_MS, 'close() again');
    }
  }
  await recovers(t, leftovers);
});

t.test('abort, close() and a failure in one moment: the first wins, and all settle', async (t) => {
  const leftovers = new Leftovers();
  const abort = new AbortController();
  const { sender, putAway } = await deafened(t, abort.signal);
  const pending = [hold(sender.queueRange('pc.ram', 0, RAM_BYTES)), hold(sender.sync())];
  abort.abort(new Error('first'));
  const closing = [sender.close(), sender.close()];
  const ending = hold(sender.end());
  await within(Promise.all(closing), PROMPT_MS, 'close() twice');
  const error = await failure(sender.done, 'done');
  t.equal(error.message, 'aborted: first');
  for (const promise of [...pending, ending]) t.equal(await failure(promise, 'pending'), error);
  await putAway();
  await recovers(t, leftovers);
});

for (const way of ['abort', 'close()']) {
  t.test(`${way} in the moment in which end() is called`, async (t) => {
    const leftovers = new Leftovers();
    const abort = new AbortController();
    const { signal } = abort;
    const receiver = await createReceiver(receiverOptions({ signal, channels: 1 }));
    const sender = await createSender(senderOptions({ address: receiver.address, signal }));
    await within(Promise.all([sender.sync(), receiver.sync()]), PROMPT_MS, 'sync()');
    const ending = [hold(sender.end()), hold(receiver.end())];
    if (way === 'abort') abort.abort();
    else await within(Promise.all([sender.close(), receiver.close()]), PROMPT_MS, 'close()');
    for (const promise of ending) {
      // Too late, or not: but settled, and with the right error.
      await within(promise, PROMPT_MS, 'end()').catch((error: { code?: string }) => {
        t.match(error.code, way === 'abort' ? 'ERR_MULTIFD_ABORTED' : 'ERR_MULTIFD_CLOSED');
      });
    }
    for (const session of [sender, receiver]) {
      await within(session.done, PROMPT_MS, 'done').catch((error: { code?: string }) => {
        t.equal(error.code, 'ERR_MULTIFD_ABORTED');
        t.equal(way, 'abort');
      });
    }
    await recovers(t, leftovers);
  });
}

// ---- orderly ends ----

/** A pair that has been through one sync point. */
async function pair(t: Test): Promise<{ sender: Sender; receiver: Receiver }> {
  const receiver = await createReceiver(receiverOptions({ channels: 1 }));
  t.teardown(() => receiver.close());
  const sender = await createSender(
    senderOptions({
      address: receiver.address,
      blocks: [{ name: 'pc.ram', memory: new Uint8Array(memory, 0, MiB) }],
    }),
  );
  t.teardown(() => sender.close());
  await within(sender.queueRange('pc.ram', 0, MiB), PROMPT_MS, 'queueRange()');
  await within(Promise.all([sender.sync(), receiver.sync()]), PROMPT_MS, 'sync()');
  return { sender, receiver };
}

for (const end of ['end', 'close'] as const) {
  t.test(`calls after ${end}() are ERR_MULTIFD_STATE; ends and figures are not`, async (t) => {
    const leftovers = new Leftovers();
    const { sender, receiver } = await pair(t);
    await within(Promise.all([sender[end](), receiver[end]()]), PROMPT_MS, end);
    const calls: Record<string, () => Promise<unknown>> = {
      queuePage: () => sender.queuePage('pc.ram', 0),
      queueRange: () => sender.queueRange('pc.ram', 0, MiB),
      queueDeviceState: () => sender.queueDeviceState('vfio', 0, Buffer.of(1)),
      flush: () => sender.flush(),
      'sync of the sender': () => sender.sync(),
      'sync of the receiver': () => receiver.sync(),
      zeroRange: () => receiver.zeroRange('pc.ram', 0, PAGE),
    };
    for (const [name, call] of Object.entries(calls)) {
      t.equal((await failure(call(), name)).code, 'ERR_MULTIFD_STATE', name);
    }
    for (const session of [sender, receiver]) {
      await within(session.close(), PROMPT_MS, 'close() again');
      await within(session.done, PROMPT_MS, 'done');
      t.match(session.stats(), { normalPages: MiB / PAGE, syncs: 1 });
      const items = [];
      for await (const stats of session.progress()) items.push(stats);
      t.equal(items.length, 1, 'progress() of an ended session has its last item');
    }
    await recovers(t, leftovers);
  });
}

t.test('end() twice, one after the other and at once', async (t) => {
  const leftovers = new Leftovers();
  const { sender, receiver } = await pair(t);
  for (const session of [sender, receiver]) {
    await within(Promise.all([session.end(), session.end()]), PROMPT_MS, 'end() twice at once');
    await within(session.end(), PROMPT_MS, 'end() again');
  }
  await recovers(t, leftovers);
});

t.test('end() of the sender sends what was queued before it, all of it', async (t) => {
  const leftovers = new Leftovers();
  let bytes = 0;
  const destination = await RawDestination.listen(t, TCP, (socket) => {
    socket.on('data', (chunk: Buffer) => (bytes += chunk.length));
    socket.pause();
  });
  const sender = await createSender(senderOptions({ address: destination.address }));
  t.teardown(() => sender.close());
  await fillUntilStuck(sender, 'pc.ram');
  const begun = sender.stats().packets;
  const ending = hold(sender.end());
  t.ok(await isPending(ending));
  const [socket] = destination.sockets;
  const finished = new Promise<void>((resolve) => socket.once('end', () => resolve()));
  socket.resume();
  await within(ending, PROMPT_MS, 'end()');
  await within(finished, PROMPT_MS, 'FIN comes after the last byte');
  t.ok(sender.stats().packets >= begun);
  t.equal(bytes, 64 + sender.stats().packets * (1344 + FULL_PACKET));
  t.equal(sender.stats().bytes, bytes);
  await destination.close();
  await recovers(t, leftovers);
});

t.test('a call that comes while end() is under way does not make it lose anything', async (t) => {
  const leftovers = new Leftovers();
  const calls: Record<string, (sender: Sender) => Promise<unknown>> = {
    queueDeviceState: (sender) => sender.queueDeviceState('vfio', 0, Buffer.of(1)),
    queueRange: (sender) => sender.queueRange('pc.ram', 0, MiB),
    sync: (sender) => sender.sync(),
  };
  for (const [name, call] of Object.entries(calls)) {
    let bytes = 0;
    const destination = await RawDestination.listen(t, TCP, (socket) => {
      socket.on('data', (chunk: Buffer) => (bytes += chunk.length));
      socket.pause();
    });
    const sender = await createSender(senderOptions({ address: destination.address }));
    t.teardown(() => sender.close());
    await fillUntilStuck(sender, 'pc.ram');
    // What a channel has taken, whether or not it has begun to write it.
    const waiting = 1;
    const begun = sender.stats().packets;
    const ending = hold(sender.end());
    t.ok(await isPending(ending));
    const calling = hold(call(sender));
    await isPending(calling);
    const [socket] = destination.sockets;
    const finished = new Promise<void>((resolve) => socket.once('close', () => resolve()));
    socket.once('end', () => socket.end());
    socket.resume();
    await within(ending, PROMPT_MS, 'end()');
    await within(finished, PROMPT_MS, 'the channel ends');
    t.equal(bytes, 64 + (begun + waiting) * (1344 + FULL_PACKET), `${name}: every byte has come`);
    t.equal((await failure(calling, name)).code, 'ERR_MULTIFD_STATE', name);
    await within(sender.done, PROMPT_MS, 'done');
    await destination.close();
  }
  await recovers(t, leftovers);
});

t.test('a receiver that is ended before its channels are in, or inside a packet, ends', async (t) => {
  const leftovers = new Leftovers();
  const receiver = await createReceiver(receiverOptions());
  const source = await channel(
    t,
    receiver,
    0,
    packetBytes({ normal: [0], payload: patternPage(1) }).subarray(0, 2000),
  );
  await eventually(() => receiver.stats().bytes >= 2000, 'a part of a packet has come in');
  await within(receiver.end(), PROMPT_MS, 'end()');
  await within(receiver.done, PROMPT_MS, 'done');
  await within(source.gone, PROMPT_MS, 'the channel ends');
  t.match((await failure(receiver.ready, 'ready')).code, /^ERR_MULTIFD_(CLOSED|STATE)$/);
  await recovers(t, leftovers);
});

// ---- await using ----

t.test('await using closes a session at the end of its block', async (t) => {
  const leftovers = new Leftovers();
  let ended: Promise<void>[] = [];
  {
    await using receiver = await createReceiver(receiverOptions({ channels: 1 }));
    await using sender = await createSender(senderOptions({ address: receiver.address }));
    await within(Promise.all([sender.sync(), receiver.sync()]), PROMPT_MS, 'sync()');
    ended = [sender.done, receiver.done];
  }
  await within(Promise.all(ended), PROMPT_MS, 'done');
  await recovers(t, leftovers);
});

t.test('await using closes a session when its block throws, and what was pending rejects', async (t) => {
  const leftovers = new Leftovers();
  const pending: Promise<unknown>[] = [];
  const blockThatThrows = async (): Promise<void> => {
    await using receiver = await createReceiver(receiverOptions());
    pending.push(hold(receiver.sync()), receiver.ready);
    throw new RangeError('out of the block');
  };
  await t.rejects(within(blockThatThrows(), PROMPT_MS, 'the block'), { message: 'out of the block' });
  for (const promise of pending) t.equal((await failure(promise, 'pending')).code, 'ERR_MULTIFD_CLOSED');
  await recovers(t, leftovers);
});

t.test('await using after end(), and after a failure, does not throw', async (t) => {
  const leftovers = new Leftovers();
  const abort = new AbortController();
  {
    await using receiver = await createReceiver(receiverOptions({ channels: 1 }));
    await using sender = await createSender(senderOptions({ address: receiver.address }));
    await within(Promise.all([sender.sync(), receiver.sync()]), PROMPT_MS, 'sync()');
    await within(Promise.all([sender.end(), receiver.end()]), PROMPT_MS, 'end()');
  }
  {
    await using receiver = await createReceiver(receiverOptions({ signal: abort.signal }));
    abort.abort();
    await failure(receiver.done, 'done');
  }
  await recovers(t, leftovers);
});

t.test('progress() ends with the session, whatever the end is', async (t) => {
  const leftovers = new Leftovers();
  for (const way of ['abort', 'close', 'end']) {
    const abort = new AbortController();
    const { signal } = abort;
    const receiver = await createReceiver(receiverOptions({ signal, channels: 1 }));
    const sender = await createSender(senderOptions({ address: receiver.address }));
    t.teardown(() => sender.close());
    const watched = [receiver, sender].map(async (session) => {
      let items = 0;
      for await (const { bytes } of session.progress({ intervalMs: 10 })) if (bytes >= 0) items++;
      return items;
    });
    await within(Promise.all([sender.sync(), receiver.sync()]), PROMPT_MS, 'sync()');
    if (way === 'abort') abort.abort();
    else await within(receiver[way as 'close' | 'end'](), PROMPT_MS, way);
    await within(sender.end(), PROMPT_MS, 'end()');
    for (const items of await within(Promise.all(watched), PROMPT_MS, 'progress()')) t.ok(items >= 2, way);
  }
  await recovers(t, leftovers);
});
