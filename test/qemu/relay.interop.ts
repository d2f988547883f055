/** A live migration from QEMU to QEMU with us between: other channels, another method, while the guest runs. */
import path from 'node:path';
import t from 'tap';
import { relayMigration } from '../../src/index.js';
import type { RelaySide } from '../../src/migration/relay.js';
import { within } from '../support/within.js';
import type { Peer } from './matrix.js';
import { checkGuest, checkSource, migrate } from './park.js';
import { type Program, requirePrograms } from './programs.js';
import { Qemu, workFolder } from './qemu.js';

const RELAY_MS = 60_000;

type Side = Required<Omit<RelaySide, 'tls'>>;

interface RelayCase {
  from: Peer;
  to: Peer;
  machine?: string;
  in: Side;
  out: Side;
  returnPath?: boolean;
  paused?: boolean;
}

const OLD = 'pc-i440fx-7.2';
const CASES: readonly RelayCase[] = [
  {
    from: 'qemu',
    to: 'qemu',
    in: { channels: 2, compression: 'none' },
    out: { channels: 4, compression: 'zstd' },
  },
  {
    from: 'qemu',
    to: 'qemu',
    in: { channels: 8, compression: 'zstd' },
    out: { channels: 1, compression: 'zlib' },
    returnPath: true,
  },
  {
    from: 'qemu72',
    to: 'qemu72',
    machine: OLD,
    in: { channels: 2, compression: 'none' },
    out: { channels: 3, compression: 'zstd' },
    returnPath: true,
  },
  {
    from: 'qemu72',
    to: 'qemu72',
    machine: OLD,
    in: { channels: 1, compression: 'zstd' },
    out: { channels: 2, compression: 'zlib' },
  },
  {
    from: 'qemu72',
    to: 'qemu',
    machine: OLD,
    in: { channels: 2, compression: 'zlib' },
    out: { channels: 2, compression: 'none' },
  },
  {
    from: 'qemu',
    to: 'qemu72',
    machine: OLD,
    in: { channels: 4, compression: 'none' },
    out: { channels: 2, compression: 'zstd' },
    paused: true,
  },
];

const programs: Record<Peer, Program> = requirePrograms();
const folder = workFolder(t);

for (const [i, it] of CASES.entries()) {
  const side = ({ channels, compression }: Side): string => `${compression} x ${channels}`;
  const path_ = it.returnPath === true ? ', return path' : '';
  const name = `${programs[it.from].version}, ${side(it.in)} -> ${side(it.out)}, ${programs[it.to].version}`;
  t.test(`${name}${path_}${it.paused === true ? ', paused' : ''}: relayed`, async (t) => {
    const { machine } = it;
    const source = await Qemu.start(t, programs[it.from], folder, { machine });
    const destination = await Qemu.start(t, programs[it.to], folder, { machine, incoming: true });
    await source.waitUntilReady();
    const near = `unix:${path.join(folder, `near${i}.sock`)}` as const;
    const far = `unix:${path.join(folder, `far${i}.sock`)}` as const;
    await destination.setMultifd({ ...it.out, returnPath: it.returnPath });
    await destination.execute('migrate-incoming', { uri: far });
    let listen!: () => void;
    const listening = new Promise<void>((resolve) => (listen = resolve));
    const result = relayMigration({ listen: near, to: far, in: it.in, out: it.out, onListening: listen });
    result.catch(() => {});
    await Promise.race([listening, result]);
    const migrating = migrate(source, near, { ...it.in, returnPath: it.returnPath, paused: it.paused });
    const [relayed] = await Promise.all([within(result, RELAY_MS, 'relayMigration()'), migrating]);
    const { ram, counter } = await checkSource(t, source, it.paused === true);
    t.equal(relayed.sent.normalPages, relayed.received.normalPages, 'every page goes on');
    await checkGuest(t, destination, { ram, counter });
    await source.kill();
  });
}
