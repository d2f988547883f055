/** A real QEMU with TLS that is killed, or whose connection is cut: an error, no file, and a guest that runs on if it can. */
import fs from 'node:fs';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import t from 'tap';
import { MultifdError, type Receiver, receiveMigration } from '../../src/index.js';
import { within } from '../support/within.js';
import { requirePrograms } from './programs.js';
import { Proxy } from './proxy.js';
import { Qemu, workFolder } from './qemu.js';
import { HOST, type Kind, makeFolders, ourTls, setTls } from './tls.js';

const MiB = 2 ** 20;
const WAIT_MS = 30_000;
/** From the fault to the error. */
const ERROR_MS = 10_000;
const { qemu: program } = requirePrograms();
const folder = workFolder(t);
const dirs = makeFolders(folder);
let names = 0;

interface Fault {
  kind: Kind;
  returnPath: boolean;
  /** Cut main after so many bytes, its handshake's among them; else the source is killed in mid-stream. */
  mainBytes?: number;
}

const FAULTS: Record<string, Fault> = {
  'the source is killed (x509)': { kind: 'x509', returnPath: false },
  'the source is killed (psk, return path)': { kind: 'psk', returnPath: true },
  'main is cut behind its handshake (x509)': { kind: 'x509', returnPath: false, mainBytes: 4000 },
  "main is cut in the devices' state (psk)": { kind: 'psk', returnPath: false, mainBytes: 100_000 },
  "main is cut in the devices' state (x509, return path)": {
    kind: 'x509',
    returnPath: true,
    mainBytes: 100_000,
  },
};

for (const [name, { kind, returnPath, mainBytes }] of Object.entries(FAULTS)) {
  t.test(`receiving with TLS: ${name}`, async (t) => {
    const source = await Qemu.start(t, program, folder);
    await source.waitUntilReady();
    const dir = (await dirs)[kind];
    const id = names++;
    const [listen, near, out] = ['sock', 'near', 'mig'].map((end) => path.join(folder, `t${id}.${end}`));
    await source.setMultifd({ channels: 2, compression: 'none', returnPath });
    await setTls(source, { kind, dir, endpoint: 'client', hostname: HOST });
    await source.setParameters({ 'max-bandwidth': mainBytes === undefined ? 8 * MiB : 2 ** 40 });
    let receiver: Receiver | undefined;
    let go!: () => void;
    const listening = new Promise<void>((resolve) => (go = resolve));
    const call = receiveMigration({
      address: { path: listen },
      channels: 2,
      compression: 'none',
      tls: ourTls(kind, dir, 'server'),
      out,
      onListening: go,
      onSession: (session) => (receiver = session),
    });
    call.catch(() => {});
    await Promise.race([listening, call]);
    // Nothing tells main from channels here, but that it is the first.
    const cut = { kind: 'channel', afterBytes: mainBytes ?? 0 } as const;
    const proxy = mainBytes === undefined ? undefined : await Proxy.open(t, near, listen, { cut });
    await source.execute('migrate', { uri: `unix:${proxy === undefined ? listen : near}` });
    if (proxy === undefined) {
      const middle = async (): Promise<void> => {
        while ((receiver?.stats().bytes ?? 0) < MiB) await sleep(10);
      };
      await within(middle(), WAIT_MS, 'the middle');
      await source.kill();
    } else await within(proxy.cut, WAIT_MS, 'the cut');
    const error = await within(
      call.catch((thrown: unknown) => thrown as MultifdError),
      ERROR_MS,
      'an error',
    );
    t.ok(error instanceof MultifdError, 'it fails');
    t.match((error as MultifdError).code, /^ERR_MULTIFD_(EOF|CONNECTION|TLS)$/);
    t.notOk(fs.existsSync(out), 'nothing under the final name');
    t.notOk(fs.existsSync(`${out}.part`), 'and no partial file');
    if (proxy === undefined) return;
    proxy.close();
    const { status } = await source.migrationEnd();
    if (status === 'failed') t.equal(await source.status(), 'running', 'its guest runs on');
    await source.kill();
  });
}
