/** When a source switches over, and what it does while it may not: the rule by numbers, and each choice by a guest. */
import t, { type Test } from 'tap';
import { Convergence } from '../../src/live/convergence.js';
import { within } from '../support/within.js';
import { WAIT_MS, failure, runsOnHere, runsThere, scene } from './scene.js';

const MIB = 2 ** 20;

/** Three rounds, or eight where they are short; also counted: at the begin, and when the guest stood still. */
function isAfterFewest(t: Test, syncCount: number): void {
  t.ok(syncCount >= 3 + 2 && syncCount <= 8 + 2, `no more rounds than wanted: ${syncCount}`);
}

t.test(
  'it fits when what is left passes within the limit at the rate of the last round, to the byte',
  async (t) => {
    const convergence = new Convergence(30);
    convergence.sent({ pageBytes: 900 * MIB, normalBytes: 900 * MIB, ms: 1000 });
    convergence.sent({ pageBytes: 800 * MIB, normalBytes: 800 * MIB, ms: 1000 });
    convergence.sent({ pageBytes: 100 * MIB, normalBytes: 100 * MIB, ms: 1000 });
    t.equal(convergence.judge(30 * MIB, 300), 'fits');
    t.equal(convergence.judge(30 * MIB + 4096, 300), 'another-round');
    t.equal(convergence.expectedDowntimeMs(50 * MIB), 500);
    convergence.sent({ pageBytes: 10 * MIB, normalBytes: 10 * MIB, ms: 1000 });
    t.equal(convergence.judge(30 * MIB, 300), 'another-round');
    t.equal(convergence.judge(0, 0), 'fits');
  },
);

t.test('zero pages of the first round tell nothing of the rate, those of later rounds do', async (t) => {
  const convergence = new Convergence(30);
  convergence.sent({ pageBytes: 1000 * MIB, normalBytes: 10 * MIB, ms: 100 });
  t.equal(convergence.bytesPerMs, MIB / 10);
  convergence.sent({ pageBytes: 20 * MIB, normalBytes: 10 * MIB, ms: 100 });
  t.equal(convergence.bytesPerMs, MIB / 5);
  convergence.sent({ pageBytes: 0, normalBytes: 0, ms: 1 });
  t.equal(convergence.bytesPerMs, MIB / 5, 'nor does a round without a page');
  const empty = new Convergence(30);
  empty.sent({ pageBytes: 10 * MIB, normalBytes: 0, ms: 100 });
  t.equal(empty.expectedDowntimeMs(MIB), 10);
  for (let round = 2; round <= 3; round++) empty.sent({ pageBytes: 10 * MIB, normalBytes: 0, ms: 100 });
  t.equal(empty.judge(MIB, 300), 'fits', 'a guest that is all zero');
});

t.test(
  'the first pass is not followed by the switch-over, unless nothing is left or no round is allowed',
  async (t) => {
    const first = { pageBytes: 1000 * MIB, normalBytes: 1000 * MIB, ms: 100 };
    const convergence = new Convergence(30);
    convergence.sent(first);
    t.equal(convergence.judge(4096, 300), 'another-round', 'its rate is not that of pages that lie apart');
    t.equal(convergence.judge(0, 0), 'fits');
    convergence.sent({ pageBytes: MIB, normalBytes: MIB, ms: 20 });
    t.equal(convergence.judge(4096, 300), 'another-round', 'nor is that of code that is new');
    convergence.sent({ pageBytes: MIB, normalBytes: MIB, ms: 20 });
    t.equal(convergence.judge(4096, 300), 'fits');
    const short = new Convergence(30);
    for (let round = 1; round <= 8; round++) {
      t.equal(short.judge(4096, 300), 'another-round', `code is compiled beside short rounds: ${round}`);
      short.sent({ pageBytes: MIB, normalBytes: MIB, ms: 19 });
    }
    t.equal(short.judge(4096, 300), 'fits');
    const only = new Convergence(1);
    only.sent(first);
    t.equal(only.judge(4096, 300), 'fits');
  },
);

t.test('after so many rounds it is exhausted', async (t) => {
  const convergence = new Convergence(2);
  convergence.sent({ pageBytes: MIB, normalBytes: MIB, ms: 1000 });
  t.equal(convergence.judge(MIB, 300), 'another-round');
  convergence.sent({ pageBytes: MIB, normalBytes: MIB, ms: 1000 });
  t.equal(convergence.judge(MIB, 300), 'exhausted');
  t.equal(convergence.judge(MIB / 10, 300), 'fits');
});

t.test(
  "the guest is slowed down by QEMU's steps, when it dirties more than half of a round twice in a row",
  async (t) => {
    const convergence = new Convergence(100);
    const round = (dirtied: number): number | undefined => {
      convergence.sent({ pageBytes: 100, normalBytes: 100, ms: 1 });
      return convergence.throttle(dirtied);
    };
    t.equal(round(51), undefined);
    t.equal(round(50), undefined, 'half of it is not more');
    t.equal(round(51), undefined);
    t.equal(round(51), 20);
    const steps = Array.from({ length: 20 }, () => round(100)).filter((percent) => percent !== undefined);
    t.same(steps, [30, 40, 50, 60, 70, 80, 90, 99]);
  },
);

/** As many pages as are never sent within no time, and as are more than half of a round. */
const busy = { dirty: () => [{ block: 'ram', offset: 0, length: 40 * 4096 }], downtimeLimitMs: 0 };

t.test("'fail', the default: the guest runs on, and the error says what was measured", async (t) => {
  const it = await scene(t, { source: { ...busy, maxRounds: 3 } });
  const error = await failure(it.source.done);
  t.match(error, {
    code: 'ERR_MULTIFD_CONVERGENCE',
    message: /^after 3 rounds .* received \d+, expected at most 0 /,
  });
  t.equal(it.source.state, 'failed');
  await failure(it.destination.done);
  runsOnHere(t, it);
  t.notOk(it.notes.includes('pause'));
});

t.test("'switchover': the guest is stopped all the same", async (t) => {
  const it = await scene(t, { source: { ...busy, maxRounds: 3, notConverging: 'switchover' } });
  const totals = await within(it.source.done, WAIT_MS, 'done');
  await it.destination.done;
  runsThere(t, it);
  // At the begin, after each round, and when the guest stood still.
  t.equal(totals.ram.dirtySyncCount, 5);
});

t.test('a function: it is called with ever more, and with 0 when all has failed', async (t) => {
  const percents: number[] = [];
  const it = await scene(t, {
    source: { ...busy, maxRounds: 8, notConverging: (percent) => void percents.push(percent) },
  });
  const error = await failure(it.source.done);
  t.equal(error.code, 'ERR_MULTIFD_CONVERGENCE');
  t.same(percents, [20, 30, 40, 0]);
  t.equal(it.source.stats().throttlePercent, 40);
  runsOnHere(t, it);
});

t.test('a function is not called where it fits, and only rounds are wanted', async (t) => {
  const percents: number[] = [];
  const it = await scene(t, {
    source: {
      ...busy,
      downtimeLimitMs: 1_000_000,
      notConverging: (percent) => void percents.push(percent),
    },
  });
  const totals = await within(it.source.done, WAIT_MS, 'done');
  await it.destination.done;
  t.same(percents, []);
  isAfterFewest(t, totals.ram.dirtySyncCount);
  runsThere(t, it);
});

t.test('a function that helps: the guest converges and is not called again', async (t) => {
  const percents: number[] = [];
  const it = await scene(t, {
    source: {
      downtimeLimitMs: 0,
      dirty: () => (percents.length === 0 ? busy.dirty() : []),
      notConverging: (percent) => void percents.push(percent),
    },
  });
  await within(it.source.done, WAIT_MS, 'done');
  await it.destination.done;
  t.same(percents, [20]);
  runsThere(t, it);
});

t.test('a limit that is raised while it runs lets it converge', async (t) => {
  let calls = 0;
  const it = await scene(t, {
    source: {
      ...busy,
      maxRounds: 1000,
      dirty: () => {
        if (++calls === 4) it.source.downtimeLimitMs = 60_000;
        return busy.dirty();
      },
    },
  });
  const totals = await within(it.source.done, WAIT_MS, 'done');
  isAfterFewest(t, totals.ram.dirtySyncCount);
  t.throws(() => (it.source.downtimeLimitMs = -1), { code: 'ERR_MULTIFD_OPTION' });
});
