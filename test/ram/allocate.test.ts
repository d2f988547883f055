/** Memory for a guest's RAM: asked for in huge pages before it is touched, and plain memory where that cannot be. */
import fs from 'node:fs';
import vm from 'node:vm';
import t from 'tap';
import { adviseHugePages, allocateRam } from '../../src/index.js';
import { allocateAdvised } from '../../src/ram/allocate.js';
import { findSystemCalls, type SystemCalls } from '../../src/native/system-calls.js';

const MiB = 2 ** 20;
const SIZE = 48 * MiB;
const MADV_HUGEPAGE = 14;
const EINVAL = 22;
const ENOMEM = 12;

/** Were huge pages asked for, in the middle of this memory? By smaps' flag; undefined where nothing tells its address. */
function isAdvised(view: Uint8Array): boolean | undefined {
  const calls = findSystemCalls();
  if (calls === undefined) return undefined;
  const middle = calls.address(view) + BigInt(view.length / 2);
  let here = false;
  for (const line of fs.readFileSync('/proc/self/smaps', 'utf8').split('\n')) {
    const range = /^([0-9a-f]+)-([0-9a-f]+) /.exec(line);
    if (range !== null) here = BigInt(`0x${range[1]}`) <= middle && middle < BigInt(`0x${range[2]}`);
    if (here && line.startsWith('VmFlags:')) return / hg( |$)/.test(line);
  }
  return undefined;
}

/** Kernels without huge pages refuse the advice. */
const hasDoor = findSystemCalls() !== undefined;
const canAdvise = hasDoor && fs.existsSync('/sys/kernel/mm/transparent_hugepage/enabled');

/** Calls of which madvise answers this errno, 0 for none. */
function stub(errno: number) {
  const asked: unknown[][] = [];
  const calls = {
    madvise: (...args: unknown[]) => {
      asked.push(args);
      return errno === 0 ? 0 : -1;
    },
    errno: () => errno,
    address: () => 0x10000n + 16n,
  };
  return { calls: calls as unknown as SystemCalls, asked };
}

t.test(
  'it is shared memory of zeroes, and huge pages are asked for, where there is a door to the kernel',
  (t) => {
    const memory = allocateRam(SIZE);
    t.ok(memory instanceof SharedArrayBuffer);
    t.equal(memory.byteLength, SIZE);
    t.equal(isAdvised(new Uint8Array(memory)), hasDoor ? canAdvise : undefined);
    const bytes = new Uint8Array(memory);
    for (const at of [0, 1, SIZE / 2, SIZE - 1]) {
      t.equal(bytes[at], 0);
      bytes[at] = 7;
      t.equal(bytes[at], 7);
    }
    t.end();
  },
);

t.test('nothing of it is touched when it is made', { skip: process.platform !== 'linux' }, (t) => {
  const resident = (): number =>
    1024 * Number(/RssAnon:\s+(\d+)/.exec(fs.readFileSync('/proc/self/status', 'utf8'))?.[1]);
  const before = resident();
  const memory = allocateRam(256 * MiB);
  const grown = resident() - before;
  t.ok(grown < 64 * MiB, `${grown} bytes, with ${memory.byteLength} made`);
  t.end();
});

t.test('the advice is for the whole pages of it alone, and asked once', (t) => {
  const { calls, asked } = stub(0);
  allocateAdvised(MiB, calls);
  // From the first whole page of 64 KiB behind 0x10010 to the last one before its end.
  t.same(asked, [[0x20000n, BigInt(MiB) - 0x10000n, MADV_HUGEPAGE]]);
  const small = stub(0);
  allocateAdvised(65536, small.calls);
  t.same(small.asked, [], 'there is no whole page in it');
  t.end();
});

t.test('above the 4 GiB that a typed array of Node 20 may have it is the same', (t) => {
  const { calls, asked } = stub(0);
  const GiB = 2 ** 30;
  const memory = allocateAdvised(5 * GiB, calls);
  t.equal(memory.byteLength, 5 * GiB);
  t.same(asked, [[0x20000n, BigInt(5 * GiB) - 0x10000n, MADV_HUGEPAGE]]);
  t.equal(adviseHugePages(new SharedArrayBuffer(5 * GiB)), canAdvise);
  t.end();
});

t.test('a kernel that refuses changes nothing: it is plain memory', (t) => {
  for (const errno of [EINVAL, ENOMEM]) {
    const { calls, asked } = stub(errno);
    const memory = allocateAdvised(MiB, calls);
    t.same([asked.length, memory.byteLength, new Uint8Array(memory)[MiB - 1]], [1, MiB, 0]);
  }
  t.end();
});

t.test('sizes that are none, and those that there is no memory for, are refused', (t) => {
  for (const bytes of [0, -1, 1.5, NaN, Infinity, 2 ** 53, '4096', undefined, null]) {
    t.throws(() => allocateRam(bytes as number), {
      code: 'ERR_MULTIFD_OPTION',
      message: `bytes: received ${typeof bytes === 'number' ? '' : `${typeof bytes} `}${String(bytes)}, expected a whole number from 1`,
    });
  }
  t.throws(() => allocateRam(2 ** 52), {
    code: 'ERR_MULTIFD_OPTION',
    message: 'no memory for 4503599627370496 bytes of RAM',
  });
  t.end();
});

t.test("an embedder's own memory is advised when asked, whatever kind and realm it is of", (t) => {
  const kinds: Record<string, () => SharedArrayBuffer | ArrayBuffer | Uint8Array> = {
    shared: () => new SharedArrayBuffer(SIZE),
    private: () => new ArrayBuffer(SIZE),
    'a part': () => new Uint8Array(new SharedArrayBuffer(SIZE + 8 * MiB), 4 * MiB, SIZE),
    'of another realm': () => vm.runInNewContext(`new Uint8Array(${SIZE})`) as Uint8Array,
  };
  for (const [name, make] of Object.entries(kinds)) {
    const memory = make();
    const view = ArrayBuffer.isView(memory) ? memory : new Uint8Array(memory);
    if (hasDoor) t.equal(isAdvised(view), false, `${name}, before`);
    t.equal(adviseHugePages(memory), canAdvise, name);
    if (hasDoor) t.equal(isAdvised(view), canAdvise, `${name}, after`);
  }
  t.equal(adviseHugePages(new Uint8Array(0)), false);
  t.equal(adviseHugePages(new SharedArrayBuffer(4096)), false);
  const detached = new Uint8Array(SIZE);
  structuredClone(detached, { transfer: [detached.buffer] });
  t.equal(adviseHugePages(detached), false);
  t.equal(adviseHugePages(detached.buffer), false);
  for (const wrong of [undefined, null, 7, 'memory', {}, [1], new DataView(new ArrayBuffer(8))]) {
    t.throws(() => adviseHugePages(wrong as Uint8Array), {
      code: 'ERR_MULTIFD_OPTION',
      message: /^memory: received \w+, expected a SharedArrayBuffer/,
    });
  }
  t.end();
});
