/**
 * A guest is given up for a file that is on disk: the file's own fsync comes when all of it is written and before it has its name,
 * the folder's when it has it, and the source is told behind both. Without them a machine that crashes loses the guest.
 */
import fs from 'node:fs';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import t, { type Test } from 'tap';
import { receiveMigration, type Address } from '../../src/index.js';
import { within } from '../support/within.js';
import { CAPTURES, streamsOf } from './captures.js';
import { HandSource, askingMain } from './peers.js';

const WAIT_MS = 20_000;
/** For which an fsync is held, so that what does not wait for it goes on. */
const HOLD_MS = 100;

interface Sync {
  of: 'file' | 'folder';
  /** What the file has in it then, by whichever name. */
  bytes: Buffer;
  isNamed: boolean;
  /** At its end. */
  wasNamed: boolean;
  wasTold: boolean;
  wasEnded: boolean;
}

/** Each fsync through a FileHandle until the test is over. */
async function watch(t: Test, out: string, source: { is?: HandSource }): Promise<Sync[]> {
  const syncs: Sync[] = [];
  const handle = await fs.promises.open(import.meta.filename);
  const prototype = Object.getPrototypeOf(handle) as { sync: () => Promise<void> };
  await handle.close();
  const sync = Object.getOwnPropertyDescriptor(prototype, 'sync')?.value as () => Promise<void>;
  t.teardown(() => (prototype.sync = sync));
  prototype.sync = async function (this: fs.promises.FileHandle) {
    const isNamed = fs.existsSync(out);
    const of = fs.fstatSync(this.fd).isDirectory() ? 'folder' : 'file';
    const bytes = fs.readFileSync(isNamed ? out : `${out}.part`);
    await sleep(HOLD_MS);
    await sync.call(this);
    const [wasNamed, wasTold] = [fs.existsSync(out), source.is?.told === true];
    syncs.push({ of, bytes, isNamed, wasNamed, wasTold, wasEnded: source.is?.main.readableEnded === true });
  };
  return syncs;
}

for (const returnPath of [true, false]) {
  t.test(`fsync of file and folder, ${returnPath ? 'with' : 'without'} return path`, async (t) => {
    const out = path.join(t.testdir({}), 'vm.mig');
    const sources: { is?: HandSource } = {};
    const syncs = await watch(t, out, sources);
    let listens!: (address: Address) => void;
    const listening = new Promise<Address>((resolve) => (listens = resolve));
    const received = receiveMigration({ address: 'tcp:127.0.0.1:0', out, onListening: listens });
    received.catch(() => {});
    const source = (sources.is = new HandSource(t, await listening, 2));
    const streams = streamsOf(CAPTURES[0]);
    source.channels.forEach((channel, id) => channel.write(streams.channels[id]));
    if (returnPath) source.main.write(askingMain(streams.main));
    else source.main.end(streams.main);
    await within(received, WAIT_MS, 'receiveMigration()');
    if (returnPath) t.ok(source.told, 'the source is told in the end');

    const file = syncs.filter(({ of }) => of === 'file').at(-1);
    const folder = syncs.at(-1);
    t.match(file, { isNamed: false, wasNamed: false, wasTold: false, wasEnded: false }, "the file's");
    t.match(folder, { of: 'folder', isNamed: true, wasTold: false, wasEnded: false }, "the folder's");
    t.ok(file?.bytes.equals(fs.readFileSync(out)), 'all of the file was written by then');
  });
}
