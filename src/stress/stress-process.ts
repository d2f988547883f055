/** The program of a side's process; started by side-process.ts, and in the bundle under this name. */
import { serveRuns } from './side-program.js';

if (process.send === undefined) {
  console.error('multifd: this file is started by `multifd stress engine`, not by hand');
  process.exitCode = 1;
} else serveRuns();
