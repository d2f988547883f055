/** The book of sends without a copy: ranges that are done in any order, at the border of 2^32, again, and never made. */
import t from 'tap';
import { MultifdError } from '../../src/errors.js';
import { ZeroCopyCalls } from '../../src/transport/zero-copy-calls.js';
import { Random } from '../support/random.js';

/** @param count calls, in each of which one packet ends */
function made(count: number, first = 0): ZeroCopyCalls {
  const calls = new ZeroCopyCalls(first);
  for (let i = 0; i < count; i++) calls.make(1);
  return calls;
}

t.test('nothing is done before the kernel has said so', async (t) => {
  const calls = new ZeroCopyCalls();
  t.ok(calls.areDone(0), 'without any call');
  t.equal(calls.outstanding, 0);
  calls.make(1);
  t.equal(calls.made, 1);
  t.equal(calls.outstanding, 1);
  t.notOk(calls.areDone(1));
  t.equal(calls.done({ from: 0, to: 0 }), 1);
  t.ok(calls.areDone(1));
  t.equal(calls.outstanding, 0);
});

t.test('all up to a call are done only when the earliest is, however late it comes', async (t) => {
  const calls = made(10);
  calls.done({ from: 5, to: 9 });
  calls.done({ from: 2, to: 3 });
  t.notOk(calls.areDone(1));
  t.equal(calls.outstanding, 10);
  calls.done({ from: 0, to: 1 });
  t.ok(calls.areDone(4));
  t.notOk(calls.areDone(5), 'number 4 is not done');
  t.equal(calls.outstanding, 6);
  calls.done({ from: 4, to: 4 });
  t.ok(calls.areDone(10));
  t.equal(calls.outstanding, 0);
});

t.test(
  'a range that is told again, in part or whole, changes nothing and counts no packet twice',
  async (t) => {
    const calls = made(8);
    t.equal(calls.done({ from: 2, to: 4 }), 3);
    t.equal(calls.done({ from: 2, to: 4 }), 0);
    t.equal(calls.done({ from: 1, to: 5 }), 2, 'only what is new of it');
    t.equal(calls.done({ from: 0, to: 0 }), 1);
    t.equal(calls.outstanding, 2);
    t.equal(calls.done({ from: 0, to: 5 }), 0, 'all of it was done');
    t.equal(calls.done({ from: 3, to: 7 }), 2);
    t.equal(calls.outstanding, 0);
  },
);

t.test('packets are counted where they end', async (t) => {
  const calls = new ZeroCopyCalls();
  for (const packets of [0, 0, 1, 1, 0]) calls.make(packets);
  t.equal(calls.done({ from: 0, to: 1 }), 0);
  t.equal(calls.done({ from: 2, to: 4 }), 2);
});

t.test('a number that was never made is an error: no memory could be called free any more', async (t) => {
  for (const [from, to] of [
    [3, 3],
    [0, 3],
    [2, 0],
    [1000, 2000],
    [0, 0xffffffff],
  ]) {
    const error = t.throws(() => made(3).done({ from, to }), MultifdError) as MultifdError;
    t.equal(error.code, 'ERR_MULTIFD_WORKER');
    t.equal(
      error.message,
      `zeroCopySend: sends that are done: received ${from} to ${to}, expected none from 3 on`,
    );
  }
});

t.test('numbers go on at 0 behind 2^32 - 1, and ranges go over that border', async (t) => {
  const before = 2 ** 32 - 3;
  const calls = made(6, before);
  t.equal(calls.done({ from: 0, to: 1 }), 2, 'those behind the border first');
  t.notOk(calls.areDone(before + 1));
  t.equal(calls.done({ from: 0xfffffffe, to: 1 }), 2, 'over it, in part again');
  t.equal(calls.outstanding, 6);
  t.equal(calls.done({ from: 0xfffffffd, to: 0xfffffffd }), 1);
  t.ok(calls.areDone(before + 5));
  t.equal(calls.outstanding, 1);
  t.throws(() => calls.done({ from: 3, to: 3 }), { code: 'ERR_MULTIFD_WORKER' });
  t.equal(calls.done({ from: 2, to: 2 }), 1);
  t.equal(calls.outstanding, 0);
  t.equal(calls.made, 2 ** 32 + 3);
});

t.test('any order of any ranges, against a list of single numbers', async (t) => {
  const random = new Random(5);
  for (let round = 0; round < 200; round++) {
    const first = random.below(2) === 0 ? 0 : 2 ** 32 * (1 + random.below(3)) - random.below(20);
    const calls = new ZeroCopyCalls(first);
    const done: boolean[] = [];
    for (let step = 0; step < 60; step++) {
      if (random.below(2) === 0) {
        calls.make(1);
        done.push(false);
      } else if (done.length > 0) {
        const from = random.below(done.length);
        const to = from + random.below(Math.min(5, done.length - from));
        let fresh = 0;
        for (let i = from; i <= to; i++) {
          if (!done[i]) fresh++;
          done[i] = true;
        }
        const wire = (i: number): number => (first + i) % 2 ** 32;
        if (calls.done({ from: wire(from), to: wire(to) }) !== fresh) t.fail(`round ${round}, step ${step}`);
      }
      const low = done.includes(false) ? done.indexOf(false) : done.length;
      if (calls.outstanding !== done.length - low) t.fail(`round ${round}, step ${step}: outstanding`);
      if (!calls.areDone(first + low) || (low < done.length && calls.areDone(first + low + 1)))
        t.fail(`round ${round}, step ${step}: done up to ${low}`);
    }
  }
  t.pass();
});
