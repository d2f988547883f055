/** A guest of the new QEMU, method zlib: zero-page mode x channels. */
import { currentCases } from './current.js';
import { runMatrix } from './matrix.js';

runMatrix(currentCases('zlib'));
