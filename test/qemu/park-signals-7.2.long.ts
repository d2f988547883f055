/** `multifd park` and `multifd resume`, stopped and cut off from QEMU 7.2. */
import { runParkSignals } from './park-signals.js';
import { requirePrograms } from './programs.js';

runParkSignals(requirePrograms().qemu72);
