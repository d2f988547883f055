/**
 * QEMU's control socket, QMP: one JSON object a line in both directions.
 *
 *     QEMU                                      here
 *     {"QMP": {"version": ..., ...}}            the greeting, required, with a time limit
 *                                               {"execute": "qmp_capabilities", "id": 0}
 *     {"return": {}, "id": 0}
 *     {"event": "STOP", ...}                    passed over, wherever it comes
 *                                               {"execute": ..., "arguments": ..., "id": 1}
 *     {"return": ..., "id": 1}                  or {"error": {"class": ..., "desc": ...}, "id": 1}
 *     (closes)                                  every command under way fails; to `quit` it is the answer. reconnect() tries again
 *
 * A QMP socket serves one client at a time. To the next one the kernel says yes, and QEMU nothing until the first has gone:
 * hence the limit on the greeting. Every command has one as well: a QEMU that has refused a packet of a migration stops to
 * answer for good. By its id an answer that comes too late is nobody's.
 *
 * The socket is a stranger's: a line has an end or a bound, and whatever is no QMP is told as what was received.
 */
import { MultifdError } from '../errors.js';
import { withLimit } from '../migration/limits.js';
import { printable } from '../printable.js';
import { formatAddress, type Address } from '../transport/address.js';
import { connect, type Connection } from '../transport/connect.js';
import { formatQmpJson, parseQmpJson } from './json.js';

const COMMAND_MS = 20_000;
const CONNECT_MS = 5_000;
const GREETING_MS = 5_000;
/** For QEMU to end after `quit`: it closes its disks. */
const QUIT_MS = 20_000;
/** The longest answer, the schema, has 248,378 characters in 11.1; by choice. */
export const MAX_LINE_CHARACTERS = 2 ** 20;
/** Of what is no QMP, in a message. */
const SHOWN_CHARACTERS = 60;

interface Pending {
  command: string;
  resolve(value: unknown): void;
  reject(error: MultifdError): void;
}

interface Message {
  QMP?: unknown;
  event?: unknown;
  id?: unknown;
  return?: unknown;
  error?: { class?: unknown; desc?: unknown };
}

export interface QmpLimits {
  connectMs?: number;
  greetingMs?: number;
  /** For a command, where its caller says nothing else. */
  commandMs?: number;
}

export class Qmp {
  /** As text. */
  readonly address: string;
  /** Where this end of it is, if it goes over TCP. */
  localHost: string | undefined;
  readonly #where: Address;
  readonly #limits: Required<QmpLimits>;
  readonly #pending = new Map<number, Pending>();
  #socket!: Connection['socket'];
  #reconnecting: Promise<void> | undefined;
  #greeted!: Promise<void>;
  #closed!: Promise<void>;
  #welcome!: () => void;
  #turnAway!: (error: MultifdError) => void;
  #isGreeted = false;
  #nextId = 0;
  /** Pieces of the line that has not ended yet. */
  #line: string[] = [];
  #lineCharacters = 0;
  /** Why it is of no more use. */
  #broken: MultifdError | undefined;

  private constructor(where: Address, limits: QmpLimits) {
    this.address = formatAddress(where);
    this.#where = where;
    this.#limits = { connectMs: CONNECT_MS, greetingMs: GREETING_MS, commandMs: COMMAND_MS, ...limits };
  }

  /**
   * Connects, waits for the greeting and enters command mode.
   *
   * @throws MultifdError ERR_MULTIFD_CONNECT, ERR_MULTIFD_TIMEOUT, ERR_MULTIFD_ABORTED; ERR_MULTIFD_QMP
   */
  static async connect(address: Address, limits: QmpLimits = {}, signal?: AbortSignal): Promise<Qmp> {
    const qmp = new Qmp(address, limits);
    await qmp.#open(signal);
    return qmp;
  }

  /**
   * The same again, when the connection is lost. Whether it is the same QEMU that answers is for the caller to find out.
   *
   * @param signal of who asks first, where two ask at a time
   * @throws as connect()
   */
  async reconnect(signal?: AbortSignal): Promise<void> {
    this.#reconnecting ??= this.#open(signal).finally(() => (this.#reconnecting = undefined));
    await this.#reconnecting;
  }

  async #open(signal?: AbortSignal): Promise<void> {
    const { connectMs, greetingMs } = this.#limits;
    this.#attach(await connect({ address: this.#where, timeoutMs: connectMs, signal, tls: undefined }));
    try {
      await this.abortable(signal, async () => {
        await withLimit(this.#greeted, greetingMs, 'ERR_MULTIFD_TIMEOUT', '').catch((error: MultifdError) => {
          throw error.code === 'ERR_MULTIFD_TIMEOUT' ? this.#notGreeted(greetingMs) : error;
        });
        await this.execute('qmp_capabilities');
      });
    } catch (error) {
      this.#break(error as MultifdError);
      throw error;
    }
  }

  #attach({ socket }: Connection): void {
    this.#socket = socket;
    this.localHost = this.#where.path === undefined ? socket.localAddress : undefined;
    this.#broken = undefined;
    this.#isGreeted = false;
    this.#line = [];
    this.#lineCharacters = 0;
    this.#greeted = new Promise((resolve, reject) => {
      this.#welcome = resolve;
      this.#turnAway = reject;
    });
    this.#greeted.catch(() => {});
    this.#closed = new Promise((resolve) => socket.once('close', () => resolve()));
    socket.setEncoding('utf8');
    socket.on('data', (text: string) => {
      // One that is given up has no more to say.
      if (this.#socket !== socket) return;
      this.#take(text);
      // A piece a turn: events without an end are not to hold up the event loop.
      socket.pause();
      setImmediate(() => socket.resume());
    });
    // It is half open: an end alone closes nothing.
    socket.on('end', () => socket.destroy());
    let reason = '';
    socket.on('error', (error) => (reason = `: ${error.message}`));
    socket.on('close', () => {
      if (this.#socket === socket) this.#break(this.#error(`QEMU has closed QMP${reason}`));
    });
  }

  /**
   * For commands that change nothing: at an abort nobody waits for their answers.
   *
   * @throws MultifdError ERR_MULTIFD_ABORTED; the connection is of no more use then
   */
  async abortable<T>(signal: AbortSignal | undefined, ask: () => Promise<T>): Promise<T> {
    const abort = (): void => {
      this.#break(new MultifdError('ERR_MULTIFD_ABORTED', 'aborted', { cause: signal?.reason }));
    };
    signal?.addEventListener('abort', abort, { once: true });
    try {
      if (signal?.aborted === true) abort();
      return await ask();
    } finally {
      signal?.removeEventListener('abort', abort);
    }
  }

  /** Is the other end still there, as far as is known? */
  get isOpen(): boolean {
    return this.#broken === undefined && this.#reconnecting === undefined;
  }

  /**
   * @param args bigint where a double is too small
   * @throws MultifdError ERR_MULTIFD_QMP with QEMU's own words where it refuses; ERR_MULTIFD_TIMEOUT
   */
  async execute(command: string, args: object = {}, limitMs = this.#limits.commandMs): Promise<unknown> {
    if (this.#broken !== undefined) throw this.#broken;
    const id = this.#nextId++;
    const answer = new Promise<unknown>((resolve, reject) => {
      this.#pending.set(id, { command, resolve, reject });
    });
    answer.catch(() => {});
    this.#socket.write(`${formatQmpJson({ execute: command, arguments: args, id })}\n`);
    try {
      const late = `${this.address}: received no answer to ${command}, expected one within ${limitMs} ms`;
      return await withLimit(answer, limitMs, 'ERR_MULTIFD_TIMEOUT', late);
    } finally {
      this.#pending.delete(id);
    }
  }

  /**
   * Ends QEMU; resolves when it has closed the socket, which some do without an answer.
   *
   * @returns whether there was one: without, a connection that broke may look the same
   * @throws MultifdError ERR_MULTIFD_QMP, ERR_MULTIFD_TIMEOUT
   */
  async quit(): Promise<boolean> {
    const isAnswered = await this.execute('quit').then(
      () => true,
      (error: unknown) => {
        if (this.isOpen) throw error;
        return false;
      },
    );
    const late = `${this.address}: received nothing after quit, expected that QEMU closes QMP within ${QUIT_MS} ms`;
    await withLimit(this.#closed, QUIT_MS, 'ERR_MULTIFD_TIMEOUT', late);
    return isAnswered;
  }

  /** An address that means all of ours is none to connect to: a QEMU elsewhere reaches us where we have reached it. */
  reachable(address: Address): Address {
    if (address.path !== undefined) return address;
    if (address.host !== '0.0.0.0' && address.host !== '::') return address;
    return { host: this.localHost?.replace(/^::ffff:/, '') ?? '127.0.0.1', port: address.port };
  }

  close(): void {
    this.#break(this.#error('QMP is closed'));
  }

  #take(text: string): void {
    let from = 0;
    for (let end = text.indexOf('\n'); end >= 0; end = text.indexOf('\n', from)) {
      this.#line.push(text.slice(from, end));
      from = end + 1;
      const line = this.#line.join('');
      this.#line = [];
      this.#lineCharacters = 0;
      if (this.#broken === undefined && line.trim() !== '') this.#accept(line);
    }
    if (from === text.length || this.#broken !== undefined) return;
    this.#line.push(text.slice(from));
    this.#lineCharacters += text.length - from;
    if (this.#lineCharacters <= MAX_LINE_CHARACTERS) return;
    const expected = `expected at most ${MAX_LINE_CHARACTERS}`;
    this.#break(this.#error(`received a line of more than ${this.#lineCharacters} characters, ${expected}`));
  }

  #accept(line: string): void {
    let message: Message | undefined;
    try {
      const parsed = parseQmpJson(line);
      if (parsed !== null && typeof parsed === 'object' && !Array.isArray(parsed)) message = parsed;
    } catch {
      // It is told below.
    }
    if (message === undefined) return this.#break(this.#noQmp(line));
    if (!this.#isGreeted) {
      if (!('QMP' in message)) return this.#break(this.#noQmp(line));
      this.#isGreeted = true;
      return this.#welcome();
    }
    if ('event' in message) return;
    if (!('return' in message) && !('error' in message)) return this.#break(this.#noQmp(line));
    if (message.id === undefined) return this.#break(this.#noQmp(line, "an answer with a command's id"));
    const pending = this.#pending.get(message.id as number);
    if (pending === undefined) return;
    if (message.error === undefined) return pending.resolve(message.return);
    const { desc } = message.error ?? {};
    const words = typeof desc === 'string' ? desc : formatQmpJson(message.error);
    pending.reject(this.#error(`QEMU refuses ${pending.command}: ${printable(words)}`));
  }

  #error(what: string): MultifdError {
    return new MultifdError('ERR_MULTIFD_QMP', `${this.address}: ${what}`);
  }

  #noQmp(line: string, expected = this.#isGreeted ? 'a QMP message' : "QMP's greeting"): MultifdError {
    const shown = line.length > SHOWN_CHARACTERS ? `${line.slice(0, SHOWN_CHARACTERS)}...` : line;
    const hint = /^QEMU .* monitor/.test(line)
      ? ': that is the monitor for people, give the socket of -qmp'
      : '';
    return this.#error(`received ${JSON.stringify(shown)}, expected ${expected}${hint}`);
  }

  #notGreeted(limitMs: number): MultifdError {
    const begun = this.#line.join('');
    if (begun !== '') return this.#noQmp(begun);
    const message =
      `${this.address}: received nothing, expected QMP's greeting within ${limitMs} ms. It is busy: another client, ` +
      'such as libvirt, holds it, and QEMU serves one at a time: give QEMU one more (-qmp unix:PATH,server=on,wait=off). ' +
      'Or what listens there is no QMP, or hangs';
    return new MultifdError('ERR_MULTIFD_TIMEOUT', message);
  }

  /** The first reason stands; who waits is told. */
  #break(error: MultifdError): void {
    this.#broken ??= error;
    this.#turnAway(this.#broken);
    const pending = [...this.#pending.values()];
    this.#pending.clear();
    const { code, message, cause = this.#broken } = this.#broken;
    for (const one of pending) {
      one.reject(new MultifdError(code, `${message}, while ${one.command} was under way`, { cause }));
    }
    this.#line = [];
    this.#socket.destroy();
  }
}
