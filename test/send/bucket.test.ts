/** The bucket of maxBandwidth with a clock and counters of its own: what it waits for, to the millisecond. */
import t from 'tap';
import { Control, STOP_FAIL } from '../../src/shared/control.js';
import { BURST_MS, Bandwidth } from '../../src/send/bandwidth.js';

/** A thousand bytes a millisecond. */
const RATE = 1_000_000;

/** A session whose sleeps pass at once, and move the clock. */
function session() {
  const control = Control.create({ channels: 1, clients: 1, pageSize: 4096, dataBytes: 4096 });
  const world = {
    now: 5,
    sent: 0,
    slept: [] as number[],
    onSleep: (): void => {},
    control,
    wireBytes: () => world.sent,
    sleep: (ms: number) => {
      world.slept.push(ms);
      world.now += ms;
      world.onSleep();
      return Promise.resolve();
    },
    check: () => Promise.reject(new Error('the session has failed')),
  };
  const bucket = (limit: number): Bandwidth => new Bandwidth(limit, world, () => world.now);
  return { world, bucket };
}

t.test('a bucket without a limit never waits', async (t) => {
  const { world, bucket } = session();
  const bandwidth = bucket(0);
  world.sent = 2 ** 40;
  await bandwidth.throttle();
  t.same(world.slept, []);
});

t.test('what has been sent beyond the rate is slept off, and no more', async (t) => {
  const { world, bucket } = session();
  const bandwidth = bucket(RATE);
  world.sent = 50_000;
  await bandwidth.throttle();
  t.same(world.slept, [50]);
  await bandwidth.throttle();
  t.same(world.slept, [50], 'nothing sent since: nothing to wait for');
  world.now += 30;
  world.sent += 30_000;
  await bandwidth.throttle();
  t.same(world.slept, [50], 'at the rate: nothing to wait for');
});

t.test('a pause is worth one burst, however long it was', async (t) => {
  const { world, bucket } = session();
  const bandwidth = bucket(RATE);
  world.now += 3_600_000;
  world.sent = BURST_MS * 1000;
  await bandwidth.throttle();
  t.same(world.slept, []);
  world.sent += 7_000;
  await bandwidth.throttle();
  t.same(world.slept, [7]);
});

t.test('what is sent during a sleep is slept off as well', async (t) => {
  const { world, bucket } = session();
  const bandwidth = bucket(RATE);
  world.sent = 40_000;
  world.onSleep = () => {
    if (world.slept.length === 1) world.sent += 3_000;
  };
  await bandwidth.throttle();
  t.same(world.slept, [40, 3]);
});

t.test('a new limit starts with an empty bucket and without the debt of the old one', async (t) => {
  const { world, bucket } = session();
  const bandwidth = bucket(RATE);
  world.sent = 10 ** 9;
  bandwidth.limit = 2 * RATE;
  t.equal(bandwidth.limit, 2 * RATE);
  await bandwidth.throttle();
  t.same(world.slept, []);
  world.sent += 20_000;
  await bandwidth.throttle();
  t.same(world.slept, [10]);
});

t.test('a limit that is lifted while a client sleeps lets it go', async (t) => {
  const { world, bucket } = session();
  const bandwidth = bucket(1);
  world.sent = 10 ** 6;
  world.onSleep = () => (bandwidth.limit = 0);
  await bandwidth.throttle();
  t.same(world.slept, [60_000], 'a sleep has an end');
});

t.test('a session that stops while a client sleeps fails the call', async (t) => {
  const { world, bucket } = session();
  const bandwidth = bucket(1);
  world.sent = 10 ** 6;
  world.onSleep = () => world.control.stop(STOP_FAIL);
  await t.rejects(bandwidth.throttle(), { message: 'the session has failed' });
  t.equal(world.slept.length, 1);
});
