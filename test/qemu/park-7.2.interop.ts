/** A guest of QEMU 7.2, whose zero pages are always `legacy`: method x channels. */
import { ALL_ROWS } from './rows.js';
import { CHANNELS, METHODS, type MatrixCase, type Peer, runMatrix } from './matrix.js';

const PEERS: readonly Peer[] = ['qemu72', 'qemu'];

runMatrix(
  METHODS.flatMap((compression, m) =>
    CHANNELS.flatMap((channels, c): MatrixCase[] => {
      if (!ALL_ROWS && c !== m) return [];
      // Three of the nine, each with another method and another number of channels than it was parked with.
      const sent = c === m;
      const sends = PEERS.map((to, i) => ({
        to,
        channels: CHANNELS[(m + 1 + i) % 3],
        compression: METHODS[(m + 1) % 3],
      }));
      const row: MatrixCase = {
        source: 'qemu72',
        machine: 'pc-i440fx-7.2',
        compression,
        channels,
        paused: (m + c) % 3 === 2,
        returnPath: (m + 2 * c) % 3 === 1,
        loadChannels: (m + c) % 2 === 1 ? CHANNELS[m] : 0,
        sends: sent ? sends : [],
      };
      return [row];
    }),
  ),
);
