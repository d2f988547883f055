/**
 * VMs with sections beside ram before ram's END: virtio-mem's early state, dirty bitmaps. Each is relayed while it runs,
 * parked in a file, loaded from there by QEMU, and sent on by us.
 */
import fs from 'node:fs';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import t, { type Test } from 'tap';
import { readMappedRam, relayMigration, sendMigration, type RelayMigrationOptions } from '../../src/index.js';
import { within } from '../support/within.js';
import { checkGuest, checkSource, migrate, park } from './park.js';
import { requirePrograms } from './programs.js';
import { Qemu, workFolder } from './qemu.js';

const LIMIT_MS = 60_000;
const DISK_BYTES = 64 * 2 ** 20;
const GRANULARITY = 65536;

interface Vm {
  name: string;
  /** More of the command line, at both ends. */
  extra: string[];
  capabilities: Record<string, boolean>;
  /** What makes the source's state one to be compared. */
  prepare(source: Qemu): Promise<void>;
  state(qemu: Qemu): Promise<unknown>;
  has: unknown;
}

const { qemu: program } = requirePrograms();
const folder = workFolder(t);

/** Both ends of a migration have it open. */
function fileNode(name: string): object {
  const filename = path.join(folder, name);
  if (!fs.existsSync(filename)) {
    fs.writeFileSync(filename, '');
    if (name.endsWith('.raw')) fs.truncateSync(filename, DISK_BYTES);
  }
  return { driver: 'file', filename, locking: 'off' };
}

/** QEMU makes the image itself: its qemu-img is another package. */
async function makeQcow2(name: string): Promise<void> {
  const qemu = await Qemu.start(t, program, folder, {});
  await qemu.execute('blockdev-add', { 'node-name': 'proto', ...fileNode(name) });
  const options = { driver: 'qcow2', file: 'proto', size: DISK_BYTES };
  await qemu.execute('blockdev-create', { 'job-id': 'create', options });
  const late = performance.now() + LIMIT_MS;
  for (let status = ''; status !== 'concluded'; await sleep(20)) {
    const [job] = (await qemu.execute('query-jobs')) as { status: string; error?: string }[];
    if (job.error !== undefined || performance.now() > late) throw new Error(`image: ${job.error ?? 'late'}`);
    ({ status } = job);
  }
  await qemu.execute('job-dismiss', { id: 'create' });
  await qemu.execute('quit');
}

interface Node {
  'node-name': string;
  'dirty-bitmaps'?: {
    name: string;
    count: number;
    granularity: number;
    recording: boolean;
    persistent: boolean;
  }[];
}

function withBitmaps(name: string, driver: string, persistent: boolean): Vm {
  const node = { driver, 'node-name': 'disk0', file: fileNode(`disk.${driver}`) };
  return {
    name,
    extra: ['-blockdev', JSON.stringify(node)],
    capabilities: { 'dirty-bitmaps': true },
    prepare: async (source) => {
      for (const bitmap of ['backup', 'empty']) {
        const options = { node: 'disk0', name: bitmap, granularity: GRANULARITY, persistent };
        await source.execute('block-dirty-bitmap-add', options);
      }
      await source.execute('block-dirty-bitmap-disable', { node: 'disk0', name: 'empty' });
      await source.execute('human-monitor-command', { 'command-line': 'qemu-io disk0 "write 1M 3M"' });
    },
    state: async (qemu) => {
      const nodes = (await qemu.execute('query-named-block-nodes')) as Node[];
      const bitmaps = nodes.find((node) => node['node-name'] === 'disk0')?.['dirty-bitmaps'] ?? [];
      return bitmaps
        .map(({ name, count, granularity, recording, persistent }) => {
          return { name, count, granularity, recording, persistent };
        })
        .sort((a, b) => a.name.localeCompare(b.name));
    },
    has: [
      { name: 'backup', count: 3 * 2 ** 20, recording: true, persistent },
      { name: 'empty', count: 0, recording: false, persistent },
    ],
  };
}

const VMS: readonly Vm[] = [
  {
    name: 'virtio-mem',
    extra: [
      ...['-m', '128M,maxmem=1G', '-object', 'memory-backend-ram,id=vm0,size=128M'],
      ...['-device', 'virtio-mem-pci,id=mem0,memdev=vm0,requested-size=64M'],
    ],
    capabilities: {},
    prepare: async () => {},
    state: (qemu) => qemu.execute('query-memory-devices'),
    has: [{ type: 'virtio-mem', data: { 'requested-size': 64 * 2 ** 20 } }],
  },
  withBitmaps('dirty bitmaps', 'raw', false),
  withBitmaps('persistent dirty bitmaps', 'qcow2', true),
];

async function destinationOf(t: Test, vm: Vm, capabilities: Record<string, boolean>): Promise<Qemu> {
  const destination = await Qemu.start(t, program, folder, { incoming: true, extra: vm.extra });
  await destination.setCapabilities({ ...vm.capabilities, ...capabilities });
  return destination;
}

async function sourceOf(t: Test, vm: Vm): Promise<{ source: Qemu; state: unknown }> {
  const source = await Qemu.start(t, program, folder, { extra: vm.extra });
  await source.waitUntilReady();
  await vm.prepare(source);
  await source.setCapabilities(vm.capabilities);
  const state = await vm.state(source);
  t.match(state, vm.has, 'there is something to compare');
  return { source, state };
}

t.before(() => makeQcow2('disk.qcow2'));

for (const [i, vm] of VMS.entries()) {
  for (const returnPath of [false, true]) {
    t.test(`${vm.name}${returnPath ? ', return path' : ''}: relayed while it runs`, async (t) => {
      const { source, state } = await sourceOf(t, vm);
      const near = `unix:${path.join(folder, `near${i}${returnPath}`)}` as const;
      const far = `unix:${path.join(folder, `far${i}${returnPath}`)}` as const;
      const destination = await destinationOf(t, vm, {});
      await destination.setMultifd({ channels: 4, compression: 'zstd', returnPath });
      await destination.execute('migrate-incoming', { uri: far });
      let listen!: () => void;
      const listening = new Promise<void>((resolve) => (listen = resolve));
      const options: RelayMigrationOptions = {
        ...{ listen: near, to: far, in: { channels: 2 }, onListening: listen },
        out: { channels: 4, compression: 'zstd' },
      };
      const result = relayMigration(options);
      result.catch(() => {});
      await Promise.race([listening, result]);
      const migrating = migrate(source, near, { channels: 2, compression: 'none', returnPath });
      await Promise.all([within(result, LIMIT_MS, 'relayMigration()'), migrating]);
      const guest = await checkSource(t, source, false);
      t.equal((await destination.migrationEnd()).status, 'completed');
      t.same(await vm.state(destination), state, 'its state is that of the source');
      await checkGuest(t, destination, guest);
      await source.kill();
    });
  }

  t.test(`${vm.name}: parked, loaded by QEMU, and sent`, async (t) => {
    const { source, state } = await sourceOf(t, vm);
    const parked = await park(t, source, { channels: 2, compression: 'none', returnPath: true });
    const { sectionsBesideRam } = await readMappedRam(parked.file);
    t.ok(sectionsBesideRam.length > 0, 'the file has the sections');
    await source.kill();
    const loading = await destinationOf(t, vm, { 'mapped-ram': true });
    await loading.execute('migrate-incoming', { uri: `file:${parked.file}` });
    t.equal((await loading.migrationEnd()).status, 'completed', 'QEMU has loaded the file');
    t.same(await vm.state(loading), state, 'with its state');
    await checkGuest(t, loading, parked);
    const destination = await destinationOf(t, vm, {});
    await destination.setMultifd({ channels: 2, compression: 'zlib' });
    const to = `unix:${path.join(folder, `sent${i}`)}` as const;
    await destination.execute('migrate-incoming', { uri: to });
    const sending = sendMigration({ file: parked.file, to, channels: 2, compression: 'zlib' });
    await within(sending, LIMIT_MS, 'sendMigration()');
    t.equal((await destination.migrationEnd()).status, 'completed');
    t.same(await vm.state(destination), state, 'with its state');
    await checkGuest(t, destination, parked);
  });
}
