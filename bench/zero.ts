/** An all-zero guest: zero-page detection, headers, and zero pages at the receiver. */
import { Engine, mustBeEqual, rate } from './support/engine.js';
import { fillImage, prefault } from './support/image.js';
import { counted, row, type Row } from './support/measure.js';

const BYTES = 2 ** 30;
const ROUNDS = 9;
/** GB/s for each channel. */
const FLOOR = 6;

export async function run(): Promise<Row[]> {
  const rows: Row[] = [];
  const source = new SharedArrayBuffer(BYTES);
  const destination = new SharedArrayBuffer(BYTES);
  fillImage(source, 'zero');
  prefault(destination);
  for (const channels of [1, 2]) {
    const engine = await Engine.open(source, destination, { channels });
    const figures: number[] = [];
    for (let round = 0; round <= ROUNDS; round++) {
      const figure = await rate(BYTES, () => engine.move());
      if (round > 0) figures.push(figure);
    }
    mustBeEqual(source, destination);
    await engine.close();
    // Two channels with two ends are four busy threads: on two cores each has half a core.
    const more: Partial<Row> = {
      ...(channels === 1 && { floor: FLOOR }),
      plot: { chart: 'zero', series: 'multifd', x: channels },
    };
    rows.push(row('zero', `all zero, ${counted(channels, 'channel')}`, 'GB/s', figures, more));
  }
  return rows;
}
