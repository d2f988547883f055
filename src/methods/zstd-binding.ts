/**
 * The package @mongodb-js/zstd, for Nodes without a zstd of their own on systems without libzstd: whole frames, made and read
 * by a thread of libuv's pool.
 */
import { createRequire } from 'node:module';
import { loadAddon } from '../native/addon-gate.js';

/** Its public compress() drops the level (1.2.2); the binding below it honours it. */
export interface ZstdBinding {
  compress(data: Buffer, level: number): Promise<Buffer>;
  decompress(data: Buffer): Promise<Buffer>;
}

let loaded: ZstdBinding | undefined;

/** @throws Node's error, or the package's own: its part for this platform is an optional dependency of it */
export function zstdBinding(): ZstdBinding {
  loaded ??= loadAddon(() => createRequire(import.meta.url)('@mongodb-js/zstd/bindings') as ZstdBinding);
  return loaded;
}
