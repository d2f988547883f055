/** A time limit for every wait of a test. */
export { within } from '../../src/qmp/within.js';
