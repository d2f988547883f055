/** The slot protocol of src/shared/control.ts between real threads: many laps, seeded, with canaries. */
import { Worker } from 'node:worker_threads';
import t, { type Test } from 'tap';
import {
  CHANNEL_ENDED,
  CHANNEL_RUNNING,
  Control,
  PAYLOAD_DEVICE_STATE,
  PAYLOAD_NONE,
  PAYLOAD_RAM,
  STOP_END,
  STOP_FAIL,
  STOP_RUN,
  type SharedControl,
  type Slot,
} from '../../src/shared/control.js';
import { checkJob, fillJob, scribble } from '../fixtures/handover-job.js';
import {
  JOBS_DONE,
  RACE_PAGES,
  type HandoverLog,
  type HandoverMessage,
  type HandoverTask,
} from '../fixtures/handover-worker.js';
import { Random } from '../support/random.js';
import { within } from '../support/within.js';
import { ALL } from '../support/some.js';

const LAPS = ALL ? 20_000 : 5000;
const WAIT_MS = 60_000;
const CLIENTS = 2;
const DATA_BYTES = 512;

function makeControl(channels: number, clients = CLIENTS): Control {
  // 64 KiB pages: a slot lists 8 of them, so that looking at every byte stays cheap.
  return Control.create({ channels, clients, pageSize: 65536, dataBytes: DATA_BYTES });
}

/** What a worker says at its end. */
function start(t: Test, task: HandoverTask): Promise<HandoverLog> {
  const worker = new Worker(new URL('../fixtures/handover-worker.js', import.meta.url), {
    workerData: task,
    // Without what tap preloads into every thread.
    execArgv: [],
    env: {},
  });
  t.teardown(() => worker.terminate());
  return new Promise<HandoverLog>((resolve, reject) => {
    worker.once('message', ({ log, error }: HandoverMessage) => {
      if (log === undefined) reject(new Error(`worker ${task.id}: ${error}`));
      else resolve(log);
    });
    worker.once('error', reject);
  });
}

/** As in src/session.ts: looks again whenever a channel posts READY. */
async function until(control: Control, condition: () => boolean, spin = 0): Promise<void> {
  for (;;) {
    const seen = control.readyCount;
    if (condition()) return;
    if (control.stopped !== STOP_RUN) throw new Error(`stopped: ${control.stopped}`);
    const wait = control.waitReady(seen, spin);
    if (wait !== undefined) await wait;
  }
}

/** Until every channel has said that it has left the session, stopped or not. */
async function ended(control: Control): Promise<void> {
  for (;;) {
    const seen = control.readyCount;
    let left = control.channels;
    for (let id = 0; id < control.channels; id++) if (control.channelState(id) === CHANNEL_ENDED) left--;
    if (left === 0) return;
    const wait = control.waitReady(seen, 0);
    if (wait !== undefined) await wait;
  }
}

/** The queueing side: two clients and the syncs, over one control. */
class Queue {
  /** For each channel what was published to it: jobs, and syncs as negative numbers. */
  readonly published: HandoverLog[];
  readonly #control: Control;
  readonly #spin: number;
  #next = 1;
  #start = 0;
  #syncs = 0;

  constructor(control: Control, spin: number) {
    this.#control = control;
    this.#spin = spin;
    this.published = Array.from({ length: control.channels }, () => []);
  }

  async client(slot: Slot, type: number, jobs: number, random: Random): Promise<Slot> {
    const control = this.#control;
    let held = slot;
    for (let left = jobs; left > 0;) {
      // A batch without a pause, then now and then one that lets the channels run dry.
      for (let batch = Math.min(left, 1 + random.below(30)); batch > 0; batch--, left--) {
        fillJob(held, type, this.#next++);
        // Found and taken in one go: an await in between would let the other client take the same channel.
        await until(
          control,
          () => {
            const id = this.#findIdle();
            if (id < 0) return false;
            held = this.#publish(id, held);
            return true;
          },
          this.#spin,
        );
      }
      if (random.below(10) === 0) await new Promise((resolve) => setImmediate(resolve));
    }
    return held;
  }

  #publish(id: number, slot: Slot): Slot {
    this.published[id].push(checkJob(slot));
    const back = this.#control.publish(id, slot);
    if (back === slot || back.type !== PAYLOAD_NONE) throw new Error(`slot ${back.index} came back full`);
    this.#start = (id + 1) % this.#control.channels;
    return back;
  }

  #findIdle(): number {
    const { channels } = this.#control;
    for (let i = 0; i < channels; i++) {
      const id = (this.#start + i) % channels;
      if (this.#control.isIdle(id)) return id;
    }
    return -1;
  }

  /** Every job published before must be done when this returns. */
  async sync(): Promise<void> {
    const control = this.#control;
    this.#syncs++;
    const before: number[] = [];
    for (let id = 0; id < control.channels; id++) {
      before.push(this.published[id].filter((seq) => seq > 0).length);
      this.published[id].push(-this.#syncs);
      control.requestSync(id);
    }
    for (let id = 0; id < control.channels; id++) {
      await until(control, () => control.syncsDone(id) === this.#syncs, this.#spin);
      const done = control.stats(id)[JOBS_DONE];
      if (done < before[id])
        throw new Error(`sync ${this.#syncs} overtook ${before[id] - done} jobs of channel ${id}`);
    }
  }
}

/** Nothing lost, nothing twice, in order, and no job after the sync that it was published before. */
function checkLog(log: HandoverLog, published: HandoverLog): string | undefined {
  const jobs = (from: HandoverLog): string => from.filter((seq) => seq > 0).join();
  const syncs = (from: HandoverLog): string => from.filter((seq) => seq < 0).join();
  if (jobs(log) !== jobs(published)) return 'the jobs seen are not the jobs published';
  if (syncs(log) !== syncs(published)) return 'the syncs seen are not the syncs asked for';
  const place = new Map(log.map((entry, i) => [entry, i]));
  let last = 0;
  for (const entry of published) {
    if (entry > 0) last = entry;
    else if (last > 0 && (place.get(last) as number) > (place.get(entry) as number)) {
      return `sync ${-entry} overtook job ${last}`;
    }
  }
  return undefined;
}

const SEND_CASES = [
  [1, 0],
  [2, 400],
  [3, 0],
  [5, 400],
  [5, 0],
];

for (const [channels, spin] of SEND_CASES) {
  t.test(
    `${LAPS} hand-overs of two clients to ${channels} channels, spin ${spin}, with syncs in between`,
    async (t) => {
      const control = makeControl(channels);
      const logs = control.slots
        .slice(0, channels)
        .map((_, id) => start(t, { role: 'send', shared: control.shared, id, spin }));
      const queue = new Queue(control, spin);
      let running = true;
      const syncs = async (): Promise<number> => {
        const random = new Random(channels * 7);
        let count = 0;
        for (; running; count++) {
          for (let n = random.below(20); n > 0; n--) await new Promise((resolve) => setImmediate(resolve));
          await queue.sync();
        }
        return count;
      };
      const random = new Random(channels);
      const clients = Promise.all([
        queue.client(control.slots[channels], PAYLOAD_RAM, LAPS * 0.6, random),
        queue.client(
          control.slots[channels + 1],
          PAYLOAD_DEVICE_STATE,
          LAPS * 0.4,
          new Random(channels + 100),
        ),
      ]).finally(() => (running = false));
      const failed = Promise.all(logs);
      const all = Promise.all([clients, syncs()]);
      const [held, syncCount] = await within(
        Promise.race([all, failed.then(() => all)]),
        WAIT_MS,
        'the hand-overs',
      );
      control.stop(STOP_END);
      const seen = await within(failed, WAIT_MS, 'the ends of the channels');

      t.ok(syncCount > 10, `${syncCount} syncs`);
      t.equal(seen.flat().filter((seq) => seq > 0).length, LAPS);
      for (const [id, log] of seen.entries())
        t.equal(checkLog(log, queue.published[id]), undefined, `channel ${id}`);
      if (channels > 1) {
        for (const [id, log] of seen.entries())
          t.ok(log.length > LAPS / channels / 10, `channel ${id} had its share`);
      }
      const slots = held.map((slot) => slot.index);
      for (let id = 0; id < channels; id++) slots.push(control.slotOf(id).index);
      t.same(
        slots.sort((a, b) => a - b),
        control.slots.map((slot) => slot.index),
        'each slot is in one pair of hands',
      );
      for (const slot of control.slots) t.equal(slot.type, PAYLOAD_NONE);
    },
  );
}

for (const [channels, spin] of [
  [1, 0],
  [2, 400],
  [5, 0],
]) {
  t.test(
    `${LAPS} payloads of ${channels} receive channels, spin ${spin}, with syncs in between`,
    async (t) => {
      const control = makeControl(channels, 0);
      const laps = LAPS / channels;
      const lapsPerSync = 50;
      const logs = control.slots.map((_, id) =>
        start(t, { role: 'receive', shared: control.shared, id, spin, laps, lapsPerSync }),
      );
      const next = new Array<number>(channels).fill(1);
      let taken = 0;
      const deliver = async (): Promise<void> => {
        while (taken < LAPS) {
          const seen = control.readyCount;
          for (let id = 0; id < channels; id++) {
            if (!control.hasJob(id)) continue;
            const slot = control.slotOf(id);
            const seq = checkJob(slot);
            if (seq !== next[id]++) throw new Error(`channel ${id}: ${seq} after ${next[id] - 2}`);
            scribble(slot);
            taken++;
            control.taken(id);
          }
          const wait = control.waitReady(seen, spin);
          if (wait !== undefined) await wait;
        }
      };
      const syncs = async (): Promise<void> => {
        for (let n = 1; n <= laps / lapsPerSync; n++) {
          for (let id = 0; id < channels; id++) {
            await until(control, () => control.syncsDone(id) === n, spin);
            if (next[id] !== n * lapsPerSync + 1)
              throw new Error(`sync ${n} of channel ${id} after ${next[id] - 1}`);
          }
          for (let id = 0; id < channels; id++) {
            if (control.syncsDone(id) !== n) throw new Error(`channel ${id} went on before it was released`);
            control.releaseSync(id);
          }
        }
      };
      const all = Promise.all([deliver(), syncs(), ...logs]);
      await within(all, WAIT_MS, 'the payloads');
      t.equal(taken, LAPS);
      for (const slot of control.slots) t.equal(slot.type, PAYLOAD_NONE);
    },
  );
}

t.test(
  'race: a wake-up between look and sleep is not lost, one job at a time, both sides always asleep',
  async (t) => {
    const control = makeControl(1);
    const log = start(t, { role: 'send', shared: control.shared, id: 0, spin: 0 });
    let slot = control.slots[1];
    const pingPong = async (): Promise<void> => {
      for (let seq = 1; seq <= LAPS; seq++) {
        fillJob(slot, PAYLOAD_RAM, seq);
        slot = control.publish(0, slot);
        await until(control, () => control.isIdle(0));
      }
    };
    await within(pingPong(), WAIT_MS, 'ping-pong');
    control.stop(STOP_END);
    t.same(
      await within(log, WAIT_MS, 'the channel'),
      Array.from({ length: LAPS }, (_, i) => i + 1),
    );
  },
);

t.test('race: a sync does not overtake the job that was published right before it', async (t) => {
  const control = makeControl(2);
  const logs = [0, 1].map((id) => start(t, { role: 'send', shared: control.shared, id, spin: id * 400 }));
  const queue = new Queue(control, 0);
  const random = new Random(3);
  let slot = control.slots[2];
  const rounds = async (): Promise<void> => {
    for (let n = 0; n < 3000; n++) {
      slot = await queue.client(slot, PAYLOAD_RAM, 1 + random.below(2), random);
      await queue.sync();
    }
  };
  await within(rounds(), WAIT_MS, 'jobs and syncs');
  control.stop(STOP_END);
  for (const [id, log] of (await within(Promise.all(logs), WAIT_MS, 'the channels')).entries()) {
    t.equal(checkLog(log, queue.published[id]), undefined);
  }
});

t.test(
  'race: a sync asked for between the two looks of a channel waits for the job published with it',
  async (t) => {
    // The channel's two looks, with the client's two stores at each place between them. "sync, then job" is the order
    // of src/send/channel.ts; the other one lets the sync overtake.
    for (const at of [0, 1, 2]) {
      const control = makeControl(1);
      const client = (place: number): void => {
        if (place !== at) return;
        const slot = control.slots[1];
        fillJob(slot, PAYLOAD_RAM, 1);
        control.publish(0, slot);
        control.requestSync(0);
      };
      client(0);
      const sync = control.wantsSync(0);
      client(1);
      const job = control.hasJob(0);
      client(2);
      t.notOk(sync && !job, `stores at place ${at}`);
    }
  },
);

t.test('race: stop during a wait of a send channel, in 1000 sessions, at any moment', async (t) => {
  const channels = 3;
  const sessions = Array.from({ length: 1000 }, () => makeControl(channels));
  const shared = sessions.map((control): SharedControl => control.shared);
  const logs = [0, 1, 2].map((id) => start(t, { role: 'send-many', sessions: shared, id, spin: id * 200 }));
  const random = new Random(17);
  const run = async (): Promise<void> => {
    for (const control of sessions) {
      let slot = control.slots[channels];
      // Some are stopped before their channels are there.
      if (random.below(4) > 0) {
        await until(control, () => [0, 1, 2].every((id) => control.channelState(id) >= CHANNEL_RUNNING));
      }
      for (let n = random.below(6); n > 0; n--) {
        const id = random.below(channels);
        if (control.isIdle(id)) {
          fillJob(slot, PAYLOAD_RAM, n);
          slot = control.publish(id, slot);
        }
        if (random.below(3) === 0) await new Promise((resolve) => setImmediate(resolve));
      }
      if (random.below(3) === 0) for (let id = 0; id < channels; id++) control.requestSync(id);
      control.stop(random.below(2) === 0 ? STOP_END : STOP_FAIL);
      await ended(control);
    }
  };
  await within(run(), WAIT_MS, 'sessions stopped');
  t.equal((await within(Promise.all(logs), WAIT_MS, 'the channels'))[0].length, sessions.length);
});

t.test('race: stop END lets a channel finish the job and the sync that were published before', async (t) => {
  const channels = 2;
  const sessions = Array.from({ length: 300 }, () => makeControl(channels));
  const shared = sessions.map((control): SharedControl => control.shared);
  const logs = [0, 1].map((id) => start(t, { role: 'send-many', sessions: shared, id, spin: 0 }));
  const run = async (): Promise<void> => {
    for (const control of sessions) {
      let slot = control.slots[channels];
      for (let id = 0; id < channels; id++) {
        fillJob(slot, PAYLOAD_RAM, id + 1);
        slot = control.publish(id, slot);
        control.requestSync(id);
      }
      control.stop(STOP_END);
      await ended(control);
    }
  };
  await within(run(), WAIT_MS, 'sessions stopped');
  for (const log of await within(Promise.all(logs), WAIT_MS, 'the channels')) {
    t.ok(
      log.every((entries) => entries === 2),
      'one job and one sync in each session',
    );
  }
});

t.test('race: stop by a channel, while the client waits for an idle one and a sync is awaited', async (t) => {
  const channels = 2;
  const sessions = Array.from({ length: 300 }, () => makeControl(channels));
  const shared = sessions.map((control): SharedControl => control.shared);
  const logs = [0, 1].map((id) => start(t, { role: 'fail-many', sessions: shared, id, spin: 0 }));
  let stopped = 0;
  const run = async (): Promise<void> => {
    for (const [i, control] of sessions.entries()) {
      const queue = new Queue(control, 0);
      const client = queue.client(control.slots[channels], PAYLOAD_RAM, 100, new Random(i));
      // The sync may have come through on both channels before.
      const [{ status }] = await Promise.allSettled([client, queue.sync()]);
      if (status === 'rejected') stopped++;
      await ended(control);
    }
  };
  await within(run(), WAIT_MS, 'sessions stopped');
  t.equal(stopped, sessions.length, 'every client was freed by the stop');
  await within(Promise.all(logs), WAIT_MS, 'the channels');
});

t.test('race: stop during a wait of a receive channel, for delivery and for its release', async (t) => {
  const channels = 2;
  const sessions = Array.from({ length: 500 }, () => makeControl(channels, 0));
  const shared = sessions.map((control): SharedControl => control.shared);
  const logs = [0, 1].map((id) => start(t, { role: 'receive-many', sessions: shared, id, spin: id * 200 }));
  const random = new Random(23);
  const run = async (): Promise<void> => {
    for (const control of sessions) {
      for (let n = random.below(8); n > 0; n--) {
        for (let id = 0; id < channels; id++) {
          if (!control.hasJob(id)) continue;
          checkJob(control.slotOf(id));
          control.taken(id);
        }
        await new Promise((resolve) => setImmediate(resolve));
      }
      control.stop(STOP_FAIL);
      await ended(control);
    }
  };
  await within(run(), WAIT_MS, 'sessions stopped');
  t.equal((await within(Promise.all(logs), WAIT_MS, 'the channels'))[0].length, sessions.length);
});

t.test(
  'race: threads that claim the first error, take packet numbers and set bits at the same time',
  async (t) => {
    const threads = 2;
    const rounds = 1000;
    const barrier = makeControl(threads, 0);
    const sessions = Array.from({ length: rounds }, () => makeControl(threads, 0));
    const shared = sessions.map((control): SharedControl => control.shared);
    const bitmap = new Int32Array(new SharedArrayBuffer((rounds * RACE_PAGES) / 8));
    const all = [0, 1].map((id) =>
      start(t, { role: 'race', shared: barrier.shared, sessions: shared, bitmap, id, spin: 0 }),
    );
    // A failure of one thread must not leave the other one spinning at the barrier.
    for (const one of all) one.catch(() => barrier.stop(STOP_FAIL));
    const numbers = (await within(Promise.all(all), WAIT_MS, 'the rounds')).flat();

    const wins = sessions.map((control) => control.stats(0)[0] + control.stats(1)[0]);
    t.ok(
      wins.every((count) => count === 1),
      'one first error in each round',
    );
    t.same(
      numbers.sort((a, b) => a - b),
      numbers.map((_, i) => i),
      'each packet number once',
    );
    t.ok(
      bitmap.every((word) => word === -1),
      'no bit was lost',
    );
  },
);
