/** Linux in a PC of v86 that is moved from process to process, 20 times in a row: its init loses no tick and no byte. */
import t from 'tap';
import { linuxGuest } from '../../src/cli/demo/v86/linux-guest.js';
import { NO_KERNEL, findBios, linuxKernel } from '../support/linux.js';
import { SLEEPS, WRITES, movePc } from './v86-moves.js';

const kernel = linuxKernel();
const skip = (kernel === undefined && NO_KERNEL) || (findBios() === undefined && 'skipped: no seabios here');

t.test('one whose init sleeps between its steps, 20 times', { skip }, async (t) => {
  await movePc(t, SLEEPS, 20, { downtimeLimitMs: 80 }, linuxGuest(kernel!));
});

t.test('one whose init writes a lot between its sleeps, through zstd, 8 times', { skip }, async (t) => {
  const guest = { ...WRITES, spin: 1, steps: 5000, ticksPerLine: 50 };
  await movePc(t, guest, 8, { compression: 'zstd', channels: 3 }, linuxGuest(kernel!));
});
