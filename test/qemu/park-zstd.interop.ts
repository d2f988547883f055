/** A guest of the new QEMU, method zstd: zero-page mode x channels. */
import { currentCases } from './current.js';
import { runMatrix } from './matrix.js';

runMatrix(currentCases('zstd'));
