/**
 * Reads JSON as it comes, in pieces cut anywhere, and keeps nothing of it: whoever extends it is told of what he enters.
 * JSON.parse() would be quicker, but takes its time in one piece, and of a peer's JSON makes many times its size.
 *
 *     { "a" : [ 1 , "b" ] , "c" : { ... } }
 *     |  |    | |    |  |    |    |     |
 *     |  |    | |    |  |    |    |     passed()      the end of what begin() had refused
 *     |  |    | |    |  |    |    begin() false       nothing within it is told
 *     |  |    | |    |  end()
 *     |  |    | |    wantsString(), then text() or other()
 *     |  |    | number()
 *     |  key()
 *     begin() true
 *
 * Takes what JSON.parse() takes. Every byte is looked at once here; what is passed over goes by flat-objects.ts where it can.
 * Memory: one bit a level of nesting, and CAPTURE_BYTES of a key, a wanted string or a number.
 */
import { FlatObjects } from './flat-objects.js';

/** A name of 255 characters, all of them escaped as \uXXXX. */
export const CAPTURE_BYTES = 6 * 255;

const QUOTE = 0x22;
const COMMA = 0x2c;
const COLON = 0x3a;
const BACKSLASH = 0x5c;
const OPENING_BRACKET = 0x5b;
const CLOSING_BRACKET = 0x5d;
const OPENING_BRACE = 0x7b;
const CLOSING_BRACE = 0x7d;
const MINUS = 0x2d;
const PLUS = 0x2b;
const DOT = 0x2e;
const ZERO = 0x30;
const NINE = 0x39;
const LETTER_U = 0x75;
const BLANK = 0x20;

/** What may come next. */
const VALUE = 0;
const VALUE_OR_END = 1;
const KEY = 2;
const KEY_OR_END = 3;
const AFTER_KEY = 4;
const AFTER_VALUE = 5;
const IN_STRING = 6;
const IN_ESCAPE = 7;
const IN_HEX = 8;
const IN_LITERAL = 9;
/** A number's parts, each named for what has come of it. */
const NUMBER_MINUS = 10;
const NUMBER_ZERO = 11;
const NUMBER_INTEGER = 12;
const NUMBER_DOT = 13;
const NUMBER_FRACTION = 14;
const NUMBER_E = 15;
const NUMBER_SIGN = 16;
const NUMBER_EXPONENT = 17;
const END = 18;
const BROKEN = 19;

const ESCAPES = new Set(Buffer.from('"\\/bfnrt'));
const LITERALS = [Buffer.from('true'), Buffer.from('false'), Buffer.from('null')];

export abstract class JsonReader {
  /** Bytes read so far; within begin() and passed() with the bracket. */
  protected position = 0;
  /** Of a key, a wanted string or a number: its first bytes, as they stand in the JSON. */
  protected readonly captured = Buffer.allocUnsafeSlow(CAPTURE_BYTES);
  /** Of all of it, which may be more than are captured. */
  protected capturedBytes = 0;
  /** Has it escapes? */
  protected escaped = false;

  #state = VALUE;
  #depth = 0;
  /** One bit a level: is it an array? */
  #arrays = new Uint8Array(8);
  /** At this depth begin() was refused; -1 where nothing is being passed over. */
  #passing = -1;
  #isKey = false;
  #capturing = false;
  #hexLeft = 0;
  #literal = LITERALS[0];
  #literalAt = 0;
  readonly #flat = new FlatObjects();

  /** An object or an array begins. @returns are its contents to be told? */
  protected abstract begin(isArray: boolean): boolean;
  /** The one that was entered last ends. */
  protected abstract end(): void;
  /** The one that was refused ends. */
  protected abstract passed(): void;
  /** `captured`, without quotes. */
  protected abstract key(): void;
  /** A string begins as a value. @returns is its text wanted? */
  protected abstract wantsString(): boolean;
  /** `captured`, without quotes. */
  protected abstract text(): void;
  /** `captured` */
  protected abstract number(): void;
  /** true, false, null, or a string that was not wanted. */
  protected abstract other(): void;

  /** Is it JSON so far? */
  get isSound(): boolean {
    return this.#state !== BROKEN;
  }

  /** For another one, from its begin on. */
  protected restart(): void {
    this.position = 0;
    this.#state = VALUE;
    this.#depth = 0;
    this.#passing = -1;
  }

  /** @returns is it whole? A number ends with the JSON. */
  protected isWhole(): boolean {
    const state = this.#state;
    if (this.#depth === 0 && isNumberEnd(state)) this.#state = END;
    return this.#state === END;
  }

  /** The next piece: bytes `from` to `to`. @returns isSound */
  push(bytes: Uint8Array, from = 0, to = bytes.length): boolean {
    const base = this.position - from;
    let state = this.#state;
    this.#flat.begin();
    for (let at = from; at < to;) {
      if (this.#passing >= 0 && state <= KEY_OR_END && (state >= KEY || this.#inArray())) {
        const next = this.#flat.skip(bytes, at, to, state >= KEY);
        if (next > at) {
          at = next;
          state = this.#state = state >= KEY ? KEY : VALUE;
          continue;
        }
      }
      const byte = bytes[at++];
      switch (state) {
        case IN_STRING:
          at = this.#readString(bytes, at - 1, to);
          state = this.#state;
          break;
        case VALUE:
        case VALUE_OR_END:
          if (isBlank(byte)) break;
          this.position = base + at;
          if (byte === CLOSING_BRACKET && state === VALUE_OR_END) state = this.#close(true);
          else state = this.#value(byte);
          break;
        case AFTER_VALUE:
          if (isBlank(byte)) break;
          this.position = base + at;
          if (byte === COMMA) {
            state = this.#inArray() ? VALUE : KEY;
            if (at < to && bytes[at] === BLANK) at++;
          } else if (byte === CLOSING_BRACKET || byte === CLOSING_BRACE)
            state = this.#close(byte === CLOSING_BRACKET);
          else state = BROKEN;
          break;
        case KEY:
        case KEY_OR_END:
          if (isBlank(byte)) break;
          this.position = base + at;
          if (byte === QUOTE) {
            this.#beginString(true, this.#passing < 0);
            state = IN_STRING;
          } else if (byte === CLOSING_BRACE && state === KEY_OR_END) state = this.#close(false);
          else state = BROKEN;
          break;
        case AFTER_KEY:
          if (isBlank(byte)) break;
          if (byte === COLON) {
            state = VALUE;
            if (at < to && bytes[at] === BLANK) at++;
          } else state = BROKEN;
          break;
        case IN_ESCAPE:
          this.#capture(byte);
          this.#hexLeft = 4;
          if (byte === LETTER_U) state = IN_HEX;
          else state = ESCAPES.has(byte) ? IN_STRING : BROKEN;
          break;
        case IN_HEX:
          this.#capture(byte);
          if (!isHex(byte)) state = BROKEN;
          else if (--this.#hexLeft === 0) state = IN_STRING;
          break;
        case IN_LITERAL:
          if (byte !== this.#literal[this.#literalAt]) state = BROKEN;
          else if (++this.#literalAt === this.#literal.length) {
            state = this.#afterValue();
            if (this.#passing < 0) this.other();
          }
          break;
        case END:
          if (!isBlank(byte)) state = BROKEN;
          break;
        default: {
          const next = nextOfNumber(state, byte);
          if (next !== undefined) this.#capture(byte);
          else if (isNumberEnd(state)) {
            if (this.#passing < 0) this.number();
            // The byte is what comes behind it.
            at--;
          }
          state = next ?? (isNumberEnd(state) ? this.#afterValue() : BROKEN);
        }
      }
      if (state === BROKEN) {
        this.position = base + at;
        this.#state = BROKEN;
        return false;
      }
      this.#state = state;
    }
    this.position = base + to;
    return true;
  }

  #value(byte: number): number {
    switch (byte) {
      case OPENING_BRACE:
      case OPENING_BRACKET: {
        const isArray = byte === OPENING_BRACKET;
        this.#open(isArray);
        return isArray ? VALUE_OR_END : KEY_OR_END;
      }
      case QUOTE:
        this.#beginString(false, this.#passing < 0 && this.wantsString());
        return IN_STRING;
      default: {
        this.#literal = LITERALS.find((literal) => literal[0] === byte) ?? LITERALS[0];
        this.#literalAt = 1;
        if (byte === this.#literal[0]) return IN_LITERAL;
        this.#capturing = this.#passing < 0;
        this.capturedBytes = 0;
        this.#capture(byte);
        if (byte === MINUS) return NUMBER_MINUS;
        if (byte === ZERO) return NUMBER_ZERO;
        return isDigit(byte) ? NUMBER_INTEGER : BROKEN;
      }
    }
  }

  #beginString(isKey: boolean, capture: boolean): void {
    this.#isKey = isKey;
    this.#capturing = capture;
    this.capturedBytes = 0;
    this.escaped = false;
  }

  /** To its end or an escape, or as far as the piece goes. @returns up to where */
  #readString(bytes: Uint8Array, from: number, to: number): number {
    const plain = plainEnd(bytes, from, to);
    if (this.#capturing) this.#captureAll(bytes, from, plain);
    const byte = plain < to ? bytes[plain] : BLANK;
    const at = plain < to ? plain + 1 : to;
    if (byte === BACKSLASH) {
      this.#capture(byte);
      this.escaped = true;
      this.#state = IN_ESCAPE;
    } else if (byte === QUOTE) {
      this.#state = this.#isKey ? AFTER_KEY : this.#afterValue();
      if (this.#passing < 0) {
        if (this.#isKey) this.key();
        else if (this.#capturing) this.text();
        else this.other();
      }
    } else if (byte < BLANK) this.#state = BROKEN;
    return at;
  }

  #captureAll(bytes: Uint8Array, from: number, to: number): void {
    const room = Math.min(to - from, CAPTURE_BYTES - this.capturedBytes);
    for (let i = 0; i < room; i++) this.captured[this.capturedBytes + i] = bytes[from + i];
    this.capturedBytes += to - from;
  }

  #capture(byte: number): void {
    if (!this.#capturing) return;
    if (this.capturedBytes < CAPTURE_BYTES) this.captured[this.capturedBytes] = byte;
    this.capturedBytes++;
  }

  #open(isArray: boolean): void {
    if (this.#passing < 0 && !this.begin(isArray)) this.#passing = this.#depth;
    const depth = this.#depth++;
    const word = depth >>> 3;
    if (word === this.#arrays.length) {
      const grown = new Uint8Array(2 * word);
      grown.set(this.#arrays);
      this.#arrays = grown;
    }
    if (isArray) this.#arrays[word] |= 1 << (depth & 7);
    else this.#arrays[word] &= ~(1 << (depth & 7));
  }

  #close(isArray: boolean): number {
    if (this.#depth === 0 || this.#inArray() !== isArray) return BROKEN;
    this.#depth--;
    if (this.#passing < 0) this.end();
    else if (this.#passing === this.#depth) {
      this.#passing = -1;
      this.passed();
    }
    return this.#afterValue();
  }

  #inArray(): boolean {
    const depth = this.#depth - 1;
    return (this.#arrays[depth >>> 3] & (1 << (depth & 7))) !== 0;
  }

  #afterValue(): number {
    return this.#depth === 0 ? END : AFTER_VALUE;
  }
}

/** A string's first byte that is its end, an escape, or none that a string may have. */
function plainEnd(bytes: Uint8Array, from: number, to: number): number {
  let at = from;
  while (at < to) {
    const byte = bytes[at];
    if (byte === QUOTE || byte === BACKSLASH || byte < BLANK) break;
    at++;
  }
  return at;
}

function isBlank(byte: number): boolean {
  return byte === BLANK || byte === 0x0a || byte === 0x0d || byte === 0x09;
}

function isDigit(byte: number): boolean {
  return byte >= ZERO && byte <= NINE;
}

function isHex(byte: number): boolean {
  // Of letters the small ones.
  const small = byte | 0x20;
  return isDigit(byte) || (small >= 0x61 && small <= 0x66);
}

function isNumberEnd(state: number): boolean {
  return (
    state === NUMBER_ZERO ||
    state === NUMBER_INTEGER ||
    state === NUMBER_FRACTION ||
    state === NUMBER_EXPONENT
  );
}

/** Undefined where the number does not go on. */
function nextOfNumber(state: number, byte: number): number | undefined {
  const digit = isDigit(byte);
  const isE = (byte | 0x20) === 0x65;
  switch (state) {
    case NUMBER_MINUS:
      if (byte === ZERO) return NUMBER_ZERO;
      return digit ? NUMBER_INTEGER : undefined;
    case NUMBER_ZERO:
    case NUMBER_INTEGER:
      if (digit && state === NUMBER_INTEGER) return NUMBER_INTEGER;
      if (byte === DOT) return NUMBER_DOT;
      return isE ? NUMBER_E : undefined;
    case NUMBER_DOT:
      return digit ? NUMBER_FRACTION : undefined;
    case NUMBER_FRACTION:
      if (digit) return NUMBER_FRACTION;
      return isE ? NUMBER_E : undefined;
    case NUMBER_E:
      if (byte === PLUS || byte === MINUS) return NUMBER_SIGN;
      return digit ? NUMBER_EXPONENT : undefined;
    default:
      return digit ? NUMBER_EXPONENT : undefined;
  }
}
