/**
 * Delta debugging (Zeller, Hildebrandt, 2002) over the bytes of an input that fails: pieces of it are left out, half of it
 * first and single bytes last, then bytes become 0, as long as it still fails. fast-check has left out edits before; what
 * is left of the seed goes here.
 */
const MOST_TRIES = 3000;

/** @param fails is asked a few thousand times at the most */
export async function minimise(input: Buffer, fails: (input: Buffer) => Promise<boolean>): Promise<Buffer> {
  let tries = 0;
  let smallest = input;
  const take = async (candidate: Buffer): Promise<boolean> => {
    if (tries >= MOST_TRIES) return false;
    tries++;
    if (!(await fails(candidate))) return false;
    smallest = candidate;
    return true;
  };
  for (let size = Math.ceil(smallest.length / 2); size >= 1; size = size === 1 ? 0 : Math.ceil(size / 2)) {
    for (let at = 0; at < smallest.length && tries < MOST_TRIES;) {
      const without = Buffer.concat([smallest.subarray(0, at), smallest.subarray(at + size)]);
      if (!(await take(without))) at += size;
    }
  }
  for (let size = smallest.length; size >= 1; size = size === 1 ? 0 : Math.ceil(size / 2)) {
    for (let at = 0; at < smallest.length && tries < MOST_TRIES; at += size) {
      const zeroed = Buffer.from(smallest).fill(0, at, Math.min(at + size, smallest.length));
      if (!zeroed.equals(smallest)) await take(zeroed);
    }
  }
  return smallest;
}
