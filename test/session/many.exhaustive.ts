import { testMany } from './many.js';

testMany(200, 50);
