/**
 * What goes wrong between us and a real QEMU: a clear error within ten seconds, no file under the final name, and the
 * process with the descriptors and threads that it had before.
 */
import { spawnSync } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import t, { type Test } from 'tap';
import {
  MultifdError,
  type ReceiveMigrationOptions,
  type Receiver,
  type SendMigrationOptions,
  type Sender,
  receiveMigration,
  relayMigration,
  sendMigration,
} from '../../src/index.js';
import { within } from '../support/within.js';
import { type Parked, park } from './park.js';
import { requirePrograms } from './programs.js';
import { Proxy, type ProxyOptions } from './proxy.js';
import { type Outgoing, Qemu, workFolder } from './qemu.js';
import { Resources } from './resources.js';

const MiB = 2 ** 20;
/** From the fault to the error. */
const ERROR_MS = 10_000;
const GONE_MS = 3000;
const WAIT_MS = 30_000;
/** Slow enough for a fault in the middle. */
const SLOW_BYTES = 8 * MiB;

const { qemu: program } = requirePrograms();
const folder = workFolder(t);
let names = 0;
const newPath = (suffix: string): string => path.join(folder, `f${names++}${suffix}`);

/** Fails within the limit from `fault` on, with one of the codes, and leaves nothing behind. */
async function fails(
  t: Test,
  call: Promise<unknown>,
  code: RegExp,
  before: Resources,
  fault: Promise<unknown> = Promise.resolve(),
): Promise<void> {
  // It may fail while the fault is still being made.
  call.catch(() => {});
  await within(fault, WAIT_MS, 'the fault');
  const since = performance.now();
  const outcome = await within(
    call.then(
      () => undefined,
      (error: unknown) => error,
    ),
    ERROR_MS,
    'an error',
  ).catch((late: unknown) => late);
  const ms = Math.round(performance.now() - since);
  t.ok(outcome instanceof MultifdError, `a MultifdError: ${String(outcome)}`);
  t.match((outcome as MultifdError | undefined)?.code, code, `after ${ms} ms`);
  t.same(await before.left(GONE_MS), [], 'no descriptor and no thread more than before');
}

// ---- receiving ----

interface ReceiveFault {
  source?: Partial<Outgoing>;
  /** Is multifd off at the source? */
  plain?: boolean;
  options?: Partial<ReceiveMigrationOptions>;
  /** Bytes a second, so that there is a middle. */
  bandwidth?: number;
  proxy?: ProxyOptions;
  /** What happens in mid-stream. */
  fault?: (source: Qemu) => Promise<void>;
  code: RegExp;
}

const CHANNEL_ENDS = /^ERR_MULTIFD_(EOF|CONNECTION)$/;

const RECEIVE_FAULTS: Record<string, ReceiveFault> = {
  'the source is killed in mid-stream': { fault: (source) => source.kill(), code: CHANNEL_ENDS },
  'the source is killed in mid-stream, with the return path': {
    source: { returnPath: true, compression: 'zstd' },
    fault: (source) => source.kill(),
    code: CHANNEL_ENDS,
  },
  'the source cancels in mid-stream': {
    fault: async (source) => void (await source.execute('migrate_cancel')),
    code: CHANNEL_ENDS,
  },
  'a channel is cut': { proxy: { cut: { kind: 'channel', afterBytes: 2 * MiB } }, code: CHANNEL_ENDS },
  'the main stream is cut': { proxy: { cut: { kind: 'main', afterBytes: 150 } }, code: CHANNEL_ENDS },
  'the main stream is cut in the devices': {
    proxy: { cut: { kind: 'main', afterBytes: 30_000 } },
    code: CHANNEL_ENDS,
  },
  'the method is another': { source: { compression: 'zlib' }, code: /^ERR_MULTIFD_METHOD$/ },
  'the method is another, and none at the source': {
    options: { compression: 'zstd' },
    code: /^ERR_MULTIFD_METHOD$/,
  },
  'the source has more channels': { source: { channels: 4 }, code: /^ERR_MULTIFD_CHANNEL_ID$/ },
  'the source has fewer channels': {
    source: { channels: 1 },
    code: /^ERR_MULTIFD_(TIMEOUT|EOF|PROTOCOL)$/,
  },
  'the source has no multifd': { plain: true, code: /^ERR_MULTIFD_(TIMEOUT|EOF|PROTOCOL|STREAM)$/ },
  'the page size is another': {
    options: { pageSize: 8192 },
    code: /^ERR_MULTIFD_(STREAM|PAGES_ALLOC|OFFSET)$/,
  },
  'the VM has no uuid, and one is expected': {
    options: { uuid: '00112233-4455-6677-8899-aabbccddeeff' },
    code: /^ERR_MULTIFD_UUID$/,
  },
};

async function receiveFault(t: Test, it: ReceiveFault, keepPartial: boolean, out: string): Promise<void> {
  const source = await Qemu.start(t, program, folder);
  await source.waitUntilReady();
  const sourceOptions: Outgoing = { channels: 2, compression: 'none', ...it.source };
  const listen = newPath('.sock');
  const address = it.proxy === undefined ? listen : newPath('.proxy');
  await source.setMultifd(sourceOptions);
  if (it.plain === true) await source.setCapabilities({ multifd: false });
  await source.setParameters({ 'max-bandwidth': it.fault === undefined ? 2 ** 40 : SLOW_BYTES });
  const before = new Resources();
  const proxy = it.proxy === undefined ? undefined : await Proxy.open(t, address, listen, it.proxy);
  let receiver: Receiver | undefined;
  let go!: () => void;
  const listening = new Promise<void>((resolve) => (go = resolve));
  const call = receiveMigration({
    address: { path: listen },
    channels: 2,
    compression: sourceOptions.compression === 'zstd' ? 'zstd' : 'none',
    out,
    keepPartial,
    onListening: go,
    onSession: (session) => (receiver = session),
    ...it.options,
  });
  call.catch(() => {});
  await Promise.race([listening, call]);
  await source.execute('migrate', { uri: `unix:${address}` });
  const middle = async (): Promise<void> => {
    while ((receiver?.stats().bytes ?? 0) < MiB) await sleep(10);
    await it.fault?.(source);
  };
  const fault = it.fault === undefined ? proxy?.cut : middle();
  await fails(
    t,
    call.finally(() => proxy?.close()),
    it.code,
    before,
    fault,
  );
  t.notOk(fs.existsSync(out), 'nothing under the final name');
  if (!keepPartial) t.notOk(fs.existsSync(`${out}.part`), 'no partial file');
  await source.kill();
}

// The codecs are loaded and the pool of threads is started, by what works; the file serves the sends.
let parked: Parked;
t.test('what works: a guest is parked', async (t) => {
  const source = await Qemu.start(t, program, folder);
  await source.waitUntilReady();
  parked = await park(t, source, { channels: 2, compression: 'zstd' });
  await source.kill();
});

for (const [i, [name, it]] of Object.entries(RECEIVE_FAULTS).entries()) {
  const keepPartial = i % 2 === 0;
  t.test(`receiving: ${name}${keepPartial ? ', partial file kept' : ''}`, async (t) => {
    const out = newPath('.mig');
    await receiveFault(t, it, keepPartial, out);
    fs.rmSync(`${out}.part`, { force: true });
  });
}

t.test('receiving: the disk is full', async (t) => {
  const disk = newPath('.disk');
  fs.mkdirSync(disk);
  const mounted = spawnSync('mount', ['-t', 'tmpfs', '-o', 'size=4m', 'tmpfs', disk]);
  if (mounted.status !== 0) {
    t.pass('nothing can be mounted here');
    return;
  }
  t.teardown(() => spawnSync('umount', ['-l', disk]));
  for (const keepPartial of [false, true]) {
    const out = path.join(disk, 'vm.mig');
    await receiveFault(t, { code: /^ERR_MULTIFD_IO$/ }, keepPartial, out);
    t.same(fs.readdirSync(disk), keepPartial ? ['vm.mig.part'] : []);
    fs.rmSync(`${out}.part`, { force: true });
  }
});

// ---- sending ----

interface SendFault {
  destination?: Partial<Outgoing>;
  machine?: string;
  options?: Partial<SendMigrationOptions>;
  proxy?: ProxyOptions;
  fault?: (destination: Qemu) => Promise<void>;
  code: RegExp;
}

const REFUSED = /^ERR_MULTIFD_(CONNECTION|STREAM)$/;

const SEND_FAULTS: Record<string, SendFault> = {
  'the destination is killed': { fault: (destination) => destination.kill(), code: REFUSED },
  'a channel is cut': { proxy: { cut: { kind: 'channel', afterBytes: 2 * MiB } }, code: REFUSED },
  'the main stream is cut': { proxy: { cut: { kind: 'main', afterBytes: 200 } }, code: REFUSED },
  'the method is another': { destination: { compression: 'zstd' }, code: REFUSED },
  'the method is another, none at the destination': { options: { compression: 'zlib' }, code: REFUSED },
  // QEMU may have closed its listening socket before the second channel connects.
  'the destination has fewer channels': {
    destination: { channels: 1 },
    code: /^ERR_MULTIFD_(CONNECTION|STREAM|CONNECT)$/,
  },
  'the destination has more channels': {
    destination: { channels: 4 },
    code: /^ERR_MULTIFD_(CONNECTION|STREAM|STALL|TIMEOUT)$/,
  },
  'the machine type is another': { machine: 'pc-i440fx-7.2', code: REFUSED },
  'the machine is of another kind': { machine: 'q35', code: REFUSED },
  'the page size is another': { options: { pageSize: 8192 }, code: /^ERR_MULTIFD_(STREAM|CONNECTION)$/ },
};

for (const [name, it] of Object.entries(SEND_FAULTS)) {
  t.test(`sending: ${name}`, async (t) => {
    const { machine } = it;
    const destination = await Qemu.start(t, program, folder, { machine, incoming: true });
    await destination.setMultifd({ channels: 2, compression: 'none', ...it.destination });
    const listen = newPath('.sock');
    await destination.execute('migrate-incoming', { uri: `unix:${listen}` });
    const before = new Resources();
    const address = it.proxy === undefined ? listen : newPath('.proxy');
    const proxy = it.proxy === undefined ? undefined : await Proxy.open(t, address, listen, it.proxy);
    let sender: Sender | undefined;
    const call = sendMigration({
      file: parked.file,
      to: { path: address },
      channels: 2,
      compression: 'none',
      maxBandwidth: it.fault === undefined ? 0 : SLOW_BYTES,
      onSession: (session) => (sender = session),
      ...it.options,
    });
    call.catch(() => {});
    const middle = async (): Promise<void> => {
      while ((sender?.stats().bytes ?? 0) < MiB) await sleep(10);
      await it.fault?.(destination);
    };
    const fault = it.fault === undefined ? proxy?.cut : middle();
    await fails(
      t,
      call.finally(() => proxy?.close()),
      it.code,
      before,
      fault,
    );
    await destination.kill();
  });
}

// ---- relaying ----

for (const victim of ['source', 'destination'] as const) {
  t.test(`relaying: the ${victim} is killed in mid-stream`, async (t) => {
    const source = await Qemu.start(t, program, folder);
    const destination = await Qemu.start(t, program, folder, { incoming: true });
    await source.waitUntilReady();
    const [near, far] = [newPath('.sock'), newPath('.sock')];
    await source.setMultifd({ channels: 2, compression: 'none' });
    await source.setParameters({ 'max-bandwidth': SLOW_BYTES });
    await destination.setMultifd({ channels: 3, compression: 'zstd' });
    await destination.execute('migrate-incoming', { uri: `unix:${far}` });
    const before = new Resources();
    let receiver: Receiver | undefined;
    let go!: () => void;
    const listening = new Promise<void>((resolve) => (go = resolve));
    const call = relayMigration({
      listen: { path: near },
      to: { path: far },
      in: { channels: 2, compression: 'none' },
      out: { channels: 3, compression: 'zstd' },
      onListening: go,
      onSession: (session) => (receiver = session),
    });
    call.catch(() => {});
    await Promise.race([listening, call]);
    await source.execute('migrate', { uri: `unix:${near}` });
    const middle = async (): Promise<void> => {
      while ((receiver?.stats().bytes ?? 0) < MiB) await sleep(10);
      await (victim === 'source' ? source : destination).kill();
    };
    await fails(t, call, CHANNEL_ENDS, before, middle());
    if (victim === 'destination') {
      const info = await source.migrationEnd();
      t.equal(info.status, 'failed', 'the source hears of it');
      t.equal(await source.status(), 'running', 'and keeps its guest');
    }
  });
}
