/**
 * A block list that is longer than what a socket holds. A QEMU reads its main stream only when all channels are there: whoever
 * waits for the list to be taken before it connects them waits for ever.
 */
import fs from 'node:fs';
import net from 'node:net';
import os from 'node:os';
import path from 'node:path';
import { Readable } from 'node:stream';
import t, { type Test } from 'tap';
import {
  createMigrationSource,
  receiveMigration,
  relayMigration,
  sendMigration,
  type Address,
  type MigrationSource,
  type ReceivedMigration,
} from '../../src/index.js';
import { ByteReader } from '../../src/stream/byte-reader.js';
import { encodeMemSize, encodeSection } from '../../src/stream/main-writer.js';
import { readMainStream } from '../../src/stream/main-stream.js';
import { STREAM, imageOf } from '../libvirt/images.js';
import { eventually } from '../support/raw-channel.js';
import { within } from '../support/within.js';

const WAIT_MS = 60_000;
const CHANNELS = 2;
const PAGE = 4096;
/** With names of 255 characters half a MiB; a unix socket holds 208 KiB. */
const BLOCKS = 2000;
const NAMES = Array.from({ length: BLOCKS }, (_, i) => `block${i}`.padEnd(255, 'x'));

const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'mfd-'));
t.teardown(() => fs.rmSync(folder, { recursive: true, force: true }));
let files = 0;
const newPath = (): string => path.join(folder, `${files++}`);

/** @returns the sockets that came */
async function listen(
  t: Test,
  accept: (socket: net.Socket) => void,
): Promise<{ to: Address; came: net.Socket[] }> {
  const came: net.Socket[] = [];
  const server = net.createServer({ pauseOnConnect: true }, (socket) => {
    socket.on('error', () => {});
    came.push(socket);
    accept(socket);
  });
  t.teardown(() => {
    server.close();
    for (const socket of came) socket.destroy();
  });
  const at = newPath();
  await new Promise<void>((resolve) => server.listen(at, resolve));
  return { to: { path: at }, came };
}

/** What comes to it goes on to `to`; of the main stream nothing before the channels are there. */
async function asQemu(t: Test, to: Address): Promise<Address> {
  const join = (socket: net.Socket): void => {
    const onward = net.connect((to as { path: string }).path).on('error', () => socket.destroy());
    socket.on('close', () => onward.destroy());
    socket.pipe(onward);
    onward.pipe(socket);
  };
  const listening = await listen(t, () => {
    const { came } = listening;
    if (came.length === 1 + CHANNELS) came.forEach(join);
  });
  return listening.to;
}

interface Receiving {
  at: Address;
  out: string;
  result: Promise<ReceivedMigration>;
}

async function receive(): Promise<Receiving> {
  const out = newPath();
  let result!: Promise<ReceivedMigration>;
  const at = await new Promise<Address>((onListening, reject) => {
    result = receiveMigration({ address: { path: newPath() }, channels: CHANNELS, out, onListening });
    result.catch(reject);
  });
  return { at, out, result };
}

async function vmTo(to: Address, connectTimeoutMs = WAIT_MS): Promise<MigrationSource> {
  return createMigrationSource({
    to,
    channels: CHANNELS,
    machine: 'many-1.0',
    blocks: NAMES.map((name) => ({ name, memory: new SharedArrayBuffer(PAGE) })),
    devices: [],
    dirty: () => [],
    pause: () => {},
    resume: () => {},
    connectTimeoutMs,
  });
}

/** A libvirt image whose stream has the list. */
async function rawImage(): Promise<string> {
  for await (const item of readMainStream(new ByteReader(Readable.from([STREAM])))) {
    if (item.kind !== 'section') continue;
    const blocks = NAMES.map((name) => ({ name, usedLength: PAGE }));
    const list = Buffer.concat([encodeSection('start', item.sectionId), encodeMemSize(blocks)]);
    const file = newPath();
    fs.writeFileSync(file, imageOf('raw', Buffer.concat([STREAM.subarray(0, item.at), list])));
    return file;
  }
  throw new Error('no section');
}

let parked = '';

t.test('a VM, and its file, get through', async (t) => {
  const first = await receive();
  const vm = await vmTo(await asQemu(t, first.at));
  await within(vm.done, WAIT_MS, 'the VM');
  t.equal((await within(first.result, WAIT_MS, 'its file')).blocks.length, BLOCKS);
  parked = first.out;
  const second = await receive();
  const sending = sendMigration({ file: parked, to: await asQemu(t, second.at), channels: CHANNELS });
  await within(sending, WAIT_MS, 'sendMigration()');
  t.equal((await within(second.result, WAIT_MS, 'the second file')).blocks.length, BLOCKS);
});

t.test('through a relay as well', async (t) => {
  const { at, result } = await receive();
  const onward = await asQemu(t, at);
  let relaying!: Promise<unknown>;
  const relay = await new Promise<Address>((onListening, reject) => {
    relaying = relayMigration({
      listen: { path: newPath() },
      to: onward,
      in: { channels: CHANNELS },
      out: { channels: CHANNELS },
      onListening,
    });
    relaying.catch(reject);
  });
  await within(sendMigration({ file: parked, to: relay, channels: CHANNELS }), WAIT_MS, 'sendMigration()');
  await within(relaying, WAIT_MS, 'relayMigration()');
  t.equal((await within(result, WAIT_MS, 'the file')).blocks.length, BLOCKS);
});

t.test('a destination that never reads its main stream', async (t) => {
  const raw = await rawImage();
  const late = { code: 'ERR_MULTIFD_TIMEOUT', message: /has not answered the PING/ };
  const { to, came } = await listen(t, (socket) => {
    if (came.length % (1 + CHANNELS) !== 1) socket.resume();
  });
  for (const file of [parked, raw]) {
    came.length = 0;
    const connectTimeoutMs = 1500;
    const sending = sendMigration({ file, to, channels: CHANNELS, connectTimeoutMs });
    await t.rejects(within(sending, WAIT_MS, 'sendMigration()'), late);
    came.length = 0;
    const abort = new AbortController();
    const { signal } = abort;
    const aborted = sendMigration({ file, to, channels: CHANNELS, signal, connectTimeoutMs: WAIT_MS });
    aborted.catch(() => {});
    await eventually(() => came.length === 1 + CHANNELS, 'its connections');
    abort.abort();
    await t.rejects(within(aborted, WAIT_MS, 'the abort'), { code: 'ERR_MULTIFD_ABORTED' });
  }
  came.length = 0;
  await t.rejects(within((await vmTo(to, 1500)).done, WAIT_MS, 'the VM'), late);
});
