/** Who is to blame is told in a plain sentence, as soon as the bytes tell it. */
import { once } from 'node:events';
import fs from 'node:fs';
import net from 'node:net';
import os from 'node:os';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import t, { type Test } from 'tap';
import { type Address, createReceiver, receiveMigration, relayMigration } from '../../src/index.js';
import { encodeHello } from '../../src/wire/hello.js';
import { hex, parse } from '../stream/support.js';
import { within } from '../support/within.js';
import { CAPTURES, streamsOf } from './captures.js';

/** Less than the time-outs of a migration, which would end it as well. */
const AT_ONCE_MS = 5000;
const LONG_MS = 8000;
const { main, channels } = streamsOf(CAPTURES[0]);
const HELLO_BYTES = 64;
const UUID = channels[0].subarray(8, 24);
const TLS_HELLO = hex('16 03 01 0200 01 0001fc 0303');

interface Options {
  channels?: number;
  connectTimeoutMs?: number;
}

/** Starts one that takes a migration in; its destination, where it has one, takes all and answers nothing. */
type Start = (
  t: Test,
  directory: string,
  options: Options,
) => Promise<{ address: Address; result: Promise<unknown> }>;

const STARTS: Record<string, Start> = {
  receive: async (_, directory, options) => {
    let listen!: (address: Address) => void;
    const listening = new Promise<Address>((resolve) => (listen = resolve));
    const address = { path: path.join(directory, 'in') };
    const result = receiveMigration({
      connectTimeoutMs: LONG_MS,
      ...options,
      address,
      out: path.join(directory, 'vm.mig'),
      onListening: listen,
    });
    result.catch(() => {});
    return { address: await listening, result };
  },
  relay: async (t, directory, { channels = 2, connectTimeoutMs = LONG_MS }) => {
    const sockets: net.Socket[] = [];
    const server = net.createServer((socket) => {
      sockets.push(socket);
      socket.on('error', () => {}).resume();
    });
    t.teardown(() => {
      for (const socket of sockets) socket.destroy();
      server.close();
    });
    const to = { path: path.join(directory, 'to') };
    server.listen(to);
    await once(server, 'listening');
    let listen!: (address: Address) => void;
    const listening = new Promise<Address>((resolve) => (listen = resolve));
    const result = relayMigration({
      listen: { path: path.join(directory, 'in') },
      to,
      in: { channels },
      connectTimeoutMs,
      onListening: listen,
    });
    result.catch(() => {});
    return { address: await listening, result };
  },
};

function folder(t: Test): string {
  const directory = fs.mkdtempSync(path.join(os.tmpdir(), 'mfd-'));
  t.teardown(() => fs.rmSync(directory, { recursive: true, force: true }));
  return directory;
}

/** One connection with these bytes, which stays open. */
async function connect(t: Test, address: Address, bytes: Buffer): Promise<net.Socket> {
  const socket = net.connect(address as net.NetConnectOpts);
  t.teardown(() => socket.destroy());
  await once(socket, 'connect');
  socket.on('error', () => {}).resume();
  socket.write(bytes);
  return socket;
}

const hello = (id: number): Buffer => encodeHello({ uuid: UUID, id });

/** As far as ram's START with its footer, with sync points as QEMU before 8.1 marks them; then RAM without multifd. */
async function plainStream(rams: number): Promise<Buffer> {
  const { main: legacy } = streamsOf({ name: 'q100-none-machine72', compression: 'none' });
  const items = await parse(legacy);
  const footer = items.findIndex(({ kind }) => kind === 'footer');
  const { at, raw } = items[footer];
  const sectionId = raw.subarray(1);
  const zeros = Array.from({ length: rams }, (_, i) => {
    const record = hex("0000000000000002 06 'pc.ram' 00");
    record.writeUInt32BE(i * 4096 + 2, 4);
    return record;
  });
  const page = Buffer.concat([hex("0000000000100008 06 'pc.ram'"), Buffer.alloc(4096, 7)]);
  const part = [Buffer.from([2]), sectionId, ...zeros, page];
  return Buffer.concat([legacy.subarray(0, at + raw.length), ...part]);
}

for (const [name, start] of Object.entries(STARTS)) {
  t.test(`${name}: a source with more channels is told with the options to change`, async (t) => {
    for (const order of [[2], [0, 1, 2]]) {
      const { address, result } = await start(t, folder(t), {});
      await connect(t, address, main.subarray(0, 8));
      for (const id of order) {
        // A source connects its channels one after the other: ours are in and started by then.
        if (id === 2) await sleep(50);
        await connect(t, address, hello(id));
      }
      await t.rejects(within(result, AT_ONCE_MS, name), {
        code: 'ERR_MULTIFD_CHANNEL_ID',
        message:
          /received 2, expected .*at most 1.*more channels than the 2 here: option channels, --channels, QEMU's multifd-channels/,
      });
    }
  });

  t.test(`${name}: a source with fewer channels is told by the time-out, with the options`, async (t) => {
    const { address, result } = await start(t, folder(t), { connectTimeoutMs: 200 });
    await connect(t, address, main.subarray(0, 8));
    await connect(t, address, hello(0));
    await t.rejects(within(result, AT_ONCE_MS, name), {
      code: 'ERR_MULTIFD_TIMEOUT',
      message: /fewer channels than the 2 here: option channels, --channels, QEMU's.*received 1, expected 2/,
    });
  });

  t.test(`${name}: a source without multifd is told by its first page, not by the time-out`, async (t) => {
    for (const zeros of [0, 100]) {
      const { address, result } = await start(t, folder(t), {});
      await connect(t, address, await plainStream(zeros));
      await t.rejects(within(result, AT_ONCE_MS, name), {
        code: 'ERR_MULTIFD_STREAM',
        message: /the source sends its pages on the main stream: capability multifd is off there/,
      });
    }
  });

  t.test(`${name}: a source of which no channel has come is asked for multifd by the time-out`, async (t) => {
    const { address, result } = await start(t, folder(t), { connectTimeoutMs: 200 });
    await connect(t, address, main.subarray(0, 8));
    await t.rejects(within(result, AT_ONCE_MS, name), {
      code: 'ERR_MULTIFD_TIMEOUT',
      message: /is capability multifd on at the source.*received 0, expected 2/,
    });
  });

  t.test(`${name}: a source that breaks off is told, whichever connection ends first`, async (t) => {
    const footer = (await parse(main)).find(({ kind }) => kind === 'footer');
    const upTo = (footer?.at ?? 0) + (footer?.raw.length ?? 0);
    for (const first of ['main', 'channel']) {
      const { address, result } = await start(t, folder(t), {});
      const sockets = [
        await connect(t, address, main.subarray(0, first === 'main' ? 60 : upTo)),
        await connect(t, address, channels[0].subarray(0, HELLO_BYTES + 100)),
        await connect(t, address, channels[1].subarray(0, HELLO_BYTES)),
      ];
      sockets[first === 'main' ? 0 : 1].end();
      await t.rejects(within(result, AT_ONCE_MS, name), {
        code: 'ERR_MULTIFD_EOF',
        message:
          first === 'main'
            ? /main stream ended .*the source broke the migration off \(cancelled, failed or ended\) before ram's END/
            : /ended .*the source broke the migration off \(cancelled, failed or ended\) before ram's END/,
      });
    }
  });

  t.test(`${name}: a source that speaks TLS is told, as main stream and as channel`, async (t) => {
    for (const before of [[], [main.subarray(0, 8)], [main.subarray(0, 8), hello(0)]]) {
      const { address, result } = await start(t, folder(t), {});
      for (const bytes of before) await connect(t, address, bytes);
      await connect(t, address, TLS_HELLO);
      await t.rejects(within(result, AT_ONCE_MS, name), {
        code: 'ERR_MULTIFD_TLS',
        message: /TLS ClientHello: the source has tls-creds set.*migrate_set_parameter tls-creds ""/,
      });
    }
  });
}

t.test('a receiver alone tells more channels, and takes TLS for a stray', async (t) => {
  const address = { path: path.join(folder(t), 'in') };
  const memory = Buffer.from(new SharedArrayBuffer(4096));
  const receiver = await createReceiver({ address, channels: 2, blocks: [{ name: 'a', memory }] });
  t.teardown(() => receiver.close());
  receiver.done.catch(() => {});
  const stray = await connect(t, address, Buffer.concat([TLS_HELLO, Buffer.alloc(64)]));
  await within(once(stray, 'close'), AT_ONCE_MS, 'the end of the stray');
  t.equal(receiver.stats().strays, 1);
  await connect(t, address, encodeHello({ uuid: Buffer.alloc(16), id: 2 }));
  await t.rejects(within(receiver.done, AT_ONCE_MS, 'done'), {
    code: 'ERR_MULTIFD_CHANNEL_ID',
    message: /received 2, expected less than 2 .*multifd-channels/,
  });
});
