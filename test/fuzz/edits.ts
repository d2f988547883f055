/**
 * How a sound input becomes another one: a few edits, each of a field or of bytes. They are data, made by fast-check, which
 * leaves out or makes smaller what a failure does not need.
 *
 *     set add copy flip    a field that is a number, or whatever bytes there are
 *     remove double swap   fields, one or some side by side
 *     splice               a field of another seed, or a word of the format
 *     pile                 one field again and again: nesting, lists without end
 *     cut                  the end is missing
 *     poke                 bytes somewhere, in place of others or between them
 */
import fc from 'fast-check';
import type { Piece, Seed } from './contract.js';

export type Edit =
  | { kind: 'set'; at: number; value: bigint }
  | { kind: 'add'; at: number; value: number }
  | { kind: 'copy'; at: number; from: number }
  | { kind: 'flip'; at: number; bit: number }
  | { kind: 'remove' | 'double'; at: number; count: number }
  | { kind: 'swap'; at: number; with: number }
  | { kind: 'splice'; at: number; seed: number; from: number; count: number }
  | { kind: 'word'; at: number; word: number; instead: boolean }
  | { kind: 'pile'; at: number; times: number }
  | { kind: 'cut'; at: number }
  | { kind: 'poke'; at: number; data: Uint8Array; instead: boolean };

export interface Edits {
  seed: number;
  edits: Edit[];
}

const FEW_EDITS = 2;
const MOST_EDITS = 6;
const MOST_TIMES = 20_000;
/** One edit of so many. */
const GLUE_SHARE = 16;
/** Where numbers have edges. */
const EDGES = [0n, 1n, 2n, 7n, 8n, 15n, 16n, 31n, 32n, 53n, 63n, 64n].flatMap((bits) => {
  const power = 1n << bits;
  return [power - 1n, power, power + 1n];
});
const EDGE_VALUES = [0n, ...EDGES, 4096n, 524288n, 1048576n, (1n << 64n) - 4096n];

const place = fc.nat(0xffff);
const few = fc.integer({ min: 1, max: 8 });

function of<K extends Edit['kind']>(
  kind: K,
  fields: { [F in Exclude<keyof Extract<Edit, { kind: K }>, 'kind'>]: fc.Arbitrary<unknown> },
): fc.Arbitrary<Edit> {
  return fc.record({ kind: fc.constant(kind), at: place, ...(fields as object) }) as fc.Arbitrary<Edit>;
}

const EDIT: fc.Arbitrary<Edit> = fc.oneof(
  {
    arbitrary: of('set', {
      at: place,
      value: fc.oneof(fc.constantFrom(...EDGE_VALUES), fc.bigInt({ min: 0n, max: (1n << 64n) - 1n })),
    }),
    weight: 6,
  },
  { arbitrary: of('add', { at: place, value: fc.integer({ min: -300, max: 300 }) }), weight: 4 },
  { arbitrary: of('copy', { at: place, from: place }), weight: 2 },
  { arbitrary: of('flip', { at: place, bit: fc.nat(0xffff) }), weight: 3 },
  { arbitrary: of('remove', { at: place, count: few }), weight: 2 },
  { arbitrary: of('double', { at: place, count: few }), weight: 2 },
  { arbitrary: of('swap', { at: place, with: place }), weight: 2 },
  { arbitrary: of('splice', { at: place, seed: place, from: place, count: few }), weight: 2 },
  { arbitrary: of('word', { at: place, word: place, instead: fc.boolean() }), weight: 4 },
  { arbitrary: of('pile', { at: place, times: fc.nat(MOST_TIMES) }), weight: 1 },
  { arbitrary: of('cut', { at: place }), weight: 1 },
  {
    arbitrary: of('poke', {
      at: place,
      data: fc.uint8Array({ minLength: 1, maxLength: 16 }),
      instead: fc.boolean(),
    }),
    weight: 3,
  },
);

export const EDITS: fc.Arbitrary<Edits> = fc.record({
  seed: place,
  // One that is refused at once hides what comes behind it.
  edits: fc.oneof(
    { arbitrary: fc.array(EDIT, { minLength: 1, maxLength: FEW_EDITS, size: 'max' }), weight: 3 },
    { arbitrary: fc.array(EDIT, { minLength: 1, maxLength: MOST_EDITS, size: 'max' }), weight: 1 },
  ),
});

export interface Stock {
  seeds: readonly Seed[];
  words: readonly Buffer[];
  maxBytes: number;
}

export function applyEdits({ seed, edits }: Edits, { seeds, words, maxBytes }: Stock): Buffer {
  const pieces = [...seeds[seed % seeds.length]];
  let left: number | undefined;
  for (const edit of edits) {
    if (edit.kind === 'cut') left = edit.at;
    else applyTo(pieces, edit, seeds, words, maxBytes);
  }
  const whole = Buffer.concat(pieces.map(({ bytes }) => bytes)).subarray(0, maxBytes);
  return left === undefined ? whole : whole.subarray(0, left % (whole.length + 1));
}

function applyTo(
  pieces: Piece[],
  edit: Exclude<Edit, { kind: 'cut' }>,
  seeds: readonly Seed[],
  words: readonly Buffer[],
  maxBytes: number,
): void {
  if (pieces.length === 0) pieces.push({ bytes: Buffer.alloc(0), kind: 'bytes' });
  const numbers = pieces.flatMap(({ kind }, index) => (kind === 'number' ? [index] : []));
  const any = chosen(pieces, edit.at);
  // What is set is mostly a number; where there is none, bytes are.
  const at = numbers.length > 0 ? numbers[edit.at % numbers.length] : any;
  if (pieces[at].kind === 'value' && (edit.kind === 'set' || edit.kind === 'add')) {
    pieces[at] = { bytes: Buffer.from(String(edit.value)), kind: 'value' };
    return;
  }
  switch (edit.kind) {
    case 'set':
      return replaceNumber(pieces, at, () => edit.value);
    case 'add':
      return replaceNumber(pieces, at, (value) => value + BigInt(edit.value));
    case 'copy': {
      const from = pieces[edit.from % pieces.length];
      return replaceNumber(pieces, at, () => numberOf(from));
    }
    case 'flip': {
      const { bytes } = pieces[any];
      if (bytes.length === 0) return;
      const bit = edit.bit % (8 * bytes.length);
      const changed = Buffer.from(bytes);
      changed[bit >>> 3] ^= 1 << (bit & 7);
      pieces[any] = { ...pieces[any], bytes: changed };
      return;
    }
    case 'remove':
      pieces.splice(any, edit.count);
      return;
    case 'double':
      pieces.splice(any, 0, ...pieces.slice(any, any + edit.count));
      return;
    case 'swap': {
      const other = edit.with % pieces.length;
      [pieces[any], pieces[other]] = [pieces[other], pieces[any]];
      return;
    }
    case 'splice': {
      const seed = seeds[edit.seed % seeds.length];
      const from = edit.from % seed.length;
      pieces.splice(any, 0, ...seed.slice(from, from + edit.count));
      return;
    }
    case 'word':
      if (words.length === 0) return;
      pieces.splice(any, edit.instead || pieces[any].kind === 'value' ? 1 : 0, {
        bytes: words[edit.word % words.length],
        kind: 'bytes',
      });
      return;
    case 'pile': {
      const { bytes } = pieces[any];
      const times = Math.min(edit.times, Math.floor(maxBytes / Math.max(bytes.length, 1)));
      pieces.splice(any, 0, { bytes: Buffer.alloc(bytes.length * times, bytes), kind: 'bytes' });
      return;
    }
    case 'poke': {
      const { bytes, ...rest } = pieces[any];
      const from = edit.at % (bytes.length + 1);
      const behind = edit.instead ? from + edit.data.length : from;
      pieces[any] = {
        ...rest,
        bytes: Buffer.concat([bytes.subarray(0, from), edit.data, bytes.subarray(behind)]),
      };
    }
  }
}

/** Glue is chosen now and then. */
function chosen(pieces: readonly Piece[], at: number): number {
  if (at % GLUE_SHARE === 0) return at % pieces.length;
  const others = pieces.flatMap(({ kind }, index) => (kind === 'glue' ? [] : [index]));
  return others.length === 0 ? at % pieces.length : others[at % others.length];
}

/** As many bytes of it as a u64 has. */
function numberOf({ bytes, isLittle }: Piece): bigint {
  const few = Buffer.from(bytes.subarray(0, 8));
  return BigInt(`0x0${(isLittle === true ? few.reverse() : few).toString('hex')}`);
}

function replaceNumber(pieces: Piece[], at: number, change: (value: bigint) => bigint): void {
  const piece = pieces[at];
  const size = Math.min(piece.bytes.length, 8);
  if (size === 0) return;
  const value = BigInt.asUintN(8 * size, change(numberOf(piece)));
  const digits = Buffer.from(value.toString(16).padStart(2 * size, '0'), 'hex');
  if (piece.isLittle === true) digits.reverse();
  pieces[at] = { ...piece, bytes: Buffer.concat([digits, piece.bytes.subarray(size)]) };
}
