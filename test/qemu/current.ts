/**
 * A guest of the new QEMU: zero-page mode x channels for one method. Those with two channels run the machine type of 7.2,
 * which speaks the older dialect of the main stream and can be sent to a QEMU of that version.
 */
import type { Compression, ZeroPageDetection } from '../../src/options.js';
import { CHANNELS, METHODS, type MatrixCase, type Peer } from './matrix.js';
import { ALL_ROWS } from './rows.js';

const ZERO_PAGES: readonly ZeroPageDetection[] = ['none', 'legacy', 'multifd'];

export function currentCases(compression: Compression): MatrixCase[] {
  const m = METHODS.indexOf(compression);
  return ZERO_PAGES.flatMap((zeroPages, z) =>
    CHANNELS.flatMap((channels, c): MatrixCase[] => {
      // A third: over the methods each mode with each number of channels, and for each method one that is sent.
      if (!ALL_ROWS && (c + m) % 3 !== (z + 1) % 3) return [];
      const old = channels === 2;
      const peers: Peer[] = old ? ['qemu72', 'qemu'] : ['qemu'];
      // Of the machine type of 7.2 one, to two destinations; of the newest one.
      const sent = z === m ? old : z === (m + 1) % 3 && c === 2 * (m % 2);
      const sends = peers.map((to, i) => ({
        to,
        channels: CHANNELS[(m + z + i) % 3],
        compression: METHODS[(m + 1 + i) % 3],
      }));
      const row: MatrixCase = {
        source: 'qemu',
        machine: old ? 'pc-i440fx-7.2' : 'pc',
        compression,
        zeroPages,
        channels,
        paused: (m + z + c) % 3 === 2,
        returnPath: (m + z + 2 * c) % 3 === 1,
        loadChannels: (z + c) % 2 === 1 ? CHANNELS[z] : 0,
        sends: sent ? sends : [],
      };
      return [row];
    }),
  );
}
