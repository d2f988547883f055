/**
 * Text of a peer, of a file or of a file's name, on its way to people: nothing in it may act on a terminal, or change the
 * order in which a line is read.
 *
 *     C0, DEL, C1                  \x1b \x7f \x9b    escape sequences; C1 are such as well, of one character
 *     U+2028, U+2029               \u2028            line ends to some
 *     format, as bidirectional     \u202e            what stands there is not what is read
 *     what is not seen, tags       \u200b            two names that look the same are not
 *     halves of a character        \ud800            no text
 *
 * Every output of the commands goes through one of these, whoever made the text; messages of errors have names in quotes
 * already.
 */
const CONTROLS = /[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}\p{Default_Ignorable_Code_Point}]/gu;
const CONTROLS_IN_LINES = /(?!\n)[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}\p{Default_Ignorable_Code_Point}]/gu;
/** Elements of a list in one piece of JSON. */
const BATCH = 1024;

/** With visible escapes, for one line. */
export function printable(text: string): string {
  return text.replaceAll(CONTROLS, visible);
}

/** The same for several: line feeds stay. */
export function printableLines(text: string): string {
  return text.replaceAll(CONTROLS_IN_LINES, visible);
}

/** For a message: in quotes, and of other characters than ASCII the escapes. */
export function quote(text: string): string {
  return `"${text.replaceAll(/[^\x20-\x7e]|["\\]/g, visible)}"`;
}

/** JSON of the same value, in which the controls are escaped as well. */
export function printableJson(value: unknown): string {
  return JSON.stringify(value).replaceAll(CONTROLS, escaped);
}

/**
 * One line of printableJson() in pieces: a list within the record may be longer than a string can be.
 */
export function* jsonLine(record: object): Generator<string, void, undefined> {
  let piece = '{';
  for (const [key, value] of Object.entries(record)) {
    if (value === undefined) continue;
    piece += `${piece === '{' ? '' : ','}${printableJson(key)}:`;
    if (!Array.isArray(value) || value.length <= BATCH) {
      piece += printableJson(value);
      continue;
    }
    for (let from = 0; from < value.length; from += BATCH) {
      const list = printableJson(value.slice(from, from + BATCH));
      yield `${piece}${from === 0 ? '[' : ','}${list.slice(1, -1)}`;
      piece = '';
    }
    piece = ']';
  }
  yield `${piece}}\n`;
}

function visible(char: string): string {
  const code = char.charCodeAt(0);
  return code > 0xff ? escaped(char) : `\\x${code.toString(16).padStart(2, '0')}`;
}

/** As JSON has it: of a character above U+FFFF both halves. */
function escaped(char: string): string {
  let text = '';
  for (let at = 0; at < char.length; at++) text += `\\u${char.charCodeAt(at).toString(16).padStart(4, '0')}`;
  return text;
}
