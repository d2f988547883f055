/** Memory above the guest's RAM, for each channel, on either side: the peak of a process of its own. */
import { fork, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import type { Address, Compression } from '../src/index.js';
import { row, type Row } from './support/measure.js';

const MIB = 2 ** 20;
const ROUNDS = 3;
/** MiB a channel. */
const CEILING = 40;

export async function run(): Promise<Row[]> {
  const rows: Row[] = [];
  for (const compression of ['none', 'zlib', 'zstd'] as const satisfies Compression[]) {
    for (const [size, channels] of [
      [256 * MIB, 2],
      [1024 * MIB, 2],
      [256 * MIB, 8],
    ]) {
      // A gigabyte through zlib takes ten seconds and shows nothing that zstd does not.
      if (compression === 'zlib' && size > 256 * MIB) continue;
      const above = await migrate(size, channels, compression);
      const name = `${compression}, ${size / MIB} MiB, ${channels} channels`;
      const bound = { ceiling: CEILING };
      rows.push(row('memory', `${name}: sender, a channel`, 'MiB', [above.send / channels / MIB], bound));
      rows.push(
        row('memory', `${name}: receiver, a channel`, 'MiB', [above.receive / channels / MIB], bound),
      );
    }
  }
  return rows;
}

async function migrate(
  size: number,
  channels: number,
  compression: Compression,
): Promise<{ send: number; receive: number }> {
  const start = { size, channels, compression, rounds: ROUNDS };
  const receiver = new Endpoint({ role: 'receive', ...start });
  const { address } = await receiver.message<{ address: Address }>();
  const sender = new Endpoint({ role: 'send', address, ...start });
  const [send, receive] = await Promise.all([
    sender.message<{ above: number }>(),
    receiver.message<{ above: number }>(),
  ]);
  await Promise.all([sender.exit, receiver.exit]);
  return { send: send.above, receive: receive.above };
}

class Endpoint {
  readonly exit: Promise<never[]>;
  readonly #child: ChildProcess;

  constructor(start: object) {
    this.#child = fork(new URL('./support/endpoint.js', import.meta.url));
    this.exit = once(this.#child, 'exit') as Promise<never[]>;
    this.#child.send(start);
  }

  async message<T>(): Promise<T> {
    const exit = this.exit.then(([code]) => {
      throw new Error(`endpoint exited with ${String(code)}`);
    });
    return Promise.race([once(this.#child, 'message').then(([message]) => message as T), exit]);
  }
}
