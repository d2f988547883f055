/** Plays the captures of real QEMUs into whoever listens, and reads back the RAM of a mapped-ram file. */
import fs from 'node:fs';
import net from 'node:net';
import zlib from 'node:zlib';
import { requireSound } from '../../src/mapped-ram/description.js';
import { readPageRuns } from '../../src/mapped-ram/pages.js';
import { readMappedRam } from '../../src/mapped-ram/read.js';
import type { Address, Compression } from '../../src/index.js';

export interface Capture {
  name: string;
  compression: Compression;
}

export const CAPTURES: Capture[] = [
  { name: 'q100-none', compression: 'none' },
  { name: 'q100-zlib', compression: 'zlib' },
  { name: 'q100-zstd', compression: 'zstd' },
  { name: 'q100-none-legacyzero', compression: 'none' },
  { name: 'q100-none-machine72', compression: 'none' },
  { name: 'q72-none', compression: 'none' },
  { name: 'q72-zlib', compression: 'zlib' },
  { name: 'q72-zstd', compression: 'zstd' },
];

export function readBytes(name: string): Buffer {
  return zlib.gunzipSync(fs.readFileSync(new URL(`../../../test/captures/${name}.gz`, import.meta.url)));
}

export const PC_RAM = readBytes('pcram.bin');

export interface Played {
  sockets: net.Socket[];
  /** What came back on the main stream. */
  back: Buffer[];
  closed: Promise<unknown>;
}

/** Connects main and the channels in the order given and writes each one's bytes. */
export async function play(
  address: Address,
  streams: { main: Buffer; channels: Buffer[] },
  order: ('main' | number)[] = ['main', 0, 1],
): Promise<Played> {
  const sockets: net.Socket[] = [];
  const back: Buffer[] = [];
  for (const which of order) {
    const socket = net.connect(address as net.NetConnectOpts);
    sockets.push(socket);
    await new Promise<void>((resolve, reject) => {
      socket.once('connect', resolve);
      socket.once('error', reject);
    });
    socket.on('error', () => {});
    if (which === 'main') socket.on('data', (bytes) => back.push(bytes));
    else socket.resume();
    socket.end(which === 'main' ? streams.main : streams.channels[which]);
  }
  const closed = Promise.all(
    sockets.map((socket) => new Promise((resolve) => socket.once('close', resolve))),
  );
  return { sockets, back, closed };
}

export function streamsOf({ name }: Capture): { main: Buffer; channels: Buffer[] } {
  return {
    main: readBytes(`${name}.main.bin`),
    channels: [0, 1].map((id) => readBytes(`${name}.ch${id}.bin`)),
  };
}

/** The RAM of a block as a loader sees it: present pages from the file, all others zero. */
export async function ramOf(file: string, name = 'pc.ram'): Promise<Buffer> {
  const description = await readMappedRam(file);
  requireSound(description);
  const block = description.blocks.find((candidate) => candidate.name === name);
  if (block === undefined) throw new Error(`no block ${name}`);
  const ram = Buffer.alloc(block.usedLength);
  const handle = await fs.promises.open(file, 'r');
  try {
    for await (const { page, count, present } of readPageRuns(handle, block)) {
      if (!present) continue;
      const size = description.pageSize;
      await handle.read(ram, page * size, count * size, block.pagesOffset + page * size);
    }
  } finally {
    await handle.close();
  }
  return ram;
}

/** The devices' state and what follows, byte for byte. */
export async function tailOf(file: string): Promise<Buffer> {
  const { tailOffset, tailBytes } = await readMappedRam(file);
  const bytes = fs.readFileSync(file);
  return bytes.subarray(tailOffset, (tailOffset ?? 0) + (tailBytes ?? 0));
}
