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
/** As many as a hello can name, at both ends: 510 threads. */
const MOST_CHANNELS = 255;
/** Milliseconds: ten seconds for the 255 of each end, which share two cores. */
const MOST_CHANNELS_CEILING = 20_000;
const WARM_UP_BYTES = 2 ** 27;

export async function run(): Promise<Row[]> {
  return [...(await startups()), ...(await delays())];
}

interface Startup {
  process: number;
  open: number;
  packet: number;
  all: number;
  end: number;
  cpu: number;
}

const STEPS: Record<keyof Startup, string> = {
  process: 'process started to ready',
  open: 'createReceiver() to createSender() back',
  packet: 'from there to the first packet received',
  all: 'createReceiver() to the first packet received',
  end: "the receiver's end()",
  cpu: 'CPU a thread until all have started, one at each end of a channel',
};

async function startups(): Promise<Row[]> {
  const rows: Row[] = [];
  for (const channels of [1, 2, 8, MOST_CHANNELS]) {
    const rounds: Startup[] = [];
    for (let round = 0; round < (channels === MOST_CHANNELS ? 1 : ROUNDS); round++)
      rounds.push(await startup(channels));
    for (const [step, name] of Object.entries(STEPS) as [keyof Startup, string][]) {
      const values = rounds.map((round) => round[step]);
      const plot: Plot = { chart: 'startup', series: name, x: channels };
      const count = counted(channels, 'channel');
      const ceiling = channels === MOST_CHANNELS && step === 'open' ? MOST_CHANNELS_CEILING : undefined;
      rows.push(row('startup', `${count}: ${name}`, 'ms', values, { plot, ceiling }));
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
  const [sent, received] = await Promise.all([
    sender.next<{ openMs: number; cpuMs: number }>(),
    receiver.next<{ begunMs: number; firstMs: number; cpuMs: number; endMs: number }>(),
  ]);
  const { openMs } = sent;
  const { begunMs, firstMs } = received;
  await Promise.all([sender.end(), receiver.end()]);
  return {
    process: readyMs - forkedMs,
    open: openMs - begunMs,
    packet: firstMs - openMs,
    all: firstMs - begunMs,
    end: received.endMs,
    cpu: (sent.cpuMs + received.cpuMs) / (2 * channels),
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
