/** Which channel a slot goes to, and who is served first, over the real words of src/shared/control.ts. */
import t from 'tap';
import { Control, PAYLOAD_RAM, STOP_RUN, type Slot } from '../../src/shared/control.js';
import { ANY_CHANNEL, HandOver } from '../../src/send/hand-over.js';
import { within } from '../support/within.js';

const WAIT_MS = 30_000;

const noTurns = { taken: (): void => {} };

function setUp(channels: number): { control: Control; handOver: HandOver; slots: Slot[] } {
  const control = Control.create({ channels, clients: 2, pageSize: 4096, dataBytes: 4096 });
  const session = {
    control,
    until: async (condition: () => boolean, spin: number): Promise<boolean> => {
      for (let slept = false; ;) {
        const seen = control.readyCount;
        if (control.stopped !== STOP_RUN) throw new Error('the session has failed');
        if (condition()) return slept;
        await control.waitReady(seen, spin);
        slept = true;
      }
    },
  };
  const handOver = new HandOver(session, noTurns);
  return { control, handOver, slots: control.slots.slice(channels) };
}

function fill(slot: Slot): Slot {
  slot.type = PAYLOAD_RAM;
  slot.num = 1;
  return slot;
}

t.test('idle channels are served in turn, and a slot comes back empty for each', async (t) => {
  const { control, handOver, slots } = setUp(3);
  let slot = slots[0];
  const owned = new Set([slot.index]);
  for (let id = 0; id < 3; id++) {
    t.ok(handOver.hasIdle());
    slot = handOver.offer(fill(slot));
    t.equal(slot.num, 0);
    t.notOk(owned.has(slot.index));
    owned.add(slot.index);
    t.notOk(control.isIdle(id), `channel ${id} has it`);
  }
  t.notOk(handOver.hasIdle());
  t.equal(handOver.offer(fill(slot)), slot, 'with no channel idle the slot stays where it is');
});

t.test('a channel that is idle again comes after those that have been idle for longer', (t) => {
  const { control, handOver, slots } = setUp(2);
  const slot = handOver.offer(fill(slots[0]));
  control.done(0);
  handOver.offer(fill(slot));
  t.ok(control.isIdle(0));
  t.notOk(control.isIdle(1));
  t.end();
});

for (const [one, other] of [
  [0, 1],
  [1, 0],
]) {
  t.test(`a slot for channel ${one} of two waits for that one alone`, async (t) => {
    const { control, handOver, slots } = setUp(2);
    const second = await handOver.give(fill(slots[0]), one);
    t.ok(control.isIdle(other));
    const given = handOver.give(fill(second), one);
    await new Promise(setImmediate);
    t.ok(control.isIdle(other), 'not to the one that is idle');
    control.done(one);
    t.equal((await within(given, WAIT_MS, 'the slot')).index, slots[0].index);
  });
}

t.test('nobody overtakes a client that waits, and they are served in the order they came', async (t) => {
  const { control, handOver, slots } = setUp(1);
  const order: string[] = [];
  const empty = await handOver.give(fill(slots[0]), ANY_CHANNEL);
  const first = handOver.give(fill(empty), ANY_CHANNEL).then((slot) => (order.push('first'), slot));
  const second = handOver.give(fill(slots[1]), ANY_CHANNEL).then((slot) => (order.push('second'), slot));
  await new Promise(setImmediate);
  t.same(order, []);
  control.done(0);
  // The channel is idle, but not for one that comes only now.
  const late = fill(control.slots[0]);
  t.equal(handOver.offer(late), late);
  const back = await within(first, WAIT_MS, 'the first');
  t.equal(back.index, slots[0].index);
  t.same(order, ['first']);
  control.done(0);
  t.equal((await within(second, WAIT_MS, 'the second')).index, empty.index);
  t.same(order, ['first', 'second']);
});

t.test('the next in line is woken when two channels have got idle at once', async (t) => {
  const { control, handOver, slots } = setUp(2);
  const empty = [slots[0]];
  for (let id = 0; id < 2; id++) empty[0] = await handOver.give(fill(empty[0]), ANY_CHANNEL);
  const waiting = [empty[0], slots[1]].map((slot) => handOver.give(fill(slot), ANY_CHANNEL));
  await new Promise(setImmediate);
  // Both clients look, and only one of them is served: the other sleeps again, and no channel posts any more.
  control.done(0);
  control.done(1);
  t.equal((await within(Promise.all(waiting), WAIT_MS, 'both')).length, 2);
});
