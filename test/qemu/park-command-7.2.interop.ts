/** `multifd park` and `multifd resume` with QEMU 7.2. */
import { runParkCommand } from './park-command.js';
import { requirePrograms } from './programs.js';

runParkCommand(requirePrograms().qemu72);
