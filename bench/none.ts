/** Method none on random RAM against plain sockets between workers: the same bytes, both memories written before. */
import { Engine, mustBeEqual, rate } from './support/engine.js';
import { fillImage, prefault } from './support/image.js';
import { alternate, counted, ratios, row, type Plot, type Row } from './support/measure.js';
import { PlainSockets } from './support/plain.js';

const BYTES = 2 ** 29;
const ROUNDS = 7;
/** At least this share of what the plain sockets move. */
const FLOOR = 0.6;

export async function run(): Promise<Row[]> {
  const rows: Row[] = [];
  const source = new SharedArrayBuffer(BYTES);
  const destination = new SharedArrayBuffer(BYTES);
  fillImage(source, 'random');
  prefault(destination);
  for (const channels of [1, 2]) {
    const engine = await Engine.open(source, destination, { channels });
    const plain = await PlainSockets.open(source, destination, channels);
    const figures = await alternate(
      {
        multifd: () => rate(BYTES, () => engine.move()),
        plain: () => rate(BYTES, () => plain.move()),
      },
      ROUNDS,
    );
    Buffer.from(destination).fill(0);
    await engine.move();
    mustBeEqual(source, destination);
    await engine.close();
    await plain.close();
    const plot = (series: string): Plot => ({ chart: 'plain', series, x: channels });
    const name = `random RAM, ${counted(channels, 'channel')}`;
    rows.push(row('none', `${name}: multifd`, 'GB/s', figures.multifd, { plot: plot('multifd') }));
    rows.push(row('none', `${name}: plain sockets`, 'GB/s', figures.plain, { plot: plot('plain sockets') }));
    rows.push(
      row('none', `${name}: share of plain sockets`, '', ratios(figures.multifd, figures.plain), {
        floor: FLOOR,
      }),
    );
  }
  return rows;
}
