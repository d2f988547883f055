/** Between two hosts: QEMU -> plain -> relay -> TLS -> relay -> plain -> QEMU, while the guest runs. */
import path from 'node:path';
import t from 'tap';
import { relayMigration, type RelayMigrationOptions, type RelayedMigration } from '../../src/index.js';
import { within } from '../support/within.js';
import type { Peer } from './matrix.js';
import { checkGuest, checkSource, migrate } from './park.js';
import { type Program, requirePrograms } from './programs.js';
import { Proxy } from './proxy.js';
import { Qemu, workFolder } from './qemu.js';
import { type Kind, makeFolders, ourTls } from './tls.js';

const RELAY_MS = 60_000;
const OLD = 'pc-i440fx-7.2';
/** The first byte of a TLS record of the handshake. */
const TLS_HANDSHAKE = 0x16;

interface RelaysCase {
  kind: Kind;
  from: Peer;
  to: Peer;
  machine?: string;
  returnPath: boolean;
}

const CASES: readonly RelaysCase[] = [
  { kind: 'x509', from: 'qemu', to: 'qemu', returnPath: true },
  { kind: 'psk', from: 'qemu', to: 'qemu', returnPath: false },
  { kind: 'psk', from: 'qemu72', to: 'qemu', machine: OLD, returnPath: true },
  { kind: 'x509', from: 'qemu', to: 'qemu72', machine: OLD, returnPath: false },
];

const programs: Record<Peer, Program> = requirePrograms();
const folder = workFolder(t);
const dirs = makeFolders(folder);

async function relay(
  options: Omit<RelayMigrationOptions, 'onListening'>,
): Promise<() => Promise<RelayedMigration>> {
  let listen!: () => void;
  const listening = new Promise<void>((resolve) => (listen = resolve));
  const result = relayMigration({ ...options, onListening: listen });
  result.catch(() => {});
  await Promise.race([listening, result]);
  return () => within(result, RELAY_MS, 'relayMigration()');
}

for (const [i, { kind, from, to, machine, returnPath }] of CASES.entries()) {
  const what = `${kind}${returnPath ? ', return path' : ''}`;
  t.test(
    `QEMU ${programs[from].version} -> relay -> ${what} -> relay -> QEMU ${programs[to].version}`,
    async (t) => {
      const dir = (await dirs)[kind];
      const source = await Qemu.start(t, programs[from], folder, { machine });
      const destination = await Qemu.start(t, programs[to], folder, { machine, incoming: true });
      await source.waitUntilReady();
      const at = (name: string): string => path.join(folder, `${name}${i}.sock`);
      const near = { channels: 2, compression: 'none' } as const;
      const wire = { channels: 3, compression: 'zstd' } as const;
      const far = { channels: 1, compression: 'none' } as const;
      await destination.setMultifd({ ...far, returnPath });
      await destination.execute('migrate-incoming', { uri: `unix:${at('far')}` });
      const second = await relay({
        listen: { path: at('second') },
        to: { path: at('far') },
        in: { ...wire, tls: ourTls(kind, dir, 'server') },
        out: far,
      });
      const proxy = await Proxy.open(t, at('wire'), at('second'), { record: true });
      const first = await relay({
        listen: { path: at('near') },
        to: { path: at('wire') },
        in: near,
        out: { ...wire, tls: ourTls(kind, dir, 'client') },
      });
      const migrating = migrate(source, `unix:${at('near')}`, { ...near, returnPath });
      const [one, two] = await Promise.all([first(), second(), migrating]);
      const { ram, counter } = await checkSource(t, source, false);
      t.equal(one.sent.normalPages, one.received.normalPages, 'every page goes on');
      t.equal(two.received.normalPages, one.sent.normalPages, 'and comes');
      t.equal(proxy.passed.length, 1 + wire.channels, 'main and the channels');
      t.ok(
        proxy.passed.every(({ chunks }) => chunks[0][0] === TLS_HANDSHAKE),
        'nothing between the relays is plain text',
      );
      await checkGuest(t, destination, { ram, counter });
      await source.kill();
    },
  );
}
