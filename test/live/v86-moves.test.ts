/** A PC of v86 that is moved from process to process, 20 times in a row: not a tick and not a byte is lost. */
import t from 'tap';
import { SLEEPS, movePc } from './v86-moves.js';

t.test('one that sleeps between its steps, 20 times: each line follows the one before', async (t) => {
  await movePc(t, SLEEPS, 20);
});
