/**
 * The park matrix: each case parks the guest of a source that serves several cases, loads the file with a stock QEMU of
 * the new version and, for some, sends it on. What is not in the product that has to be whole (source, method, zero-page
 * mode, channels) rotates: paused before, return path, multifd when loading, and where, how and to whom it is sent.
 */
import fs from 'node:fs';
import t from 'tap';
import type { Compression } from '../../src/options.js';
import { type ParkOptions, load, park, resume, send } from './park.js';
import { type Program, requirePrograms } from './programs.js';
import { Qemu, workFolder } from './qemu.js';

export const METHODS: readonly Compression[] = ['none', 'zlib', 'zstd'];
export const CHANNELS: readonly number[] = [1, 2, 8];

export type Peer = 'qemu' | 'qemu72';

export interface MatrixCase extends ParkOptions {
  source: Peer;
  machine: string;
  /** Channels with which the file is loaded, by multifd; 0: without it. */
  loadChannels: number;
  sends: { to: Peer; channels: number; compression: Compression }[];
}

function title(it: MatrixCase, programs: Record<Peer, Program>): string {
  const { source, machine, compression, zeroPages, channels, paused, returnPath, loadChannels, sends } = it;
  const zeros = zeroPages === undefined ? '' : `, zero pages ${zeroPages}`;
  const extras = `${paused === true ? ', paused' : ''}${returnPath === true ? ', return path' : ''}`;
  const loaded = loadChannels > 0 ? `loaded with ${loadChannels} channels` : 'loaded';
  const sent = sends.map((to) => `, sent to ${programs[to.to].version} (${to.compression}, ${to.channels})`);
  const guest = `QEMU ${programs[source].version}, ${machine}, ${compression}`;
  return `${guest}${zeros}, ${channels} channels${extras}: parked, ${loaded}${sent.join('')}`;
}

export function runMatrix(cases: readonly MatrixCase[]): void {
  const programs: Record<Peer, Program> = requirePrograms();
  const folder = workFolder(t);
  const sources = new Map<string, Promise<Qemu>>();
  const sourceOf = ({ source, machine }: MatrixCase): Promise<Qemu> => {
    const key = `${source} ${machine}`;
    const known = sources.get(key) ?? Qemu.start(t, programs[source], folder, { machine });
    sources.set(key, known);
    return known;
  };
  for (const it of cases) {
    t.test(title(it, programs), async (t) => {
      const source = await sourceOf(it);
      await resume(source);
      await source.waitUntilReady();
      const parked = await park(t, source, it);
      await load(t, programs.qemu, parked, folder, { channels: it.loadChannels });
      for (const { to, ...options } of it.sends) {
        const sent = await send(t, programs[to], parked, folder, options);
        t.equal(sent.machine, parked.machine);
      }
      fs.rmSync(parked.file);
    });
  }
}
