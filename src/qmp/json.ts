/**
 * QMP's JSON. QEMU's integers have 64 bits: what a double cannot hold (a `max-bandwidth` of libvirt's is 2^63 - 2^20) is a
 * bigint here, so that a value that was read can be given back as it was.
 */

/** A string, to be left alone whatever is in it, or a whole number: digits behind a point are no integer. */
const STRING_OR_NUMBER = /"[^"\\]*(?:\\.[^"\\]*)*"|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?/g;
const INTEGER = /^-?\d+$/;
/** As many digits as an integer has that a double may not hold. */
const MANY_DIGITS = /\d{16}/;
/** Stands before the digits of one in a string; JSON of QEMU's has no such character outside an escape. */
const MARK = '\u0001';
/** QEMU's own parser takes as many. Whatever goes through a value later, level by level, ends. */
const MAX_NESTING = 1024;

/** @throws SyntaxError */
export function parseQmpJson(text: string): unknown {
  if (!MANY_DIGITS.test(text)) {
    const parsed: unknown = JSON.parse(text);
    requireShallow(text);
    return parsed;
  }
  // First of all: in what is no JSON a string need not end, and the search for one's end begins anew at each quote. What comes of
  // it is not kept: values take some 50 times their text, and there are not to be two of them at a time.
  JSON.parse(text);
  requireShallow(text);
  const marked = text.replaceAll(STRING_OR_NUMBER, (token) => {
    if (!INTEGER.test(token) || Number.isSafeInteger(Number(token))) return token;
    return `"\\u0001${token}"`;
  });
  return JSON.parse(marked, (_key, value: unknown) =>
    typeof value === 'string' && value.startsWith(MARK) && INTEGER.test(value.slice(MARK.length))
      ? BigInt(value.slice(MARK.length))
      : value,
  );
}

/** @param text sound JSON */
function requireShallow(text: string): void {
  let depth = 0;
  let isText = false;
  for (let at = 0; at < text.length; at++) {
    const char = text[at];
    if (isText) {
      if (char === '\\') at++;
      else isText = char !== '"';
    } else if (char === '"') isText = true;
    else if (char === '}' || char === ']') depth--;
    else if ((char === '{' || char === '[') && ++depth > MAX_NESTING) {
      throw new SyntaxError(`nested more than ${MAX_NESTING} deep`);
    }
  }
}

/** What is said, as text, whatever it is: an object of a peer's may have a `toString` that is no function. */
export function textOf(value: unknown): string {
  return typeof value === 'string' ? value : value === undefined ? 'undefined' : formatQmpJson(value);
}

/** A number that is said; 0 for whatever is none. */
export function numberOf(value: unknown): number {
  return typeof value === 'number' || typeof value === 'bigint' ? Number(value) : 0;
}

/** The other way. */
export function formatQmpJson(value: unknown): string {
  let hasBig = false;
  const text = JSON.stringify(value, (_key, member: unknown) => {
    if (typeof member !== 'bigint') return member;
    hasBig = true;
    return `${MARK}${member}`;
  });
  return hasBig ? text.replaceAll(/"\\u0001(-?\d+)"/g, '$1') : text;
}
