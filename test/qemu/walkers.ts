/** QEMUs with the guest of walk-sector.ts: parked while it walks, and started again. */
import fs from 'node:fs';
import path from 'node:path';
import type { Test } from 'tap';
import { parkVm } from '../../src/index.js';
import type { Program } from './programs.js';
import { Qemu, workFolder } from './qemu.js';
import { WALKED_AT, WALKS, walkImage, type Walk } from './walk-sector.js';

const POLL_MS = 20;
const WALK_MS = 120_000;

export interface Walker {
  folder: string;
  file: string;
  machine: string;
  /** For each QEMU that has it. */
  extra: string[];
}

/** @param by who makes the mapped-ram file */
export async function parkWalker(t: Test, program: Program, walk: Walk, by: 'us' | 'QEMU'): Promise<Walker> {
  const folder = workFolder(t);
  fs.writeFileSync(path.join(folder, 'boot.img'), walkImage(walk));
  const extra = ['-m', `${walk.memoryBytes / 2 ** 20}M`];
  const qmp = path.join(folder, 'free.qmp');
  const file = path.join(folder, 'walker.mig');
  const source = await Qemu.start(t, program, folder, {
    machine: 'pc',
    extra: [...extra, '-qmp', `unix:${qmp},server=on,wait=off`],
  });
  await source.waitForSerial(WALKS, WALK_MS);
  let machine = 'pc';
  if (by === 'us') ({ machine } = await parkVm({ qmp: { path: qmp }, out: file }));
  else {
    await source.setCapabilities({ 'mapped-ram': true });
    // In the middle of its way: while it writes to all pages, QEMU comes to no end by itself.
    await source.execute('stop');
    await source.execute('migrate', { uri: `file:${file}` });
    t.equal((await source.migrationEnd()).status, 'completed');
  }
  t.notMatch(source.serial, /X/, 'what was parked is right');
  await source.kill();
  return { folder, file, machine, extra };
}

/** Pages that the guest has found right, since it began. */
export async function walked(qemu: Qemu): Promise<number> {
  const file = path.join(qemu.folder, 'walked');
  await qemu.execute('pmemsave', { val: WALKED_AT, size: 8, filename: file });
  return Number(fs.readFileSync(file).readBigUInt64LE());
}

/** Until the guest has been everywhere so many times since it goes on here; or until it sees a page that is wrong. */
export async function walks(qemu: Qemu, times: number): Promise<void> {
  await qemu.waitForSerial(new RegExp(`W{${times}}|X`), WALK_MS);
}

export async function moves(qemu: Qemu): Promise<void> {
  const before = await walked(qemu);
  const late = performance.now() + WALK_MS;
  while ((await walked(qemu)) === before) {
    if (performance.now() > late) throw new Error(`the guest does not move within ${WALK_MS} ms`);
    await new Promise((resolve) => setTimeout(resolve, POLL_MS));
  }
}
