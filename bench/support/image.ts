/** Guest images of real bytes for the benches; every page is written, so that none reads the kernel's zero page. */
import crypto from 'node:crypto';
import fs from 'node:fs';

const PIECE = 2 ** 20;

export type Image = 'random' | 'zero' | 'program' | 'mixed';

export function fillImage(memory: SharedArrayBuffer, image: Image): void {
  const bytes = Buffer.from(memory);
  const program = fs.openSync(process.execPath, 'r');
  const programSize = fs.fstatSync(program).size - PIECE;
  const piece = Buffer.alloc(PIECE);
  for (let at = 0, i = 0; at < bytes.length; at += PIECE, i++) {
    const kind = image === 'mixed' ? (['zero', 'program', 'zero', 'random'] as const)[i % 4] : image;
    if (kind === 'random') crypto.randomFillSync(piece);
    else if (kind === 'program') fs.readSync(program, piece, 0, PIECE, (i * PIECE) % programSize);
    else piece.fill(0);
    // Written once with something else, so that zero pages are pages too.
    bytes.fill(1, at, at + PIECE);
    piece.copy(bytes, at);
  }
  fs.closeSync(program);
}

/** The same bytes in a file. */
export function writeImage(file: string, size: number, image: Image): void {
  const handle = fs.openSync(file, 'w');
  const memory = new SharedArrayBuffer(2 ** 28);
  fillImage(memory, image);
  const bytes = Buffer.from(memory);
  for (let at = 0; at < size; at += bytes.length)
    fs.writeSync(handle, bytes, 0, Math.min(bytes.length, size - at), at);
  fs.closeSync(handle);
}

/** What QEMU's prealloc=on does: the pages are there before the clock starts. */
export function prefault(memory: SharedArrayBuffer): void {
  const bytes = Buffer.from(memory);
  for (let at = 0; at < bytes.length; at += 4096) bytes[at] = 1;
  bytes.fill(0);
}
