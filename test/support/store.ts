/**
 * Where the bytes of a RAM block live, one class of memory for each kind, with guard bytes around the block wherever
 * there is room for them.
 *
 *     kind          RAMBlockOptions                                    guards
 *     shared        a SharedArrayBuffer                                none
 *     shared-odd    a Uint8Array at an odd offset in a larger one      before and behind
 *     private       an ArrayBuffer                                     none
 *     private-odd   a Uint8Array at an odd offset in a larger one      before and behind
 *     file          a whole file                                       none
 *     file-offset   a part of a file, from an odd offset on            before and behind
 */
import fs from 'node:fs';
import path from 'node:path';
import type { RAMBlockOptions } from '../../src/index.js';

export const STORE_KINDS = ['shared', 'shared-odd', 'private', 'private-odd', 'file', 'file-offset'] as const;
export type StoreKind = (typeof STORE_KINDS)[number];

const GUARD_BYTES = 4099;
const GUARD = 0xa5;

export interface Store {
  /** For createSender() or createReceiver(). */
  readonly options: RAMBlockOptions;
  write(offset: number, bytes: Uint8Array): void;
  /** The whole block. */
  read(): Buffer;
  /** Are the bytes around the block as they were? */
  guardsIntact(): boolean;
}

/** @param dir where files go */
export function makeStore(dir: string, name: string, kind: StoreKind, size: number): Store {
  const guard = kind.includes('-') ? GUARD_BYTES : 0;
  if (kind === 'file' || kind === 'file-offset') return fileStore(dir, name, size, guard);
  const total = size + 2 * guard;
  const buffer = kind.startsWith('shared') ? new SharedArrayBuffer(total) : new ArrayBuffer(total);
  const all = new Uint8Array(buffer);
  all.fill(GUARD, 0, guard).fill(GUARD, guard + size);
  const bytes = new Uint8Array(buffer, guard, size);
  return {
    options: { name, memory: guard > 0 ? bytes : buffer },
    write: (offset, from) => bytes.set(from, offset),
    read: () => Buffer.from(bytes),
    guardsIntact: () => all.subarray(0, guard).every(isGuard) && all.subarray(guard + size).every(isGuard),
  };
}

function fileStore(dir: string, name: string, size: number, guard: number): Store {
  const file = path.join(dir, `${name}.ram`);
  const contents = Buffer.alloc(size + 2 * guard, GUARD).fill(0, guard, guard + size);
  fs.writeFileSync(file, contents);
  const part = (start: number, length: number): Buffer => {
    const bytes = Buffer.alloc(length);
    const fd = fs.openSync(file, 'r');
    fs.readSync(fd, bytes, 0, length, start);
    fs.closeSync(fd);
    return bytes;
  };
  return {
    options: guard > 0 ? { name, file, offset: guard, size } : { name, file, size },
    write: (offset, from) => {
      const fd = fs.openSync(file, 'r+');
      fs.writeSync(fd, from, 0, from.length, guard + offset);
      fs.closeSync(fd);
    },
    read: () => part(guard, size),
    guardsIntact: () =>
      fs.statSync(file).size === size + 2 * guard &&
      part(0, guard).every(isGuard) &&
      part(guard + size, guard).every(isGuard),
  };
}

function isGuard(byte: number): boolean {
  return byte === GUARD;
}
