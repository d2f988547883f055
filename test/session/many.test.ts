/** The leaks that a few dozen migrations show; `npm run test:exhaustive` has the small ones. */
import { testMany } from './many.js';

testMany(60, 20);
