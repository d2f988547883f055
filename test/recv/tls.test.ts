/** A receiver with TLS: each connection does its handshake on a channel's thread; what strangers cost, and what an end leaves. */
import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import diagnostics from 'node:diagnostics_channel';
import net from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import { inspect } from 'node:util';
import t, { type Test } from 'tap';
import { type Receiver, type ReceiverOptions, createReceiver, createSender } from '../../src/index.js';
import {
  Leftovers,
  PAGE,
  PROMPT_MS,
  TCP,
  eventually,
  failure,
  helloBytes,
  hold,
  packetBytes,
  patternPage,
  syncBytes,
} from '../support/raw-channel.js';
import {
  CREDENTIALS,
  KEY,
  WRONG_KEY,
  beginTls,
  clientHello,
  connectPlain,
  connectTls,
  listenTls,
} from '../support/tls-peers.js';
import { ALL } from '../support/some.js';
import { within } from '../support/within.js';

const MiB = 2 ** 20;
const FAR_MS = 60_000;
const WAIT_MS = 30_000;
const hello = await clientHello();

const unhandled: unknown[] = [];
process.on('unhandledRejection', (reason) => unhandled.push(reason));

async function open(
  t: Test,
  options: Partial<ReceiverOptions> = {},
): Promise<{ receiver: Receiver; ram: Buffer }> {
  const memory = new SharedArrayBuffer(MiB);
  const receiver = await createReceiver({
    address: TCP,
    blocks: [{ name: 'pc.ram', memory }],
    channels: 2,
    tls: CREDENTIALS,
    stallTimeoutMs: FAR_MS,
    connectTimeoutMs: FAR_MS,
    ...options,
  });
  t.teardown(() => receiver.close());
  return { receiver, ram: Buffer.from(memory) };
}

function hasOpenssl(): boolean {
  return spawnSync('openssl', ['version']).status === 0;
}

/** Both ends of a connection. */
async function pair(t: Test): Promise<[net.Socket, net.Socket]> {
  const server = net.createServer();
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const coming = once(server, 'connection') as Promise<[net.Socket]>;
  const far = await connectPlain(t, { host: '127.0.0.1', port: (server.address() as net.AddressInfo).port });
  const [near] = await coming;
  server.close();
  t.teardown(() => void near.destroy());
  return [near.on('error', () => {}), far];
}

/** A source of src's own, as it should be. */
async function migrate(t: Test, receiver: Receiver, ram: Buffer, channels = 2, ms = WAIT_MS): Promise<void> {
  const memory = new SharedArrayBuffer(MiB);
  Buffer.from(memory).fill('guest memory ');
  const blocks = [{ name: 'pc.ram', memory }];
  const sender = await createSender({
    address: receiver.address,
    channels,
    blocks,
    tls: CREDENTIALS,
    connectTimeoutMs: ms,
  });
  t.teardown(() => sender.close());
  await within(sender.queueRange('pc.ram', 0, MiB), ms, 'queueRange()');
  await within(Promise.all([sender.sync(), receiver.sync()]), ms, 'sync()');
  await within(Promise.all([sender.end(), receiver.end()]), ms, 'end()');
  t.ok(ram.equals(Buffer.from(memory)), 'RAM');
}

t.test('the process is warm', async (t) => {
  for (let i = 0; i < 2; i++) {
    const { receiver, ram } = await open(t);
    await migrate(t, receiver, ram);
  }
});

t.test(
  'hundreds that are silent, slow, garbled, plain or keyless: the channels come in, and nothing is left',
  async (t) => {
    const leftovers = new Leftovers();
    const { receiver, ram } = await open(t, { maxStrays: 400 });
    const { address } = receiver;
    let worst = 0;
    let last = performance.now();
    const clock = setInterval(() => {
      worst = Math.max(worst, performance.now() - last - 5);
      last = performance.now();
    }, 5);
    const others: net.Socket[] = [];
    const come = async (count: number, bytes?: Buffer): Promise<net.Socket[]> => {
      const came = await Promise.all(Array.from({ length: count }, () => connectPlain(t, address)));
      for (const socket of came) socket.resume();
      if (bytes !== undefined) for (const socket of came) socket.write(bytes);
      others.push(...came);
      return came;
    };
    await come(300);
    const slow = await come(300);
    let at = 0;
    const trickle = setInterval(() => {
      for (const socket of slow) if (!socket.destroyed) socket.write(hello.subarray(at, at + 1));
      at++;
    }, 20);
    await come(30, Buffer.from('GET / HTTP/1.0\r\n\r\n'));
    await come(30, helloBytes({ id: 0 }));
    await come(30, Buffer.from('1603ffffff00', 'hex'));
    await come(30, Buffer.concat([hello, Buffer.alloc(40_000, 0xff)]));
    await come(100, hello);
    for (const socket of await come(100)) beginTls(socket, { key: WRONG_KEY });
    await migrate(t, receiver, ram);
    clearInterval(trickle);
    clearInterval(clock);
    t.comment(`the event loop was held up for ${Math.round(worst)} ms at most, with both ends on it`);
    t.ok(receiver.stats().strays >= 120, `${receiver.stats().strays} strays`);
    await within(
      Promise.all(others.filter((socket) => !socket.closed).map((socket) => once(socket, 'close'))),
      WAIT_MS,
      'all go',
    );
    t.same(await leftovers.found(), []);
  },
);

t.test('maxStrays holds on the threads as well, for those that come all at once', async (t) => {
  const { receiver } = await open(t, { maxStrays: 8 });
  const sockets = await Promise.all(Array.from({ length: 80 }, () => connectPlain(t, receiver.address)));
  for (const socket of sockets) socket.resume().write(hello);
  const here = (): number => sockets.filter((socket) => !socket.destroyed).length;
  await eventually(() => here() <= 8, 'the oldest go');
  await sleep(100);
  t.equal(here(), 8, 'and the newest stay');
});

for (const how of ['ends', 'resets'] as const) {
  t.test(`a channel that ${how} right behind its hello is ERR_MULTIFD_EOF at the next SYNC`, async (t) => {
    const { receiver } = await open(t, { channels: 1 });
    const { secure, raw } = await connectTls(t, receiver.address);
    secure.write(helloBytes({ id: 0 }), () => (how === 'ends' ? secure.end() : raw.resetAndDestroy()));
    const error = await failure(receiver.sync(), 'sync()');
    t.match(error.code, how === 'ends' ? 'ERR_MULTIFD_EOF' : /EOF|TIMEOUT/, error.message);
  });
}

t.test('an end with packets before it that are not used up yet is no end before them', async (t) => {
  const { receiver, ram } = await open(t, { channels: 1 });
  const { secure } = await connectTls(t, receiver.address);
  const page = packetBytes({ normal: [5 * PAGE], payload: patternPage(5) });
  secure.end(Buffer.concat([helloBytes({ id: 0 }), syncBytes(), page, syncBytes(), syncBytes()]));
  await within(receiver.ready, PROMPT_MS, 'ready');
  await sleep(300);
  for (let i = 0; i < 3; i++) await within(receiver.sync(), PROMPT_MS, `sync() ${i}`);
  t.ok(ram.subarray(5 * PAGE, 6 * PAGE).equals(patternPage(5)));
  t.equal((await failure(receiver.sync(), 'a fourth')).code, 'ERR_MULTIFD_EOF');
});

for (const version of ['TLSv1.2', 'TLSv1.3'] as const) {
  t.test(`${version}: records of one byte`, async (t) => {
    const { receiver, ram } = await open(t, { channels: 1 });
    const { secure } = await connectTls(t, receiver.address, { version });
    secure.setMaxSendFragment(512);
    const page = packetBytes({ normal: [PAGE], payload: patternPage(1) });
    const bytes = Buffer.concat([helloBytes({ id: 0 }), page, syncBytes()]);
    for (let i = 0; i < bytes.length; i++) {
      // One write, one record.
      secure.write(bytes.subarray(i, i + 1));
      if (i % 500 === 0) await sleep(1);
    }
    await within(receiver.sync(), PROMPT_MS, 'sync()');
    t.ok(ram.subarray(PAGE, 2 * PAGE).equals(patternPage(1)));
    await within(receiver.end(), PROMPT_MS, 'end()');
  });
}

t.test('a peer that renegotiates without end is broken off', async (t) => {
  const { receiver } = await open(t, { channels: 1 });
  const { secure, gone } = await connectTls(t, receiver.address, { version: 'TLSv1.2' });
  secure.write(helloBytes({ id: 0 }));
  await within(receiver.ready, PROMPT_MS, 'ready');
  const again = (): void => {
    if (!secure.destroyed) secure.renegotiate({}, () => again());
  };
  again();
  await within(gone, PROMPT_MS, 'it goes');
  t.match((await failure(receiver.sync(), 'sync()')).code, /ERR_MULTIFD_(TLS|CONNECTION|EOF)/);
});

for (const [how, authorize] of Object.entries({
  hangs: () => new Promise<boolean>(() => undefined),
  throws: () => {
    throw new Error('no directory');
  },
})) {
  t.test(`authorize() that ${how}: nobody is let in, and close() leaves nothing`, async (t) => {
    const leftovers = new Leftovers();
    let asked = 0;
    const tls = { ...CREDENTIALS, authorize: () => (asked++, authorize()) };
    const { receiver } = await open(t, { tls });
    const peers = await Promise.all([0, 1, 2].map(() => connectTls(t, receiver.address)));
    for (const [id, { secure }] of peers.entries()) secure.write(helloBytes({ id }));
    await eventually(() => asked === 3, 'authorize() is asked');
    const allGone = Promise.all(peers.map(({ gone }) => gone));
    if (how === 'throws') await within(allGone, PROMPT_MS, 'all go at once');
    t.match(receiver.stats(), { bytes: 0 });
    await within(receiver.close(), PROMPT_MS, 'close()');
    await within(allGone, PROMPT_MS, 'all go');
    t.same(await leftovers.found(), []);
  });
}

t.test('authorize() that answers late and differently for each', async (t) => {
  const tls = {
    ...CREDENTIALS,
    psk: { qemu: KEY, other: KEY },
    authorize: async ({ identity }: { identity: string | undefined }) => {
      await sleep(identity === 'qemu' ? 300 : 100);
      return identity === 'qemu';
    },
  };
  const { receiver, ram } = await open(t, { tls });
  const other = await connectTls(t, receiver.address, { identity: 'other' });
  other.secure.write(helloBytes({ id: 0 }));
  await migrate(t, receiver, ram);
  await within(other.gone, PROMPT_MS, 'who may not come goes');
});

const MANY = ALL ? 255 : 24;
t.test(`${MANY} channels`, async (t) => {
  const leftovers = new Leftovers();
  const { receiver, ram } = await open(t, { channels: MANY });
  // Only against hanging: two threads for each, each with its own handshake.
  await migrate(t, receiver, ram, MANY, 200_000);
  t.same(await leftovers.found(WAIT_MS), []);
});

t.test('who does not go on has ten seconds, however slowly the bytes come', async (t) => {
  const { receiver, ram } = await open(t);
  const { address } = receiver;
  const [quiet, half, begun] = await Promise.all([0, 1, 2].map(() => connectPlain(t, address)));
  half.write(hello.subarray(0, -1));
  begun.write(hello);
  const noHello = (await connectTls(t, address)).raw;
  const halfHello = await connectTls(t, address);
  halfHello.secure.write(helloBytes({ id: 0 }).subarray(0, 63));
  // Its handshake's last flight comes byte by byte.
  const slow = await connectPlain(t, address);
  const [near, far] = await pair(t);
  slow.pipe(near);
  near.once('data', (first: Buffer) => {
    slow.write(first);
    void (async () => {
      for await (const chunk of near) {
        for (const byte of chunk as Buffer) {
          if (slow.destroyed) return;
          slow.write(Buffer.of(byte));
          await sleep(1000);
        }
      }
    })().catch(() => {});
  });
  beginTls(far);
  const all = [quiet, half, begun, noHello, halfHello.raw, slow];
  for (const socket of all) socket.resume();
  await within(
    // Not once(): it rejects for a reset, which is a way to go as well.
    Promise.all(
      all.filter((one) => !one.closed).map((one) => new Promise((resolve) => one.once('close', resolve))),
    ),
    WAIT_MS,
    'all go',
  );
  await migrate(t, receiver, ram);
});

t.test('keys that are changed on the way', { skip: !hasOpenssl() && 'no openssl' }, async (t) => {
  const { receiver } = await open(t, { channels: 1 });
  const { port } = receiver.address as { port: number };
  const psk = ['-psk', KEY.toString('hex'), '-psk_identity', 'qemu'];
  const suite = ['-tls1_3', '-ciphersuites', 'TLS_AES_128_GCM_SHA256'];
  const peer = spawn('openssl', ['s_client', '-connect', `127.0.0.1:${port}`, ...psk, ...suite]);
  t.teardown(() => peer.kill());
  let said = '';
  peer.stdout.on('data', (bytes: Buffer) => (said += bytes.toString('latin1')));
  peer.stderr.on('data', (bytes: Buffer) => (said += bytes.toString('latin1')));
  const update = async (): Promise<void> => {
    const count = said.split('KEYUPDATE').length;
    peer.stdin.write('K\n');
    await eventually(() => said.split('KEYUPDATE').length > count, 'new keys');
  };
  await eventually(() => said.includes('read R BLOCK') || said.includes('Verif'), 'the handshake');
  for (let i = 0; i < 5; i++) await update();
  peer.stdin.write(helloBytes({ id: 0 }));
  await within(receiver.ready, PROMPT_MS, 'ready');
  for (let i = 0; i < 5; i++) await update();
  peer.stdin.write(syncBytes());
  await within(receiver.sync(), PROMPT_MS, 'sync()');
  await within(receiver.end(), PROMPT_MS, 'end()');
});

// ---- ends ----

const MOMENTS: Record<string, (t: Test, receiver: Receiver) => Promise<unknown>> = {
  'nobody has said anything': (t, { address }) => connectPlain(t, address),
  'a ClientHello is half there': async (t, { address }) =>
    (await connectPlain(t, address)).resume().write(hello.subarray(0, 50)),
  'a handshake has just begun': async (t, { address }) =>
    (await connectPlain(t, address)).resume().write(hello),
  'a handshake is under way': async (t, { address }) => {
    const socket = await connectPlain(t, address);
    socket.resume().write(hello);
    await once(socket, 'data');
  },
  'a hello is waited for': (t, { address }) => connectTls(t, address),
  'a hello is half there': async (t, { address }) =>
    (await connectTls(t, address)).secure.write(helloBytes({ id: 1 }).subarray(0, 30)),
  'a hello has just been sent': async (t, { address }) =>
    (await connectTls(t, address)).secure.write(helloBytes({ id: 1 })),
  'one channel is in': async (t, receiver) => {
    (await connectTls(t, receiver.address)).secure.write(Buffer.concat([helloBytes({ id: 1 }), syncBytes()]));
    await eventually(() => receiver.stats().packets === 1, 'its packet');
  },
};

for (const [moment, make] of Object.entries(MOMENTS)) {
  for (const how of ['abort', 'close()'] as const) {
    t.test(`${how} while ${moment}`, async (t) => {
      const leftovers = new Leftovers();
      const abort = new AbortController();
      const { receiver } = await open(t, { signal: abort.signal });
      const syncing = hold(receiver.sync());
      await make(t, receiver);
      if (how === 'abort') abort.abort();
      else await within(receiver.close(), PROMPT_MS, 'close()');
      const code = how === 'abort' ? 'ERR_MULTIFD_ABORTED' : 'ERR_MULTIFD_CLOSED';
      t.equal((await failure(syncing, 'sync()')).code, code);
      await within(receiver.close(), PROMPT_MS, 'close()');
      t.same(await leftovers.found(), []);
    });
  }
}

// ---- the other side: what a sender bears ----

function sending(address: Receiver['address'], options: object = {}): ReturnType<typeof createSender> {
  const memory = new SharedArrayBuffer(32 * MiB);
  Buffer.from(memory).fill('guest memory ');
  return hold(
    createSender({
      address,
      channels: 2,
      blocks: [{ name: 'pc.ram', memory }],
      tls: CREDENTIALS,
      connectTimeoutMs: FAR_MS,
      stallTimeoutMs: FAR_MS,
      ...options,
    }),
  );
}

const SERVERS: Record<string, [RegExp, (socket: net.Socket) => void, object?]> = {
  'says nothing': [/^ERR_MULTIFD_(TLS|TIMEOUT)$/, () => {}, { connectTimeoutMs: 500 }],
  'closes at once': [/^ERR_MULTIFD_TLS$/, (socket) => void socket.end()],
  'closes at the ClientHello': [/^ERR_MULTIFD_TLS$/, (socket) => socket.once('data', () => socket.destroy())],
  resets: [/^ERR_MULTIFD_TLS$/, (socket) => socket.once('data', () => socket.resetAndDestroy())],
  'speaks no TLS': [/^ERR_MULTIFD_TLS$/, (socket) => void socket.write('220 mail.example ESMTP\r\n')],
  'sends a ServerHello bit by bit': [
    /^ERR_MULTIFD_(TLS|TIMEOUT)$/,
    (socket) => {
      socket.write(Buffer.from('1603030400', 'hex'));
      const timer = setInterval(() => socket.write('x'), 20);
      socket.once('close', () => clearInterval(timer));
    },
    { connectTimeoutMs: 500 },
  ],
};

for (const [what, [code, behave, options]] of Object.entries(SERVERS)) {
  t.test(`a server that ${what}: createSender() fails in time, and nothing is left`, async (t) => {
    const leftovers = new Leftovers();
    const server = net.createServer((socket) => behave(socket.on('error', () => {}).resume()));
    server.listen(0, '127.0.0.1');
    await once(server, 'listening');
    const creating = sending(
      { host: '127.0.0.1', port: (server.address() as net.AddressInfo).port },
      options,
    );
    const error = await failure(creating, 'createSender()');
    t.match(error.code, code, error.message);
    await within(new Promise((resolve) => server.close(resolve)), PROMPT_MS, 'the server closes');
    t.same(await leftovers.found(), []);
  });
}

t.test('abort while a sender shakes hands', async (t) => {
  const leftovers = new Leftovers();
  const abort = new AbortController();
  const server = net.createServer((socket) => socket.on('error', () => {}).once('data', () => abort.abort()));
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const address = { host: '127.0.0.1', port: (server.address() as net.AddressInfo).port };
  const error = await failure(sending(address, { signal: abort.signal }), 'createSender()');
  t.equal(error.code, 'ERR_MULTIFD_ABORTED', error.message);
  server.close();
  // The server's own are paused.
  t.same(
    (await leftovers.found(1000)).filter((left) => /threads|Timeout/.test(left)),
    [],
  );
});

t.test('a peer that reads nothing any more is a stall, through TLS as well', async (t) => {
  const destination = await listenTls(t, (secure) => void secure.pause());
  const sender = await sending(destination.address, { stallTimeoutMs: 300 });
  t.teardown(() => sender.close());
  hold(sender.queueRange('pc.ram', 0, 32 * MiB));
  const error = await failure(sender.sync(), 'sync()');
  t.equal(error.code, 'ERR_MULTIFD_STALL', error.message);
});

/** At a time; not the stream's own measure, which differs from Node to Node. */
const SLOW_BYTES = 32 * 1024;

t.test('a peer that reads slowly but steadily is no stall, through TLS as well', async (t) => {
  let peer: net.Socket | undefined;
  const destination = await listenTls(t, (secure) => (peer = secure));
  const sender = await sending(destination.address, { stallTimeoutMs: 1500, channels: 1 });
  t.teardown(() => sender.close());
  hold(sender.queueRange('pc.ram', 0, 32 * MiB));
  let failed: unknown;
  sender.done.catch((error: unknown) => (failed = error));
  await eventually(() => peer !== undefined, 'the channel is there');
  peer?.on('readable', () => {});
  let bytes = 0;
  for (
    const late = performance.now() + 5000;
    performance.now() < late && failed === undefined;
    await sleep(20)
  ) {
    const chunk = peer?.read(Math.min(SLOW_BYTES, peer.readableLength)) as Buffer | null;
    bytes += chunk?.length ?? 0;
  }
  t.equal(failed, undefined);
  t.ok(bytes > MiB && bytes < 30 * MiB, `${bytes} bytes, slowly`);
});

// ---- secrets ----

t.test('the key is in no trace, no error and no count', async (t) => {
  const said: unknown[] = [];
  const listen = (message: unknown): void => void said.push(message);
  const points = ['multifd_recv_new_channel', 'multifd_recv_terminate_threads', 'multifd_recv_thread_start'];
  for (const point of points) diagnostics.subscribe(`multifd:${point}`, listen);
  t.teardown(() => {
    for (const point of points) diagnostics.unsubscribe(`multifd:${point}`, listen);
  });
  const { receiver } = await open(t);
  const strange = await connectTls(t, receiver.address, { version: 'TLSv1.2', key: WRONG_KEY }).catch(
    () => undefined,
  );
  said.push(strange === undefined);
  const { secure } = await connectTls(t, receiver.address);
  secure.write(helloBytes({ id: 0, version: 7 }));
  const error = await failure(receiver.done, 'done');
  said.push(error, error.stack, receiver.stats(), receiver);
  const text = inspect(said, { depth: 20, showHidden: true });
  for (const form of [KEY.toString('hex'), KEY.toString('base64'), inspect(KEY).slice(8, 40)]) {
    t.notOk(text.includes(form), form.slice(0, 4));
  }
});

t.test('no rejection was left unhandled', async (t) => {
  await sleep(20);
  t.same(unhandled, []);
});
