/**
 * Start-up to the first packet, and the delay of either side's event loop while a migration runs at full speed. Two
 * fresh processes each time.
 *
 *     fork ---------> both ready ---------> createReceiver() ------> createSender() is back ------> first packet
 *      |   loaded         |                       |    threads, connections    |   page, hand-over       |
 */
import type { Address, Compression } from '../src/index.js';
import { Child } from './support/child.js';
import { counted, monotonicMs, row, type Plot, type Row } from './support/measure.js';
import { migrate } from './support/migrate.js';

const GIB = 2 ** 30;
const ROUNDS = 3;
/** Milliseconds, p99. */
const DELAY_CEILING = 10;
const WARM_UP_BYTES = 2 ** 27;

export async function run(): Promise<Row[]> {
  return [...(await startups()), ...(await delays())];
}

interface Startup {
  process: number;
  open: number;
  packet: number;
  all: number;
}

const STEPS: Record<keyof Startup, string> = {
  process: 'process started to ready',
  open: 'createReceiver() to createSender() back',
  packet: 'from there to the first packet received',
  all: 'createReceiver() to the first packet received',
};

async function startups(): Promise<Row[]> {
  const rows: Row[] = [];
  for (const channels of [1, 2, 8]) {
    const rounds: Startup[] = [];
    for (let round = 0; round < ROUNDS; round++) rounds.push(await startup(channels));
    for (const [step, name] of Object.entries(STEPS) as [keyof Startup, string][]) {
      const values = rounds.map((round) => round[step]);
      const plot: Plot = { chart: 'startup', series: name, x: channels };
      const count = counted(channels, 'channel');
      rows.push(row('startup', `${count}: ${name}`, 'ms', values, { plot }));
    }
  }
  return rows;
}

async function startup(channels: number): Promise<Startup> {
  const forkedMs = monotonicMs();
  const receiver = new Child('./startup-endpoint.js', { role: 'receive', channels });
  const sender = new Child('./startup-endpoint.js', { role: 'send', channels });
  const ready = await Promise.all([sender.next<{ readyMs: number }>(), receiver.next<{ readyMs: number }>()]);
  const readyMs = Math.max(...ready.map((one) => one.readyMs));
  receiver.tell({ go: true });
  sender.tell(await receiver.next<{ address: Address }>());
  const [{ openMs }, { begunMs, firstMs }] = await Promise.all([
    sender.next<{ openMs: number }>(),
    receiver.next<{ begunMs: number; firstMs: number }>(),
  ]);
  await Promise.all([sender.end(), receiver.end()]);
  return {
    process: readyMs - forkedMs,
    open: openMs - begunMs,
    packet: firstMs - openMs,
    all: firstMs - begunMs,
  };
}

async function delays(): Promise<Row[]> {
  const rows: Row[] = [];
  for (const [compression, passes] of [
    ['none', 3],
    ['zstd', 1],
  ] as const satisfies [Compression, number][]) {
    const how = { size: GIB, channels: 2, compression, warmUpBytes: WARM_UP_BYTES, watchLoop: true };
    const { send, receive } = await migrate(how, passes);
    for (const [side, { delay }] of Object.entries({ sender: send, receiver: receive })) {
      for (const [what, value] of Object.entries(delay)) {
        rows.push(
          row('startup', `event loop of the ${side}, ${compression}, 1 GiB: delay, ${what}`, 'ms', [value], {
            ...(what === 'p99' && { ceiling: DELAY_CEILING }),
            plot: { chart: 'loop-delay', series: `${side}, ${compression}`, x: what },
          }),
        );
      }
    }
  }
  return rows;
}
