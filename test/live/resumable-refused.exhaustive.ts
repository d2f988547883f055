/** Option resumable: who is taken and who is not, in the pause above all, and how it ends where nobody carries on. */
import fs from 'node:fs';
import net from 'node:net';
import path from 'node:path';
import t, { type Test } from 'tap';
import {
  createMigrationDestination,
  createMigrationSource,
  receiveMigration,
  relayMigration,
  sendMigration,
  type Address,
  type MigrationSource,
  type MultifdError,
} from '../../src/index.js';
import { encodeConfiguration, encodeFileHeader } from '../../src/stream/configuration.js';
import { encodeSection } from '../../src/stream/main-writer.js';
import { encodeResumeSection, randomKey } from '../../src/stream/resume-section.js';
import { eventually, helloBytes, temporaryDirectory } from '../support/raw-channel.js';
import { CREDENTIALS, WRONG_KEY } from '../support/tls-peers.js';
import { within } from '../support/within.js';
import { PAGE, PAGES, ResumeScene, pagesOf } from './resume-scene.js';
import { MACHINE, SIZE, WAIT_MS, failure, scene } from './scene.js';

const ONLY = /option resumable: only createMigrationDestination\(\{ resumable: true \}\) can be carried on/;

/** A destination that waits, with all but ten pages. */
async function paused(t: Test, destination = {}): Promise<ResumeScene> {
  const it = await ResumeScene.open(t, { destination });
  it.onRound = (round) => {
    if (round === 2) it.cutter.cut();
  };
  await it.next();
  await it.broken();
  it.onRound = () => {};
  it.cutter.next();
  it.write(0, 10);
  return it;
}

async function carriesOn(t: Test, it: ResumeScene): Promise<void> {
  await it.next();
  const sent = pagesOf(await it.arrives());
  t.equal(sent, 10, 'and no page more');
}

async function stranger(
  t: Test,
  to: Address,
  bytes: Buffer,
): Promise<{ closed: () => boolean; socket: net.Socket }> {
  const socket = net.connect(to as net.NetConnectOpts);
  socket.on('error', () => {}).resume();
  t.teardown(() => socket.destroy());
  socket.write(bytes);
  return { closed: () => socket.closed || socket.readableEnded, socket };
}

const MAIN = Buffer.concat([encodeFileHeader(), encodeConfiguration({ machine: MACHINE })]);
const askAs = (attempt: number): Buffer =>
  Buffer.concat([
    MAIN,
    encodeResumeSection({ token: randomKey(), attempt, rounds: 2 ** 31 }),
    Buffer.alloc(99),
  ]);

const STRANGERS: Record<string, Buffer> = {
  'that is noise': Buffer.alloc(100, 'GET / HTTP/1.1'),
  'with the hello of a channel': helloBytes({ id: 0, uuid: Buffer.alloc(16) }),
  'with the hello of a channel that there is not': helloBytes({ id: 200, uuid: Buffer.alloc(16, 1) }),
  'that begins TLS': Buffer.concat([Buffer.from('160301', 'hex'), Buffer.alloc(100)]),
  'with a main stream of another machine': Buffer.concat([
    encodeFileHeader(),
    encodeConfiguration({ machine: 'other-1.0' }),
    encodeSection('start', 0),
  ]),
  'with a main stream that does not ask': Buffer.concat([MAIN, encodeSection('start', 0)]),
  'with a main stream of the wrong version': Buffer.from('5145564d00000009', 'hex'),
  'with a token of its own': askAs(1),
  'with a token of its own, and a later try': askAs(99),
};

for (const [who, bytes] of Object.entries(STRANGERS)) {
  t.test(`in the pause somebody ${who} is dropped, and what is kept stays`, async (t) => {
    const it = await paused(t);
    const before = Buffer.from(new Uint8Array(it.there).slice());
    const { strays } = it.destination.stats();
    const { closed } = await stranger(t, it.destination.address, bytes);
    await eventually(closed, 'it is dropped');
    t.equal(it.destination.stats().strays, strays + 1);
    t.equal(it.destination.state, 'precopy-paused');
    t.ok(before.equals(Buffer.from(it.there)), 'no byte has changed');
    await carriesOn(t, it);
  });
}

t.test('in the pause many that say nothing, or half of a main stream, keep nobody out', async (t) => {
  const it = await paused(t);
  for (let i = 0; i < 20; i++) {
    await stranger(t, it.destination.address, MAIN);
    await stranger(t, it.destination.address, Buffer.alloc(0));
  }
  await carriesOn(t, it);
});

t.test('channels with a hello while a try is on do not become its channels', async (t) => {
  const it = await paused(t);
  const hellos = Array.from({ length: 2 }, (_, id) => helloBytes({ id, uuid: Buffer.alloc(16) }));
  // From the moment that the source comes.
  const flood = setInterval(() => {
    for (const hello of hellos) void stranger(t, it.destination.address, hello);
  }, 2);
  await carriesOn(t, it).finally(() => clearInterval(flood));
});

t.test("another source's token is refused, and the right one still carries on", async (t) => {
  const it = await paused(t);
  const other = await createMigrationSource({
    to: it.destination.address,
    machine: MACHINE,
    blocks: [{ name: 'ram', memory: new SharedArrayBuffer(PAGES * PAGE) }],
    dirty: () => [],
    resumable: true,
    pause: () => void t.fail('it is not to get so far'),
    resume: () => {},
  });
  const error = await failure(other.done);
  t.match(error.message, /^the destination's SHUT: received 1, expected /);
  t.match(error.message, ONLY);
  t.match(error.message, /and none that waits for another source/);
  t.equal(it.destination.state, 'precopy-paused');
  await carriesOn(t, it);
});

t.test('another machine, or other blocks, are no source that is carried on', async (t) => {
  const it = await paused(t);
  const { source } = it;
  const cases: [object, RegExp][] = [
    [{ machine: 'other-1.0' }, /^option machine: given "other-1.0", allowed model-1.0, as in the source/],
    [
      { blocks: [{ name: 'ram', memory: new SharedArrayBuffer(PAGE) }] },
      /^option blocks: given "ram of 4096", allowed ram of 4194304, as in the source/,
    ],
  ];
  for (const [own, message] of cases) await t.rejects(it.next(own), { code: 'ERR_MULTIFD_OPTION', message });
  it.source = source;
  await carriesOn(t, it);
});

for (const [what, own] of Object.entries({
  'more channels': { channels: 4 },
  'another method': { compression: 'zstd' },
  'another uuid': { uuid: '00112233-4455-6677-8899-aabbccddeeff' },
} satisfies Record<string, object>)) {
  t.test(`a try with ${what} fails, and does not cost what is kept`, async (t) => {
    const it = await paused(t, { connectTimeoutMs: 1000 });
    await it.next(own as object);
    await it.broken();
    it.cutter.next();
    await it.next();
    const sent = pagesOf(await it.arrives());
    t.ok(sent < PAGES / 2, `${sent} pages`);
  });
}

t.test('a source with TLS is told where there is none, as by any destination', async (t) => {
  const it = await ResumeScene.open(t);
  const { closed } = await stranger(t, it.destination.address, STRANGERS['that begins TLS']);
  t.match(await failure(it.destination.done), {
    code: 'ERR_MULTIFD_TLS',
    message: /the source has tls-creds set/,
  });
  await eventually(closed, 'it is dropped');
});

t.test('a source with the wrong key is told after a while, as by any destination', async (t) => {
  const it = await ResumeScene.open(t, { destination: { tls: CREDENTIALS, connectTimeoutMs: 200 } });
  const source = await it.next({ tls: { ...CREDENTIALS, psk: WRONG_KEY } });
  await failure(source.done);
  t.match(await failure(it.destination.done), { code: 'ERR_MULTIFD_TLS' });
});

// ---- the other way round: peers that cannot ----

t.test('a destination without the option refuses, and both say so', async (t) => {
  const it = await scene(t, { source: { resumable: true } });
  const error = await failure(it.source.done);
  t.match(error.message, ONLY);
  const theirs = await failure(it.destination.done);
  t.match(theirs, {
    code: 'ERR_MULTIFD_STREAM',
    message: /received FULL of "multifd-resume" 0, expected none: the source has option resumable/,
  });
});

t.test('a destination with the option refuses a source without, and both say so', async (t) => {
  const it = await scene(t, { destination: { resumable: true } });
  await failure(it.source.done);
  const error = await failure(it.destination.done);
  t.match(error, {
    code: 'ERR_MULTIFD_STREAM',
    message: /expected "multifd-resume" of createMigrationSource/,
  });
  t.match(error.message, /a QEMU, or sendMigration\(\), cannot carry on/);
  t.equal(it.destination.state, 'failed');
});

/** A parked VM of a source without the option. */
async function park(
  t: Test,
  resumable: boolean,
): Promise<{ file: string; source: MigrationSource; error: unknown }> {
  const file = path.join(temporaryDirectory(t), 'vm.mig');
  let parked!: Promise<unknown>;
  const to = await new Promise<Address>((resolve, reject) => {
    parked = receiveMigration({ address: { host: '127.0.0.1', port: 0 }, out: file, onListening: resolve });
    parked.catch(reject);
  });
  const source = await createMigrationSource({
    to,
    machine: MACHINE,
    blocks: [{ name: 'ram', memory: new SharedArrayBuffer(SIZE) }],
    dirty: () => [],
    resumable,
    pause: () => {},
    resume: () => {},
  });
  const error: unknown = await within(
    parked.then(
      () => undefined,
      (thrown: unknown) => thrown,
    ),
    WAIT_MS,
    'receiveMigration()',
  );
  return { file, source, error };
}

t.test('a file cannot be carried on: receiveMigration() refuses, and both say so', async (t) => {
  const { file, source, error } = await park(t, true);
  t.match((error as MultifdError).message, /expected none: the source has option resumable/);
  t.match((await failure(source.done)).message, ONLY);
  t.notOk(fs.existsSync(file));
});

t.test(
  'a parked VM is sent to a destination with the option: refused, at once or in the pause',
  async (t) => {
    const { file, error } = await park(t, false);
    t.equal(error, undefined);
    const destination = await createMigrationDestination({
      listen: { host: '127.0.0.1', port: 0 },
      machine: MACHINE,
      blocks: [{ name: 'ram', memory: new SharedArrayBuffer(SIZE) }],
      resumable: true,
      start: () => void t.fail('nothing is started'),
    });
    t.teardown(() => destination.cancel());
    await t.rejects(within(sendMigration({ file, to: destination.address }), WAIT_MS, 'send'), {
      name: 'MultifdError',
    });
    t.match((await failure(destination.done)).message, /a QEMU, or sendMigration\(\), cannot carry on/);

    const it = await paused(t);
    await t.rejects(within(sendMigration({ file, to: it.destination.address }), WAIT_MS, 'send'));
    t.equal(it.destination.state, 'precopy-paused');
    await carriesOn(t, it);
  },
);

t.test('a relay refuses, and says so', async (t) => {
  let relayed!: Promise<unknown>;
  const it = await scene(t, {
    source: { resumable: true },
    destination: { resumable: true },
    through: (to) =>
      new Promise<Address>((resolve, reject) => {
        const listen = { host: '127.0.0.1', port: 0 };
        relayed = relayMigration({ listen, to, onListening: resolve });
        relayed.catch(reject);
      }),
  });
  t.match((await failure(it.source.done)).message, ONLY);
  const error = await failure(relayed);
  t.match(
    error.message,
    /received FULL of "multifd-resume" 0, expected none: the source has option resumable/,
  );
  t.equal(it.destination.state, 'setup');
});

// ---- ends ----

t.test('nobody carries on in time: the destination fails with what had broken', async (t) => {
  const it = await paused(t, { resumeTimeoutMs: 50 });
  const error = await failure(it.destination.done);
  t.match(error, {
    code: 'ERR_MULTIFD_TIMEOUT',
    message: /^the source has not carried on within 50 ms \(option resumeTimeoutMs\) after: /,
  });
  t.type(error.cause, Error);
  t.equal(it.destination.state, 'failed');
  t.notOk(it.notes.includes('start'));
  await it.next();
  t.match(await failure((it.source as MigrationSource).done), { name: 'MultifdError' });
});

t.test('cancel() in the pause ends it, and its address is free', async (t) => {
  const it = await paused(t);
  const { address } = it.destination;
  await within(it.destination.cancel(), WAIT_MS, 'cancel()');
  t.equal((await failure(it.destination.done)).code, 'ERR_MULTIFD_CLOSED');
  t.equal(it.destination.state, 'cancelled');
  await it.next({ to: address });
  t.equal((await failure((it.source as MigrationSource).done)).code, 'ERR_MULTIFD_CONNECT');

  // A new destination there has nothing, and is sent all.
  const there = new SharedArrayBuffer(PAGES * PAGE);
  const again = await createMigrationDestination({
    listen: address,
    machine: MACHINE,
    blocks: [{ name: 'ram', memory: there }],
    devices: [{ idstr: 'cpu', load: () => {} }],
    resumable: true,
    start: () => {},
  });
  t.teardown(() => again.cancel());
  const figures = await within((await it.next({ to: address })).done, WAIT_MS, 'the source');
  await within(again.done, WAIT_MS, 'the destination');
  t.equal(pagesOf(figures), PAGES);
  t.ok(Buffer.from(it.here).equals(Buffer.from(there)));
});

t.test('an abort in the pause ends it', async (t) => {
  const abort = new AbortController();
  const it = await paused(t, { signal: abort.signal });
  abort.abort(new Error('enough'));
  t.match(await failure(it.destination.done), { code: 'ERR_MULTIFD_ABORTED', message: /enough/ });
  t.equal(it.destination.state, 'cancelled');
});

t.test('cancel() while a try is on ends both', async (t) => {
  const it = await paused(t);
  const source = await it.next({ pauseBeforeSwitchover: true });
  await eventually(() => source.state === 'pre-switchover', 'it waits');
  await within(it.destination.cancel(), WAIT_MS, 'cancel()');
  t.equal(it.destination.state, 'cancelled');
  await failure(source.done);
  t.notOk(it.notes.includes('start'));
});

t.test('a unix socket keeps its path in the pause, and loses it at the end', async (t) => {
  const file = path.join(temporaryDirectory(t), 'live.sock');
  const it = await paused(t, { listen: { path: file } });
  t.ok(fs.existsSync(file));
  await carriesOn(t, it);
  t.notOk(fs.existsSync(file));
});

t.test('onState() that throws in the pause ends it', async (t) => {
  const it = await ResumeScene.open(t, {
    destination: {
      onState: (state) => {
        if (state === 'precopy-paused') throw new Error('boom');
      },
    },
  });
  it.cutter.next({ bytes: 9 * PAGE });
  await failure((await it.next()).done);
  const error = await failure(it.destination.done);
  t.match(error, { code: 'ERR_MULTIFD_HOOK', message: 'onState() failed: boom', cause: { message: 'boom' } });
});

t.test('a source that cannot be carried on is refused, and says why', async (t) => {
  const it = await ResumeScene.open(t);
  const first = await it.next({ pauseBeforeSwitchover: true });
  await t.rejects(it.next(), {
    code: 'ERR_MULTIFD_STATE',
    message:
      /option resumeFrom: received one in state (setup|active|pre-switchover), whose done has not settled/,
  });
  await eventually(() => first.state === 'pre-switchover', 'it waits');
  await first.cancel();
  await it.paused();
  it.cutter.next();
  await it.next();
  const { source } = it;
  await it.arrives();
  it.source = first;
  await t.rejects(it.next(), { code: 'ERR_MULTIFD_OPTION', message: /that nobody has carried on yet/ });
  it.source = source;
  await t.rejects(it.next(), { code: 'ERR_MULTIFD_STATE', message: /the guest runs at the destination/ });

  const plain = await scene(t, { source: { signal: AbortSignal.abort() } });
  await failure(plain.source.done);
  it.source = plain.source;
  await t.rejects(it.next(), { code: 'ERR_MULTIFD_OPTION', message: /a source with option resumable/ });
});

t.test(
  'what breaks when all has gone out cannot be carried on: the guest may have been started',
  async (t) => {
    const it: ResumeScene = await ResumeScene.open(t, {
      destination: {
        devices: [
          {
            idstr: 'cpu',
            load: async () => {
              it.cutter.cut();
              await new Promise((resolve) => setTimeout(resolve, 30));
            },
          },
        ],
      },
    });
    await failure((await it.next()).done);
    await failure(it.destination.done);
    t.equal(it.destination.state, 'failed');
    t.notOk(it.notes.includes('start'));
    await t.rejects(it.next(), { code: 'ERR_MULTIFD_STATE', message: /may have started the guest/ });
  },
);

t.test('where option dirty has failed nobody knows what is dirty', async (t) => {
  const it = await ResumeScene.open(t);
  it.onRound = (round) => {
    if (round === 2) throw new Error('boom');
  };
  t.equal((await failure((await it.next()).done)).code, 'ERR_MULTIFD_HOOK');
  await it.paused();
  await t.rejects(it.next(), { code: 'ERR_MULTIFD_STATE', message: /dirty pages may have been lost/ });
});

t.test('acceptBlocks() is asked once', async (t) => {
  let asked = 0;
  const there = new SharedArrayBuffer(PAGES * PAGE);
  const it = await paused(t, {
    blocks: undefined,
    acceptBlocks: () => {
      asked++;
      return [{ name: 'ram', memory: there }];
    },
  });
  await it.next();
  await within((it.source as MigrationSource).done, WAIT_MS, 'the source');
  await within(it.destination.done, WAIT_MS, 'the destination');
  t.equal(asked, 1);
  t.ok(Buffer.from(it.here).equals(Buffer.from(there)));
});

t.test(
  'a file that was given by its path stays that file, whatever its name means in the pause',
  async (t) => {
    const folder = temporaryDirectory(t);
    const [name, moved] = [path.join(folder, 'ram'), path.join(folder, 'moved')];
    fs.writeFileSync(name, Buffer.alloc(PAGES * PAGE));
    const it = await paused(t, { blocks: [{ name: 'ram', file: name, size: PAGES * PAGE }] });
    fs.renameSync(name, moved);
    fs.writeFileSync(name, Buffer.alloc(PAGES * PAGE));
    await it.next();
    await within((it.source as MigrationSource).done, WAIT_MS, 'the source');
    await within(it.destination.done, WAIT_MS, 'the destination');
    t.ok(Buffer.from(it.here).equals(fs.readFileSync(moved)));
  },
);
