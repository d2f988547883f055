/**
 * QEMU's control socket: one JSON object a line in both directions, events in between.
 *
 * Every command has a time limit. A QEMU that has refused a packet of a migration stops to answer for good, which
 * must be told from a slow one.
 */
import { connect, type Connection } from '../transport/connect.js';
import { within } from './within.js';

const COMMAND_MS = 20_000;
const CONNECT_MS = 5_000;

interface Pending {
  resolve(value: unknown): void;
  reject(error: Error): void;
}

export class Qmp {
  readonly #socket: Connection['socket'];
  readonly #pending: Pending[] = [];
  #text = '';

  private constructor({ socket }: Connection) {
    this.#socket = socket;
    socket.setEncoding('utf8');
    socket.on('data', (text: string) => this.#take(text));
    socket.on('error', () => {});
    socket.on('close', () => {
      for (const pending of this.#pending.splice(0)) pending.reject(new Error('QEMU has closed QMP'));
    });
  }

  /** @throws MultifdError ERR_MULTIFD_CONNECT, ERR_MULTIFD_TIMEOUT */
  static async connect(path: string): Promise<Qmp> {
    const qmp = new Qmp(await connect({ address: { path }, timeoutMs: CONNECT_MS, tls: undefined }));
    await qmp.execute('qmp_capabilities');
    return qmp;
  }

  #take(text: string): void {
    const lines = (this.#text + text).split('\n');
    this.#text = lines.pop() as string;
    for (const line of lines) {
      const message = JSON.parse(line) as { return?: unknown; error?: { desc: string } };
      if (message.error !== undefined) this.#pending.shift()?.reject(new Error(message.error.desc));
      else if ('return' in message) this.#pending.shift()?.resolve(message.return);
    }
  }

  /** Rejects with QEMU's own words where it refuses. */
  async execute(command: string, args: object = {}, limitMs = COMMAND_MS): Promise<unknown> {
    const answer = new Promise<unknown>((resolve, reject) => {
      if (this.#socket.destroyed) reject(new Error('QEMU has closed QMP'));
      else this.#pending.push({ resolve, reject });
    });
    this.#socket.write(`${JSON.stringify({ execute: command, arguments: args })}\n`);
    answer.catch(() => {});
    return within(answer, limitMs, `QMP ${command}`);
  }

  close(): void {
    this.#socket.destroy();
  }
}
