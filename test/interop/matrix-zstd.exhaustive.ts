import { testMatrix } from './matrix.js';

testMatrix('zstd');
