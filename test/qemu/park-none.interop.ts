/** A guest of the new QEMU, method none: zero-page mode x channels. */
import { currentCases } from './current.js';
import { runMatrix } from './matrix.js';

runMatrix(currentCases('none'));
