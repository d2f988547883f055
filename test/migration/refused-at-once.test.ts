/** What is refused is refused before the source can take its migration as completed, and with connections that break. */
import diagnostics from 'node:diagnostics_channel';
import { once } from 'node:events';
import fs from 'node:fs';
import net from 'node:net';
import os from 'node:os';
import path from 'node:path';
import t, { type Test } from 'tap';
import { MultifdError, type Address, receiveMigration, relayMigration } from '../../src/index.js';
import { ItemsAhead } from '../../src/migration/items-ahead.js';
import type { MainItem } from '../../src/stream/records.js';
import { hex, parse } from '../stream/support.js';
import { eventually } from '../support/raw-channel.js';
import { within } from '../support/within.js';
import { CAPTURES, streamsOf } from './captures.js';

/** Less than the time-outs of a migration, which would end it as well. */
const AT_ONCE_MS = 10_000;
const HELLO_BYTES = 64;
const REFUSED = { code: 'ERR_MULTIFD_STREAM', message: /received START of "0000:00:05\.0\/vfio" 0/ };
const VFIO = hex("01 00000009 11 '0000:00:05.0/vfio' 00000000 00000001");

function folder(t: Test): string {
  const directory = fs.mkdtempSync(path.join(os.tmpdir(), 'mfd-'));
  t.teardown(() => fs.rmSync(directory, { recursive: true, force: true }));
  return directory;
}

interface Source {
  /** How the main stream and the channels ended. */
  ends: Promise<string>[];
  main: net.Socket;
}

/** Connects all, says hello, sends main up to the section that is refused, and no SYNC; all stays open. */
async function connectAll(t: Test, address: Address, main: Buffer): Promise<Source> {
  const { channels } = streamsOf(CAPTURES[0]);
  const sockets: net.Socket[] = [];
  const ends = [main, ...channels.map((bytes) => bytes.subarray(0, HELLO_BYTES))].map(async (bytes) => {
    const socket = net.connect(address as net.NetConnectOpts);
    t.teardown(() => socket.destroy());
    sockets.push(socket);
    socket.resume();
    let end = 'orderly';
    socket.on('error', (error: NodeJS.ErrnoException) => (end = error.code ?? 'error'));
    socket.write(bytes);
    await new Promise((resolve) => socket.once('close', resolve));
    return end;
  });
  return { ends, main: sockets[0] };
}

/** Up to ram's START with its footer: the first sync point is behind it, and then comes what is refused. */
async function refusedStream(): Promise<Buffer> {
  const { main } = streamsOf(CAPTURES[0]);
  const items = await parse(main);
  const footer = items.find(({ kind }) => kind === 'footer') as MainItem;
  return Buffer.concat([main.subarray(0, footer.at + footer.raw.length), VFIO]);
}

for (const transport of ['tcp', 'unix']) {
  const addressIn = (directory: string, name: string): Address =>
    transport === 'tcp' ? { host: '127.0.0.1', port: 0 } : { path: path.join(directory, name) };

  t.test(`receive, ${transport}: refused while the channels' SYNC is waited for`, async (t) => {
    const directory = folder(t);
    let listen!: (address: Address) => void;
    const listening = new Promise<Address>((resolve) => (listen = resolve));
    const out = path.join(directory, 'vm.mig');
    const result = receiveMigration({ address: addressIn(directory, 'in'), out, onListening: listen });
    result.catch(() => {});
    const { ends } = await connectAll(t, await listening, await refusedStream());
    await t.rejects(within(result, AT_ONCE_MS, 'receiveMigration()'), REFUSED);
    const [main, ...channels] = await within(Promise.all(ends), AT_ONCE_MS, 'end of the connections');
    if (transport === 'tcp') t.equal(main, 'ECONNRESET', 'the main stream is reset, not ended');
    t.equal(channels.length, 2, 'all are closed');
    t.same(fs.readdirSync(directory), []);
  });

  t.test(`relay, ${transport}: refused while the destination's PONG is waited for`, async (t) => {
    const directory = folder(t);
    // Takes all and says nothing.
    const destination = net.createServer((socket) => socket.on('error', () => {}).resume());
    t.teardown(() => destination.close());
    destination.listen(addressIn(directory, 'out'));
    await once(destination, 'listening');
    const bound = destination.address();
    const to: Address =
      bound !== null && typeof bound === 'object'
        ? { host: '127.0.0.1', port: bound.port }
        : { path: bound as string };
    let listen!: (address: Address) => void;
    const listening = new Promise<Address>((resolve) => (listen = resolve));
    const result = relayMigration({
      ...{ listen: addressIn(directory, 'in'), to, onListening: listen },
      connectTimeoutMs: 2 * AT_ONCE_MS,
    });
    result.catch(() => {});
    const { ends } = await connectAll(t, await listening, await refusedStream());
    await t.rejects(within(result, AT_ONCE_MS, 'relayMigration()'), REFUSED);
    const [main] = await within(Promise.all(ends), AT_ONCE_MS, 'end of the connections');
    if (transport === 'tcp') t.equal(main, 'ECONNRESET', 'the main stream is reset, not ended');
  });
}

t.test('channels that no thread has are closed before the threads are waited for', async (t) => {
  const directory = folder(t);
  let listen!: (address: Address) => void;
  const listening = new Promise<Address>((resolve) => (listen = resolve));
  let over = false;
  const result = receiveMigration({
    address: { path: path.join(directory, 'in') },
    out: path.join(directory, 'vm.mig'),
    onListening: listen,
    onSession: (receiver) => void receiver.done.catch(() => (over = true)),
  });
  result.catch(() => {});
  let taken = 0;
  const count = (point: unknown): void => void (taken += (point as { id?: number }).id === undefined ? 0 : 1);
  diagnostics.subscribe('multifd_recv_new_channel', count);
  t.teardown(() => diagnostics.unsubscribe('multifd_recv_new_channel', count));
  // Refused before the block list, so that no channel has been started; once the channels are in.
  const { ends, main } = await connectAll(t, await listening, hex("'QEVM' 00000003"));
  await eventually(() => taken === 2, 'both channels are in');
  main.write(VFIO);
  await within(Promise.all(ends), AT_ONCE_MS, 'end of the connections');
  t.equal(over, false, 'the session still waits for its threads');
  await t.rejects(within(result, AT_ONCE_MS, 'receiveMigration()'), REFUSED);
});

// ---- ItemsAhead ----

const ITEMS = hex(`'QEVM' 00000003 07 00000001 'm'
  01 00000007 03 'ram' 00000000 00000004 0000000000001004 01 'a' 0000000000001000 0000000000000010 7e 00000007
  02 00000007 0000000000000002 01 'a' 00 0000000000000010 7e 00000007
  03 00000007 0000000000000010 7e 00000007 00`);

/** A connection that stays open. */
const OPEN = { over: new Promise<void>(() => {}), stallTimeoutMs: 60_000 };

/** A stream of these, and then of this error. */
function streamOf(
  items: readonly (MainItem | undefined)[],
  error?: Error,
): { next(): Promise<MainItem | undefined>; reads: number } {
  const stream = {
    reads: 0,
    next: async (): Promise<MainItem | undefined> => {
      const at = stream.reads++;
      if (at >= items.length && error !== undefined) throw error;
      if (at >= items.length) await new Promise(() => {});
      return items[at];
    },
  };
  return stream;
}

async function turns(): Promise<void> {
  for (let i = 0; i < 100; i++) await Promise.resolve();
}

t.test('items come in their order, whether they were read ahead or not', async (t) => {
  const items = [...(await parse(ITEMS)), undefined];
  const ahead = new ItemsAhead(streamOf(items), OPEN);
  for (const item of items) {
    t.equal(await ahead.next(), item);
    if (item?.kind === 'eos') t.equal(await ahead.during(turns().then(() => 5)), 5);
  }
});

t.test('nothing is read ahead behind RAM, and no more than some items', async (t) => {
  const items = await parse(ITEMS);
  const stream = streamOf(items.slice(items.findIndex(({ kind }) => kind === 'footer')));
  await new ItemsAhead(stream, OPEN).during(turns());
  t.equal(stream.reads, 3, 'footer, head of PART, ZERO');
  const footer = items.find(({ kind }) => kind === 'footer');
  const endless = streamOf(Array.from({ length: 100 }, () => footer));
  await new ItemsAhead(endless, OPEN).during(turns());
  t.equal(endless.reads, 16);
});

t.test('what is refused ends the wait; an end of the stream is for who reads on', async (t) => {
  const refused = new MultifdError('ERR_MULTIFD_STREAM', 'refused');
  await t.rejects(new ItemsAhead(streamOf([], refused), OPEN).during(new Promise(() => {})), refused);
  const ended = new MultifdError('ERR_MULTIFD_EOF', 'ended');
  const ahead = new ItemsAhead(streamOf([], ended), OPEN);
  t.equal(await ahead.during(turns().then(() => 1)), 1);
  await t.rejects(ahead.next(), ended);
  await t.rejects(new ItemsAhead(streamOf([]), OPEN).during(Promise.reject(ended)), ended);
});

t.test('an end that is too early ends the wait, a while later', async (t) => {
  const over = Promise.resolve();
  const items = await parse(ITEMS);
  const footer = items.find(({ kind }) => kind === 'footer') as MainItem;
  const eos = items.find(({ kind }) => kind === 'eos') as MainItem;
  const ended = new MultifdError('ERR_MULTIFD_EOF', 'ended');
  const early: [string, (MainItem | undefined)[], MultifdError | undefined][] = [
    ['at once', [], ended],
    ['behind items', [footer, footer], ended],
    ['behind the next sync point', [{ ...eos, sync: true } as MainItem, footer], ended],
    ['inside the tail', [{ kind: 'tail', at: 0, raw: Buffer.of(4) }, undefined], undefined],
  ];
  for (const [name, before, error] of early) {
    const ahead = new ItemsAhead(streamOf(before, error), {
      ...{ over, stallTimeoutMs: 1 },
      tailError: (tail) => (tail.length === 1 ? ended : undefined),
    });
    await t.rejects(within(ahead.during(new Promise(() => {})), AT_ONCE_MS, name), ended, name);
  }
  const later = turns().then(() => 1);
  t.equal(await new ItemsAhead(streamOf([], ended), { over, stallTimeoutMs: 60_000 }).during(later), 1);
});

t.test('nor does a stream without end cost more than some items', async (t) => {
  const eos = (await parse(ITEMS)).find(({ kind }) => kind === 'eos') as MainItem;
  const endless = streamOf(Array.from({ length: 10_000 }, () => ({ ...eos, sync: true }) as MainItem));
  await new ItemsAhead(endless, { ...OPEN, over: Promise.resolve() }).during(
    new Promise<void>((resolve) => setImmediate(() => setImmediate(resolve))),
  );
  t.equal(endless.reads, 4096);
});
