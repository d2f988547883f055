/**
 * zeroCopySend over loopback, where the kernel copies all the same: what the way itself costs, in time and in processor time
 * of the sender, against the plain way; and against QEMU with zero-copy-send. What it spares shows on a network card only.
 */
import { findKoffi, whyNoKoffi } from '../src/native/koffi.js';
import { alternate, counted, ratios, row, type Row } from './support/measure.js';
import { migrate } from './support/migrate.js';
import { compare } from './support/qemu-compare.js';
import { remark } from './support/remark.js';

const SIZE = 2 ** 30;
const PASSES = 2;
const ROUNDS = 3;
const PAIRS = 3;
/** Code that runs for the first time is slow. */
const WARM_UP_BYTES = 2 ** 27;

export async function* run(): AsyncGenerator<Row> {
  if (findKoffi() === undefined) {
    remark('zero-copy', `skipped: ${whyNoKoffi()}`);
    return;
  }
  for (const channels of [1, 2]) {
    const cpu = { plain: [] as number[], 'without copies': [] as number[] };
    const side = (name: keyof typeof cpu) => async (): Promise<number> => {
      const zeroCopySend = name !== 'plain';
      const how = {
        size: SIZE,
        channels,
        image: 'random',
        warmUpBytes: WARM_UP_BYTES,
        zeroCopySend,
      } as const;
      const { seconds, send } = await migrate(how, PASSES);
      cpu[name].push(send.cpuSeconds / PASSES);
      return (PASSES * SIZE) / 1e9 / seconds.reduce((sum, one) => sum + one, 0);
    };
    const sides = { plain: side('plain'), 'without copies': side('without copies') };
    const speed = await alternate(sides, ROUNDS, { warmUp: false });
    const name = `random RAM, ${counted(channels, 'channel')}`;
    for (const way of ['plain', 'without copies'] as const) {
      yield row('zero-copy', `${name}: ${way}`, 'GB/s', speed[way]);
      yield row('zero-copy', `${name}: ${way}, processor time of the sender for 1 GiB`, 's', cpu[way]);
    }
    const share = ratios(speed['without copies'], speed.plain);
    yield row('zero-copy', `${name}: speed without copies against plain`, '', share);
    const time = ratios(cpu['without copies'], cpu.plain);
    yield row('zero-copy', `${name}: processor time without copies against plain`, '', time);
  }
  const how = { compression: 'none', image: 'random', prefault: true, pairs: PAIRS } as const;
  yield* compare('zero-copy', [{ ...how, channels: 2, zeroCopySend: true }]);
}
