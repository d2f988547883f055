/**
 * One guest of each QEMU that is there: parked, loaded, sent on. Where there is no QEMU it is skipped; all of it is
 * `npm run test:interop`.
 */
import t from 'tap';
import { load, park, send } from './park.js';
import { MISSING, QEMU, QEMU_11_1, QEMU_7_2 } from './programs.js';
import { Qemu, workFolder } from './qemu.js';

const why = `missing: ${MISSING.join('; ')}; "npm run test:interop" runs all tests with real QEMUs`;

for (const [name, program] of Object.entries({ '11.1': QEMU_11_1, '10.0': QEMU, '7.2': QEMU_7_2 })) {
  const title = `a guest of QEMU ${program?.version ?? name}: parked, loaded, sent on`;
  if (program === undefined) {
    t.test(title, { skip: why }, () => {});
    continue;
  }
  t.test(title, async (t) => {
    const folder = workFolder(t);
    const source = await Qemu.start(t, program, folder, { machine: 'pc-i440fx-7.2' });
    await source.waitUntilReady();
    const parked = await park(t, source, { channels: 2, compression: 'zstd', tcp: true });
    for (const loader of [QEMU, QEMU_11_1]) {
      if (loader !== undefined) await load(t, loader, parked, folder, { channels: 2 });
    }
    await send(t, program, parked, folder, { channels: 3, compression: 'zlib', tcp: true });
  });
}
