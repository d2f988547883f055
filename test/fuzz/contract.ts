/**
 * What a fuzzer is. Each is one file in parsers/, with one `default` export; nothing else has to know of it:
 *
 *     parsers/NAME.ts ──register.ts──> npm run fuzz -- NAME     minutes, any seed      main.ts
 *                                      npm test                 `runs`, a fixed seed   fuzz.test.ts
 *
 *     seeds()   sound inputs, cut into their fields         edits.ts changes some: lengths, counts, order, ends
 *     open()    what one run needs, once
 *     run()     the real parser on one input: a wrong one is a MultifdError, anything else that is thrown is a fault
 *
 * What counts as a fault: run.ts.
 */

/**
 * A field of an input. Numbers are edited as numbers, the rest as bytes. Of texts that must stay well-formed to get anywhere, a
 * `value` is mostly replaced by another one, and the `glue` between them mostly left alone.
 */
export interface Piece {
  bytes: Buffer;
  kind: 'number' | 'bytes' | 'value' | 'glue';
  /** Of a number (default big-endian). */
  isLittle?: boolean;
}

/** A sound input. */
export type Seed = Piece[];

export interface Fuzzer {
  /** As it is called: npm run fuzz -- NAME. */
  name: string;
  /** What is fuzzed, for --list. */
  what: string;
  /** In npm test. */
  runs: number;
  /** Bytes of Buffers that one input may have made, and how many more for each byte of its own. */
  most: { bytes: number; perByte: number };
  /** Words of the format, which may come to stand anywhere. */
  words?: readonly Buffer[];
  /** The largest input (default 128 KiB). */
  maxBytes?: number;
  seeds(): Seed[] | Promise<Seed[]>;
  open(): Target | Promise<Target>;
}

export interface Target {
  /** @throws MultifdError for what is refused; anything else is a fault */
  run(input: Buffer): void | Promise<void>;
  close?(): void | Promise<void>;
}

/** What an input must not do: thrown by run() where it looks for itself. */
export class Fault extends Error {
  override readonly name = 'Fault';
}

// ---- for seeds ----

export function bytes(data: Uint8Array): Piece {
  return { bytes: Buffer.from(data.buffer, data.byteOffset, data.length), kind: 'bytes' };
}

export function number(data: Buffer, isLittle = false): Piece {
  return { bytes: data, kind: 'number', ...(isLittle && { isLittle }) };
}

export function u8(value: number): Piece {
  return number(Buffer.of(value));
}

export function u16(value: number): Piece {
  const data = Buffer.alloc(2);
  data.writeUInt16BE(value);
  return number(data);
}

export function u32(value: number): Piece {
  const data = Buffer.alloc(4);
  data.writeUInt32BE(value);
  return number(data);
}

export function u64(value: number | bigint): Piece {
  const data = Buffer.alloc(8);
  data.writeBigUInt64BE(BigInt(value));
  return number(data);
}

/**
 * Cuts a sound input: how many bytes each of its fields has, numbers with a sign before them that says their byte order
 * (`+4` big-endian, `-4` little-endian), all else with `=`; what is left is one field.
 */
export function cut(data: Buffer, fields: readonly string[]): Seed {
  const seed: Seed = [];
  let at = 0;
  for (const field of fields) {
    const piece = data.subarray(at, (at += Number(field.slice(1))));
    if (piece.length > 0) seed.push(field[0] === '=' ? bytes(piece) : number(piece, field[0] === '-'));
  }
  if (at < data.length) seed.push(bytes(data.subarray(at)));
  return seed;
}

/** A text in its tokens: words, numbers, and each other character. */
export function tokens(text: string): Seed {
  return (text.match(/[A-Za-z_][\w-]*|\d+|\s+|[^]/gu) ?? []).map((token) => bytes(Buffer.from(token)));
}

/** JSON: its strings, numbers and words; keys are a part of what holds them together. */
export function json(text: string): Seed {
  const pieces =
    text.match(/"(?:[^"\\]|\\.)*"(?:\s*:)?|-?\d[\d.eE+-]*|true|false|null|[^"\dtfn-]+|[^]/g) ?? [];
  return pieces.map((piece) => ({
    bytes: Buffer.from(piece),
    kind: /^["\dtfn-]/.test(piece) && !piece.endsWith(':') ? 'value' : 'glue',
  }));
}

export function join(seed: Seed): Buffer {
  return Buffer.concat(seed.map((piece) => piece.bytes));
}
