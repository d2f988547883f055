/** What a send tells its caller when something goes wrong, before and after the destination's SHUT 0. */
import { once } from 'node:events';
import fs from 'node:fs';
import net from 'node:net';
import os from 'node:os';
import path from 'node:path';
import t, { type Test } from 'tap';
import { type SentMigration, readMappedRam, sendMigration } from '../../src/index.js';
import { eventually } from '../support/raw-channel.js';
import { within } from '../support/within.js';
import { readBytes } from './captures.js';
import { HandDestination, SHUT_0, SHUT_1, beforeEnd } from './peers.js';

const WAIT_MS = 20_000;
const GARBAGE = Buffer.alloc(64, 0xff);
const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'multifd-send-'));
t.teardown(() => fs.rmSync(folder, { recursive: true, force: true }));
const file = path.join(folder, 'qemu.mig');
fs.writeFileSync(file, readBytes('q100-mappedram-multifd.mig'));
const { tailBytes = 0 } = await readMappedRam(file);

interface Scene {
  destination: HandDestination;
  result: Promise<SentMigration>;
  abort: AbortController;
}

async function scene(t: Test): Promise<Scene> {
  const destination = await HandDestination.listen(t);
  const abort = new AbortController();
  const result = sendMigration({ file, to: destination.address, signal: abort.signal });
  result.catch(() => {});
  return { destination, result, abort };
}

const EARLY: Record<string, { act: (scene: Scene) => void; code: string }> = {
  'an abort': {
    act: ({ abort }) => abort.abort(new Error('enough')),
    code: 'ERR_MULTIFD_ABORTED',
  },
  'a garbage byte on the return path': {
    act: ({ destination }) => destination.main.write(GARBAGE),
    code: 'ERR_MULTIFD_PROTOCOL',
  },
  'a garbage byte on a channel': {
    act: ({ destination }) => destination.sockets[1].write(GARBAGE),
    code: 'ERR_MULTIFD_PROTOCOL',
  },
  'a closed main stream': {
    act: ({ destination }) => destination.main.end(),
    code: 'ERR_MULTIFD_CONNECTION',
  },
  'SHUT 1': {
    act: ({ destination }) => destination.main.write(SHUT_1),
    code: 'ERR_MULTIFD_STREAM',
  },
};

for (const [fault, { act, code }] of Object.entries(EARLY)) {
  t.test(`${fault}, all sent but no SHUT 0 yet: the call fails, and hears no SHUT 0 after it`, async (t) => {
    const all = await scene(t);
    const { destination, result } = all;
    await destination.has(tailBytes);
    act(all);
    // The call takes its own time to end; what comes in meanwhile does not make it succeed.
    await eventually(() => destination.main.readableEnded || destination.main.closed, 'the main stream ends');
    destination.main.write(SHUT_0);
    await t.rejects(within(result, WAIT_MS, 'sendMigration()'), { name: 'MultifdError', code });
    await eventually(() => destination.open === 0, 'every connection is closed');
  });
}

t.test("a SHUT 0 before the devices' state is refused", async (t) => {
  const { destination, result } = await scene(t);
  destination.onChannel = () => destination.main.write(SHUT_0);
  await t.rejects(within(result, WAIT_MS, 'sendMigration()'), {
    code: 'ERR_MULTIFD_STREAM',
    message: /SHUT 0: received before the devices' state, expected after it/,
  });
});

t.test(
  'a destination that closes its address once the main stream is in has refused what is listed',
  async (t) => {
    const server = net.createServer();
    server.listen(path.join(folder, 'refuses.sock'));
    await once(server, 'listening');
    server.once('connection', (socket: net.Socket) => {
      t.teardown(() => socket.destroy());
      socket.on('error', () => {});
      // Closing the server leaves the main stream as it is; channels find nobody.
      server.close();
    });
    const to = `unix:${path.join(folder, 'refuses.sock')}` as const;
    const uuid = '00112233-4455-6677-8899-aabbccddeeff';
    await t.rejects(
      within(sendMigration({ file, to, uuid, connectTimeoutMs: 1000 }), WAIT_MS, 'sendMigration()'),
      {
        message:
          /may have refused \(its log says why\).*2 channels \(.*multifd-channels\), compression none \(.*multifd-compression\), uuid 00112233.* \(.*-uuid\), no TLS/,
      },
    );
  },
);

const LATE: Record<string, (scene: Scene) => void> = {
  'an abort': ({ abort }) => abort.abort(new Error('enough')),
  'a garbage byte on the return path and a channel': ({ destination }) => {
    for (const socket of destination.sockets) socket.write(GARBAGE);
  },
  'connections that break': ({ destination }) => {
    for (const socket of destination.sockets) socket.resetAndDestroy();
  },
};

for (const [fault, act] of Object.entries(LATE)) {
  t.test(`${fault}, after SHUT 0: the call succeeds`, async (t) => {
    let ended = false;
    beforeEnd(t, () => {
      ended = true;
      act(all);
    });
    const all: Scene = await scene(t);
    const { destination, result } = all;
    await destination.has(tailBytes);
    destination.main.write(SHUT_0);
    const sent = await within(result, WAIT_MS, 'sendMigration()');
    t.equal(ended, true);
    t.match(sent.machine, /^pc-i440fx-/);
    await eventually(() => destination.open === 0, 'every connection is closed');
  });
}

const threads = (): number => fs.readdirSync('/proc/self/task').length;

t.test('threads that were started beside reading end with a call that fails before it sends', async (t) => {
  const cut = path.join(folder, 'cut.mig');
  fs.writeFileSync(cut, fs.readFileSync(file).subarray(0, -tailBytes));
  const nobody = path.join(folder, 'nobody.sock');
  const fails = async (): Promise<void> => {
    await t.rejects(
      within(sendMigration({ file: cut, to: { path: nobody } }), WAIT_MS, 'a file that is cut'),
      {
        code: 'ERR_MULTIFD_STREAM',
      },
    );
    await t.rejects(within(sendMigration({ file, to: { path: nobody } }), WAIT_MS, 'nobody there'), {
      code: 'ERR_MULTIFD_CONNECT',
    });
  };
  // Node's own pool for files is there then.
  await fails();
  const before = threads();
  for (let i = 0; i < 3; i++) await fails();
  t.equal(threads(), before);
});
