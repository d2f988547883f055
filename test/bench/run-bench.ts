/** Runs `npm run bench`'s program, and reads what it wrote. */
import fs from 'node:fs';
import { fileURLToPath } from 'node:url';
import type { Test } from 'tap';
import type { Results } from '../../bench/support/results.js';
import { Run, type Ended } from '../cli/cli.js';
import { within } from '../support/within.js';

export const MAIN = fileURLToPath(new URL('../../bench/main.js', import.meta.url));
export const WAIT_MS = 60_000;
/** Takes nine seconds of one core; its rows come at its end. */
export const BENCH = 'kernels';
/** Takes half a minute, and is never let come to its end. */
export const LATER = 'limit';

export function bench(t: Test, ...args: string[]): Run {
  return new Run(t, args, { main: MAIN });
}

export function ended(run: Run): Promise<Ended> {
  return within(run.ended, WAIT_MS, 'end of the bench');
}

export function resultsIn(file: string): Results {
  return JSON.parse(fs.readFileSync(file, 'utf8')) as Results;
}
