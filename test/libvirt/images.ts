/** Save images of a real libvirt 11.3 with QEMU 10.0 (16 MiB, paused in its BIOS), and the same stream packed otherwise. */
import { spawnSync } from 'node:child_process';
import fs from 'node:fs';
import zlib from 'node:zlib';

export const UUID = '00112233-4455-6677-8899-aabbccddeeff';
export const NAME = 'tiny & sch\u00f6n';
export const HEADER_BYTES = 92;

export function readImage(name: 'raw' | 'sparse'): Buffer {
  const file = new URL(`../../../test/captures/libvirt-11.3-${name}.save.br`, import.meta.url);
  return zlib.brotliDecompressSync(fs.readFileSync(file));
}

export const RAW = readImage('raw');
/** Header, XML and padding. */
export const HEAD = RAW.subarray(0, HEADER_BYTES + RAW.readUInt32LE(20));
export const STREAM = RAW.subarray(HEAD.length);
/** By their numbers in the header. */
export const FORMATS = ['raw', 'gzip', 'bzip2', 'xz', 'lzop', 'zstd', 'sparse'];

/** An image whose stream is packed as its header says. */
export function imageOf(format: string, packed: Uint8Array): Buffer {
  const head = Buffer.from(HEAD);
  head.writeUInt32LE(FORMATS.indexOf(format), 28);
  return Buffer.concat([head, packed]);
}

/** Undefined where the program is not there. */
export function pack(format: string, stream: Buffer): Buffer | undefined {
  if (format === 'raw') return stream;
  if (format === 'gzip') return zlib.gzipSync(stream, { level: 1 });
  const { status, stdout } = spawnSync(format, ['-c1'], {
    input: stream,
    maxBuffer: 2 ** 30,
    timeout: 60_000,
  });
  return status === 0 ? stdout : undefined;
}
