/** The same as v86-moves.test.ts, longer, and with a guest that writes without an end. */
import t from 'tap';
import { SLEEPS, WRITES, movePc } from './v86-moves.js';

t.test('one that writes without an end, 10 times', async (t) => {
  await movePc(t, WRITES, 10);
});

t.test('one that writes without an end, through zstd, 10 times', async (t) => {
  await movePc(t, WRITES, 10, { compression: 'zstd', channels: 3 });
});

t.test('one that sleeps between its steps, 40 times', async (t) => {
  await movePc(t, SLEEPS, 40);
});
