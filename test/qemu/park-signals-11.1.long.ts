/** park-signals.interop.ts with QEMU 11.1 in the place of 10.0. */
import './newest.js';
import './park-signals.interop.js';
