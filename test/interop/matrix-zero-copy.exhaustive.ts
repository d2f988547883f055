import t from 'tap';
import { findKoffi, whyNoKoffi } from '../../src/native/koffi.js';
import { testMatrix } from './matrix.js';

if (findKoffi() !== undefined) testMatrix('none', true);
else t.test('without koffi nothing goes without copies', async (t) => t.match(whyNoKoffi(), /koffi|Linux/));
