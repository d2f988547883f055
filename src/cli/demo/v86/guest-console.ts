/**
 * What a guest writes to its serial port, as one text, whichever process it is in; and its lines, each held against the one before
 * and against the guest's twin.
 *
 *     process A   ...line 0000002a steps 0012|
 *     process B                              |3456 sum 89abcdef ok ...      wherever it is moved
 *
 * A process says what its guest writes by a channel of its own, so that the new one's first words may be heard before the old
 * one's last: they are kept until the guest is handed over, which is when all of the old one's have been heard.
 */
import { CliError } from '../../cli-error.js';
import { GuestModel } from './guest-steps.js';

export interface GuestLine {
  /** The process that it ended in. */
  owner: number;
  text: string;
}

const LINE = /^line ([0-9a-f]{8}) steps ([0-9a-f]{8}) sum ([0-9a-f]{8}) (ok|BAD)$/;

export class GuestConsole {
  readonly #onLine: (line: GuestLine) => void;
  readonly #model: GuestModel;
  readonly #regionBytes: number;
  readonly #early = new Map<number, string>();
  #owner: number;
  #text = '';
  /** Lines so far: its number is the guest's own. */
  count = 0;
  #wake = (): void => {};

  constructor(regionBytes: number, owner: number, onLine: (line: GuestLine) => void) {
    this.#regionBytes = regionBytes;
    this.#model = new GuestModel(regionBytes);
    this.#owner = owner;
    this.#onLine = onLine;
  }

  /** Of a guest that goes on from here a second time. */
  fork(owner: number): GuestConsole {
    const twin = new GuestConsole(this.#regionBytes, owner, this.#onLine);
    twin.#text = this.#text;
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

  /** Resolves when so many more lines have come. */
  async more(lines: number, signal: AbortSignal): Promise<void> {
    const enough = this.count + lines;
    signal.throwIfAborted();
    await new Promise<void>((resolve, reject) => {
      const onAbort = (): void => reject(signal.reason as Error);
      signal.addEventListener('abort', onAbort, { once: true });
      this.#wake = () => {
        if (this.count < enough) return;
        signal.removeEventListener('abort', onAbort);
        resolve();
      };
    });
  }

  #write(text: string): void {
    this.#text += text;
    for (;;) {
      const end = this.#text.indexOf('\n');
      if (end < 0) return;
      const line = this.#text.slice(0, end);
      this.#text = this.#text.slice(end + 1);
      this.#check(line);
      this.#onLine({ owner: this.#owner, text: line });
      this.#wake();
    }
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
