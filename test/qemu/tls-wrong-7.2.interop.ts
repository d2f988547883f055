/** Wrong credentials with QEMU 7.2 at the other end. */
import { requirePrograms } from './programs.js';
import { runWrongCredentials } from './tls-wrong.js';

runWrongCredentials(requirePrograms().qemu72);
