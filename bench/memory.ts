/** Memory above the guest's RAM, for each channel, on either side: the peak of a process of its own. */
import type { Compression } from '../src/index.js';
import { row, type Row } from './support/measure.js';
import { migrate } from './support/migrate.js';

const MIB = 2 ** 20;
const PASSES = 3;
/** MiB a channel. */
const CEILING = 25;

export async function run(): Promise<Row[]> {
  const rows: Row[] = [];
  for (const compression of ['none', 'zlib', 'zstd'] as const satisfies Compression[]) {
    for (const [size, channels] of [
      [256 * MIB, 2],
      [1024 * MIB, 2],
      [256 * MIB, 8],
    ]) {
      // A gigabyte through zlib takes ten seconds and shows nothing that zstd does not.
      if (compression === 'zlib' && size > 256 * MIB) continue;
      const { send, receive } = await migrate({ size, channels, compression }, PASSES);
      const name = `${compression}, ${size / MIB} MiB, ${channels} channels`;
      for (const [side, { above }] of Object.entries({ sender: send, receiver: receive })) {
        rows.push(
          row('memory', `${name}: ${side}, a channel`, 'MiB', [above / channels / MIB], {
            ceiling: CEILING,
            plot: {
              chart: 'memory',
              series: `${compression}, ${side}`,
              x: `${size / MIB} MiB, ${channels} channels`,
            },
          }),
        );
      }
    }
  }
  return rows;
}
