/**
 * Guest RAM of any size. Up to Node 20 a typed array ends at 4 GiB, so it is filled, written and summed in windows; and
 * an image of many GiB is made once for 256 MiB and copied.
 */
import v8 from 'node:v8';
import vm from 'node:vm';
import zlib from 'node:zlib';
import { fillImage, type Image } from './image.js';

const WINDOW_BYTES = 2 ** 28;

function* windowsOf(memory: SharedArrayBuffer): Generator<Buffer> {
  for (let at = 0; at < memory.byteLength; at += WINDOW_BYTES)
    yield Buffer.from(memory, at, Math.min(WINDOW_BYTES, memory.byteLength - at));
}

/** Writes every byte, so that zero pages are pages too. */
export function fillGuest(memory: SharedArrayBuffer, image: Image): void {
  const piece = new SharedArrayBuffer(Math.min(WINDOW_BYTES, memory.byteLength));
  fillImage(piece, image);
  const bytes = Buffer.from(piece);
  for (const window of windowsOf(memory)) bytes.copy(window);
}

/** The pages are there before the clock starts. */
export function prefaultGuest(memory: SharedArrayBuffer): void {
  for (const window of windowsOf(memory)) window.fill(0);
}

/** CRC-32 of all of it. */
export function digestGuest(memory: SharedArrayBuffer): number {
  let digest = 0;
  for (const window of windowsOf(memory)) digest = zlib.crc32(window, digest);
  return digest;
}

/** Frees what is not used any more, such as the piece that an image was made in; for who measures memory next. */
export function collectGarbage(): void {
  v8.setFlagsFromString('--expose-gc');
  const collect = vm.runInNewContext('globalThis.gc') as () => void;
  // The first finds it, the second waits for the thread that frees it.
  collect();
  collect();
}
