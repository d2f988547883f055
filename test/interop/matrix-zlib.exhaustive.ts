import { testMatrix } from './matrix.js';

testMatrix('zlib');
