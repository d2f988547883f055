/**
 * What a guest writes to its serial port, as one text, whichever process it is in; and its lines, each held against the one before
 * and against the guest's twin.
 *
 *     process A   ...line 0000002a steps 0012|
 *     process B                              |3456 sum 89abcdef ok ...      wherever it is moved
 *
 * A process says what its guest writes by a channel of its own, so that the new one's first words may be heard before the old
 * one's last: they are kept until the guest is handed over, which is when all of the old one's have been heard.
 *
 * What a kernel says before the guest's first line is shown and not checked. Of a guest that is not the demo's own nothing is.
 */
import { CliError } from '../../cli-error.js';
import { GuestModel } from './guest-steps.js';

export interface GuestLine {
  /** The process that it ended in. */
  owner: number;
  text: string;
}

const LINE = /^line ([0-9a-f]{8}) steps ([0-9a-f]{8}) sum ([0-9a-f]{8}) (ok|BAD)$/;

/** What it says: the guest's lines alone, or behind what a kernel says at its start, or who knows what behind that. */
export type GuestSpeech = 'lines' | 'boot, then lines' | 'boot, then anything';

/** What Linux says when it has started. */
const BOOTED = /Run \S+ as init process/;

/** How much of what was seen last an error shows. */
const SHOWN_CHARACTERS = 200;

export class GuestConsole {
  readonly #onLine: (line: GuestLine) => void;
  readonly #model: GuestModel;
  readonly #regionBytes: number;
  readonly #speech: GuestSpeech;
  readonly #early = new Map<number, string>();
  #owner: number;
  #text = '';
  #lastLine = '';
  /** Lines so far: its number is the guest's own. */
  count = 0;
  #wake = (): void => {};

  constructor(
    regionBytes: number,
    owner: number,
    onLine: (line: GuestLine) => void,
    speech: GuestSpeech = 'lines',
  ) {
    this.#speech = speech;
    this.#regionBytes = regionBytes;
    this.#model = new GuestModel(regionBytes);
    this.#owner = owner;
    this.#onLine = onLine;
  }

  /** Of a guest that goes on from here a second time. */
  fork(owner: number): GuestConsole {
    const twin = new GuestConsole(this.#regionBytes, owner, this.#onLine, this.#speech);
    twin.#text = this.#text;
    twin.#lastLine = this.#lastLine;
    twin.count = this.count;
    return twin;
  }

  /** @throws CliError ERR_CLI_DIFFERENT for a line that is not what it has to be */
  take(from: number, text: string): void {
    if (from === this.#owner) this.#write(text);
    else this.#early.set(from, (this.#early.get(from) ?? '') + text);
  }

  /** All of the owner's has been heard. @throws as take() */
  handOver(to: number): void {
    this.#owner = to;
    const early = this.#early.get(to) ?? '';
    this.#early.delete(to);
    this.#write(early);
  }

  /**
   * Resolves when so many more lines have come.
   *
   * @throws CliError ERR_CLI_GUEST where they have not within `limitMs`; the reason of `signal`
   */
  async more(lines: number, signal: AbortSignal, limitMs: number): Promise<void> {
    const enough = this.count + lines;
    signal.throwIfAborted();
    let late: NodeJS.Timeout | undefined;
    let onAbort = (): void => {};
    try {
      await new Promise<void>((resolve, reject) => {
        onAbort = () => reject(signal.reason as Error);
        signal.addEventListener('abort', onAbort, { once: true });
        late = setTimeout(() => reject(this.#tooLate(enough, limitMs)), limitMs);
        this.#wake = () => {
          if (this.count >= enough) resolve();
        };
      });
    } finally {
      clearTimeout(late);
      signal.removeEventListener('abort', onAbort);
    }
  }

  #tooLate(enough: number, limitMs: number): CliError {
    const last = this.#text === '' ? this.#lastLine : this.#text;
    const seen =
      last === ''
        ? 'nothing was seen on its serial port'
        : `the last on its serial port: ${JSON.stringify(last.slice(-SHOWN_CHARACTERS))}`;
    const what = `the guest's line ${enough} has not come within ${limitMs / 1000} s`;
    return new CliError('ERR_CLI_GUEST', `${what}; ${seen}`);
  }

  #write(text: string): void {
    this.#text += text;
    for (;;) {
      const end = this.#text.indexOf('\n');
      if (end < 0) return;
      // A terminal's line, as Linux's console is one, ends with both.
      const line = this.#text.slice(0, end).replace(/\r+$/, '');
      this.#text = this.#text.slice(end + 1);
      this.#lastLine = line;
      if (this.#isChecked(line)) this.#check(line);
      this.#onLine({ owner: this.#owner, text: line });
      this.#wake();
    }
  }

  #isChecked(line: string): boolean {
    if (this.#speech === 'boot, then lines') return this.count > 0 || LINE.test(line);
    if (this.#speech === 'lines') return true;
    if (this.count > 0 || BOOTED.test(line)) this.count++;
    return false;
  }

  #check(line: string): void {
    this.count++;
    const [, number = '', steps = '', sum = '', verdict] = LINE.exec(line) ?? [];
    this.#model.runTo(parseInt(steps, 16));
    const expected = `line ${hex(this.count)} steps ${steps} sum ${hex(this.#model.sum)} ok`;
    if (
      parseInt(number, 16) === this.count &&
      parseInt(sum, 16) === this.#model.sum >>> 0 &&
      verdict === 'ok'
    )
      return;
    throw new CliError(
      'ERR_CLI_DIFFERENT',
      `the guest's console: received "${line}", expected "${expected}"`,
    );
  }
}

function hex(value: number): string {
  return (value >>> 0).toString(16).padStart(8, '0');
}
