/**
 * The TLS matrix: each case parks a guest by `receiveMigration` with TLS and sends it on to another QEMU with TLS. What is
 * not in the product (channels, return path, tcp) rotates, so that each value meets each kind, version and method.
 */
import fs from 'node:fs';
import file from 'tap';
import type { Compression } from '../../src/options.js';
import type { TlsVersion } from '../../src/index.js';
import { CHANNELS, type Peer } from './matrix.js';
import { park, resume, send } from './park.js';
import { type Program, requirePrograms } from './programs.js';
import { Qemu, workFolder } from './qemu.js';
import { type Kind, makeFolders } from './tls.js';

/** What both versions have, and what makes the new one insist on an orderly end of TLS on each channel (10.0 and later). */
const OLD_MACHINE = 'pc-i440fx-7.2';
const NEW_MACHINE = 'pc-i440fx-10.0';
const METHODS: readonly Compression[] = ['none', 'zstd'];
const VERSIONS: readonly TlsVersion[] = ['TLSv1.2', 'TLSv1.3'];

export interface TlsCase {
  source: Peer;
  destination: Peer;
  kind: Kind;
  version: TlsVersion;
  compression: Compression;
  channels: number;
  returnPath: boolean;
  tcp: boolean;
}

/** @param all every number of channels, with the return path and without */
export function tlsCases(source: Peer, kind: Kind, all: boolean): TlsCase[] {
  const cases: TlsCase[] = [];
  for (const version of VERSIONS) {
    for (const compression of METHODS) {
      const i = cases.length;
      for (const [j, channels] of CHANNELS.entries()) {
        for (const returnPath of [false, true]) {
          const rotated =
            j === (i + (kind === 'psk' ? 1 : 0)) % CHANNELS.length && returnPath === (i % 2 === 0);
          if (!all && !rotated) continue;
          const destination = (i + j) % 2 === 0 ? 'qemu' : 'qemu72';
          cases.push({
            source,
            destination,
            kind,
            version,
            compression,
            channels,
            returnPath,
            tcp: j % 2 === 0,
          });
        }
      }
    }
  }
  return cases;
}

export function runTlsMatrix(cases: readonly TlsCase[]): void {
  const programs: Record<Peer, Program> = requirePrograms();
  const folder = workFolder(file);
  const dirs = makeFolders(folder);
  const sources = new Map<string, Promise<Qemu>>();
  for (const it of cases) {
    const { kind, version, compression, channels, returnPath, tcp } = it;
    const from = programs[it.source].version;
    const to = programs[it.destination].version;
    const path = returnPath ? ', return path' : '';
    file.test(
      `${kind}, ${version}, ${compression} x ${channels}${path}: QEMU ${from} -> file -> QEMU ${to}`,
      async (t) => {
        const dir = (await dirs)[kind];
        const isNew = it.source === 'qemu' && it.destination === 'qemu';
        const machine = isNew ? NEW_MACHINE : OLD_MACHINE;
        const source = sources.get(machine) ?? Qemu.start(file, programs[it.source], folder, { machine });
        sources.set(machine, source);
        const guest = await source;
        await resume(guest);
        await guest.waitUntilReady();
        const options = { channels, compression, tcp, tls: { kind, dir, version } };
        const parked = await park(t, guest, { ...options, returnPath, paused: true });
        t.equal(parked.received.stats.strays, 0);
        const sent = await send(t, programs[it.destination], parked, folder, options);
        t.equal(sent.machine, parked.machine);
        fs.rmSync(parked.file);
      },
    );
  }
}
