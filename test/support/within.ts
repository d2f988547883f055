/** A time limit for every wait of a test. */
export { within } from '../../src/cli/qemu/within.js';
