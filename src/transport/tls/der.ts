/**
 * As much of DER (X.690) as certificates need: what is written for new ones, and what is read of a peer's name.
 *
 *     tag (1 byte)   length (1 byte; or 0x80 + n, then n bytes)   contents
 */
const TIME_1950_TO_2049 = 0x17;
const TIME_OTHER = 0x18;

export enum Tag {
  BOOLEAN = 0x01,
  INTEGER = 0x02,
  BIT_STRING = 0x03,
  OCTET_STRING = 0x04,
  NULL = 0x05,
  OID = 0x06,
  UTF8_STRING = 0x0c,
  PRINTABLE_STRING = 0x13,
  SEQUENCE = 0x30,
  SET = 0x31,
}

/** [n] of the context, with other elements within. */
export function contextTag(number: number, constructed: boolean): number {
  return (constructed ? 0xa0 : 0x80) | number;
}

export function element(tag: number, ...contents: Uint8Array[]): Buffer {
  const body = Buffer.concat(contents);
  if (body.length < 0x80) return Buffer.concat([Buffer.from([tag, body.length]), body]);
  let length = body.length.toString(16);
  if (length.length % 2 === 1) length = `0${length}`;
  return Buffer.concat([Buffer.from([tag, 0x80 | (length.length / 2)]), Buffer.from(length, 'hex'), body]);
}

export function sequence(...elements: Uint8Array[]): Buffer {
  return element(Tag.SEQUENCE, ...elements);
}

/** Not negative: of a first byte above 0x7f the sign is written before it. */
export function integerOf(bytes: Uint8Array): Buffer {
  return element(Tag.INTEGER, Buffer.from(bytes[0] > 0x7f ? [0] : []), bytes);
}

/** @param dotted such as 2.5.4.3 */
export function oid(dotted: string): Buffer {
  const [first, second, ...others] = dotted.split('.').map(Number);
  const bytes = [first * 40 + second];
  for (const arc of others) {
    const sevens = [arc & 0x7f];
    for (let rest = Math.floor(arc / 128); rest > 0; rest = Math.floor(rest / 128)) {
      sevens.unshift(0x80 | (rest & 0x7f));
    }
    bytes.push(...sevens);
  }
  return element(Tag.OID, Buffer.from(bytes));
}

/** RFC 5280 4.1.2.5: two digits of a year until 2049, four from then on. */
export function time(date: Date): Buffer {
  const digits = date.toISOString().replaceAll(/[-:T]|\.\d+/g, '');
  const year = date.getUTCFullYear();
  if (year >= 1950 && year < 2050) return element(TIME_1950_TO_2049, Buffer.from(digits.slice(2)));
  return element(TIME_OTHER, Buffer.from(digits));
}

export interface Element {
  tag: number;
  contents: Buffer;
  /** With tag and length. */
  whole: Buffer;
}

/**
 * The elements that stand one after another.
 *
 * @throws RangeError if one is longer than what is there
 */
export function elementsIn(bytes: Buffer): Element[] {
  const elements: Element[] = [];
  for (let at = 0; at < bytes.length;) {
    let from = at + 2;
    let length = bytes.readUInt8(at + 1);
    if (length > 0x80) {
      const count = length & 0x7f;
      length = bytes.readUIntBE(from, count);
      from += count;
    }
    if (from + length > bytes.length) throw new RangeError('an element that does not end');
    elements.push({
      tag: bytes[at],
      contents: bytes.subarray(from, from + length),
      whole: bytes.subarray(at, from + length),
    });
    at = from + length;
  }
  return elements;
}

/** The dotted form of an OID's contents. */
export function dottedOid(contents: Buffer): string {
  const arcs: number[] = [];
  let arc = 0;
  for (const byte of contents) {
    arc = arc * 128 + (byte & 0x7f);
    if (byte < 0x80) {
      arcs.push(arc);
      arc = 0;
    }
  }
  const first = Math.min(2, Math.floor(arcs[0] / 40));
  return [first, arcs[0] - first * 40, ...arcs.slice(1)].join('.');
}
