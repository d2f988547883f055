/** What src/shared/dirty-words.ts takes of a bitmap that others set bits in meanwhile. */
import t from 'tap';
import { takeDirtyWords } from '../../src/shared/dirty-words.js';

function makeWords(...values: number[]): Int32Array {
  const words = new Int32Array(new SharedArrayBuffer(values.length * Int32Array.BYTES_PER_ELEMENT));
  words.set(values);
  return words;
}

t.test('each word with a bit is given once, and is empty then; those outside stay', async (t) => {
  const words = makeWords(1, 0, -1, 6, 0, 9);
  const taken: [number, number][] = [];
  takeDirtyWords(words, 1, 5, (index, bits) => taken.push([index, bits]));
  t.same(taken, [
    [2, -1],
    [3, 6],
  ]);
  t.same([...words], [1, 0, 0, 0, 0, 9]);
});

t.test('a bit that is set while its word is taken stays for the next time', async (t) => {
  const words = makeWords(1, 2);
  const taken: [number, number][] = [];
  takeDirtyWords(words, 0, 2, (index, bits) => {
    taken.push([index, bits]);
    Atomics.or(words, index, 4);
  });
  takeDirtyWords(words, 0, 2, (index, bits) => taken.push([index, bits]));
  t.same(taken, [
    [0, 1],
    [1, 2],
    [0, 4],
    [1, 4],
  ]);
});
