/** A destination with TLS among strangers: whoever else connects, and whatever the source does, costs no migration. */
import { once } from 'node:events';
import fs from 'node:fs';
import net from 'node:net';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import t, { type Test } from 'tap';
import {
  type Address,
  type ReceiveMigrationOptions,
  type ReceivedMigration,
  receiveMigration,
  sendMigration,
} from '../../src/index.js';
import {
  Leftovers,
  eventually,
  failure,
  hold,
  isPending,
  temporaryDirectory,
} from '../support/raw-channel.js';
import {
  CREDENTIALS,
  WRONG_KEY,
  beginTls,
  clientHello,
  connectPlain,
  connectTls,
  type SecurePeer,
} from '../support/tls-peers.js';
import { within } from '../support/within.js';
import { PC_RAM, ramOf, streamsOf } from './captures.js';

const WAIT_MS = 30_000;
/** Far beyond every limit of these tests. */
const FAR_MS = 60_000;
const streams = streamsOf({ name: 'q100-none', compression: 'none' });
const HELLO_BYTES = 64;
const hello = await clientHello();

interface Waiting {
  address: Address;
  out: string;
  result: Promise<ReceivedMigration>;
}

async function receiving(t: Test, options: Partial<ReceiveMigrationOptions> = {}): Promise<Waiting> {
  const out = path.join(temporaryDirectory(t), 'vm.mig');
  const abort = new AbortController();
  t.teardown(() => abort.abort());
  let result!: Promise<ReceivedMigration>;
  const address = await new Promise<Address>((resolve, reject) => {
    result = receiveMigration({
      address: { host: '127.0.0.1', port: 0 },
      channels: 2,
      tls: CREDENTIALS,
      stallTimeoutMs: FAR_MS,
      out,
      signal: abort.signal,
      onListening: resolve,
      ...options,
    });
    result.catch(reject);
  });
  return { address, out, result: hold(result) };
}

/** Main, then the channels, each with its bytes and its end. */
async function play(t: Test, address: Address, main?: SecurePeer): Promise<void> {
  const first = main ?? (await connectTls(t, address));
  first.secure.end(streams.main);
  for (const bytes of streams.channels) (await connectTls(t, address)).secure.end(bytes);
}

async function arrives(t: Test, { result, out }: Waiting): Promise<ReceivedMigration> {
  const received = await within(result, WAIT_MS, 'receiveMigration()');
  t.ok((await ramOf(out)).equals(PC_RAM), 'RAM');
  return received;
}

async function strangers(t: Test, address: Address, count: number, bytes?: Buffer): Promise<net.Socket[]> {
  return Promise.all(
    Array.from({ length: count }, async () => {
      const socket = await connectPlain(t, address);
      socket.resume();
      if (bytes !== undefined) socket.write(bytes);
      return socket;
    }),
  );
}

t.test('handshakes that are none end nothing, however long nobody else comes', async (t) => {
  const migration = await receiving(t, { connectTimeoutMs: 3000 });
  // A ClientHello with nothing in it.
  const sockets = await strangers(t, migration.address, 20, Buffer.from('160301000401000000', 'hex'));
  t.equal(sockets.length, 20);
  await sleep(4000);
  t.ok(await isPending(migration.result), 'beyond the time that a failed handshake leaves');
  await play(t, migration.address);
  await arrives(t, migration);
});

t.test(
  'a main stream behind 250 others that began their handshakes and fell silent is in before its source gives up',
  async (t) => {
    const migration = await receiving(t);
    await strangers(t, migration.address, 250, hello);
    await play(t, migration.address);
    await arrives(t, migration);
  },
);

t.test(
  'maxStrays holds for handshakes as well that may be those of a main stream: the oldest goes',
  async (t) => {
    const migration = await receiving(t, { maxStrays: 3 });
    const sockets: net.Socket[] = [];
    for (let i = 0; i < 8; i++) sockets.push(...(await strangers(t, migration.address, 1, hello)));
    const gone = (): boolean[] => sockets.map(({ closed }) => closed);
    await eventually(() => gone().filter(Boolean).length >= 5, 'the oldest are dropped');
    t.same(gone(), [true, true, true, true, true, false, false, false]);
    await play(t, migration.address);
    await arrives(t, migration);
  },
);

t.test(
  'an authorize() that takes longer over main than its channels wait: they are channels all the same',
  async (t) => {
    let asked = 0;
    const authorize = async (): Promise<boolean> => {
      if (asked++ === 0) await sleep(2500);
      return true;
    };
    const migration = await receiving(t, { tls: { ...CREDENTIALS, authorize } });
    const main = await connectTls(t, migration.address);
    const channels = await Promise.all(streams.channels.map(() => connectPlain(t, migration.address)));
    const secured = channels.map((raw) => beginTls(raw));
    main.secure.end(streams.main);
    for (const [id, secure] of secured.entries()) secure.end(streams.channels[id]);
    await arrives(t, migration);
    t.equal(asked, 3);
  },
);

for (const how of ['ends', 'resets'] as const) {
  t.test(`a main stream that ${how} while authorize() thinks about it is told at once`, async (t) => {
    const authorize = async (): Promise<boolean> => {
      await sleep(500);
      return true;
    };
    const tls = { ...CREDENTIALS, authorize };
    const migration = await receiving(t, { tls, connectTimeoutMs: FAR_MS, acceptTimeoutMs: FAR_MS });
    const { secure, raw } = await connectTls(t, migration.address);
    if (how === 'ends') secure.end();
    else raw.resetAndDestroy();
    const error = await failure(migration.result, 'receiveMigration()');
    t.match(error.code, /^ERR_MULTIFD_(EOF|CONNECTION|STREAM|TLS)$/, error.message);
  });
}

for (const how of ['ends', 'resets'] as const) {
  t.test(
    `a channel that ${how} before the main stream has said what there is, is told as soon as it matters`,
    async (t) => {
      const migration = await receiving(t, { connectTimeoutMs: FAR_MS });
      const main = await connectTls(t, migration.address);
      main.secure.write(streams.main.subarray(0, 4));
      const peers: SecurePeer[] = [];
      for (const bytes of streams.channels) {
        const peer = await connectTls(t, migration.address);
        peer.secure.write(bytes.subarray(0, HELLO_BYTES));
        peers.push(peer);
      }
      await sleep(300);
      if (how === 'ends') peers[1].secure.end();
      else peers[1].raw.resetAndDestroy();
      await sleep(300);
      main.secure.write(streams.main.subarray(4));
      peers[0].secure.write(streams.channels[0].subarray(HELLO_BYTES));
      const error = await failure(migration.result, 'receiveMigration()');
      t.equal(error.code, 'ERR_MULTIFD_EOF', error.message);
      t.equal(error.channel, 1);
      t.same(fs.readdirSync(path.dirname(migration.out)), []);
    },
  );
}

t.test('silent, slow, garbled, plain and keyless strangers before, beside and behind main', async (t) => {
  const migration = await receiving(t, { connectTimeoutMs: WAIT_MS });
  const { address } = migration;
  await strangers(t, address, 60);
  const slow = await strangers(t, address, 60);
  let at = 0;
  const trickle = setInterval(() => {
    for (const socket of slow) if (!socket.destroyed) socket.write(hello.subarray(at, at + 1));
    at++;
  }, 20);
  t.teardown(() => clearInterval(trickle));
  await strangers(t, address, 20, Buffer.from('GET / HTTP/1.0\r\n\r\n'));
  await strangers(t, address, 20, Buffer.from('1603ff7fff00', 'hex'));
  await strangers(t, address, 20, Buffer.concat([hello, Buffer.alloc(40_000, 0xff)]));
  let keyless = 0;
  let going = true;
  const loop = (async () => {
    while (going) {
      const socket = await connectPlain(t, address).catch(() => undefined);
      if (socket === undefined) return;
      beginTls(socket, { key: WRONG_KEY });
      await Promise.race([once(socket, 'close'), sleep(500)]);
      socket.destroy();
      keyless++;
    }
  })();
  await eventually(() => keyless > 10, 'strangers with a wrong key');
  const main = await connectTls(t, address);
  main.secure.write(streams.main.subarray(0, 4));
  await strangers(t, address, 20, hello);
  await strangers(t, address, 20, Buffer.from('5145564d00000003', 'hex'));
  const quiet = await connectTls(t, address);
  const channels: SecurePeer[] = [];
  for (const bytes of streams.channels) {
    const peer = await connectTls(t, address);
    channels.push(peer);
    for (let i = 0; i < HELLO_BYTES; i += 8) {
      peer.secure.write(bytes.subarray(i, i + 8));
      await sleep(2);
    }
  }
  for (const [id, { secure }] of channels.entries()) secure.end(streams.channels[id].subarray(HELLO_BYTES));
  main.secure.end(streams.main.subarray(4));
  const received = await arrives(t, migration);
  going = false;
  await within(loop, WAIT_MS, 'the strangers go');
  await within(quiet.gone, WAIT_MS, 'who says no hello goes');
  t.ok(received.stats.strays > 100, `${received.stats.strays} strays`);
});

t.test('a main stream that stalls in its handshake, and the real one behind it', async (t) => {
  const migration = await receiving(t);
  const [stalled] = await strangers(t, migration.address, 1, hello);
  const gone = once(stalled, 'close');
  await play(t, migration.address);
  await arrives(t, migration);
  await within(gone, WAIT_MS, 'who stalls goes');
});

for (const [what, bytes, code] of [
  ['of a channel that is in', streams.channels[0], 'ERR_MULTIFD_CHANNEL_DUPLICATE'],
  [
    'of another version',
    Buffer.concat([Buffer.from('1122334400000002', 'hex'), Buffer.alloc(56)]),
    'ERR_MULTIFD_VERSION',
  ],
] as const) {
  t.test(`a hello ${what} is refused by name, as without TLS`, async (t) => {
    const migration = await receiving(t);
    const main = await connectTls(t, migration.address);
    main.secure.write(streams.main.subarray(0, 4));
    for (const hello of [streams.channels[0], bytes]) {
      (await connectTls(t, migration.address)).secure.write(hello.subarray(0, HELLO_BYTES));
    }
    const error = await failure(migration.result, 'receiveMigration()');
    t.equal(error.code, code, error.message);
    await within(main.gone, WAIT_MS, 'main ends');
  });
}

t.test('a source with more channels than here is refused by name', async (t) => {
  const migration = await receiving(t);
  const main = await connectTls(t, migration.address);
  main.secure.write(streams.main.subarray(0, 4));
  for (const id of [0, 1, 2]) {
    const hello = Buffer.from(streams.channels[0].subarray(0, HELLO_BYTES));
    hello[24] = id;
    (await connectTls(t, migration.address)).secure.write(hello);
  }
  const error = await failure(migration.result, 'receiveMigration()');
  t.equal(error.code, 'ERR_MULTIFD_CHANNEL_ID', error.message);
});

// ---- authorize() and ends, while main is waited for ----

t.test('an authorize() that throws ends nothing as long as a source comes', async (t) => {
  const authorize = ({ identity }: { identity: string | undefined }): boolean => {
    if (identity === 'odd') throw new Error('no directory');
    return true;
  };
  const keys = { qemu: CREDENTIALS.psk, odd: CREDENTIALS.psk };
  const migration = await receiving(t, { tls: { psk: keys, authorize } });
  const odd = await connectTls(t, migration.address, { identity: 'odd' });
  await within(odd.gone, WAIT_MS, 'who may not come goes');
  await play(t, migration.address);
  await arrives(t, migration);
});

const never = () => new Promise<boolean>(() => undefined);
const MOMENTS: Record<
  string,
  [(t: Test, address: Address) => Promise<unknown>, Partial<ReceiveMigrationOptions>?]
> = {
  'a ClientHello is half there': [(t, address) => strangers(t, address, 3, hello.subarray(0, 40))],
  'main shakes hands, and others wait': [(t, address) => strangers(t, address, 3, hello)],
  'authorize() hangs': [
    async (t, address) => {
      await connectTls(t, address);
      for (const raw of await strangers(t, address, 2)) beginTls(raw);
    },
    { tls: { ...CREDENTIALS, authorize: never } },
  ],
  'main is in and channels shake hands': [
    async (t, address) => {
      const main = await connectTls(t, address);
      main.secure.write(streams.main.subarray(0, 4));
      await strangers(t, address, 3, hello);
    },
  ],
  'channels are in and wait for what main says': [
    async (t, address) => {
      const main = await connectTls(t, address);
      main.secure.write(streams.main.subarray(0, 4));
      for (const bytes of streams.channels) (await connectTls(t, address)).secure.write(bytes);
    },
  ],
};

for (const [moment, [make, options]] of Object.entries(MOMENTS)) {
  t.test(`abort while ${moment}: nothing is left`, async (t) => {
    const leftovers = new Leftovers();
    const abort = new AbortController();
    const migration = await receiving(t, { signal: abort.signal, ...options });
    await make(t, migration.address);
    t.ok(await isPending(migration.result));
    abort.abort();
    t.equal((await failure(migration.result, 'receiveMigration()')).code, 'ERR_MULTIFD_ABORTED');
    t.same(await leftovers.found(), []);
    t.same(fs.readdirSync(path.dirname(migration.out)), []);
  });
}

// ---- what sendMigration() bears ----

for (const [what, answer] of [
  ['says nothing', undefined],
  ['is aborted', 'abort'],
] as const) {
  t.test(
    `a destination that ${what} while main shakes hands: sendMigration() ends, and nothing is left`,
    async (t) => {
      const file = path.join(temporaryDirectory(t), 'vm.mig');
      const migration = await receiving(t, { out: file, tls: CREDENTIALS });
      await play(t, migration.address);
      await within(migration.result, WAIT_MS, 'receiveMigration()');
      const server = net.createServer((socket) => {
        socket.on('error', () => {}).resume();
        if (answer === 'abort') socket.once('data', () => abort.abort());
      });
      const abort = new AbortController();
      server.listen(0, '127.0.0.1');
      await once(server, 'listening');
      const leftovers = new Leftovers();
      const sending = sendMigration({
        file,
        to: { host: '127.0.0.1', port: (server.address() as net.AddressInfo).port },
        tls: CREDENTIALS,
        connectTimeoutMs: answer === 'abort' ? FAR_MS : 500,
        signal: abort.signal,
      });
      const error = await failure(sending, 'sendMigration()');
      t.match(
        error.code,
        answer === 'abort' ? 'ERR_MULTIFD_ABORTED' : /^ERR_MULTIFD_(TLS|TIMEOUT)$/,
        error.message,
      );
      t.same(await leftovers.found(), []);
      server.close();
    },
  );
}

t.test(
  'what is told of a wait that ends is why it ends, not what silent or garbled strangers did since',
  async (t) => {
    const migration = await receiving(t, { connectTimeoutMs: 1000 });
    const [closing] = await strangers(t, migration.address, 1, hello);
    await once(closing, 'data');
    // Inside its handshake, as a source that does not like this side's credentials; then a ClientHello with nothing in it.
    closing.destroy();
    await strangers(t, migration.address, 3, Buffer.from('160301000401000000', 'hex'));
    await t.rejects(within(migration.result, WAIT_MS, 'the end'), {
      code: 'ERR_MULTIFD_TLS',
      message: /closed the connection during the handshake/,
    });
  },
);
