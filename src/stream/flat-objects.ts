/**
 * Passes over JSON that is as QEMU writes it, many objects at a time, and objects without others in them alone:
 *
 *     {"name": "a", "size": 8}, {"name": "b", "size": 4}, ...      OBJECTS, in an array
 *      "name": "a", "size": 8, ...                                 PAIRS, in an object
 *
 * A VM description is 100 KiB, is read once, and a source waits for it; more than half of it are such objects that nobody is
 * told of. By regular expressions these cost a tenth of what they cost byte by byte in code that runs for the first time.
 *
 * For json-reader.ts, which reads all else: whatever is not exactly like that, and so whatever is no JSON. A byte is looked at
 * two or three times at the most: where an expression gives up, it has what it may match in one way only.
 */

const STRING = '"[^"\\\\\\x00-\\x1f]*"';
const PAIR = `${STRING}: (?:${STRING}|0|[1-9][0-9]*)`;
/** Bounds, since each repetition takes some of a stack. */
const MOST = 64;
const PAIRS = new RegExp(`(?:${PAIR}, ){1,${MOST}}`, 'y');
const OBJECTS = new RegExp(`(?:\\{${PAIR}(?:, ${PAIR}){0,${MOST}}\\}, ){1,${MOST}}`, 'y');
/** Of a piece, as text: what the expressions look at. */
const WINDOW_BYTES = 32768;
/** Nothing shorter is worth it, and nothing longer is expected to be one object. */
const SHORT_BYTES = 32;
const OBJECT_BYTES = 1024;

export class FlatObjects {
  /** The piece from `#windowAt` on. */
  #window = '';
  #windowAt = 0;

  /** Another piece comes. */
  begin(): void {
    this.#window = '';
  }

  /**
   * From byte `at` of the piece on, where a key may come, or else an array's element.
   *
   * @returns up to where: `at`, or behind a comma and the blank after it
   */
  skip(bytes: Uint8Array, at: number, to: number, isKey: boolean): number {
    if (to - at < SHORT_BYTES) return at;
    const end = this.#windowAt + this.#window.length;
    if (this.#window === '' || (end < to && end - at < OBJECT_BYTES)) {
      const length = Math.min(to - at, WINDOW_BYTES);
      this.#window = Buffer.from(bytes.buffer, bytes.byteOffset + at, length).toString('latin1');
      this.#windowAt = at;
    }
    const expected = isKey ? PAIRS : OBJECTS;
    expected.lastIndex = at - this.#windowAt;
    return expected.test(this.#window) ? this.#windowAt + expected.lastIndex : at;
  }
}
