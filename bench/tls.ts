/**
 * TLS 1.3 with certificates, 2 channels: against QEMU's own (support/qemu-compare.ts), against TLS sockets of Node that do
 * nothing else, and memory a channel.
 */
import path from 'node:path';
import type { Compression } from '../src/index.js';
import { writeX509Credentials } from '../src/transport/tls/make-credentials.js';
import { row, type Row } from './support/measure.js';
import { migrate } from './support/migrate.js';
import { compare, type Case } from './support/qemu-compare.js';
import { workFolder } from './support/qemu.js';

const MIB = 2 ** 20;
const PASSES = 3;
const SIZE = 256 * MIB;
/** MiB a channel. */
const CEILING = 40;
const HOST = '127.0.0.1';

const HOW = { channels: 2, prefault: true, pairs: 5, tls: true, floor: 1 };
const CASES: readonly Case[] = [
  { ...HOW, compression: 'none', image: 'random', limit: { of: 'TLS sockets', floor: 0.8 } },
  { ...HOW, compression: 'zstd', image: 'mixed' },
];

export async function* run(): AsyncGenerator<Row> {
  yield* compare('tls', CASES);
  const folder = workFolder();
  try {
    const [tlsFolder] = await writeX509Credentials(path.join(folder.path, 'tls'), [HOST]);
    for (const compression of ['none', 'zstd'] as const) yield* memory(compression, tlsFolder);
  } finally {
    folder.remove();
  }
}

async function* memory(compression: Compression, tlsFolder: string): AsyncGenerator<Row> {
  for (const channels of [2, 8]) {
    const { send, receive } = await migrate({ size: SIZE, channels, compression, tlsFolder }, PASSES);
    for (const [side, { above }] of Object.entries({ sender: send, receiver: receive })) {
      const name = `${compression}, ${SIZE / MIB} MiB, ${channels} channels: ${side}, a channel`;
      yield row('tls', name, 'MiB', [above / channels / MIB], { ceiling: CEILING });
    }
  }
}
