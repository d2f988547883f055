import t from 'tap';
import { jsonLine, printable, printableJson, printableLines, quote } from '../src/printable.js';

/** All that may act on a terminal or on the order of a line, and its neighbours that may not. */
const range = (from: number, to: number): number[] =>
  Array.from({ length: to - from + 1 }, (_, i) => from + i);
const CONTROLS = [
  ...range(0x00, 0x1f),
  ...range(0x7f, 0x9f),
  ...[0x00ad, 0x034f, 0x061c, 0x115f, 0x3164, 0xfe0f, 0xfeff],
  ...range(0x200b, 0x200f),
  ...range(0x2028, 0x202e),
  ...range(0x2060, 0x206f),
  ...range(0xe0000, 0xe007f),
].map((code) => String.fromCodePoint(code));
const HARMLESS = ' ~\u00a0\u00ae\u00fc\u061b\u061d\u200a\u2010\u2027\u202f\u2070\u{1f600}';

t.test('every control character is a visible escape, and nothing else is touched', async (t) => {
  for (const char of CONTROLS) {
    const text = printable(`a${char}b`);
    t.match(text, /^a\\(x[\da-f]{2}|u[\da-f]{4}(\\u[\da-f]{4})?)b$/);
    t.equal(printableLines(`a${char}b`), char === '\n' ? 'a\nb' : text);
    t.equal(quote(`a${char}b`), `"${text}"`);
  }
  for (const how of [printable, printableLines]) t.equal(how(HARMLESS), HARMLESS);
  t.equal(printable('\x1b[2J\u009b31m\x7f\u202e'), '\\x1b[2J\\x9b31m\\x7f\\u202e');
  t.equal(printable('\u200b\u{e0041}\ud800'), '\\u200b\\udb40\\udc41\\ud800');
  t.equal(quote('say "\u00fc\\'), '"say \\x22\\xfc\\x5c"');
});

t.test('JSON is of the same value and has no control character', async (t) => {
  const value = { [CONTROLS.join('')]: [CONTROLS.join(' '), HARMLESS, { a: '\ud800' }, 1, null, true] };
  const json = printableJson(value);
  t.strictSame(JSON.parse(json), value);
  t.equal(CONTROLS.filter((char) => json.includes(char)).length, 0);
  t.ok(json.includes(HARMLESS));
});

t.test('a line of JSON comes in pieces where a list in it is long', async (t) => {
  const list = (count: number): object[] => Array.from({ length: count }, (_, i) => ({ name: `\u009b${i}` }));
  for (const record of [
    {},
    { a: 1, gone: undefined, b: [] },
    { gone: undefined, devices: list(1024) },
    { devices: list(1025) },
    { type: 'result', devices: list(5000), blocks: list(3000), end: 'x' },
  ]) {
    const pieces = [...jsonLine(record)];
    const line = pieces.join('');
    t.equal(line, `${printableJson(record)}\n`);
    t.ok(Math.max(...pieces.map((piece) => piece.length)) < 60_000);
  }
});
