/**
 * The entropy tables of zstd (RFC 8878, 4): what a block's header describes, as arrays that the decoder's loops index.
 *
 *     FSE entry      symbol << 24 | bits << 16 | base      next state: base + that many bits
 *     Huffman entry  bits << 8 | symbol                    by the next `log` bits
 *
 * As strict as libzstd 1.5.7, so that both refuse the same tables. A table is made in place, in arrays that live as
 * long as the channel: a block costs no memory.
 */
import { MAX_HUFFMAN_LOG, corrupt } from './zstd-limits.js';

/** The largest of them: literal lengths and match lengths have 2^9 states. */
const MAX_FSE_STATES = 512;
const HUFFMAN_WEIGHT_LOG = 6;
const MAX_SYMBOLS = 256;

export class FseTable {
  readonly entries = new Uint32Array(MAX_FSE_STATES);
  /** Of the number of states. */
  log = 0;

  /** One symbol, and no bits. */
  setRle(symbol: number): void {
    this.log = 0;
    this.entries[0] = (symbol << 24) >>> 0;
  }

  /**
   * Reads a table's description.
   *
   * @returns where it ends
   */
  read(input: Uint8Array, at: number, end: number, maxSymbol: number, maxLog: number): number {
    if (at >= end) corrupt('a table cut short');
    const log = (input[at] & 15) + 5;
    if (log > maxLog) corrupt('a table of too many states');
    let bit = at * 8 + 4;
    let remaining = (1 << log) + 1;
    let threshold = 1 << log;
    let width = log + 1;
    let symbols = 0;
    while (remaining > 1 && symbols <= maxSymbol) {
      // Fewer than 17 bits are used, from a byte that may be the last.
      const byte = bit >>> 3;
      const bits = (input[byte] | (input[byte + 1] << 8) | (input[byte + 2] << 16)) >>> (bit & 7);
      const spare = 2 * threshold - 1 - remaining;
      let count = bits & (threshold - 1);
      if (count < spare) bit += width - 1;
      else {
        count = bits & (2 * threshold - 1);
        if (count >= threshold) count -= spare;
        bit += width;
      }
      count--;
      remaining -= count < 0 ? 1 : count;
      counts[symbols++] = count;
      if (count === 0) {
        for (let repeat = 3; repeat === 3;) {
          repeat = ((input[bit >>> 3] | (input[(bit >>> 3) + 1] << 8)) >>> (bit & 7)) & 3;
          bit += 2;
          for (let i = 0; i < repeat && symbols <= maxSymbol + 1; i++) counts[symbols++] = 0;
          if (bit > end * 8) corrupt('a table cut short');
        }
      }
      while (remaining < threshold) {
        width--;
        threshold >>>= 1;
      }
    }
    const next = (bit + 7) >>> 3;
    if (remaining !== 1 || symbols > maxSymbol + 1 || next > end) corrupt('a table that does not add up');
    this.#spread(symbols, log);
    return next;
  }

  /** @param given numbers of states, symbol by symbol; -1: less than one */
  static of(given: readonly number[], log: number): FseTable {
    const table = new FseTable();
    counts.set(given);
    table.#spread(given.length, log);
    return table;
  }

  #spread(symbols: number, log: number): void {
    this.log = log;
    const size = 1 << log;
    const mask = size - 1;
    const step = (size >>> 1) + (size >>> 3) + 3;
    let high = size;
    for (let symbol = 0; symbol < symbols; symbol++) {
      if (counts[symbol] === -1) {
        spread[--high] = symbol;
        following[symbol] = 1;
      } else following[symbol] = counts[symbol];
    }
    for (let symbol = 0, at = 0; symbol < symbols; symbol++) {
      for (let i = 0; i < counts[symbol]; i++) {
        spread[at] = symbol;
        do at = (at + step) & mask;
        while (at >= high);
      }
    }
    for (let state = 0; state < size; state++) {
      const symbol = spread[state];
      const next = following[symbol]++;
      const bits = log - (31 - Math.clz32(next));
      this.entries[state] = ((symbol << 24) | (bits << 16) | ((next << bits) - size)) >>> 0;
    }
  }
}

// Of a table that is being made, one at a time.
const counts = new Int16Array(MAX_SYMBOLS + 2);
const following = new Uint16Array(MAX_SYMBOLS);
const spread = new Uint8Array(MAX_FSE_STATES);
const weights = new Uint8Array(MAX_SYMBOLS + 1);
const ranks = new Uint32Array(MAX_HUFFMAN_LOG + 2);
const weightTable = new FseTable();

export class HuffmanTable {
  readonly entries = new Uint16Array(1 << MAX_HUFFMAN_LOG);
  log = 0;

  /**
   * Reads a table's description: the weights of all symbols but the last.
   *
   * @returns where it ends
   */
  read(input: Uint8Array, at: number, end: number): number {
    if (at >= end) corrupt('a Huffman table cut short');
    const header = input[at++];
    const direct = header >= 128;
    const count = direct ? header - 127 : 0;
    const size = direct ? (count + 1) >>> 1 : header;
    if (at + size > end) corrupt('a Huffman table cut short');
    let symbols = count;
    if (direct) {
      for (let i = 0; i < count; i++) weights[i] = (input[at + (i >>> 1)] >>> ((i & 1) === 0 ? 4 : 0)) & 15;
    } else symbols = readWeights(input, at, at + size);
    this.#build(symbols);
    return at + size;
  }

  #build(symbols: number): void {
    ranks.fill(0);
    let total = 0;
    for (let i = 0; i < symbols; i++) {
      const weight = weights[i];
      if (weight > MAX_HUFFMAN_LOG) corrupt('a Huffman weight too high');
      ranks[weight]++;
      total += (1 << weight) >>> 1;
    }
    if (total === 0) corrupt('a Huffman table of nothing');
    const log = 32 - Math.clz32(total);
    if (log > MAX_HUFFMAN_LOG) corrupt('a Huffman table too deep');
    // The last symbol has what is left, a power of 2.
    const rest = (1 << log) - total;
    if ((rest & (rest - 1)) !== 0) corrupt('a Huffman table that does not add up');
    const last = 32 - Math.clz32(rest);
    weights[symbols++] = last;
    ranks[last]++;
    // The longest codes come in pairs.
    if (ranks[1] < 2 || (ranks[1] & 1) !== 0) corrupt('a Huffman table that does not add up');
    this.log = log;
    // From the longest codes on: where each weight's symbols begin.
    for (let weight = 1, at = 0; weight <= log; weight++) {
      const many = ranks[weight];
      ranks[weight] = at;
      at += many << (weight - 1);
    }
    for (let symbol = 0; symbol < symbols; symbol++) {
      const weight = weights[symbol];
      if (weight === 0) continue;
      const at = ranks[weight];
      const many = 1 << (weight - 1);
      this.entries.fill(((log + 1 - weight) << 8) | symbol, at, at + many);
      ranks[weight] = at + many;
    }
  }
}

/** Weights that are themselves FSE coded, by two states in turn; the stream's end says how many there are. */
function readWeights(input: Uint8Array, at: number, end: number): number {
  const begin = weightTable.read(input, at, end, MAX_SYMBOLS - 1, HUFFMAN_WEIGHT_LOG);
  if (begin >= end || input[end - 1] === 0) corrupt('Huffman weights cut short');
  const { entries, log } = weightTable;
  let left = (end - begin) * 8 - 8 + (31 - Math.clz32(input[end - 1]));
  const take = (bits: number): number => {
    left -= bits;
    if (left < 0) return 0;
    const byte = begin + (left >>> 3);
    return ((input[byte] | (input[byte + 1] << 8)) >>> (left & 7)) & ((1 << bits) - 1);
  };
  let state = take(log);
  let other = take(log);
  if (left < 0) corrupt('Huffman weights cut short');
  for (let symbols = 0; ;) {
    // Room for this one and for the one after the end.
    if (symbols > MAX_SYMBOLS - 3) corrupt('too many Huffman weights');
    const entry = entries[state];
    weights[symbols++] = entry >>> 24;
    const next = (entry & 0xffff) + take((entry >>> 16) & 0xff);
    if (left < 0) {
      weights[symbols++] = entries[other] >>> 24;
      return symbols;
    }
    state = other;
    other = next;
  }
}
