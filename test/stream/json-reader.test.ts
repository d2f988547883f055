import t from 'tap';
import { JsonReader } from '../../src/stream/json-reader.js';
import { Random } from '../support/random.js';

/** Builds again what it is told of; what it does not enter, or want, is `null`. */
class Twin extends JsonReader {
  result: unknown;
  readonly #open: { value: unknown[] | Record<string, unknown>; key: string }[] = [];
  readonly #depth: number;

  constructor(depth = Infinity) {
    super();
    this.#depth = depth;
  }

  get whole(): boolean {
    return this.isWhole();
  }

  get at(): number {
    return this.position;
  }

  #add(value: unknown): void {
    const outer = this.#open.at(-1);
    if (outer === undefined) this.result = value;
    else if (Array.isArray(outer.value)) outer.value.push(value);
    else Object.defineProperty(outer.value, outer.key, { value, enumerable: true, configurable: true });
  }

  #text(): string {
    return JSON.parse(`"${this.captured.toString('utf8', 0, this.capturedBytes)}"`) as string;
  }

  protected begin(isArray: boolean): boolean {
    if (this.#open.length === this.#depth) return false;
    const value = isArray ? [] : {};
    this.#add(value);
    this.#open.push({ value, key: '' });
    return true;
  }

  protected end(): void {
    this.#open.pop();
  }

  protected passed(): void {
    this.#add(null);
  }

  protected key(): void {
    (this.#open.at(-1) as { key: string }).key = this.#text();
  }

  protected wantsString(): boolean {
    return true;
  }

  protected text(): void {
    this.#add(this.#text());
  }

  protected number(): void {
    this.#add(Number(this.captured.toString('latin1', 0, this.capturedBytes)));
  }

  protected other(): void {
    this.#add(null);
  }
}

const TEXTS = [
  '{"a": [1, -0.5e+3, 0, "x\\u00e9\\n\\"", []], "b": {"c": {}, "": null}, "__proto__": [[[1]]]}',
  ' [ { "a" : [ ] } , 1E2 , "\\\\" , { } ] ',
  '[0.0, -0, 1e-7, 123456789, 10, "\\/\\b\\f\\r\\t"]',
  '"only"',
  '12',
  '-0.1e1',
  '{"a":1,"a":[2],"a":{"b":3}}',
  '',
  '\ufeff{}',
  '"\u0001"',
  '{"\u00fc\u2028": "\ud83d\ude00"}',
];
const ALPHABET = [...'{}[]",:\\ u0019.eE+-tfn\n\u0001'];

/** JSON.parse(), with true and false as the twin says them. */
function parse(text: string): unknown {
  return JSON.parse(text, (_, value: unknown) => (typeof value === 'boolean' ? null : value));
}

t.test('takes what JSON.parse() takes, and tells the same of it, cut anywhere', (t) => {
  const random = new Random(12);
  let taken = 0;
  for (let round = 0; round < 20_000; round++) {
    let text = TEXTS[random.below(TEXTS.length)];
    for (let changes = random.below(3); changes > 0; changes--) {
      const at = random.below(text.length + 1);
      const put = random.below(3) === 0 ? '' : ALPHABET[random.below(ALPHABET.length)];
      text = text.slice(0, at) + put + text.slice(at + random.below(2));
    }
    let expected: { value: unknown } | undefined;
    try {
      expected = { value: parse(text) };
    } catch {
      // None.
    }
    const bytes = Buffer.from(text);
    const twin = new Twin();
    const first = random.below(bytes.length + 1);
    const second = first + random.below(bytes.length - first + 1);
    twin.push(bytes, 0, first);
    if (twin.isSound) twin.push(bytes.subarray(first, second));
    if (twin.isSound) twin.push(bytes, second, bytes.length);
    if (twin.isSound && twin.whole !== (expected !== undefined)) t.fail(`${twin.whole}: ${text}`);
    if (!twin.isSound && expected !== undefined) t.fail(`refused: ${text}`);
    if (expected === undefined || !/^\s*[[{]/.test(text)) continue;
    taken++;
    if (JSON.stringify(twin.result) !== JSON.stringify(expected.value))
      t.fail(`${JSON.stringify(twin.result)} of ${text}`);
  }
  t.ok(taken > 2000, `${taken} were JSON`);
  t.end();
});

t.test('what is not entered is checked all the same, and its end is told', (t) => {
  for (const depth of [0, 1, 2, 3]) {
    for (const text of TEXTS.slice(0, 3)) {
      const twin = new Twin(depth);
      t.equal(twin.push(Buffer.from(text)), true);
      t.equal(twin.whole, true);
      const cut = (value: unknown, at: number): unknown => {
        if (typeof value !== 'object' || value === null) return value;
        if (at === depth) return null;
        if (Array.isArray(value)) return value.map((one) => cut(one, at + 1));
        return Object.entries(value).map(([key, one]) => [key, cut(one, at + 1)]);
      };
      const flat = (value: unknown): unknown => {
        if (typeof value !== 'object' || value === null) return value;
        return Array.isArray(value)
          ? value.map(flat)
          : Object.entries(value).map(([key, one]) => [key, flat(one)]);
      };
      t.same(flat(twin.result), cut(parse(text), 0), `${depth}: ${text}`);
    }
  }
  t.equal(new Twin(0).push(Buffer.from('{"a": [1,]}')), false);
  t.equal(new Twin(0).push(Buffer.from('[{"a": [1}]')), false);
  t.end();
});

t.test('a million levels are JSON as well, and take a bit each', (t) => {
  const twin = new Twin(0);
  t.equal(twin.push(Buffer.from('['.repeat(1e6))), true);
  t.equal(twin.whole, false);
  t.equal(twin.push(Buffer.from(']'.repeat(1e6))), true);
  t.equal(twin.whole, true);
  t.equal(twin.push(Buffer.from(']')), false);
  t.end();
});

/** As QEMU writes a list of fields, of some `bytes`. */
function fieldsText(random: Random, bytes: number): string {
  const scalars = [
    '8',
    '0',
    '-1',
    '007',
    '1.5',
    '"uint64"',
    '""',
    '"a, \\"b\\": 1"',
    '"\u00fc{"',
    'null',
    '12345',
  ];
  const fields: string[] = [];
  for (let length = 0; length < bytes;) {
    const pairs = Array.from({ length: 1 + random.below(4) }, () => {
      // Most of them are as a VM description has them.
      const kind = random.below(8) > 0 ? [0, 1, 5, 10][random.below(4)] : random.below(scalars.length);
      return `"name${random.below(9)}": ${scalars[kind]}`;
    });
    if (random.below(6) === 0)
      pairs.splice(random.below(2), 0, `"struct": {"fields": [{${pairs.join(', ')}}, {"size": 1}]}`);
    const field = random.below(30) === 0 ? '{}' : `{${pairs.join(', ')}}`;
    fields.push(field);
    length += field.length;
  }
  return fields.join(', ');
}

t.test(
  'what is passed over by whole objects is checked as byte by byte, wherever it is cut and wrong',
  (t) => {
    const random = new Random(13);
    let taken = 0;
    let refused = 0;
    for (let round = 0; round < 3000; round++) {
      // Longer than what is looked at in one go, now and then.
      const length = round % 100 === 0 ? 80_000 : 20 + random.below(1500);
      let text = `{"first": 1, "passed": [${fieldsText(random, length)}], "last": {"a": 1, "b": "2", "c": 3}, "end": 4}`;
      // Numbers that are none, now and then.
      if (random.below(2) === 0) text = text.replaceAll('007', '7');
      if (random.below(3) === 0) {
        const at = random.below(text.length);
        text = text.slice(0, at) + ALPHABET[random.below(ALPHABET.length)] + text.slice(at + random.below(2));
      }
      let isJson = true;
      try {
        JSON.parse(text);
      } catch {
        isJson = false;
      }
      const bytes = Buffer.from(text);
      const cut = random.below(bytes.length + 1);
      for (const depth of [0, 1]) {
        const twin = new Twin(depth);
        const slow = new Twin(depth);
        if (twin.push(bytes, 0, cut)) twin.push(bytes.subarray(cut));
        // One byte at a time is never passed over.
        for (let at = 0; at < bytes.length && slow.push(bytes, at, at + 1);) at++;
        const isWhole = twin.isSound && twin.whole;
        if (isWhole !== isJson || (slow.isSound && slow.whole) !== isJson) t.fail(`${isWhole}: ${text}`);
        if (JSON.stringify(twin.result) !== JSON.stringify(slow.result)) t.fail(`depth ${depth}: ${text}`);
        if (twin.at !== slow.at) t.fail(`ends at ${twin.at}, not ${slow.at}: ${text}`);
      }
      if (isJson) taken++;
      else refused++;
    }
    t.ok(taken > 500 && refused > 500, `${taken} were JSON, ${refused} were none`);
    t.end();
  },
);
