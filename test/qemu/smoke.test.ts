/**
 * A guest of one QEMU that is there: parked, loaded, sent on. Where there is none it is skipped; all QEMUs, and all that
 * can be done with them, are `npm run test:interop`.
 */
import t from 'tap';
import { load, park, send } from './park.js';
import { MISSING, QEMU, QEMU_11_1, QEMU_7_2 } from './programs.js';
import { Qemu, workFolder } from './qemu.js';

const why = `missing: ${MISSING.join('; ')}; "npm run test:interop" runs all tests with real QEMUs`;
const program = QEMU ?? QEMU_11_1 ?? QEMU_7_2;

t.test(
  `a guest of QEMU ${program?.version ?? ''}: parked, loaded, sent on`,
  { skip: program === undefined && why },
  async (t) => {
    if (program === undefined) return;
    const folder = workFolder(t);
    const source = await Qemu.start(t, program, folder, { machine: 'pc-i440fx-7.2' });
    await source.waitUntilReady();
    const parked = await park(t, source, { channels: 2, compression: 'zstd', tcp: true });
    if (program !== QEMU_7_2) await load(t, program, parked, folder, { channels: 2 });
    await send(t, program, parked, folder, { channels: 3, compression: 'zlib', tcp: true });
  },
);
