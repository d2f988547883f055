/** Ends that only the return path, or nothing at all, tells of; and sources that say less, or want more, than others. */
import path from 'node:path';
import t, { type Test } from 'tap';
import {
  MultifdError,
  receiveMigration,
  relayMigration,
  type ReceiveMigrationOptions,
  type Receiver,
  type RelayMigrationOptions,
} from '../../src/index.js';
import { within } from '../support/within.js';
import { eventually, load, resume } from './park.js';
import { requirePrograms } from './programs.js';
import { Qemu, workFolder, type QemuOptions } from './qemu.js';

const WAIT_MS = 30_000;
/** From the fault to the error. */
const ERROR_MS = 10_000;
const STALL_MS = 2000;
const FAST = { 'max-bandwidth': 2 ** 40, 'downtime-limit': 2000 };
const SLOW = { 'max-bandwidth': 8 * 2 ** 20 };

const { qemu: program, qemu72 } = requirePrograms();
const folder = workFolder(t);
let names = 0;
const newPath = (suffix: string): string => path.join(folder, `e${names++}${suffix}`);

async function start(t: Test, options: QemuOptions = {}): Promise<Qemu> {
  const qemu = await Qemu.start(t, program, folder, options);
  if (options.incoming !== true) await qemu.waitUntilReady();
  return qemu;
}

/** Listens; `result` is handled. */
async function listening<R>(call: (onListening: () => void) => Promise<R>): Promise<{ result: Promise<R> }> {
  let go!: () => void;
  const ready = new Promise<void>((resolve) => (go = resolve));
  const result = call(go);
  result.catch(() => {});
  await Promise.race([ready, result]);
  return { result };
}

const receive = (
  options: ReceiveMigrationOptions,
): Promise<{ result: ReturnType<typeof receiveMigration> }> =>
  listening((onListening) => receiveMigration({ ...options, onListening }));
const relay = (options: RelayMigrationOptions): Promise<{ result: ReturnType<typeof relayMigration> }> =>
  listening((onListening) => relayMigration({ ...options, onListening }));

async function fails(t: Test, result: Promise<unknown>, code: RegExp, message = /./): Promise<void> {
  const since = performance.now();
  const error = await within(
    result.then(
      () => undefined,
      (thrown: unknown) => thrown,
    ),
    ERROR_MS,
    'an error',
  ).catch((late: unknown) => late);
  t.ok(error instanceof MultifdError, `after ${Math.round(performance.now() - since)} ms: ${String(error)}`);
  t.match(error, { code, message });
}

for (const returnPath of [true, false]) {
  const way = `return path ${returnPath ? 'on' : 'off'}`;

  t.test(`a machine without VM description is parked and loaded, ${way}`, async (t) => {
    const source = await start(t, { machine: 'pc,suppress-vmdesc=on' });
    const [address, out] = [newPath('.sock'), newPath('.mig')];
    await source.setMultifd({ channels: 2, compression: 'none', returnPath });
    await source.setParameters(FAST);
    const { result } = await receive({ address: { path: address }, channels: 2, out });
    await source.execute('migrate', { uri: `unix:${address}` });
    const received = await within(result, WAIT_MS, 'receiveMigration()');
    t.equal((await source.migrationEnd()).status, 'completed');
    const parked = { file: out, machine: `${received.machine},suppress-vmdesc=on` };
    await load(t, program, { ...parked, ram: await source.ram(), counter: await source.counter() }, folder);
  });

  t.test(`a relay whose destination refuses the machine, ${way}`, async (t) => {
    const source = await start(t, { extra: ['-device', 'virtio-rng-pci'] });
    const destination = await start(t, { incoming: true });
    const [near, far] = [newPath('.sock'), newPath('.sock')];
    await source.setMultifd({ channels: 2, compression: 'none', returnPath });
    await source.setParameters(FAST);
    await destination.setMultifd({ channels: 2, compression: 'none' });
    await destination.execute('migrate-incoming', { uri: `unix:${far}` });
    const { result } = await relay({ listen: { path: near }, to: { path: far } });
    await source.execute('migrate', { uri: `unix:${near}` });
    await fails(t, result, /^ERR_MULTIFD_(STREAM|CONNECTION)$/);
    if (returnPath) t.equal((await source.migrationEnd()).status, 'failed', 'the source hears of it');
  });
}

// An old machine type under a new program is owed the ACK as well; from type 11.1 on one that was not asked for is an error.
for (const machine of ['pc', 'pc-i440fx-9.0', 'pc-i440fx-7.2']) {
  for (const ack of [true, false]) {
    const who = `${machine} with the return path, capability switchover-ack ${ack ? 'on' : 'off'}`;
    t.test(`${who}: the source comes to its end, also behind a relay`, async (t) => {
      const source = await start(t, { machine });
      await source.setMultifd({ channels: 2, compression: 'none', returnPath: true });
      await source.setCapabilities({ 'switchover-ack': ack });
      await parkWithReturnPath(t, source);
    });
  }
}

t.test('QEMU 7.2, which knows no SWITCHOVER_ACK, comes to its end with the return path', async (t) => {
  const source = await Qemu.start(t, qemu72, folder, { machine: 'pc-i440fx-7.2' });
  await source.waitUntilReady();
  await source.setMultifd({ channels: 2, compression: 'none', returnPath: true });
  await parkWithReturnPath(t, source);
});

/** Into a file, and then through a relay into another. */
async function parkWithReturnPath(t: Test, source: Qemu): Promise<void> {
  await source.setParameters(FAST);
  for (const relayed of [false, true]) {
    const [near, far, out] = [newPath('.sock'), newPath('.sock'), newPath('.mig')];
    const { result } = await receive({ address: { path: relayed ? far : near }, channels: 2, out });
    const passed = relayed ? await relay({ listen: { path: near }, to: { path: far } }) : undefined;
    await source.execute('migrate', { uri: `unix:${near}` });
    const info = await source.migrationEnd(WAIT_MS);
    t.match(info, { status: 'completed', 'error-desc': undefined });
    t.equal((await within(result, WAIT_MS, 'receiveMigration()')).returnPath, true);
    if (passed !== undefined) await within(passed.result, WAIT_MS, 'relayMigration()');
    await resume(source);
  }
}

t.test('a source that is gone without a word is a stall', async (t) => {
  const source = await start(t);
  const [address, out] = [newPath('.sock'), newPath('.mig')];
  await source.setMultifd({ channels: 2, compression: 'none', returnPath: true });
  await source.setParameters(SLOW);
  let receiver: Receiver | undefined;
  const { result } = await receive({
    address: { path: address },
    channels: 2,
    out,
    stallTimeoutMs: STALL_MS,
    onSession: (session) => (receiver = session),
  });
  await source.execute('migrate', { uri: `unix:${address}` });
  t.ok(await eventually(() => (receiver?.stats().bytes ?? 0) > 2 ** 20, WAIT_MS), 'it has begun');
  source.signal('SIGSTOP');
  await fails(t, result, /^ERR_MULTIFD_STALL$/);
});

t.test('a relay whose destination is gone without a word, and one that expects more channels', async (t) => {
  for (const more of [false, true]) {
    const source = await start(t);
    const destination = await start(t, { incoming: true });
    const [near, far] = [newPath('.sock'), newPath('.sock')];
    await source.setMultifd({ channels: 2, compression: 'none' });
    await source.setParameters(more ? FAST : SLOW);
    await destination.setMultifd({ channels: more ? 3 : 2, compression: 'none' });
    await destination.execute('migrate-incoming', { uri: `unix:${far}` });
    let begun = false;
    const { result } = await relay({
      listen: { path: near },
      to: { path: far },
      ...(!more && { stallTimeoutMs: STALL_MS }),
      onSession: () => (begun = true),
    });
    await source.execute('migrate', { uri: `unix:${near}` });
    t.ok(await eventually(() => begun, WAIT_MS), 'it has begun');
    if (!more) destination.signal('SIGSTOP');
    if (more) await fails(t, result, /^ERR_MULTIFD_TIMEOUT$/, /has not answered the PING.*more channels/);
    else await fails(t, result, /^ERR_MULTIFD_(STALL|TIMEOUT)$/, /destination/);
    await source.kill();
    await destination.kill();
  }
});
