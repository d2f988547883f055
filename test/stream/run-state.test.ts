/** How a guest was when it was saved, in files of real QEMUs, and in what only looks like that. */
import fs from 'node:fs';
import path from 'node:path';
import t from 'tap';
import { readMappedRam } from '../../src/index.js';
import { isLive, readRunState } from '../../src/stream/run-state.js';
import { readBytes } from '../migration/captures.js';
import { readImage } from '../libvirt/images.js';

const NAME = Buffer.from('\x0bglobalstate', 'latin1');

async function stateOf(bytes: Buffer, offset = 0, footers = true): Promise<string | undefined> {
  const file = path.join(t.testdir({}), 'file');
  fs.writeFileSync(file, bytes);
  const handle = await fs.promises.open(file);
  try {
    return await readRunState(handle, { offset, bytes: bytes.length - offset }, footers);
  } finally {
    await handle.close();
  }
}

t.test('of real QEMUs: their files, and what libvirt has saved', async (t) => {
  const mapped = readBytes('q100-mappedram-multifd.mig');
  const file = path.join(t.testdir({}), 'vm.mig');
  fs.writeFileSync(file, mapped);
  const { tailOffset = 0, footers } = await readMappedRam(file);
  t.equal(await stateOf(mapped, tailOffset, footers), 'prelaunch');
  t.equal(await stateOf(readBytes('q72-none.main.bin')), 'prelaunch');
  t.equal(await stateOf(readImage('raw')), 'paused');
  t.same(['running', 'suspended', 'paused', 'prelaunch'].map(isLive), [true, true, false, false]);
});

t.test('what is none: without it, without its footer, with no name of a state, cut', async (t) => {
  const raw = readBytes('q100-none.main.bin');
  const at = raw.lastIndexOf(NAME);
  const length = at + NAME.length + 8;
  const changed = (change: (bytes: Buffer) => void): Buffer => {
    const bytes = Buffer.from(raw);
    change(bytes);
    return bytes;
  };
  t.equal(await stateOf(changed((bytes) => bytes.write('G', at + 1))), undefined);
  const noFooter = changed((bytes) => (bytes[length + 104] = 0));
  t.equal(await stateOf(noFooter), undefined);
  t.equal(await stateOf(noFooter, 0, false), 'prelaunch', 'old machines have none');
  t.equal(await stateOf(changed((bytes) => bytes.writeUInt32BE(101, length))), undefined);
  t.equal(await stateOf(changed((bytes) => bytes.write('\x1b[2J', length + 4))), undefined);
  t.equal(await stateOf(raw.subarray(0, length + 50)), undefined);
});

t.test('over the end of a piece that is read at once, wherever it lies', async (t) => {
  const raw = readBytes('q100-none.main.bin');
  const at = raw.lastIndexOf(NAME) - 5;
  const section = raw.subarray(at, at + 5 + NAME.length + 8 + 4 + 100 + 5);
  for (const before of [2 ** 20 - 1, 2 ** 20 - 3, 2 ** 20 - 60, 2 ** 20, 2 ** 20 + 1])
    t.equal(await stateOf(Buffer.concat([Buffer.alloc(before), section])), 'prelaunch', String(before));
});
