/**
 * A source that ends, or is cut, at every place of a migration with TLS: its bytes are a real QEMU's, its hands are ours. A
 * channel is judged by its SYNC packets, however it ends: TLS has an end of its own (close_notify), which QEMU sends on
 * channels from 10.0 on, never on main, and which whoever cuts a connection leaves out.
 */
import fs from 'node:fs';
import net from 'node:net';
import os from 'node:os';
import path from 'node:path';
import tls from 'node:tls';
import t, { type Test } from 'tap';
import { type Address, MultifdError, type ReceivedMigration, receiveMigration } from '../../src/index.js';
import { connect, type Connection } from '../../src/transport/connect.js';
import { checkTlsOptions } from '../../src/transport/tls/check-options.js';
import { makeCertificates, PSK, writeQemuFolder } from '../support/certificates.js';
import { eventually } from '../support/raw-channel.js';
import { within } from '../support/within.js';
import { PC_RAM, ramOf, streamsOf } from './captures.js';
import { askingMain, SHUT_0, tailAt } from './peers.js';

const WAIT_MS = 20_000;
/** Less than a handshake may take. */
const HANDSHAKE_MS = 8000;
const HELLO_BYTES = 64;
/** Of 4 KiB pages. */
const PACKET_BYTES = 1344;
const SYNC = 1;

const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'multifd-tls-'));
t.teardown(() => fs.rmSync(folder, { recursive: true, force: true }));
const made = makeCertificates();
const x509 = writeQemuFolder(path.join(folder, 'x509'), {
  ca: made.authority,
  server: made.server,
  client: made.client,
});
const psk = writeQemuFolder(path.join(folder, 'psk'), { psk: `qemu:${PSK}\n` });
const KINDS = { x509: { dir: x509, hostname: 'localhost' }, psk: { dir: psk } };
type Kind = keyof typeof KINDS;

const streams = streamsOf({ name: 'q100-none', compression: 'none' });
const [channel, otherChannel] = streams.channels;

/** Where packets of a capture without compression begin, and which say SYNC. */
const packets = ((): { at: number; sync: boolean }[] => {
  const found = [];
  for (let at = HELLO_BYTES; at < channel.length;) {
    const normalPages = channel.readUInt32BE(at + 16);
    found.push({ at, sync: (channel.readUInt32BE(at + 8) & SYNC) !== 0 });
    at += PACKET_BYTES + 4096 * normalPages;
  }
  return found;
})();
const syncs = packets.filter(({ sync }) => sync).map(({ at }) => at);
const lastSync = syncs[syncs.length - 1];

/**
 * How a connection ends:
 *
 *     notify     close_notify, then FIN
 *     fin        FIN alone
 *     reset      RST, which also loses what the other side has not read
 */
type Ending = 'notify' | 'fin' | 'reset';
const ENDINGS: readonly Ending[] = ['notify', 'fin', 'reset'];

interface Played {
  /** What goes over channel 0, and how that ends; undefined: as it should. */
  channelBytes?: number;
  mainBytes?: number;
  ending: Ending;
  kind?: Kind;
  returnPath?: boolean;
  /** Everything ends at once, as the source's process is killed. */
  killed?: boolean;
}

async function end({ socket, raw }: Connection, how: Ending): Promise<void> {
  await new Promise<void>((resolve) => socket.write('', () => resolve()));
  if (how === 'notify') socket.end();
  else if (how === 'fin') raw.end();
  else raw.resetAndDestroy();
}

async function put({ socket }: Connection, bytes: Buffer): Promise<void> {
  await new Promise<void>((resolve) => socket.write(bytes, () => resolve()));
}

/** Plays the capture over TLS. @returns what became of receiveMigration() */
async function play(
  t: Test,
  it: Played,
): Promise<{ outcome: ReceivedMigration | MultifdError; out: string }> {
  const { kind = 'x509', returnPath = false, ending } = it;
  const out = path.join(fs.mkdtempSync(path.join(folder, 'out-')), 'vm.mig');
  let result!: Promise<ReceivedMigration>;
  const address = await new Promise<Address>((resolve, reject) => {
    result = receiveMigration({
      address: { host: '127.0.0.1', port: 0 },
      channels: 2,
      compression: 'none',
      tls: { dir: KINDS[kind].dir },
      out,
      onListening: resolve,
    });
    result.catch(reject);
  });
  const { credentials } = checkTlsOptions(KINDS[kind], 'client', 'tls', address);
  const open = async (): Promise<Connection> => {
    const connection = await connect({ address, timeoutMs: WAIT_MS, tls: credentials });
    t.teardown(() => connection.raw.destroy());
    return connection;
  };
  const main = await open();
  const back: Buffer[] = [];
  main.socket.on('data', (bytes: Buffer) => back.push(bytes));
  const channels = [await open(), await open()];
  const mainBytes = returnPath ? askingMain(streams.main) : streams.main;
  const both = channels.map(async (connection, id) => {
    const cut = id === 0 ? it.channelBytes : undefined;
    await put(connection, (id === 0 ? channel : otherChannel).subarray(0, cut));
    if (it.killed === true) return;
    if (id === 0) await end(connection, ending);
    else if (cut === undefined && it.channelBytes === undefined) await end(connection, 'notify');
  });
  const cutMain =
    it.mainBytes === undefined ? undefined : it.mainBytes + mainBytes.length - streams.main.length;
  await put(main, mainBytes.subarray(0, cutMain));
  await Promise.all(both);
  if (it.killed === true) for (const connection of [...channels, main]) await end(connection, ending);
  else if (cutMain !== undefined) await end(main, ending);
  else if (it.channelBytes === undefined) {
    const isTold = (): boolean => Buffer.concat(back).includes(SHUT_0);
    if (returnPath) await eventually(isTold, 'the source is told');
    await end(main, 'fin');
  }
  const outcome = await within(
    result.catch((error: unknown) => error as MultifdError),
    WAIT_MS,
    'receiveMigration()',
  );
  return { outcome, out };
}

async function fails(t: Test, it: Played): Promise<void> {
  const { outcome, out } = await play(t, it);
  t.ok(outcome instanceof MultifdError, 'it fails');
  if (outcome instanceof MultifdError)
    t.match(outcome.code, /^ERR_MULTIFD_(EOF|CONNECTION)$/, outcome.message);
  t.notOk(fs.existsSync(out), 'nothing under the final name');
  t.notOk(fs.existsSync(`${out}.part`), 'and no partial file');
}

async function succeeds(t: Test, it: Played): Promise<void> {
  const { outcome, out } = await play(t, it);
  t.notOk(outcome instanceof MultifdError, outcome instanceof MultifdError ? outcome.message : 'it succeeds');
  if (outcome instanceof MultifdError) return;
  t.equal(outcome.returnPath, it.returnPath === true);
  t.ok((await ramOf(out)).equals(PC_RAM), 'RAM');
}

/** What a client of TLS says first. */
async function clientHello(t: Test): Promise<Buffer> {
  let heard!: (bytes: Buffer) => void;
  const hello = new Promise<Buffer>((resolve) => (heard = resolve));
  const server = net.createServer((socket) => socket.on('error', () => {}).once('data', heard));
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const client = tls.connect({ host: '127.0.0.1', port: (server.address() as net.AddressInfo).port });
  client.on('error', () => {});
  t.teardown(() => {
    client.destroy();
    server.close();
  });
  return within(hello, WAIT_MS, 'a ClientHello');
}

t.test('a client that closes inside the handshake fails a call in which nobody else is in', async (t) => {
  const hello = await clientHello(t);
  const out = path.join(fs.mkdtempSync(path.join(folder, 'out-')), 'vm.mig');
  const listen = (address: Address): void => {
    const client = net.connect(address as net.NetConnectOpts).on('error', () => {});
    client.once('data', () => client.end());
    client.write(hello);
    t.teardown(() => client.destroy());
  };
  const call = receiveMigration({
    address: { host: '127.0.0.1', port: 0 },
    tls: { dir: x509 },
    connectTimeoutMs: 500,
    out,
    onListening: listen,
  });
  const error = await within(
    call.catch((error: unknown) => error as MultifdError),
    HANDSHAKE_MS,
    'an error',
  );
  t.ok(error instanceof MultifdError && error.code === 'ERR_MULTIFD_TLS');
  t.match((error as MultifdError).message, /closed the connection during the handshake/);
  t.notOk(fs.existsSync(`${out}.part`), 'no partial file');
});

t.test('the capture has what is cut here', async (t) => {
  t.ok(syncs.length > 1, `${syncs.length} SYNC packets`);
  t.equal(packets[packets.length - 1].at, lastSync, 'and nothing behind the last one');
});

/** Bytes of channel 0 that still come. */
const CUTS: Record<string, number> = {
  'behind its hello': HELLO_BYTES,
  'before its first SYNC': syncs[0],
  'inside a packet': (packets.find(({ sync }) => !sync)?.at ?? 0) + PACKET_BYTES + 5000,
  'at the boundary of two packets': packets[packets.findIndex(({ at }) => at > syncs[0])].at,
  'before its last SYNC': lastSync,
  'inside its last SYNC': lastSync + PACKET_BYTES - 1,
};

for (const returnPath of [false, true]) {
  const suffix = returnPath ? ', return path' : '';
  for (const ending of ENDINGS) {
    for (const [where, channelBytes] of Object.entries(CUTS)) {
      t.test(`a channel that ends ${where} (${ending}${suffix}) fails the migration`, async (t) => {
        await fails(t, { channelBytes, ending, returnPath });
      });
    }
    t.test(`a main stream cut in the devices' state (${ending}${suffix}) fails the migration`, async (t) => {
      await fails(t, { mainBytes: tailAt(streams.main) + 1000, ending, returnPath });
    });
    t.test(
      `a source that is gone in the devices' state (${ending}${suffix}) fails the migration`,
      async (t) => {
        await fails(t, { mainBytes: tailAt(streams.main) + 1000, ending, returnPath, killed: true });
      },
    );
    t.test(`a source that is gone before ram's END (${ending}${suffix}) fails the migration`, async (t) => {
      await fails(t, {
        mainBytes: tailAt(streams.main) - 30,
        channelBytes: lastSync,
        ending,
        returnPath,
        killed: true,
      });
    });
  }
  for (const kind of ['x509', 'psk'] as const) {
    for (const ending of ['notify', 'fin'] as const) {
      t.test(
        `a channel that ends behind its last SYNC (${kind}, ${ending}${suffix}) is no fault`,
        async (t) => {
          await succeeds(t, { ending, returnPath, kind });
        },
      );
    }
  }
}
