/**
 * Peers and threads that fail: what the embedder is told, how soon, and that nothing is left behind. Each fault is
 * followed by a migration in the same process, by a look at the descriptors, threads and handles of the process, and
 * no rejection may stay unhandled.
 */
import { truncateSync, writeFileSync } from 'node:fs';
import type net from 'node:net';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { Worker } from 'node:worker_threads';
import t, { type Test } from 'tap';
import {
  type ErrorCode,
  type MultifdError,
  type Receiver,
  type ReceiverOptions,
  type Sender,
  type SenderOptions,
  createReceiver,
  createSender,
} from '../../src/index.js';
import { findKoffi } from '../../src/native/koffi.js';
import { Random } from '../support/random.js';
import {
  Leftovers,
  PAGE,
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
  temporaryDirectory,
} from '../support/raw-channel.js';
import { within } from '../support/within.js';

const MiB = 2 ** 20;
/** More than the kernel buffers of a few loopback connections take. */
const RAM_BYTES = 48 * MiB;
/** Far beyond every limit of these tests: an error that comes earlier did not come from a time-out. */
const FAR_MS = 60_000;

const unhandled: unknown[] = [];
process.on('unhandledRejection', (reason) => unhandled.push(reason));

const memory = new SharedArrayBuffer(RAM_BYTES);
const ram = Buffer.from(memory);
// Random once, then repeated: nothing here compresses it, and making it must not take long.
new Random(1).bytes(ram.subarray(0, MiB));
for (let at = MiB; at < RAM_BYTES; at += MiB) ram.copyWithin(at, 0, MiB);
const BLOCKS = [{ name: 'pc.ram', memory }];

async function makeSender(
  t: Test,
  options: Partial<SenderOptions> & Pick<SenderOptions, 'address'>,
): Promise<Sender> {
  const sender = await within(
    createSender({ blocks: BLOCKS, stallTimeoutMs: FAR_MS, connectTimeoutMs: FAR_MS, ...options }),
    PROMPT_MS,
    'createSender()',
  );
  t.teardown(() => within(sender.close(), PROMPT_MS, 'close()'));
  return sender;
}

async function makeReceiver(
  t: Test,
  options: Partial<ReceiverOptions> = {},
): Promise<{ receiver: Receiver; ram: Buffer }> {
  const memory = new SharedArrayBuffer(RAM_BYTES);
  const receiver = await createReceiver({
    address: TCP,
    blocks: [{ name: 'pc.ram', memory }],
    stallTimeoutMs: FAR_MS,
    connectTimeoutMs: FAR_MS,
    ...options,
  });
  t.teardown(() => within(receiver.close(), PROMPT_MS, 'close()'));
  return { receiver, ram: Buffer.from(memory) };
}

/** A migration as it should be, of 2 MiB. */
async function migrate(t: Test): Promise<void> {
  const size = 2 * MiB;
  const target = new SharedArrayBuffer(size);
  // One channel: this runs after every fault, and threads take their time to start.
  const channels = 1;
  const receiver = await createReceiver({
    address: TCP,
    channels,
    blocks: [{ name: 'pc.ram', memory: target }],
  });
  t.teardown(() => receiver.close());
  const sender = await createSender({
    address: receiver.address,
    channels,
    blocks: [{ name: 'pc.ram', memory: new Uint8Array(memory, 0, size) }],
  });
  t.teardown(() => sender.close());
  await within(
    Promise.all([sender.queueRange('pc.ram', 0, size), receiver.ready]),
    PROMPT_MS,
    'queueRange()',
  );
  await within(Promise.all([sender.sync(), receiver.sync()]), PROMPT_MS, 'sync()');
  await within(Promise.all([sender.end(), receiver.end()]), PROMPT_MS, 'end()');
  if (!Buffer.from(target).equals(ram.subarray(0, size)))
    t.fail('the memory of the next migration is different');
}

/** What a fault must do: `done` and every pending promise reject with one error. */
async function fails(
  t: Test,
  session: Sender | Receiver,
  expected: { code: ErrorCode; message: RegExp; channel?: number | 'some' },
  pending: Promise<unknown>[],
): Promise<MultifdError> {
  const error = await failure(session.done, 'done');
  t.equal(error.code, expected.code, error.message);
  t.match(error.message, expected.message);
  if (expected.channel === 'some') t.type(error.channel, 'number', 'the channel is named');
  else t.equal(error.channel, expected.channel);
  for (const [i, promise] of pending.entries()) {
    t.equal(await failure(promise, `pending promise ${i}`), error, 'every promise has the same error');
  }
  t.equal(session.error, error);
  t.equal(await failure(session.sync(), 'a later sync()'), error);
  t.equal(await failure(session.end(), 'a later end()'), error);
  await within(session.close(), PROMPT_MS, 'close() after a failure never rejects');
  return error;
}

/** Nothing is left, and the next migration works. */
async function recovers(t: Test, leftovers: Leftovers): Promise<void> {
  t.same(await leftovers.found(), [], 'nothing is left');
  await migrate(t);
  t.same(await leftovers.found(), [], 'nothing is left of the next migration either');
  t.same(unhandled.splice(0), [], 'no rejection was left unhandled');
}

/** Reads everything and throws it away. */
const reads = (socket: net.Socket): void => void socket.resume();

t.test('the process is warm', async (t) => {
  // Threads of libuv's pool, and what piscina loads, come with the first ones and stay.
  for (let i = 0; i < 2; i++) await migrate(t);
});

// ---- peers ----

interface Fault {
  /** What the peer does with each connection. */
  behave: (socket: net.Socket, index: number) => void;
  code: ErrorCode;
  message: RegExp;
  stallTimeoutMs?: number;
  /** Unix sockets know no reset. */
  tcpOnly?: boolean;
  /** The other channel goes on and takes all the pages, so that only sync() hears of it. */
  queueingEnds?: boolean;
}

/** After 1 MiB or so, on the second connection. */
function after1MiB(act: (socket: net.Socket) => void): (socket: net.Socket, index: number) => void {
  return (socket, index) => {
    let bytes = 0;
    socket.on('data', (chunk: Buffer) => {
      bytes += chunk.length;
      if (index !== 1 || bytes < MiB) return;
      bytes = -Infinity;
      act(socket);
    });
    socket.resume();
  };
}

const FAULTS: Record<string, Fault> = {
  'a peer that resets a channel': {
    behave: after1MiB((socket) => socket.resetAndDestroy()),
    code: 'ERR_MULTIFD_CONNECTION',
    message: /ECONNRESET|EPIPE|closed/,
    tcpOnly: true,
  },
  'a peer that closes a channel': {
    behave: after1MiB((socket) => socket.destroy()),
    code: 'ERR_MULTIFD_CONNECTION',
    message: /ECONNRESET|EPIPE|closed/,
  },
  'a peer that says FIN and reads on': {
    behave: after1MiB((socket) => socket.end()),
    code: 'ERR_MULTIFD_CONNECTION',
    message: /the peer closed the channel/,
  },
  'a peer that writes on a channel': {
    behave: after1MiB((socket) => socket.write('hello yourself')),
    code: 'ERR_MULTIFD_PROTOCOL',
    message: /received data, expected none/,
  },
  'a peer that closes both channels after their hellos': {
    behave: (socket) => {
      socket.once('data', () => socket.destroy());
      socket.resume();
    },
    code: 'ERR_MULTIFD_CONNECTION',
    message: /ECONNRESET|EPIPE|closed/,
  },
  'a peer that never reads': {
    behave: () => undefined,
    stallTimeoutMs: 300,
    code: 'ERR_MULTIFD_STALL',
    message: /the peer has read nothing for 300 ms/,
  },
  'a peer that stops reading one channel': {
    behave: after1MiB((socket) => socket.pause()),
    stallTimeoutMs: 300,
    code: 'ERR_MULTIFD_STALL',
    message: /the peer has read nothing for 300 ms/,
    queueingEnds: true,
  },
};

const ZERO_COPY = 'tcp without copies';
/** What is said where there is no koffi is zero-copy.test.ts's. */
const TCP_KINDS = findKoffi() === undefined ? ['tcp'] : ['tcp', ZERO_COPY];

for (const [name, fault] of Object.entries(FAULTS)) {
  const { behave, code, message, stallTimeoutMs = FAR_MS, tcpOnly = false, queueingEnds = false } = fault;
  for (const kind of tcpOnly ? TCP_KINDS : [...TCP_KINDS, 'unix']) {
    t.test(`${name} over ${kind} while pages are queued`, async (t) => {
      const leftovers = new Leftovers();
      const address = kind !== 'unix' ? TCP : { path: path.join(temporaryDirectory(t), 'destination') };
      const destination = await RawDestination.listen(t, address, behave);
      const zeroCopySend = kind === ZERO_COPY;
      const sender = await makeSender(t, { address: destination.address, stallTimeoutMs, zeroCopySend });
      const queueing = [hold(sender.queueRange('pc.ram', 0, RAM_BYTES)), hold(sender.queuePage('pc.ram', 0))];
      // What is queued again goes over every channel at the sync, so over the one that is not read as well: more than
      // its buffers take, however few packets it got before.
      if (queueingEnds) queueing.push(hold(sender.queueRange('pc.ram', 0, RAM_BYTES)));
      const syncing = hold(sender.sync());
      await fails(
        t,
        sender,
        { code, message, channel: 'some' },
        queueingEnds ? [syncing] : [...queueing, syncing],
      );
      await destination.close();
      await recovers(t, leftovers);
    });
  }
}

t.test('a peer that writes while nothing is under way is noticed too', async (t) => {
  const leftovers = new Leftovers();
  const destination = await RawDestination.listen(t, TCP, reads);
  const sender = await makeSender(t, { address: destination.address });
  await within(sender.sync(), PROMPT_MS, 'sync()');
  destination.sockets[1].write(Buffer.alloc(1));
  await fails(t, sender, { code: 'ERR_MULTIFD_PROTOCOL', message: /received data/, channel: 'some' }, []);
  await destination.close();
  await recovers(t, leftovers);
});

t.test('a peer that resets while nothing is under way is noticed too', async (t) => {
  const leftovers = new Leftovers();
  const destination = await RawDestination.listen(t, TCP, reads);
  const sender = await makeSender(t, { address: destination.address });
  await within(sender.sync(), PROMPT_MS, 'sync()');
  destination.sockets[0].resetAndDestroy();
  const expected = { code: 'ERR_MULTIFD_CONNECTION', message: /ECONNRESET|closed/, channel: 'some' } as const;
  await fails(t, sender, expected, []);
  await destination.close();
  await recovers(t, leftovers);
});

t.test('a peer that has closed its channels after the last sync() is no failure', async (t) => {
  const leftovers = new Leftovers();
  const destination = await RawDestination.listen(t, TCP, reads);
  const sender = await makeSender(t, { address: destination.address });
  await within(sender.queueRange('pc.ram', 0, MiB), PROMPT_MS, 'queueRange()');
  await within(sender.sync(), PROMPT_MS, 'sync()');
  // A real destination ends its channels as soon as it has loaded everything.
  for (const socket of destination.sockets) socket.end();
  await sleep(50);
  t.equal(sender.error, undefined);
  await within(sender.end(), PROMPT_MS, 'end()');
  await within(sender.done, PROMPT_MS, 'done');
  await destination.close();
  await recovers(t, leftovers);
});

t.test('a peer that has closed a channel is a failure of the next sync()', async (t) => {
  const leftovers = new Leftovers();
  const destination = await RawDestination.listen(t, TCP, reads);
  const sender = await makeSender(t, { address: destination.address });
  await within(sender.sync(), PROMPT_MS, 'sync()');
  destination.sockets[0].end();
  await sleep(50);
  const pending = [hold(sender.sync())];
  const expected = { code: 'ERR_MULTIFD_CONNECTION', message: /the peer closed/, channel: 'some' } as const;
  await fails(t, sender, expected, pending);
  await destination.close();
  await recovers(t, leftovers);
});

for (const kind of TCP_KINDS) {
  const zeroCopySend = kind === ZERO_COPY;
  t.test(
    `a peer that does not read what end() still has to send is ERR_MULTIFD_STALL, ${kind}`,
    async (t) => {
      const leftovers = new Leftovers();
      const destination = await RawDestination.listen(t, TCP, () => undefined);
      const { address } = destination;
      const sender = await makeSender(t, { address, channels: 1, stallTimeoutMs: 300, zeroCopySend });
      await fillUntilStuck(sender, 'pc.ram');
      const pending = [hold(sender.end())];
      await fails(t, sender, { code: 'ERR_MULTIFD_STALL', message: /has read nothing/, channel: 0 }, pending);
      await destination.close();
      await recovers(t, leftovers);
    },
  );

  t.test(`a peer that reads slowly is no stall, ${kind}`, async (t) => {
    const leftovers = new Leftovers();
    const destination = await RawDestination.listen(t, TCP, (socket) => {
      // 64 KiB or so each 10 ms. The kernel asks for more only when a third of its buffer is free again.
      socket.on('data', () => {
        socket.pause();
        setTimeout(() => socket.resume(), 10);
      });
      socket.resume();
    });
    const { address } = destination;
    const sender = await makeSender(t, { address, stallTimeoutMs: 1500, zeroCopySend });
    const queueing = hold(sender.queueRange('pc.ram', 0, RAM_BYTES));
    await sleep(2500);
    t.equal(sender.error, undefined);
    await within(sender.close(), PROMPT_MS, 'close()');
    t.equal((await failure(queueing, 'queueRange()')).code, 'ERR_MULTIFD_CLOSED');
    await destination.close();
    await recovers(t, leftovers);
  });
}

// ---- connecting ----

t.test('nobody listens: ERR_MULTIFD_CONNECT', async (t) => {
  const leftovers = new Leftovers();
  const gone = await RawDestination.listen(t, TCP, reads);
  await gone.close();
  for (const address of [gone.address, { path: path.join(temporaryDirectory(t), 'nobody') }]) {
    const error = await failure(createSender({ address, blocks: BLOCKS, channels: 4 }), 'createSender()');
    t.equal(error.code, 'ERR_MULTIFD_CONNECT');
    t.match(error.message, /cannot connect to (tcp:127\.0\.0\.1:\d+|unix:.*nobody): .*(ECONNREFUSED|ENOENT)/);
    t.type(error.channel, 'number');
    t.match(error.cause, { code: /ECONNREFUSED|ENOENT/ });
  }
  await recovers(t, leftovers);
});

t.test('a listener that never accepts: ERR_MULTIFD_TIMEOUT', async (t) => {
  const leftovers = new Leftovers();
  const listener = await deafListener(t);
  const error = await failure(
    createSender({
      address: { port: listener.port },
      blocks: BLOCKS,
      connectTimeoutMs: 400,
      stallTimeoutMs: FAR_MS,
    }),
    'createSender()',
  );
  t.equal(error.code, 'ERR_MULTIFD_TIMEOUT');
  t.match(error.message, /no connection to tcp:127\.0\.0\.1:\d+ within 400 ms/);
  await listener.close();
  await recovers(t, leftovers);
});

t.test('a listener that closes every connection beyond the first: ERR_MULTIFD_CONNECTION', async (t) => {
  const leftovers = new Leftovers();
  const destination = await RawDestination.listen(t, TCP, (socket, index) => {
    if (index === 0) socket.resume();
    else socket.destroy();
  });
  let error: MultifdError;
  try {
    // Whether the hello was written before the end came is a race that both ways must lose well.
    const sender = await makeSender(t, { address: destination.address, channels: 3 });
    error = await failure(sender.sync(), 'sync()');
    await fails(t, sender, { code: 'ERR_MULTIFD_CONNECTION', message: /./, channel: 'some' }, []);
  } catch (thrown) {
    error = thrown as MultifdError;
  }
  t.equal(error.code, 'ERR_MULTIFD_CONNECTION', error.message);
  await destination.close();
  await recovers(t, leftovers);
});

// ---- both ends ----

t.test('a receiver that fails ends its sender, and the other way round', async (t) => {
  const leftovers = new Leftovers();
  {
    const { receiver } = await makeReceiver(t, {
      blocks: [{ name: 'other', memory: new SharedArrayBuffer(PAGE) }],
    });
    const sender = await makeSender(t, { address: receiver.address });
    const pending = [hold(sender.queueRange('pc.ram', 0, RAM_BYTES))];
    const unknown = { code: 'ERR_MULTIFD_RAMBLOCK', message: /received "pc\.ram"/, channel: 'some' } as const;
    await fails(t, receiver, unknown, [hold(receiver.sync())]);
    await fails(t, sender, { code: 'ERR_MULTIFD_CONNECTION', message: /./, channel: 'some' }, pending);
  }
  {
    const { receiver } = await makeReceiver(t);
    const sender = await makeSender(t, { address: receiver.address });
    const syncing = hold(receiver.sync());
    await within(sender.queueRange('pc.ram', 0, 4 * MiB), PROMPT_MS, 'queueRange()');
    await within(sender.close(), PROMPT_MS, 'close()');
    const error = await failure(receiver.done, 'done');
    // Cut inside a packet or between two of them; reset if the kernel had bytes that nobody read.
    t.match(error.code, /^ERR_MULTIFD_(EOF|CONNECTION)$/, error.message);
    t.equal(await failure(syncing, 'sync()'), error);
  }
  await recovers(t, leftovers);
});

t.test(
  'a device that throws, and a second one in the same moment: the first is the error, the second attached',
  async (t) => {
    const leftovers = new Leftovers();
    let throwNow!: () => void;
    const moment = new Promise<void>((resolve) => (throwNow = resolve));
    let waiting = 0;
    const load = async (): Promise<void> => {
      waiting++;
      await moment;
      throw new Error('no');
    };
    const { receiver } = await makeReceiver(t, {
      devices: [0, 1].map((instanceId) => ({ idstr: 'vfio', instanceId, load })),
    });
    const sender = await makeSender(t, { address: receiver.address });
    const pending = [hold(receiver.sync())];
    await within(sender.queueDeviceState('vfio', 0, Buffer.of(1)), PROMPT_MS, 'queueDeviceState()');
    await within(sender.queueDeviceState('vfio', 1, Buffer.of(1)), PROMPT_MS, 'queueDeviceState()');
    await eventually(() => waiting === 2, 'both devices load');
    throwNow();
    const expected = {
      code: 'ERR_MULTIFD_HOOK',
      message: /load\(\) of device vfio/,
      channel: 'some',
    } as const;
    const error = await fails(t, receiver, expected, pending);
    t.equal(error.suppressed.length, 1);
    t.equal(error.suppressed[0].code, 'ERR_MULTIFD_HOOK');
    t.not(error.suppressed[0].channel, error.channel);
    await within(sender.close(), PROMPT_MS, 'close()');
    await recovers(t, leftovers);
  },
);

t.test('an onZeroPages() that throws is ERR_MULTIFD_HOOK', async (t) => {
  const leftovers = new Leftovers();
  const destination = await RawDestination.listen(t, TCP, reads);
  const sender = await makeSender(t, {
    address: destination.address,
    blocks: [{ name: 'pc.ram', memory: new SharedArrayBuffer(MiB) }],
    zeroPageDetection: 'legacy',
    onZeroPages: () => {
      throw new TypeError('no room');
    },
  });
  await within(sender.queueRange('pc.ram', 0, MiB), PROMPT_MS, 'queueRange()');
  const error = await fails(t, sender, { code: 'ERR_MULTIFD_HOOK', message: /onZeroPages/ }, [
    hold(sender.sync()),
  ]);
  t.match(error.cause, { name: 'TypeError', message: 'no room' });
  await destination.close();
  await recovers(t, leftovers);
});

t.test('a file that has become shorter is ERR_MULTIFD_IO on the sender', async (t) => {
  const leftovers = new Leftovers();
  const file = path.join(temporaryDirectory(t), 'ram');
  for (const zeroPageDetection of ['multifd', 'legacy'] as const) {
    writeFileSync(file, ram.subarray(0, MiB));
    const destination = await RawDestination.listen(t, TCP, reads);
    const sender = await makeSender(t, {
      address: destination.address,
      blocks: [{ name: 'pc.ram', file, size: MiB }],
      zeroPageDetection,
      onZeroPages: () => undefined,
    });
    truncateSync(file, MiB / 2 + 100);
    const pending = [hold(sender.queueRange('pc.ram', 0, MiB)), hold(sender.sync())];
    const error = await failure(sender.done, 'done');
    t.equal(error.code, 'ERR_MULTIFD_IO', `${zeroPageDetection}: ${error.message}`);
    t.match(error.message, /"pc\.ram"/);
    // Queueing may be over before the channel reads the page.
    t.equal(await failure(pending[1], 'sync()'), error);
    await destination.close();
  }
  await recovers(t, leftovers);
});

// ---- threads ----

/** The workers that are made while `make` runs: a pool tells each of them something at its start. */
async function workersOf<T>(t: Test, make: () => Promise<T>): Promise<{ made: T; workers: Worker[] }> {
  const workers = new Set<Worker>();
  const release = watchWorkers((worker) => workers.add(worker));
  t.teardown(release);
  const made = await make();
  release();
  return { made, workers: [...workers] };
}

function watchWorkers(seen: (worker: Worker) => void): () => void {
  // eslint-disable-next-line @typescript-eslint/unbound-method
  const original = Worker.prototype.postMessage;
  Worker.prototype.postMessage = function (this: Worker, ...args: Parameters<Worker['postMessage']>): void {
    seen(this);
    original.apply(this, args);
  };
  return () => {
    Worker.prototype.postMessage = original;
  };
}

const DIED = { code: 'ERR_MULTIFD_WORKER', message: /the thread of channel \d died: worker exited/ } as const;

t.test('a thread of the sender that dies is ERR_MULTIFD_WORKER', async (t) => {
  const leftovers = new Leftovers();
  for (const victim of [0, 1]) {
    const destination = await RawDestination.listen(t, TCP, () => undefined);
    const { made: sender, workers } = await workersOf(t, () =>
      makeSender(t, { address: destination.address }),
    );
    t.equal(workers.length, 2);
    const pending = [hold(sender.queueRange('pc.ram', 0, RAM_BYTES)), hold(sender.sync())];
    // In the middle of a write that never ends.
    await eventually(() => sender.stats().bytes > MiB, 'bytes are on their way');
    await workers[victim].terminate();
    await fails(t, sender, DIED, pending);
    await destination.close();
  }
  await recovers(t, leftovers);
});

t.test('a thread of the sender that dies while connecting is ERR_MULTIFD_WORKER', async (t) => {
  const leftovers = new Leftovers();
  const destination = await RawDestination.listen(t, TCP, reads);
  const release = watchWorkers((worker) => void worker.terminate());
  t.teardown(release);
  const error = await failure(
    createSender({ address: destination.address, blocks: BLOCKS }),
    'createSender()',
  );
  release();
  t.equal(error.code, 'ERR_MULTIFD_WORKER', error.message);
  await destination.close();
  await recovers(t, leftovers);
});

/** A page has come in on both channels, then: */
const RECEIVING: Record<string, { then: Buffer; until: (receiver: Receiver) => boolean }> = {
  'it waits for a packet': { then: Buffer.alloc(0), until: () => true },
  'it waits for sync()': { then: syncBytes(), until: (receiver) => receiver.stats().syncs === 2 },
  'it is inside a payload': {
    then: packetBytes({ normal: [PAGE], payload: patternPage(1) }).subarray(0, 3000),
    until: (receiver) => receiver.stats().bytes >= 2 * (1344 + PAGE + 3000),
  },
  'its device loads': {
    then: deviceStateBytes({ idstr: 'vfio', payload: Buffer.of(1) }),
    until: (receiver) => receiver.stats().deviceStates === 2,
  },
};

for (const [state, { then, until }] of Object.entries(RECEIVING)) {
  t.test(`a thread of the receiver that dies while ${state} is ERR_MULTIFD_WORKER`, async (t) => {
    const leftovers = new Leftovers();
    for (const victim of [0, 1]) {
      const never = new Promise<void>(() => undefined);
      const devices = [{ idstr: 'vfio', instanceId: 0, load: () => never }];
      const { made, workers } = await workersOf(t, () => makeReceiver(t, { devices }));
      const { receiver } = made;
      t.equal(workers.length, 2);
      const sources = [];
      for (const id of [0, 1]) {
        const source = await RawSource.connect(t, receiver.address);
        await source.send(helloBytes({ id }), packetBytes({ normal: [0], payload: patternPage(0) }), then);
        sources.push(source);
      }
      const pending = state === 'it waits for sync()' ? [] : [hold(receiver.sync())];
      await eventually(() => receiver.stats().normalPages === 2 && until(receiver), state);
      await workers[victim].terminate();
      await fails(t, receiver, DIED, pending);
      // The thread took its connection with it, and the session the other one.
      await within(Promise.all(sources.map((source) => source.gone)), PROMPT_MS, 'every channel ends');
    }
    await recovers(t, leftovers);
  });
}

t.test('a thread of the receiver that dies as soon as it runs takes its connection with it', async (t) => {
  const leftovers = new Leftovers();
  // The moment at which the connection changes hands is short: more than one try.
  for (let i = 0; i < 8; i++) {
    const { made, workers } = await workersOf(t, () => makeReceiver(t, { channels: 1 }));
    const { receiver } = made;
    const source = await RawSource.connect(t, receiver.address);
    await source.send(helloBytes({ id: 0 }));
    await within(receiver.ready, PROMPT_MS, 'ready');
    await workers[0].terminate();
    await failure(receiver.done, 'done');
    await within(source.gone, PROMPT_MS, 'the channel ends');
  }
  await recovers(t, leftovers);
});

t.test('a thread that dies in the middle of compressing is ERR_MULTIFD_WORKER', async (t) => {
  const leftovers = new Leftovers();
  for (const compression of ['zlib', 'zstd'] as const) {
    const destination = await RawDestination.listen(t, TCP, reads);
    const { made: sender, workers } = await workersOf(t, () =>
      makeSender(t, { address: destination.address, compression, zlibLevel: 9, zstdLevel: 10 }),
    );
    const pending = [hold(sender.queueRange('pc.ram', 0, RAM_BYTES)), hold(sender.sync())];
    await eventually(() => sender.stats().packets > 0, 'packets are being made');
    await workers[0].terminate();
    await fails(t, sender, DIED, pending);
    await destination.close();
  }
  await recovers(t, leftovers);
});

t.test(
  'a page queued after a fault is refused with that fault, and no promise is left pending',
  async (t) => {
    const leftovers = new Leftovers();
    const destination = await RawDestination.listen(t, TCP, (socket) => socket.resetAndDestroy());
    const sender = await makeSender(t, { address: destination.address }).catch(
      (error: MultifdError) => error,
    );
    // The reset may come before connecting is over.
    if (sender instanceof Error) t.match(sender.code, /^ERR_MULTIFD_CONNECT(ION)?$/);
    else {
      const error = await failure(sender.done, 'done');
      for (const call of [
        () => sender.queuePage('pc.ram', 0),
        () => sender.queueRange('pc.ram', 0, PAGE),
        () => sender.queueDeviceState('vfio', 0, patternPage(1)),
        () => sender.flush(),
        () => sender.sync(),
        () => sender.end(),
      ]) {
        t.equal(await failure(call(), 'a call after the fault'), error);
      }
      t.notOk(await isPending(sender.done));
    }
    await destination.close();
    await recovers(t, leftovers);
  },
);
