/** Wrong credentials with the new QEMU at the other end. */
import { requirePrograms } from './programs.js';
import { runWrongCredentials } from './tls-wrong.js';

runWrongCredentials(requirePrograms().qemu);
