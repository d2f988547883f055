/** `multifd park` and `multifd resume` with the new QEMU. */
import { runParkCommand } from './park-command.js';
import { requirePrograms } from './programs.js';

runParkCommand(requirePrograms().qemu);
