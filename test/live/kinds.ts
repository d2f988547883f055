/** The kinds of memory that a model guest may have: those of every session, and what monitors have besides. */
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import type { Test } from 'tap';
import { makeStore, type Store, type StoreKind } from '../support/store.js';

export type LiveKind = StoreKind | 'wasm' | 'dev-shm';

/** A memory of its own; `grow` makes it move, where it can. */
export type LiveStore = Store & { grow?: () => void };

const WASM_PAGE = 65536;
/** How often it grows: more would be only more memory. */
const MOST_GROWS = 40;
/** Within a WebAssembly.Memory. */
const OFFSET = 3 * WASM_PAGE;

/** As far as it is used here; no library of TypeScript's for Node knows it. */
interface WasmMemory {
  readonly buffer: ArrayBuffer;
  grow(delta: number): number;
}
const { Memory } = (
  globalThis as unknown as { WebAssembly: { Memory: new (of: { initial: number }) => WasmMemory } }
).WebAssembly;

export function makeLiveStore(t: Test, kind: LiveKind, name: string, size: number): LiveStore {
  if (kind === 'wasm') return wasmStore(name, size);
  const root = kind === 'dev-shm' && fs.existsSync('/dev/shm') ? '/dev/shm' : os.tmpdir();
  const dir = fs.mkdtempSync(path.join(root, 'multifd-live-'));
  t.teardown(() => fs.rmSync(dir, { recursive: true }));
  return makeStore(dir, name, kind === 'dev-shm' ? 'file' : kind, size);
}

function wasmStore(name: string, size: number): LiveStore {
  const wasm = new Memory({ initial: (OFFSET + size) / WASM_PAGE });
  const bytes = (): Uint8Array => new Uint8Array(wasm.buffer, OFFSET, size);
  let grown = 0;
  return {
    options: { name, memory: { wasm, offset: OFFSET, size } },
    write: (offset, from) => bytes().set(from, offset),
    read: () => Buffer.from(bytes()),
    guardsIntact: () => new Uint8Array(wasm.buffer, 0, OFFSET).every((byte) => byte === 0),
    // What was there before is detached.
    grow: () => {
      if (grown++ < MOST_GROWS) wasm.grow(1);
    },
  };
}
