import { testSome } from './matrix.js';

testSome();
