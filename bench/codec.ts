/**
 * Methods zlib and zstd at level 1 on program bytes, against what the codec alone could do with these cores for both
 * ends: cores / (1 / compress + 1 / decompress), each measured on one thread in packets of 512 KiB in the same run.
 *
 * Where the codec has threads of its own (zstd on a Node without one, by @mongodb-js/zstd) it is measured on all cores at once as well: two busy cores of
 * a shared machine are not twice one, and its allocations meet in the kernel.
 */
import os from 'node:os';
import zlib from 'node:zlib';
import type { Compression } from '../src/index.js';
import { zstdBackend } from '../src/methods/zstd.js';
import { zstdBinding } from '../src/methods/zstd-binding.js';
import { ZstdCompressor, ZstdDecompressor, findLibzstd, type Libzstd } from '../src/native/libzstd.js';
import { Engine, mustBeEqual, rate } from './support/engine.js';
import { fillImage, prefault } from './support/image.js';
import { alternate, row, type Plot, type Row } from './support/measure.js';

const BYTES = 2 ** 27;
const PACKET = 524288;
const ROUNDS = 5;
const FLOOR = 0.8;

interface Codec {
  compress(pages: Buffer): Buffer | Promise<Buffer>;
  decompress(payload: Buffer): Buffer | Promise<Buffer>;
  /** Does it work beside the calling thread? */
  threaded?: boolean;
}

/** Node's own zstd where it has one, the system's libzstd, else the binding: what the methods use as well. */
function zstd(): Codec {
  const backend = zstdBackend();
  if (backend === 'libzstd') return libzstd();
  if (backend === 'binding') {
    return {
      compress: (pages) => zstdBinding().compress(pages, 1),
      decompress: (payload) => zstdBinding().decompress(payload),
      threaded: true,
    };
  }
  const node = zlib as unknown as {
    zstdCompressSync: (data: Buffer, options: object) => Buffer;
    zstdDecompressSync: (data: Buffer) => Buffer;
    constants: { ZSTD_c_compressionLevel: number };
  };
  const params = { [node.constants.ZSTD_c_compressionLevel]: 1 };
  return {
    compress: (pages) => node.zstdCompressSync(pages, { params }),
    decompress: (payload) => node.zstdDecompressSync(payload),
  };
}

function libzstd(): Codec {
  const library = findLibzstd() as Libzstd;
  const compressor = new ZstdCompressor(library, 1);
  const decompressor = new ZstdDecompressor(library);
  const payload = Buffer.alloc(2 * PACKET);
  const pages = Buffer.alloc(PACKET);
  return {
    // A copy, of a third of the bytes: the payloads are kept.
    compress: (input) => Buffer.from(payload.subarray(0, compressor.compress(input, payload))),
    decompress: (input) => {
      let read = 0;
      for (let filled = 0; read < input.length; filled = pages.length - decompressor.outputLeft) {
        if (!decompressor.run(input, read, pages, filled)) throw new Error(decompressor.failure);
        read = input.length - decompressor.inputLeft;
      }
      return pages;
    },
  };
}

const CODECS: Record<'zlib' | 'zstd', () => Codec> = {
  zlib: () => ({
    compress: (pages) => zlib.deflateSync(pages, { level: 1 }),
    decompress: (payload) => zlib.inflateSync(payload),
  }),
  zstd,
};

export async function run(): Promise<Row[]> {
  const rows: Row[] = [];
  const cores = os.availableParallelism();
  const source = new SharedArrayBuffer(BYTES);
  const destination = new SharedArrayBuffer(BYTES);
  fillImage(source, 'program');
  prefault(destination);
  const pages = Buffer.from(new Uint8Array(source));
  for (const compression of ['zlib', 'zstd'] as const satisfies Compression[]) {
    const codec = CODECS[compression]();
    const payloads: Buffer[] = [];
    for (let at = 0; at < BYTES; at += PACKET)
      payloads.push(await codec.compress(pages.subarray(at, at + PACKET)));
    const engine = await Engine.open(source, destination, {
      channels: cores,
      compression,
      zlibLevel: 1,
      zstdLevel: 1,
    });
    const sides: Record<string, () => Promise<number>> = {
      compress: () =>
        rate(BYTES, async () => {
          for (let at = 0; at < BYTES; at += PACKET) await codec.compress(pages.subarray(at, at + PACKET));
        }),
      decompress: () =>
        rate(BYTES, async () => {
          for (const payload of payloads) await codec.decompress(payload);
        }),
      multifd: () => rate(BYTES, () => engine.move()),
      ...(codec.threaded === true && {
        compressAll: () =>
          rate(BYTES, () =>
            inParallel(cores, payloads.length, (i) =>
              codec.compress(pages.subarray(i * PACKET, (i + 1) * PACKET)),
            ),
          ),
        decompressAll: () =>
          rate(BYTES, () => inParallel(cores, payloads.length, (i) => codec.decompress(payloads[i]))),
      }),
    };
    const figures = await alternate(sides, ROUNDS);
    mustBeEqual(source, destination);
    await engine.close();
    const limit = figures.compress.map((compress, i) => cores / (1 / compress + 1 / figures.decompress[i]));
    const shares = figures.multifd.map((value, i) => value / limit[i]);
    const name = `${compression} level 1`;
    const speed = (what: string, values: number[]): Row => {
      const plot: Plot = { chart: 'codec', series: what, x: name };
      return row('codec', `${name}: ${what}`, 'GB/s', values, { plot });
    };
    rows.push(speed('codec alone, compress, one thread', figures.compress));
    rows.push(speed('codec alone, decompress, one thread', figures.decompress));
    rows.push(speed(`${cores} channels, both ends`, figures.multifd));
    rows.push(
      row('codec', `${name}: share of ${cores} / (1/compress + 1/decompress)`, '', shares, { floor: FLOOR }),
    );
    if (codec.threaded === true) {
      const all = figures.compressAll.map((value, i) => 1 / (1 / value + 1 / figures.decompressAll[i]));
      const share = figures.multifd.map((value, i) => value / all[i]);
      rows.push(speed(`codec alone on ${cores} cores at once, both ends`, all));
      rows.push(row('codec', `${name}: share of that`, '', share));
    }
  }
  return rows;
}

/** `chains` calls at a time over items 0 to `count`. */
async function inParallel(
  chains: number,
  count: number,
  call: (item: number) => Buffer | Promise<Buffer>,
): Promise<void> {
  let next = 0;
  const chain = async (): Promise<void> => {
    while (next < count) await call(next++);
  };
  await Promise.all(Array.from({ length: chains }, chain));
}
