/** A guest's memory by its program's addresses: without paging, and in each kind of page that a kernel of 32 bits uses. */
import t from 'tap';
import { readGuestMemory } from '../../src/cli/demo/v86/guest-memory.js';
import type { Pc } from '../../src/cli/demo/v86/pc.js';

const MIB = 2 ** 20;

/** A stopped PC's registers and memory. */
function pcWith(cr: Partial<Record<0 | 3 | 4, number>>, write: (memory: Buffer) => void): Pc {
  const memory = Buffer.alloc(64 * 1024);
  write(memory);
  const pc = {
    cpu: { cr: [cr[0] ?? 0, 0, 0, cr[3] ?? 0, cr[4] ?? 0] },
    emulator: {
      read_memory: (at: number, length: number) => {
        if (at < 0 || at + length > memory.length) throw new RangeError(`0x${at.toString(16)}`);
        return memory.subarray(at, at + length);
      },
    },
  };
  return pc as unknown as Pc;
}

// As x86 has it: a signed register with its highest bit.
const PAGING = 0x80000001 | 0;
const PAE = 0x20;

t.test("a guest's memory without paging is where it says", async (t) => {
  const pc = pcWith({ 0: 1 }, (memory) => memory.write('abcdef', 0x1ffd));
  t.equal(readGuestMemory(pc, 0x1ffd, 6).toString(), 'abcdef');
});

t.test("a guest's memory in pages of 4 KiB: two that are not side by side", async (t) => {
  const pc = pcWith({ 0: PAGING, 3: 0x1000 }, (memory) => {
    memory.writeUInt32LE(0x2007, 0x1000 + 4 * 1);
    memory.writeUInt32LE(0x5067, 0x2000 + 4 * 2);
    memory.writeUInt32LE(0x4067, 0x2000 + 4 * 3);
    memory.write('abc', 0x5ffd);
    memory.write('def', 0x4000);
  });
  t.equal(readGuestMemory(pc, 0x402ffd, 6).toString(), 'abcdef');
  t.throws(() => readGuestMemory(pc, 0x403ffd, 6), {
    code: 'ERR_CLI_DIFFERENT',
    message: /no page at 0x404000/,
  });
  t.throws(() => readGuestMemory(pc, 0x800000, 1), {
    code: 'ERR_CLI_DIFFERENT',
    message: /no page at 0x800000/,
  });
});

t.test("a guest's memory in a page of 4 MiB", async (t) => {
  const pc = pcWith({ 0: PAGING, 3: 0x1000 }, (memory) => {
    memory.writeUInt32LE(0x000000e7, 0x1000 + 4 * 3);
    memory.write('abc', 0x6100);
  });
  t.equal(readGuestMemory(pc, 0xc06100, 3).toString(), 'abc');
});

t.test("a guest's memory with PAE: pages of 4 KiB and of 2 MiB", async (t) => {
  const pc = pcWith({ 0: PAGING, 3: 0x1020, 4: PAE }, (memory) => {
    memory.writeUInt32LE(0x2001, 0x1020 + 8 * 1);
    memory.writeUInt32LE(0x3067, 0x2000 + 8 * 5);
    memory.writeUInt32LE(0x4067, 0x3000 + 8 * 7);
    memory.writeUInt32LE(0x80000000, 0x3004 + 8 * 7); // not to be executed
    memory.writeUInt32LE(0x000000e7, 0x2000 + 8 * 6);
    memory.write('abc', 0x4123);
    memory.write('def', 0x5123);
  });
  t.equal(readGuestMemory(pc, 0x40000000 + 5 * 2 * MIB + 7 * 4096 + 0x123, 3).toString(), 'abc');
  t.equal(readGuestMemory(pc, 0x40000000 + 6 * 2 * MIB + 0x5123, 3).toString(), 'def');
});
