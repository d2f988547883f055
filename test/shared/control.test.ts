/** The slot protocol of src/shared/control.ts on one thread: each transition of its state table, and its layout. */
import t from 'tap';
import {
  CHANNEL_CREATED,
  CHANNEL_EOF,
  CHANNEL_ENDED,
  CHANNEL_RUNNING,
  Control,
  PAYLOAD_DEVICE_STATE,
  PAYLOAD_NONE,
  PAYLOAD_RAM,
  STOP_END,
  STOP_FAIL,
  STOP_RUN,
  markPages,
  type Slot,
} from '../../src/shared/control.js';
import {
  CHANNEL_PENDING_JOB,
  CHANNEL_PENDING_SYNC,
  CHANNEL_SEM,
  CHANNEL_SLOT,
  CHANNEL_STATE,
  CHANNEL_STATS,
  CHANNEL_SYNC_DONE,
  CHANNEL_SYNC_RELEASED,
  Layout,
  SLOT_BLOCK,
  SLOT_INSTANCE_ID,
  SLOT_LENGTH,
  SLOT_NORMAL_NUM,
  SLOT_NUM,
  SLOT_TYPE,
  STAT_ZERO_COPY_COPIED,
  STAT_COUNT,
  WORD_FIRST_ERROR,
  WORD_PACKET_NUM,
  WORD_PROGRESS,
  WORD_PROGRESS_MS,
  WORD_SYNC_PAGES_ALLOC,
  CHANNEL_SYNC_ALLOC,
  WORD_READY,
  WORD_STOP,
  WORD_TRACE,
  slotDataBytes,
  type Shape,
} from '../../src/shared/layout.js';
import { waitChange } from '../../src/shared/wait.js';
import { Random } from '../support/random.js';
import { within } from '../support/within.js';

const WAIT_MS = 5000;

const SHAPES: Shape[] = [
  { channels: 1, clients: 0, pageSize: 4096, dataBytes: 524288 },
  { channels: 1, clients: 2, pageSize: 65536, dataBytes: 524288 },
  { channels: 2, clients: 2, pageSize: 4096, dataBytes: slotDataBytes(2 ** 20 + 4096) },
  { channels: 5, clients: 2, pageSize: 8192, dataBytes: 4096 },
  { channels: 16, clients: 1, pageSize: 65536, dataBytes: 8192 },
  { channels: 255, clients: 2, pageSize: 4096, dataBytes: 4096 },
];

function makeControl(channels = 2, clients = 2): Control {
  return Control.create({ channels, clients, pageSize: 4096, dataBytes: 4096 });
}

/** All that a waiter or a peer could notice, to see that a call changed nothing else. */
function snapshot(control: Control): Record<string, unknown> {
  const ids = Array.from({ length: control.channels }, (_, id) => id);
  return {
    stopped: control.stopped,
    ready: control.readyCount,
    progress: control.progressCount,
    channels: ids.map((id) => ({
      idle: control.isIdle(id),
      job: control.hasJob(id),
      sync: control.wantsSync(id),
      syncsDone: control.syncsDone(id),
      syncsReleased: control.syncsReleased(id),
      sem: control.semCount(id),
      state: control.channelState(id),
      slot: control.slotOf(id).index,
    })),
  };
}

interface ChannelSnapshot {
  idle: boolean;
  job: boolean;
  sync: boolean;
  syncsDone: number;
  syncsReleased: number;
  sem: number;
  state: number;
  slot: number;
}

/** `before`, changed as said: in total, and in one channel. */
function changed(
  before: Record<string, unknown>,
  total: Record<string, unknown>,
  id = -1,
  channel: Partial<ChannelSnapshot> = {},
): Record<string, unknown> {
  const channels = (before.channels as ChannelSnapshot[]).map((was, i) =>
    i === id ? { ...was, ...channel } : was,
  );
  return { ...before, ...total, channels };
}

function words(control: Control): Int32Array {
  return new Int32Array(control.shared.control);
}

t.test(
  'a new session: channel i holds slot i, the clients hold the others, nothing is pending',
  async (t) => {
    for (const shape of SHAPES) {
      const control = Control.create(shape);
      t.equal(control.channels, shape.channels);
      t.equal(control.slots.length, shape.channels + shape.clients);
      t.same(
        control.slots.map((slot) => slot.index),
        control.slots.map((_, i) => i),
      );
      for (const slot of control.slots)
        t.same([slot.type, slot.num, slot.normalNum, slot.length], [0, 0, 0, 0]);
      t.same(snapshot(control), {
        stopped: STOP_RUN,
        ready: 0,
        progress: 0,
        channels: Array.from({ length: shape.channels }, (_, id) => ({
          idle: true,
          job: false,
          sync: false,
          syncsDone: 0,
          syncsReleased: 0,
          sem: 0,
          state: CHANNEL_CREATED,
          slot: id,
        })),
      });
      t.equal(control.trace, false);
      t.equal(control.progressMs, 0);
    }
  },
);

t.test('pendingJob 0 to 1, publish(): the slots are swapped and only that channel is woken', async (t) => {
  const control = makeControl();
  const channel = Control.attach(control.shared);
  const mine = control.slots[2];
  mine.type = PAYLOAD_RAM;
  mine.num = 3;
  mine.pages.set([7, 8, 11]);
  const before = snapshot(control);

  const back = control.publish(1, mine);
  t.equal(back, control.slots[1]);
  t.equal(back.type, PAYLOAD_NONE);
  t.same(snapshot(control), changed(before, {}, 1, { idle: false, job: true, sem: 1, slot: 2 }));

  const seen = channel.slotOf(1);
  t.equal(seen.index, 2);
  t.equal(seen.type, PAYLOAD_RAM);
  t.equal(seen.num, 3);
  t.same([...seen.pages.subarray(0, 3)], [7, 8, 11]);
});

t.test('pendingJob 1 to 0, done(): the slot is empty again and READY grows', async (t) => {
  const control = makeControl();
  const channel = Control.attach(control.shared);
  const mine = control.slots[3];
  mine.type = PAYLOAD_DEVICE_STATE;
  mine.length = 100;
  control.publish(0, mine);
  const before = snapshot(control);

  channel.done(0);
  t.same(snapshot(control), changed(before, { ready: 1 }, 0, { idle: true, job: false }));
  t.same([mine.type, mine.num, mine.normalNum, mine.length], [PAYLOAD_NONE, 0, 0, 0]);
  t.equal(control.slotOf(0), mine, 'the channel keeps the slot until the next swap');
});

t.test('publish() to a channel whose slot is not empty throws, and changes nothing', async (t) => {
  const control = makeControl();
  control.slotOf(1).type = PAYLOAD_RAM;
  const mine = control.slots[2];
  mine.type = PAYLOAD_RAM;
  const before = snapshot(control);
  t.throws(() => control.publish(1, mine), { message: /slot 1 of idle channel 1 is not empty/ });
  t.same(snapshot(control), before);
});

t.test('a second publish() before done() throws: a job is never overwritten', async (t) => {
  const control = makeControl();
  const first = control.slots[2];
  first.type = PAYLOAD_RAM;
  const second = control.publish(0, first);
  second.type = PAYLOAD_RAM;
  const before = snapshot(control);
  t.throws(() => control.publish(0, second));
  t.same(snapshot(control), before);
});

t.test('pendingSync 0 to 1 and back: apart from pendingJob, with SYNC_DONE as its partner', async (t) => {
  const control = makeControl();
  const channel = Control.attach(control.shared);
  const before = snapshot(control);

  control.requestSync(1);
  t.same(snapshot(control), changed(before, {}, 1, { sync: true, sem: 1 }));
  t.ok(channel.wantsSync(1));
  t.notOk(channel.hasJob(1));

  channel.syncDone(1);
  t.same(snapshot(control), changed(before, { ready: 1 }, 1, { sem: 1, syncsDone: 1 }));
});

t.test('a job and a sync are pending side by side, and each is cleared alone', async (t) => {
  const control = makeControl();
  const mine = control.slots[2];
  mine.type = PAYLOAD_RAM;
  control.publish(0, mine);
  control.requestSync(0);
  t.ok(control.hasJob(0) && control.wantsSync(0));
  control.done(0);
  t.ok(!control.hasJob(0) && control.wantsSync(0));
  const again = control.publish(1, control.slots[3]);
  again.type = PAYLOAD_RAM;
  control.publish(0, again);
  control.syncDone(0);
  t.ok(control.hasJob(0) && !control.wantsSync(0));
});

t.test('receiving, offer() and taken(): the channel keeps its slot, READY and SEM grow', async (t) => {
  const control = makeControl(2, 0);
  const channel = Control.attach(control.shared);
  const slot = channel.slotOf(1);
  slot.type = PAYLOAD_RAM;
  slot.num = 5;
  const before = snapshot(control);

  channel.offer(1);
  t.same(snapshot(control), changed(before, { ready: 1 }, 1, { idle: false, job: true }));
  t.equal(control.slotOf(1).num, 5);

  control.taken(1);
  t.same(snapshot(control), changed(before, { ready: 1 }, 1, { sem: 1 }));
  t.same([slot.type, slot.num], [PAYLOAD_NONE, 0]);
});

t.test('receiving, syncDone() and releaseSync(): each counts on its own side', async (t) => {
  const control = makeControl(2, 0);
  const channel = Control.attach(control.shared);
  for (let n = 1; n <= 3; n++) {
    channel.syncDone(0);
    t.same([control.syncsDone(0), channel.syncsReleased(0)], [n, n - 1]);
    control.releaseSync(0);
    t.same([control.syncsDone(0), channel.syncsReleased(0)], [n, n]);
  }
  t.same([control.syncsDone(1), control.syncsReleased(1), control.semCount(1)], [0, 0, 0]);
  t.same([control.readyCount, control.semCount(0)], [3, 3]);
});

t.test('a change of a channel state is posted to the calling thread', async (t) => {
  const control = makeControl();
  const channel = Control.attach(control.shared);
  for (const [i, state] of [CHANNEL_RUNNING, CHANNEL_EOF, CHANNEL_ENDED].entries()) {
    channel.setChannelState(1, state);
    t.equal(control.channelState(1), state);
    t.equal(control.channelState(0), CHANNEL_CREATED);
    t.equal(control.readyCount, i + 1);
  }
});

t.test('swaps conserve the slots: C + k of them, each in one pair of hands', async (t) => {
  for (const [channels, clients] of [
    [1, 1],
    [1, 2],
    [2, 2],
    [5, 2],
    [16, 3],
  ]) {
    const random = new Random(channels * 100 + clients);
    const control = makeControl(channels, clients);
    const held: Slot[] = control.slots.slice(channels);
    const busy = new Set<number>();
    let swaps = 0;
    for (let step = 0; step < 5000; step++) {
      const id = random.below(channels);
      if (busy.has(id)) {
        control.done(id);
        busy.delete(id);
      } else {
        const client = random.below(clients);
        held[client].type = PAYLOAD_RAM;
        held[client] = control.publish(id, held[client]);
        busy.add(id);
        swaps++;
      }
      const indexes = held.map((slot) => slot.index);
      for (let other = 0; other < channels; other++) indexes.push(control.slotOf(other).index);
      const each = new Set(indexes);
      if (each.size !== channels + clients) t.fail(`step ${step}: slots ${indexes.join(' ')}`);
    }
    t.ok(swaps > 2000);
    t.equal(control.slots.length, channels + clients);
  }
});

t.test('STOP only goes up', async (t) => {
  for (const [levels, expected] of [
    [[STOP_END, STOP_FAIL], STOP_FAIL],
    [[STOP_FAIL, STOP_END], STOP_FAIL],
    [[STOP_END, STOP_END], STOP_END],
    [[STOP_RUN], STOP_RUN],
    [[STOP_FAIL, STOP_RUN], STOP_FAIL],
  ] as const) {
    const control = makeControl();
    for (const level of levels) control.stop(level);
    t.equal(control.stopped, expected, levels.join(', '));
  }
});

t.test('a stop() that raises nothing wakes nobody', async (t) => {
  const control = makeControl();
  control.stop(STOP_FAIL);
  const before = snapshot(control);
  control.stop(STOP_FAIL);
  control.stop(STOP_END);
  t.same(snapshot(control), before);
});

t.test('STOP wakes every wait, at each of its levels', async (t) => {
  for (const channels of [1, 2, 16]) {
    const control = makeControl(channels);
    const channel = Control.attach(control.shared);
    for (const level of [STOP_END, STOP_FAIL]) {
      const waits: [string, Promise<void> | undefined][] = [
        ['READY', control.waitReady(control.readyCount, 0)],
        ['READY, a second waiter', control.waitReady(control.readyCount, 10)],
        ['PROGRESS', control.waitProgress(control.progressCount)],
      ];
      for (let id = 0; id < channels; id++) {
        waits.push([`SEM of channel ${id}`, channel.waitSem(id, channel.semCount(id), 0)]);
      }
      const stops = Array.from({ length: channels }, () => channel.stopAbove(level - 1));
      for (const [what, wait] of waits) t.ok(wait !== undefined, `${what} sleeps`);
      control.stop(level);
      for (const [what, wait] of waits) await within(wait as Promise<void>, WAIT_MS, what);
      t.same(
        await within(Promise.all(stops), WAIT_MS, 'stopAbove()'),
        stops.map(() => level),
      );
    }
  }
});

t.test(
  'stopAbove() returns at once when STOP is higher already, and sleeps over a lower level',
  async (t) => {
    const control = makeControl();
    const above = control.stopAbove(STOP_END);
    let settled = false;
    void above.then(() => (settled = true));
    control.stop(STOP_END);
    t.equal(await within(control.stopAbove(STOP_RUN), WAIT_MS, 'stopAbove(RUN)'), STOP_END);
    await new Promise((resolve) => setTimeout(resolve, 20));
    t.notOk(settled);
    control.stop(STOP_FAIL);
    t.equal(await within(above, WAIT_MS, 'stopAbove(END)'), STOP_FAIL);
  },
);

t.test('a post between the look and the sleep ends the wait at once', async (t) => {
  const control = makeControl();
  const channel = Control.attach(control.shared);
  const waits: [
    string,
    () => number,
    () => void,
    (seen: number, spin: number) => Promise<void> | undefined,
  ][] = [
    [
      'SEM',
      () => channel.semCount(1),
      () => control.postSem(1),
      (seen, spin) => channel.waitSem(1, seen, spin),
    ],
    [
      'READY',
      () => control.readyCount,
      () => channel.postReady(),
      (seen, spin) => control.waitReady(seen, spin),
    ],
    [
      'PROGRESS',
      () => control.progressCount,
      () => channel.postProgress(),
      (seen) => control.waitProgress(seen),
    ],
  ];
  for (const [what, count, post, wait] of waits) {
    for (const spin of [0, 400]) {
      const seen = count();
      post();
      t.equal(wait(seen, spin), undefined, `${what}, spin ${spin}`);
      const sleep = wait(count(), spin);
      t.ok(sleep instanceof Promise, `${what}, spin ${spin}, nothing posted`);
      post();
      await within(sleep as Promise<void>, WAIT_MS, what);
    }
  }
});

t.test('two posts between the look and the sleep are not taken for none', async (t) => {
  const control = makeControl();
  const seen = control.semCount(0);
  control.postSem(0);
  control.postSem(0);
  t.equal(control.waitSem(0, seen, 0), undefined);
});

t.test('one post wakes all who wait', async (t) => {
  const control = makeControl();
  const waits = Array.from({ length: 5 }, () => control.waitReady(control.readyCount, 0) as Promise<void>);
  control.postReady();
  t.equal((await within(Promise.all(waits), WAIT_MS, 'five waiters on READY')).length, 5);
});

t.test('a post to one channel wakes no other', async (t) => {
  const control = makeControl();
  let woken = false;
  const other = control.waitSem(1, control.semCount(1), 0) as Promise<void>;
  void other.then(() => (woken = true));
  control.postSem(0);
  await new Promise((resolve) => setTimeout(resolve, 20));
  t.notOk(woken);
  control.postSem(1);
  await within(other, WAIT_MS, 'SEM of channel 1');
});

t.test('waitChange() looks first, and only then sleeps', async (t) => {
  const memory = new Int32Array(new SharedArrayBuffer(64));
  t.equal(waitChange(memory, 3, 1, 0), undefined);
  const wait = waitChange(memory, 3, 0, 5);
  Atomics.store(memory, 3, 1);
  Atomics.notify(memory, 3);
  await within(wait as Promise<void>, WAIT_MS, 'waitChange()');
});

t.test('a post between the last look and the sleep is not slept over', async (t) => {
  const memory = new Int32Array(new SharedArrayBuffer(64));
  const { load } = Atomics;
  // Right behind the first look.
  Atomics.load = ((words: Int32Array, index: number): number => {
    const seen = load(words, index);
    if (seen === 0) Atomics.add(words, index, 1);
    Atomics.notify(words, index);
    return seen;
  }) as typeof Atomics.load;
  try {
    t.equal(waitChange(memory, 3, 0, 0), undefined);
  } finally {
    Atomics.load = load;
  }
});

t.test('digests are waited for until they are asked for, or the session stops', async (t) => {
  for (const [end, isAsked] of [
    [(control: Control): void => control.askProof(), true],
    [(control: Control): void => control.stop(STOP_END), false],
  ] as const) {
    const control = makeControl();
    const channel = Control.attach(control.shared);
    const asked = channel.proofAsked();
    end(control);
    t.equal(await within(asked, WAIT_MS, 'proofAsked()'), isAsked);
    t.equal(await within(channel.proofAsked(), WAIT_MS, 'proofAsked() behind it'), isAsked);
  }
});

t.test('the counters wrap around at 32 bits without losing a wake-up or a sync', async (t) => {
  const layout = new Layout({ channels: 2, clients: 2, pageSize: 4096, dataBytes: 4096 });
  for (const start of [0x7fffffff, -1]) {
    const next = (start + 1) | 0;
    const control = makeControl();
    const memory = words(control);
    const at = (word: number): number => layout.channel(1) + word;
    for (const index of [
      WORD_READY,
      WORD_PROGRESS,
      at(CHANNEL_SEM),
      at(CHANNEL_SYNC_DONE),
      at(CHANNEL_SYNC_RELEASED),
    ]) {
      memory[index] = start;
    }

    const ready = control.waitReady(control.readyCount, 0) as Promise<void>;
    const sem = control.waitSem(1, control.semCount(1), 0) as Promise<void>;
    const progress = control.waitProgress(control.progressCount) as Promise<void>;
    const seen = [control.readyCount, control.semCount(1), control.progressCount];
    t.same(seen, [start, start, start]);
    control.postReady();
    control.postSem(1);
    control.postProgress();
    await within(Promise.all([ready, sem, progress]), WAIT_MS, 'waits over the wrap-around');
    t.same([control.readyCount, control.semCount(1), control.progressCount], [next, next, next]);
    t.equal(control.waitReady(seen[0], 0), undefined);
    t.equal(control.waitSem(1, seen[1], 0), undefined);
    t.equal(control.waitProgress(seen[2]), undefined);

    // Both ends count their syncs with `(n + 1) | 0`.
    control.syncDone(1);
    control.releaseSync(1);
    t.same([control.syncsDone(1), control.syncsReleased(1)], [next, next]);
  }
});

t.test('packet_num is an unsigned 32-bit counter', async (t) => {
  const control = makeControl();
  const channel = Control.attach(control.shared);
  t.same([control.nextPacketNum(), channel.nextPacketNum(), control.nextPacketNum()], [0, 1, 2]);
  words(control)[WORD_PACKET_NUM] = 0x7fffffff;
  t.same([control.nextPacketNum(), control.nextPacketNum()], [0x7fffffff, 0x80000000]);
  words(control)[WORD_PACKET_NUM] = -1;
  t.same([control.nextPacketNum(), control.nextPacketNum()], [0xffffffff, 0]);
});

t.test('the first error is claimed once, whoever asks first', async (t) => {
  for (const first of [-1, 0, 1, 254]) {
    const control = Control.create({ channels: 255, clients: 0, pageSize: 65536, dataBytes: 4096 });
    t.ok(control.claimFirstError(first));
    for (const other of [-1, 0, 1, 253, 254]) t.notOk(control.claimFirstError(other));
  }
});

t.test('trace and progressMs are seen by the channels', async (t) => {
  const control = makeControl();
  const channel = Control.attach(control.shared);
  control.trace = true;
  control.progressMs = 200;
  t.same([channel.trace, channel.progressMs], [true, 200]);
  control.trace = false;
  t.same([channel.trace, channel.progressMs], [false, 200]);
});

t.test('clear() empties a slot of any payload', async (t) => {
  for (const slot of makeControl().slots) {
    Object.assign(slot, { type: PAYLOAD_RAM, num: 128, normalNum: 100, length: 4096 });
    slot.clear();
    t.same([slot.type, slot.num, slot.normalNum, slot.length], [PAYLOAD_NONE, 0, 0, 0]);
  }
});

t.test(
  'an idstr of 1 to 255 characters comes back whole, with nothing of a longer one before it',
  async (t) => {
    const [slot] = makeControl().slots;
    for (const idstr of ['x', 'v'.repeat(255), '0000:00:1f.2/vfio', '']) {
      slot.idstr = idstr;
      t.equal(slot.idstr, idstr);
    }
    t.equal(((slot.instanceId = 0xffffffff), slot.instanceId), 0xffffffff);
  },
);

// ---- layout ----

const LINE_BYTES = 64;

interface Piece {
  name: string;
  start: number;
  end: number;
  /** Who writes it: pieces of one writer may share a line. */
  writer: string;
}

function pieces(shape: Shape): Piece[] {
  const layout = new Layout(shape);
  const word = (name: string, index: number, writer: string): Piece => ({
    name,
    start: index * 4,
    end: index * 4 + 4,
    writer,
  });
  const all = [
    word('STOP', WORD_STOP, 'STOP'),
    word('READY', WORD_READY, 'channels: READY'),
    word('PACKET_NUM', WORD_PACKET_NUM, 'channels: PACKET_NUM'),
    word('TRACE', WORD_TRACE, 'calling thread'),
    word('PROGRESS_MS', WORD_PROGRESS_MS, 'calling thread'),
    word('SYNC_PAGES_ALLOC', WORD_SYNC_PAGES_ALLOC, 'calling thread'),
    word('PROGRESS', WORD_PROGRESS, 'channels: PROGRESS'),
    word('FIRST_ERROR', WORD_FIRST_ERROR, 'FIRST_ERROR'),
  ];
  for (let id = 0; id < shape.channels; id++) {
    const base = layout.channel(id);
    all.push(
      word(`${id} PENDING_JOB`, base + CHANNEL_PENDING_JOB, `${id} both, by turns: job`),
      word(`${id} PENDING_SYNC`, base + CHANNEL_PENDING_SYNC, `${id} both, by turns: sync`),
      word(`${id} SEM`, base + CHANNEL_SEM, `${id} calling thread`),
      word(`${id} SLOT`, base + CHANNEL_SLOT, `${id} calling thread`),
      word(`${id} SYNC_RELEASED`, base + CHANNEL_SYNC_RELEASED, `${id} calling thread`),
      word(`${id} STATE`, base + CHANNEL_STATE, `channel ${id}`),
      word(`${id} SYNC_DONE`, base + CHANNEL_SYNC_DONE, `channel ${id}`),
      word(`${id} SYNC_ALLOC`, base + CHANNEL_SYNC_ALLOC, `channel ${id}`),
      {
        name: `${id} stats`,
        start: layout.statsByte(id),
        end: layout.statsByte(id) + 8 * STAT_COUNT,
        writer: `channel ${id}`,
      },
    );
  }
  for (let i = 0; i < layout.slots; i++) {
    const writer = `holder of slot ${i}`;
    for (const [name, field] of Object.entries({
      SLOT_TYPE,
      SLOT_BLOCK,
      SLOT_NUM,
      SLOT_NORMAL_NUM,
      SLOT_INSTANCE_ID,
      SLOT_LENGTH,
    })) {
      all.push(word(`slot ${i} ${name}`, layout.slot(i) + field, writer));
    }
    all.push(
      { name: `slot ${i} idstr`, start: layout.idstrByte(i), end: layout.idstrByte(i) + 256, writer },
      {
        name: `slot ${i} pages`,
        start: layout.pagesByte(i),
        end: layout.pagesByte(i) + 4 * layout.pages,
        writer,
      },
    );
  }
  return all;
}

t.test('no two words overlap, and words of different writers lie in different 64-byte lines', async (t) => {
  for (const shape of SHAPES) {
    const all = pieces(shape).sort((a, b) => a.start - b.start);
    const lines = new Map<number, string>();
    for (const [i, piece] of all.entries()) {
      if (i > 0 && all[i - 1].end > piece.start) t.fail(`${all[i - 1].name} overlaps ${piece.name}`);
      for (let line = Math.floor(piece.start / LINE_BYTES); line * LINE_BYTES < piece.end; line++) {
        const writer = lines.get(line) ?? piece.writer;
        if (writer !== piece.writer) t.fail(`${piece.name}: its line is also of ${writer}`);
        lines.set(line, piece.writer);
      }
    }
    t.pass(`${shape.channels} channels, ${shape.clients} clients, pages of ${shape.pageSize}`);
  }
});

t.test('the buffers are sized from the last index', async (t) => {
  for (const shape of SHAPES) {
    const layout = new Layout(shape);
    const end = Math.max(...pieces(shape).map((piece) => piece.end));
    t.equal(layout.controlBytes, Math.ceil(end / LINE_BYTES) * LINE_BYTES);
    t.equal(layout.pages, 524288 / shape.pageSize);
    t.equal(layout.statsByte(0), (layout.channel(0) + CHANNEL_STATS) * 4);
    t.equal(layout.statsByte(shape.channels - 1) % 8, 0, 'Float64 counters are aligned');
    t.equal(STAT_COUNT, STAT_ZERO_COPY_COPIED + 1);
    const { shared } = Control.create(shape);
    t.equal(shared.control.byteLength, layout.controlBytes);
    t.equal(shared.data.byteLength, (shape.channels + shape.clients) * shape.dataBytes);
  }
});

t.test("a slot's data area holds a full packet, and the largest device state", async (t) => {
  t.equal(slotDataBytes(0), 524288);
  t.equal(slotDataBytes(524288), 524288);
  t.equal(slotDataBytes(524289), 528384);
  t.equal(slotDataBytes(2 ** 20 + 4096), 2 ** 20 + 4096);
  t.equal(slotDataBytes(2 ** 26), 2 ** 26);
});

t.test('canaries in every field of every slot and every word of every channel stay as written', async (t) => {
  for (const shape of SHAPES) {
    const control = Control.create(shape);
    const channel = Control.attach(control.shared);
    const last = shape.dataBytes - 1;
    for (const [i, slot] of control.slots.entries()) {
      slot.type = 1000 + i;
      slot.block = 2000 + i;
      slot.num = 3000 + i;
      slot.normalNum = 4000 + i;
      slot.instanceId = 0xfffffff0 - i;
      slot.length = 5000 + i;
      slot.idstr = String.fromCharCode(0x21 + (i % 90)).repeat(255);
      slot.pages.fill(0xc0000000 + i);
      slot.data.fill(i & 0xff);
      slot.data.writeUInt16LE(i, 0);
      slot.data.writeUInt16LE(i, last - 1);
    }
    for (let id = 0; id < shape.channels; id++) {
      control.stats(id).fill(id + 0.5);
      for (let n = 0; n <= id % 3; n++) {
        channel.syncDone(id);
        control.releaseSync(id);
      }
      control.requestSync(id);
      channel.setChannelState(id, CHANNEL_RUNNING);
    }
    control.trace = true;
    control.progressMs = 77;
    control.claimFirstError(0);
    control.stop(STOP_END);

    for (const [i, slot] of channel.slots.entries()) {
      t.same(
        [slot.type, slot.block, slot.num, slot.normalNum, slot.instanceId, slot.length],
        [1000 + i, 2000 + i, 3000 + i, 4000 + i, 0xfffffff0 - i, 5000 + i],
      );
      t.equal(slot.idstr, String.fromCharCode(0x21 + (i % 90)).repeat(255));
      t.equal(slot.pages.length, 524288 / shape.pageSize);
      t.ok(slot.pages.every((page) => page === 0xc0000000 + i));
      t.equal(slot.data.length, shape.dataBytes);
      t.same([slot.data.readUInt16LE(0), slot.data.readUInt16LE(last - 1)], [i, i]);
      t.ok(slot.data.subarray(2, last - 1).every((byte) => byte === (i & 0xff)));
    }
    for (let id = 0; id < shape.channels; id++) {
      t.ok(channel.stats(id).every((value) => value === id + 0.5));
      t.same([channel.syncsDone(id), channel.syncsReleased(id)], [(id % 3) + 1, (id % 3) + 1]);
      t.ok(channel.wantsSync(id) && channel.isIdle(id));
      t.equal(channel.channelState(id), CHANNEL_RUNNING);
      t.equal(channel.slotOf(id).index, id);
    }
    t.same([channel.stopped, channel.trace, channel.progressMs], [STOP_END, true, 77]);
  }
});

// ---- bitmaps ----

t.test('markPages() sets the bits that a plain loop sets', async (t) => {
  const random = new Random(32);
  const pages = 1000;
  for (let round = 0; round < 300; round++) {
    const memory = new Int32Array(new SharedArrayBuffer(Math.ceil(pages / 32) * 4));
    const twin = new Uint8Array(memory.length * 32);
    for (let n = 1 + random.below(4); n > 0; n--) {
      const first = random.below(pages);
      const count = random.below(Math.min(pages - first, [1, 2, 33, 70, pages][random.below(5)]) + 1);
      markPages(memory, first, count);
      for (let page = first; page < first + count; page++) twin[page] = 1;
    }
    const bits = Uint8Array.from(twin, (_, page) => (memory[page >>> 5] >>> (page & 31)) & 1);
    if (!Buffer.from(bits).equals(twin)) t.fail(`round ${round}`);
  }
  t.pass('300 rounds');
});

t.test('markPages() at the borders of words: none, one, 31, 32 and 33 pages', async (t) => {
  for (const [first, count, expected] of [
    [0, 0, [0, 0, 0]],
    [0, 1, [1, 0, 0]],
    [31, 1, [-0x80000000, 0, 0]],
    [0, 31, [0x7fffffff, 0, 0]],
    [0, 32, [-1, 0, 0]],
    [0, 33, [-1, 1, 0]],
    [1, 31, [-2, 0, 0]],
    [31, 2, [-0x80000000, 1, 0]],
    [32, 32, [0, -1, 0]],
    [16, 64, [-0x10000, -1, 0xffff]],
    [95, 1, [0, 0, -0x80000000]],
  ] as const) {
    const memory = new Int32Array(new SharedArrayBuffer(12));
    markPages(memory, first, count);
    t.same([...memory], expected, `${count} pages from ${first} on`);
  }
});
