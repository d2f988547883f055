import { runInNewContext } from 'node:vm';
import t from 'tap';
import { MemorySource, type BlockMemory } from '../../src/ram/memory.js';

const PAGE = 4096;
const SIZE = 4 * PAGE;

/** @types/node does not know WebAssembly. */
interface Wasm {
  Memory: new (pages: { initial: number; maximum?: number; shared?: boolean }) => {
    buffer: ArrayBuffer | SharedArrayBuffer;
    grow(pages: number): number;
  };
}
const { WebAssembly } = globalThis as unknown as { WebAssembly: Wasm };

const source = (memory: unknown, size?: number): MemorySource =>
  new MemorySource('pc.ram', memory as BlockMemory, size);

function takeAway(memory: ArrayBuffer): void {
  structuredClone(null, { transfer: [memory] });
}

t.test('memory that does not move is asked for once', async (t) => {
  const cases: [BlockMemory, 'shared' | 'private', number][] = [
    [new SharedArrayBuffer(SIZE), 'shared', 0],
    [new ArrayBuffer(SIZE), 'private', 0],
    [new Uint8Array(new SharedArrayBuffer(SIZE + 100), 100), 'shared', 100],
    [Buffer.from(new ArrayBuffer(SIZE + 100), 100), 'private', 100],
  ];
  for (const [memory, kind, base] of cases) {
    const made = source(memory);
    t.match({ kind: made.kind, base: made.base, size: made.size }, { kind, base, size: SIZE });
    made.windowAt(PAGE)[PAGE] = 7;
    t.equal(new Uint8Array(made.buffer)[base + PAGE], 7);
  }
});

t.test('a function is asked whenever private memory is touched, and its memory may move', async (t) => {
  let memory: ArrayBuffer | Uint8Array = new ArrayBuffer(SIZE);
  let calls = 0;
  const made = source(() => {
    calls++;
    return memory;
  });
  t.equal(calls, 1);
  made.windowAt(0)[0] = 1;
  t.equal(calls, 2);
  const before = memory;
  // Longer, and elsewhere.
  memory = new Uint8Array(new ArrayBuffer(2 * SIZE), PAGE);
  made.windowAt(0)[0] = 2;
  made.windowAt(PAGE)[PAGE] = 3;
  t.equal(new Uint8Array(before)[0], 1, 'what was there before is let alone');
  t.same([memory[0], memory[PAGE]], [2, 3]);
  // Another part of the same buffer.
  memory = new Uint8Array(memory.buffer, 2 * PAGE);
  made.windowAt(0)[5] = 4;
  t.equal(memory[5], 4);
});

t.test('a function whose memory is shared is asked once', async (t) => {
  const memory = new SharedArrayBuffer(SIZE);
  let calls = 0;
  const made = source(() => {
    calls++;
    return new Uint8Array(memory, PAGE);
  });
  made.windowAt(0)[0] = 1;
  t.match({ kind: made.kind, base: made.base, calls }, { kind: 'shared', base: PAGE, calls: 1 });
});

t.test('a function may have more memory than the block', async (t) => {
  const made = source(() => new ArrayBuffer(SIZE), PAGE);
  t.equal(made.size, PAGE);
  t.equal(made.windowAt(0).length, PAGE);
});

t.test('a WebAssembly.Memory may grow', async (t) => {
  const wasm = new WebAssembly.Memory({ initial: 1, maximum: 4 });
  const made = source({ wasm, offset: PAGE, size: SIZE });
  t.match({ kind: made.kind, base: made.base, size: made.size }, { kind: 'private', base: PAGE, size: SIZE });
  made.windowAt(0)[0] = 1;
  wasm.grow(2);
  made.windowAt(0)[1] = 2;
  t.same([...new Uint8Array(wasm.buffer).subarray(PAGE, PAGE + 3)], [1, 2, 0]);
  t.equal(source({ wasm }).size, 3 * 65536, 'without size it goes to the end');
  t.equal(source({ wasm, offset: 65536 }, SIZE).size, SIZE, 'which may stand beside it');
});

t.test('a shared WebAssembly.Memory is used in place, and stays where it is as it grows', async (t) => {
  const wasm = new WebAssembly.Memory({ initial: 1, maximum: 4, shared: true });
  const made = source({ wasm, offset: PAGE, size: SIZE });
  t.match({ kind: made.kind, base: made.base, size: made.size }, { kind: 'shared', base: PAGE, size: SIZE });
  wasm.grow(1);
  made.windowAt(0)[0] = 9;
  t.equal(new Uint8Array(wasm.buffer)[PAGE], 9);
});

t.test('buffers that grow keep their block', async (t) => {
  const shared = new SharedArrayBuffer(SIZE, { maxByteLength: 2 * SIZE });
  const owned = new ArrayBuffer(SIZE, { maxByteLength: 2 * SIZE });
  const [first, second] = [source(shared), source(owned)];
  shared.grow(2 * SIZE);
  owned.resize(2 * SIZE);
  for (const made of [first, second]) {
    made.windowAt(0)[1] = 5;
    t.match({ size: made.size, length: made.windowAt(0).length }, { size: SIZE, length: SIZE });
    t.equal(new Uint8Array(made.buffer)[1], 5);
  }
});

t.test('memory of another realm is memory', async (t) => {
  const foreign = <T>(code: string): T => runInNewContext(code) as T;
  for (const [code, kind] of [
    [`new SharedArrayBuffer(${SIZE})`, 'shared'],
    [`new ArrayBuffer(${SIZE})`, 'private'],
    [`new Uint8Array(new SharedArrayBuffer(${SIZE}))`, 'shared'],
    [`new Uint8Array(${SIZE})`, 'private'],
    [`() => new Uint8Array(${SIZE})`, 'private'],
    [`() => new SharedArrayBuffer(${SIZE})`, 'shared'],
    [`({ wasm: new WebAssembly.Memory({ initial: 1 }), size: ${SIZE} })`, 'private'],
    [`({ wasm: new WebAssembly.Memory({ initial: 1, maximum: 1, shared: true }), size: ${SIZE} })`, 'shared'],
  ]) {
    const made = source(foreign(code));
    t.match({ kind: made.kind, size: made.size }, { kind, size: SIZE }, code);
    made.windowAt(0)[3] = 1;
  }
});

t.test('private memory that breaks is an error that names the block and says what to do', async (t) => {
  const detached = new ArrayBuffer(SIZE);
  const shrunk = new ArrayBuffer(SIZE, { maxByteLength: SIZE });
  const part = new ArrayBuffer(SIZE, { maxByteLength: SIZE });
  const wasm = new WebAssembly.Memory({ initial: 1 });
  let memory: unknown = new ArrayBuffer(SIZE);
  const moved = (to: unknown) => [() => memory, () => (memory = to)] as const;
  const cause = new Error('no memory today');
  let throws = false;
  const cases: [given: unknown, spoil: () => unknown, message: RegExp, code?: string][] = [
    [
      detached,
      () => takeAway(detached),
      /memory: received 0 bytes, expected at least 16384: it was detached/,
    ],
    [shrunk, () => shrunk.resize(PAGE), /memory: received 4096 bytes, expected at least 16384: .*shorter/],
    [new Uint8Array(part, PAGE), () => part.resize(PAGE), /received 0 bytes, .*shorter.*as a function/],
    // What an embedder writes first.
    [
      wasm.buffer,
      () => wasm.grow(1),
      /it was detached; give memory that moves as a function, or as \{ wasm \}/,
    ],
    [...moved(new ArrayBuffer(PAGE)), /memory\(\): received 4096 bytes, expected at least 16384/],
    [...moved(new SharedArrayBuffer(SIZE)), /memory\(\): received shared memory, expected private/],
    [...moved(undefined), /memory\(\) must return a SharedArrayBuffer, an ArrayBuffer or a Uint8Array/],
    [...moved(Promise.resolve()), /memory\(\) must return/],
    [
      () => {
        if (throws) throw cause;
        return new ArrayBuffer(SIZE);
      },
      () => (throws = true),
      /memory\(\) threw: no memory today/,
      'ERR_MULTIFD_HOOK',
    ],
  ];
  for (const [given, spoil, message, code = 'ERR_MULTIFD_BLOCK'] of cases) {
    memory = new ArrayBuffer(SIZE);
    const made = source(given);
    made.windowAt(0);
    spoil();
    const error = t.throws(() => made.windowAt(0), { code, message }) as Error;
    t.match(error.message, /^RAM block "pc\.ram": /);
    if (code === 'ERR_MULTIFD_HOOK') t.equal(error.cause, cause);
  }
});

t.test('what is no memory, or too little, is refused', async (t) => {
  const wasm = new WebAssembly.Memory({ initial: 1 });
  const cases: [memory: unknown, size: number | undefined, message: RegExp][] = [
    [null, undefined, /memory must be a SharedArrayBuffer, .* a function that returns one, or \{ wasm \}/],
    [wasm, undefined, /memory must be/],
    [new DataView(new ArrayBuffer(SIZE)), undefined, /memory must be/],
    [new ArrayBuffer(SIZE), PAGE, /size is 4096, but memory has 16384 bytes/],
    [() => new ArrayBuffer(SIZE), 2 * SIZE, /size is 32768, but memory\(\) has 16384 bytes/],
    [() => 7, undefined, /memory\(\) must return/],
    [{ wasm: undefined }, undefined, /memory\.wasm must be a WebAssembly\.Memory/],
    [{ wasm: {} }, undefined, /memory\.wasm must be/],
    [{ wasm: new Uint8Array(SIZE) }, undefined, /memory\.wasm must be/],
    [{ wasm, offset: -1 }, undefined, /memory\.offset must be an integer of 0 or more, not -1/],
    [{ wasm, offset: 'a' }, undefined, /memory\.offset must be/],
    [
      { wasm, offset: PAGE, size: 65536 },
      undefined,
      /size is 65536, but memory\.wasm\.buffer has 61440 bytes/,
    ],
    [{ wasm, size: PAGE }, PAGE, /give the size once/],
  ];
  for (const [memory, size, message] of cases) {
    t.throws(() => source(memory, size), { code: 'ERR_MULTIFD_BLOCK', message });
  }
});
