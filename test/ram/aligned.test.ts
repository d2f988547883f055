/** Memory for O_DIRECT: judged by the kernel, where there is a file that may be opened so. */
import fs from 'node:fs';
import path from 'node:path';
import t from 'tap';
import { ALIGNMENT, alignedBuffer, isAligned } from '../../src/ram/aligned.js';

t.test('aligned memory is zeros, of exactly the length that was asked for', async (t) => {
  for (const bytes of [1, ALIGNMENT, 65536, 65537, 524288]) {
    const buffer = alignedBuffer(bytes);
    t.equal(buffer.length, bytes);
    t.ok(buffer.every((byte) => byte === 0));
  }
});

t.test('what is aligned is known: a page of such memory, and no other memory', async (t) => {
  const buffer = alignedBuffer(3 * ALIGNMENT);
  t.ok(isAligned(buffer, 0));
  t.ok(isAligned(buffer, ALIGNMENT));
  t.notOk(isAligned(buffer, 512));
  t.ok(isAligned(buffer.subarray(ALIGNMENT), ALIGNMENT));
  t.notOk(isAligned(buffer.subarray(100), 0));
  t.ok(isAligned(buffer.subarray(96), ALIGNMENT - 96));
  t.notOk(isAligned(Buffer.alloc(ALIGNMENT), 0));
  t.notOk(isAligned(Buffer.from(new SharedArrayBuffer(ALIGNMENT)), 0));
});

t.test('the kernel takes it for O_DIRECT, and nothing that lies beside a multiple of a block', async (t) => {
  const file = path.join(t.testdir({}), 'file');
  fs.writeFileSync(file, Buffer.alloc(65536, 1));
  let fd: number;
  try {
    fd = fs.openSync(file, fs.constants.O_RDWR | fs.constants.O_DIRECT);
  } catch (error) {
    t.match(error, { code: 'EINVAL' }, 'the file system here has no O_DIRECT');
    return;
  }
  t.teardown(() => fs.closeSync(fd));
  const buffer = alignedBuffer(65536).fill(7);
  t.equal(fs.writeSync(fd, buffer, 4096, 61440, 4096), 61440);
  t.equal(fs.readSync(fd, buffer.fill(0), 0, 65536, 0), 65536);
  t.equal(buffer.indexOf(7), 4096);
  let refused = 0;
  for (const at of [1, 16, 100]) {
    try {
      fs.writeSync(fd, buffer, at, 4096, 0);
    } catch (error) {
      t.match(error, { code: 'EINVAL' });
      refused++;
    }
  }
  t.ok(refused === 3 || refused === 0, 'all, or none where O_DIRECT is nothing but a wish (tmpfs)');
});

t.test('255 threads have address space for it, and each what two buffers need', async (t) => {
  const buffers = Array.from({ length: 2 * 255 }, () => alignedBuffer(524288));
  t.ok(buffers.every((buffer) => isAligned(buffer, 0)));
});

t.test('without WebAssembly, or address space, it says so with the name of the option', async (t) => {
  const given = Object.getOwnPropertyDescriptor(globalThis, 'WebAssembly') as PropertyDescriptor;
  const replace = (value: unknown): void => {
    Object.defineProperty(globalThis, 'WebAssembly', { ...given, value });
  };
  t.teardown(() => Object.defineProperty(globalThis, 'WebAssembly', given));
  replace(undefined);
  t.throws(() => alignedBuffer(1), { code: 'ERR_MULTIFD_RUNTIME', message: /directIo.*--jitless/ });
  replace({
    Memory: class {
      constructor() {
        throw new RangeError('WebAssembly.Memory(): could not allocate memory');
      }
    },
  });
  t.throws(() => alignedBuffer(1), {
    code: 'ERR_MULTIFD_RUNTIME',
    message: /directIo: no address space.*ulimit -v/,
  });
});
