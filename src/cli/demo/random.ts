/** Numbers of 0 or more and below `limit`, the same ones for the same seed: the demo's layout repeats exactly. */
export type Random = (limit: number) => number;

/** Mulberry32: 32 bits of state are plenty for choosing where things go. */
export function seededRandom(seed: number): Random {
  let state = seed >>> 0;
  return (limit) => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return Math.floor((((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32) * limit);
  };
}
