/**
 * QMP's JSON. QEMU's integers have 64 bits: what a double cannot hold (a `max-bandwidth` of libvirt's is 2^63 - 2^20) is a
 * bigint here, so that a value that was read can be given back as it was.
 */

/** A string, to be left alone whatever is in it, or a whole number: digits behind a point are no integer. */
const STRING_OR_NUMBER = /"(?:[^"\\]|\\.)*"|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?/g;
const INTEGER = /^-?\d+$/;
/** Stands before the digits of one in a string; JSON of QEMU's has no such character outside an escape. */
const MARK = '\u0001';

/** @throws SyntaxError */
export function parseQmpJson(text: string): unknown {
  const marked = text.replaceAll(STRING_OR_NUMBER, (token) => {
    if (!INTEGER.test(token) || Number.isSafeInteger(Number(token))) return token;
    return `"\\u0001${token}"`;
  });
  if (marked === text) return JSON.parse(text);
  return JSON.parse(marked, (_key, value: unknown) =>
    typeof value === 'string' && value.startsWith(MARK) && INTEGER.test(value.slice(MARK.length))
      ? BigInt(value.slice(MARK.length))
      : value,
  );
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
