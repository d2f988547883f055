/** What O_DIRECT does not suit: said by name, early, and never taken for something else. */
import fs from 'node:fs';
import { open, type FileHandle } from 'node:fs/promises';
import path from 'node:path';
import t, { type Test } from 'tap';
import { tryDirectReads } from '../../src/mapped-ram/read-pages.js';
import { OutputFile } from '../../src/migration/output-file.js';
import { alignedBuffer } from '../../src/ram/aligned.js';
import { openDirect, readDirect, tryDirectWrite, writeDirect } from '../../src/ram/direct-io.js';
import { refusedHere } from '../migration/direct.js';

const PAGE = 4096;
const EINVAL = Object.assign(new Error('EINVAL: invalid argument, write'), { code: 'EINVAL' });
const ENOSPC = Object.assign(new Error('ENOSPC: no space left on device, write'), { code: 'ENOSPC' });
const NAMED =
  /received EINVAL, expected a file system and a place that O_DIRECT suits: leave option directIo out$/;

/** A handle by hand. */
function stub(parts: {
  [name in 'read' | 'write' | 'truncate']?: (...args: never[]) => unknown;
}): FileHandle {
  return parts as unknown as FileHandle;
}

t.test('a write that is refused names the option; a full disk is a full disk', async (t) => {
  const refuses = stub({ write: () => Promise.reject(EINVAL) });
  await t.rejects(tryDirectWrite(refuses, 'vm.mig.part'), {
    code: 'ERR_MULTIFD_IO',
    message: new RegExp(`^write at 0: ${NAMED.source}`),
  });
  await t.rejects(writeDirect(refuses, alignedBuffer(PAGE), PAGE, 8192), { message: /^write at 8192: / });
  const full = stub({ write: () => Promise.reject(ENOSPC) });
  await t.rejects(writeDirect(full, alignedBuffer(PAGE), PAGE, 0), {
    code: 'ERR_MULTIFD_IO',
    message: 'write at 0: ENOSPC: no space left on device, write',
  });
});

t.test('a write that is done in parts goes on', async (t) => {
  const calls: number[][] = [];
  const handle = stub({
    write: (_from: Buffer, at: number, length: number, position: number) => {
      calls.push([at, length, position]);
      return Promise.resolve({ bytesWritten: Math.min(length, PAGE) });
    },
  });
  await writeDirect(handle, alignedBuffer(2 * PAGE), 2 * PAGE, PAGE);
  t.same(calls, [
    [0, 2 * PAGE, PAGE],
    [PAGE, PAGE, 2 * PAGE],
  ]);
});

t.test('a read that ends within a block has met the end, and is not gone on with', async (t) => {
  const lengths = [PAGE, 100];
  const handle = stub({
    read: () => {
      const bytesRead = lengths.shift();
      return bytesRead === undefined ? Promise.reject(EINVAL) : Promise.resolve({ bytesRead });
    },
  });
  t.equal(await readDirect(handle, alignedBuffer(4 * PAGE), 4 * PAGE, 0), PAGE + 100);
  await t.rejects(readDirect(handle, alignedBuffer(PAGE), PAGE, 512), {
    message: /^read at 512: received EINVAL/,
  });
});

t.test('pages that lie where the device cannot read are told by their block', async (t) => {
  const places: number[] = [];
  const handle = stub({
    read: (_into: Buffer, _at: number, length: number, position: number) => {
      places.push(position);
      if (position % 512 !== 0) return Promise.reject(EINVAL);
      return Promise.resolve({ bytesRead: length });
    },
  });
  const block = (name: string, pagesOffset: number, presentPages: number): object => ({
    name,
    pagesOffset,
    presentPages,
  });
  const blocks = [block('pc.ram', 2 ** 20, 5), block('empty', 100, 0), block('vga.vram', 2 ** 21 + 100, 1)];
  await t.rejects(tryDirectReads(handle, { blocks, pageSize: PAGE } as never), {
    code: 'ERR_MULTIFD_IO',
    message: new RegExp(`^pages of "vga.vram": read at ${2 ** 21 + 100}: ${NAMED.source}`),
  });
  t.same(places, [2 ** 20, 2 ** 21 + 100], 'a block without data needs no place');
});

t.test('the second descriptor is of the same file, or there is none', async (t) => {
  if (await refusedHere(t)) return;
  const folder = t.testdir({ one: 'one', other: 'other' });
  const handle = await open(path.join(folder, 'one'), 'r+');
  t.teardown(() => handle.close());
  const again = await openDirect(path.join(folder, 'one'), 'r', handle).catch((error: unknown) => {
    t.match(error, { message: NAMED }, 'no O_DIRECT in this folder');
    return undefined;
  });
  if (again === undefined) return;
  await again.close();
  fs.renameSync(path.join(folder, 'other'), path.join(folder, 'one'));
  await t.rejects(openDirect(path.join(folder, 'one'), 'r', handle), {
    code: 'ERR_MULTIFD_IO',
    message: /one is another file by now: somebody replaced it$/,
  });
  await t.rejects(openDirect(path.join(folder, 'gone'), 'r', handle), { message: /ENOENT/ });
});

/** Every write of a handle is refused, until the test is over. */
async function refuseWrites(t: Test): Promise<void> {
  const handle = await open(new URL(import.meta.url), 'r');
  const prototype = Object.getPrototypeOf(handle) as FileHandle;
  await handle.close();
  const write = Object.getOwnPropertyDescriptor(prototype, 'write') as PropertyDescriptor;
  t.teardown(() => Object.defineProperty(prototype, 'write', write));
  Object.defineProperty(prototype, 'write', { ...write, value: () => Promise.reject(EINVAL) });
}

t.test(
  'a file system that opens and does not write: refused when the file is made, nothing left',
  async (t) => {
    if (await refusedHere(t)) return;
    const folder = t.testdir({});
    await refuseWrites(t);
    await t.rejects(OutputFile.make(path.join(folder, 'vm.mig'), false, true), { message: NAMED });
    t.same(fs.readdirSync(folder), []);
  },
);

t.test('the file that is made is empty, whatever was tried in it', async (t) => {
  if (await refusedHere(t)) return;
  const folder = t.testdir({});
  const file = await OutputFile.make(path.join(folder, 'vm.mig'), false, true).catch((error: unknown) => {
    t.match(error, { message: NAMED }, 'no O_DIRECT in this folder');
    return undefined;
  });
  if (file === undefined) return;
  t.ok(file.direct !== undefined && file.direct.fd !== file.handle.fd);
  t.equal(fs.statSync(file.part).size, 0);
  await file.giveUp();
  t.same(fs.readdirSync(folder), []);
});
