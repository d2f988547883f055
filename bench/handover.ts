/**
 * The hand-over without its payload: jobs through the real Control to threads that give them back at once, and what
 * queueing costs the main thread.
 *
 *     jobs a second   the main thread publishes to whichever channel is idle, as the sender does
 *     latency         one job at a time, from publish() until the channel is idle again; the next job takes the next
 *                     channel, so that with many of them each has gone to sleep by its turn
 *     queueing        the main thread's time for each page of an all-zero guest, with a receiver in this process:
 *                       queueing and hand-over: in the library's own functions, by V8's profiler, without those that
 *                       wait for an idle channel
 *                       CPU time in all: with waiting, sleeping, being woken and the garbage
 */
import { once } from 'node:events';
import { Worker } from 'node:worker_threads';
import { setImmediate as yieldToLoop } from 'node:timers/promises';
import { CHANNEL_RUNNING, Control, PAYLOAD_RAM, STOP_END, type Slot } from '../src/shared/control.js';
import { Engine, mustBeEqual } from './support/engine.js';
import type { HandoverTask } from './support/handover-worker.js';
import { fillImage, prefault } from './support/image.js';
import { counted, row, type Row } from './support/measure.js';
import { profileSelfTimes } from './support/profile.js';
import { remark } from './support/remark.js';
import { mainThreadCpuNs } from './support/thread-cpu.js';

const CHANNELS = [1, 2, 4, 8, 16];
const ROUNDS = 5;
const ROUND_MS = 200;
const LATENCY_JOBS = 3000;
/** As in src/send/hand-over.ts and turns.ts. */
const SPIN = 400;
const YIELD_MS = 2;
/** Jobs a second with two channels. */
const JOBS_FLOOR = 50_000;
/** Nanoseconds a page. */
const QUEUEING_CEILING = 40;
const QUEUED_BYTES = 2 ** 30;
const QUEUEING_ROUNDS = 3;
/** A round must be far longer than the ticks of thread-cpu.ts. */
const QUEUEING_PASSES = 3;
const PAGE = 4096;

export async function run(): Promise<Row[]> {
  const rows: Row[] = [];
  for (const channels of CHANNELS) rows.push(...(await handover(channels)));
  rows.push(...(await queueing()));
  return rows;
}

async function handover(channels: number): Promise<Row[]> {
  const control = Control.create({ channels, clients: 1, pageSize: PAGE, dataBytes: PAGE });
  const workers = Array.from({ length: channels }, (_, id) => {
    const workerData: HandoverTask = { shared: control.shared, id };
    return new Worker(new URL('./support/handover-worker.js', import.meta.url), { workerData });
  });
  const client = new Client(control);
  await client.until(() => workers.every((_, id) => control.channelState(id) === CHANNEL_RUNNING));

  const jobs: number[] = [];
  for (let round = 0; round <= ROUNDS; round++) {
    const figure = await client.jobsPerSecond(ROUND_MS);
    if (round > 0) jobs.push(figure);
  }
  const latencies: number[] = [];
  for (let i = 0; i < LATENCY_JOBS; i++) latencies.push(await client.latencyUs(i % channels));
  latencies.sort((a, b) => a - b);

  const ended = workers.map((worker) => once(worker, 'exit'));
  control.stop(STOP_END);
  await Promise.all(ended);
  const name = counted(channels, 'channel');
  const at = (share: number): number => latencies[Math.floor(latencies.length * share)];
  return [
    row('handover', `${name}: jobs a second`, '', jobs, {
      ...(channels === 2 && { floor: JOBS_FLOOR }),
      plot: { chart: 'handover', series: 'no payload', x: channels },
    }),
    ...([0.5, 0.99] as const).map((share) =>
      row('handover', `${name}: publish to done, p${share * 100}`, 'µs', [at(share)], {
        plot: { chart: 'latency', series: `p${share * 100}`, x: channels },
      }),
    ),
  ];
}

/** The sender's side of the hand-over, without its sessions. */
class Client {
  readonly #control: Control;
  #slot: Slot;
  #next = 0;
  #lastYield = performance.now();

  constructor(control: Control) {
    this.#control = control;
    this.#slot = control.slots[control.channels];
  }

  async until(condition: () => boolean): Promise<void> {
    for (;;) {
      const seen = this.#control.readyCount;
      if (condition()) return;
      const wait = this.#control.waitReady(seen, SPIN);
      if (wait !== undefined) await wait;
    }
  }

  async jobsPerSecond(ms: number): Promise<number> {
    const begun = performance.now();
    let jobs = 0;
    for (;;) {
      let id = this.#findIdle();
      if (id < 0) await this.until(() => (id = this.#findIdle()) >= 0);
      this.#publish(id);
      jobs++;
      // The sender, too, looks at the clock once a packet.
      const now = performance.now();
      if (now - this.#lastYield > YIELD_MS) {
        await yieldToLoop();
        this.#lastYield = performance.now();
        if (now - begun > ms) break;
      }
    }
    await this.#allIdle();
    return (jobs * 1000) / (performance.now() - begun);
  }

  async latencyUs(id: number): Promise<number> {
    const begun = performance.now();
    this.#publish(id);
    await this.until(() => this.#control.isIdle(id));
    return (performance.now() - begun) * 1000;
  }

  #publish(id: number): void {
    this.#slot.type = PAYLOAD_RAM;
    this.#slot.num = 1;
    this.#slot = this.#control.publish(id, this.#slot);
    this.#next = (id + 1) % this.#control.channels;
  }

  #findIdle(): number {
    for (let i = 0; i < this.#control.channels; i++) {
      const id = (this.#next + i) % this.#control.channels;
      if (this.#control.isIdle(id)) return id;
    }
    return -1;
  }

  async #allIdle(): Promise<void> {
    for (let id = 0; id < this.#control.channels; id++) await this.until(() => this.#control.isIdle(id));
  }
}

// ---- queueing ----

/** Functions of the library that are not queueing: the look for an idle channel, again and again, and sleep. */
const WAITING = ['until', 'waitReady', 'waitChange', 'ignore'];
const LIBRARY = new URL('../src/', import.meta.url).href;

async function queueing(): Promise<Row[]> {
  const rows: Row[] = [];
  const channels = 2;
  const source = new SharedArrayBuffer(QUEUED_BYTES);
  const destination = new SharedArrayBuffer(QUEUED_BYTES);
  fillImage(source, 'zero');
  prefault(destination);
  const engine = await Engine.open(source, destination, { channels });
  const perPage = (ms: number): number => (ms * 1e6 * PAGE) / QUEUED_BYTES / QUEUEING_PASSES;
  await engine.move();
  const calls: number[] = [];
  const all: number[] = [];
  for (let round = 0; round < QUEUEING_ROUNDS; round++) {
    const times = await profileSelfTimes(async () => {
      for (let i = 0; i < QUEUEING_PASSES; i++) await engine.move();
    });
    const own = times.filter(({ name, url }) => url.startsWith(LIBRARY) && !WAITING.includes(name));
    calls.push(perPage(own.reduce((sum, { ms }) => sum + ms, 0)));
    // Not under the profiler, which takes time of the thread.
    const before = mainThreadCpuNs();
    for (let i = 0; i < QUEUEING_PASSES; i++) await engine.move();
    const after = mainThreadCpuNs();
    if (before !== undefined && after !== undefined) all.push(perPage((after - before) / 1e6));
  }
  mustBeEqual(source, destination);
  await engine.close();
  const name = `queueing 1 GiB of zeroes, ${channels} channels, main thread a page`;
  rows.push(
    row('handover', `${name}: queueing and hand-over`, 'ns', calls, {
      ceiling: QUEUEING_CEILING,
      plot: { chart: 'queueing', series: 'queueing and hand-over', x: channels },
    }),
  );
  if (all.length > 0) {
    rows.push(
      row('handover', `${name}: CPU time in all`, 'ns', all, {
        plot: { chart: 'queueing', series: 'CPU time in all', x: channels },
      }),
    );
  } else remark('handover', 'CPU time of the main thread left out: the system does not tell it');
  return rows;
}
