/**
 * Files past the page cache, between QEMU and us in both directions: parked by us and loaded by QEMU, written by QEMU and sent
 * by us, `direct-io` and `directIo` on everywhere.
 */
import fs from 'node:fs';
import path from 'node:path';
import t from 'tap';
import { readMappedRam, verifyMappedRam } from '../../src/index.js';
import { cached, refusedHere } from '../migration/direct.js';
import { METHODS } from './matrix.js';
import { load, makeFast, makeSlow, park, resume, send } from './park.js';
import { requirePrograms } from './programs.js';
import { Qemu, workFolder } from './qemu.js';

const MIB = 2 ** 20;
const programs = requirePrograms();
const folder = workFolder(t);

const CASES = [
  { machine: 'pc', compression: METHODS[0], channels: 2, zeroPages: 'multifd' },
  { machine: 'pc', compression: METHODS[1], channels: 1, zeroPages: 'none' },
  { machine: 'pc', compression: METHODS[2], channels: 8, zeroPages: 'legacy' },
] as const;

for (const it of CASES) {
  const { compression, channels, zeroPages } = it;
  t.test(
    `${compression}, ${channels} channels, zero pages ${zeroPages}: parked, loaded and sent`,
    async (t) => {
      if (await refusedHere(t)) return;
      const source = await Qemu.start(t, programs.qemu, folder, { machine: it.machine });
      await source.waitUntilReady();
      for (const paused of [true, false]) {
        await resume(source);
        const options = { compression, channels, zeroPages, paused, returnPath: true, directIo: true };
        const parked = await park(t, source, options);
        const bytes = cached(parked.file);
        if (bytes !== undefined) t.ok(bytes < MIB, `${bytes} bytes of it are in the page cache`);
        const description = await readMappedRam(parked.file);
        const verified = await verifyMappedRam(parked.file, description, { directIo: true });
        t.same(verified, await verifyMappedRam(parked.file, description));
        await load(t, programs.qemu, parked, folder, { channels: 2, directIo: true });
        await load(t, programs.qemu, parked, folder);
        await send(t, programs.qemu, parked, folder, { compression, channels, directIo: true });
        fs.rmSync(parked.file);
      }
      await source.kill();
    },
  );
}

t.test("QEMU's own file, written with direct-io while the guest runs: sent with directIo", async (t) => {
  if (await refusedHere(t)) return;
  const source = await Qemu.start(t, programs.qemu, folder, { machine: 'pc' });
  await source.waitUntilReady();
  const file = path.join(folder, 'own.mig');
  await source.setCapabilities({ 'mapped-ram': true, multifd: true });
  await source.setParameters({ 'multifd-channels': 2, 'direct-io': true });
  await makeSlow(source);
  await source.execute('migrate', { uri: `file:${file}` });
  await makeFast(source);
  t.equal((await source.migrationEnd()).status, 'completed');
  const description = await readMappedRam(file);
  const verified = await verifyMappedRam(file, description, { directIo: true });
  t.same(verified, await verifyMappedRam(file, description));
  const { machine } = description;
  const saved = { file, machine, ram: await source.ram(), counter: await source.counter() };
  for (const compression of METHODS) {
    await send(t, programs.qemu, saved, folder, { compression, channels: 2, directIo: true });
  }
});
