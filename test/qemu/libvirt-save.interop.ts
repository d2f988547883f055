/**
 * What libvirt saves, sent into a real QEMU: the image of a real libvirt, and a guest that counts, whose stream QEMU wrote as
 * it does for libvirt (`migrate exec:`), packed by each program. And a sink, from which a guest runs on.
 */
import { createHash } from 'node:crypto';
import fs from 'node:fs';
import path from 'node:path';
import t, { type Test } from 'tap';
import { receiveMigration, sendMigration } from '../../src/index.js';
import { formatAddress, type Address } from '../../src/transport/address.js';
import { RAW, UUID, imageOf, pack, readImage } from '../libvirt/images.js';
import { within } from '../support/within.js';
import { checkGuest, makeFast, makeSlow, migrate } from './park.js';
import { requirePrograms, type Program } from './programs.js';
import { Qemu, workFolder } from './qemu.js';

const WAIT_MS = 60_000;
const { qemu: program, qemu72 } = requirePrograms();
const folder = workFolder(t);
const side = { channels: 2, compression: 'none' } as const;
let sends = 0;

async function waiting(
  t: Test,
  machine: string,
  extra: string[],
  by = program,
): Promise<{ qemu: Qemu; to: `unix:${string}` }> {
  const qemu = await Qemu.start(t, by, folder, { machine, extra, incoming: true });
  await qemu.setMultifd(side);
  const to = `unix:${path.join(folder, `saved${sends++}.sock`)}` as const;
  await qemu.execute('migrate-incoming', { uri: to });
  return { qemu, to };
}

/** The machine, who loads it, and in which formats. */
const SAVED: [machine: string, by: Program, formats: string[]][] = [
  ['pc', program, ['raw', 'gzip', 'xz', 'zstd', 'bzip2']],
  ['pc-i440fx-7.2', qemu72, ['raw', 'zstd']],
];

for (const [machine, by, formats] of SAVED) {
  t.test(
    `${machine} to QEMU ${by.version}: saved while it ran, RAM equal in each format, and it counts on`,
    async (t) => {
      const source = await Qemu.start(t, program, folder, { machine });
      await source.waitUntilReady();
      const raw = path.join(folder, 'raw.stream');
      await makeSlow(source);
      await source.execute('migrate', { uri: `exec:cat > ${raw}` });
      await makeFast(source);
      t.equal((await source.migrationEnd()).status, 'completed');
      const guest = { ram: await source.ram(), counter: await source.counter() };
      await source.kill();
      const stream = fs.readFileSync(raw);
      for (const format of formats) {
        const packed = pack(format, stream);
        if (packed === undefined) throw new Error(`program ${format} is missing`);
        const file = path.join(folder, 'vm.save');
        fs.writeFileSync(file, imageOf(format, packed));
        // The head's uuid is that of another VM.
        const { qemu, to } = await waiting(t, machine, ['-uuid', UUID], by);
        const sent = await within(sendMigration({ file, to, ...side }), WAIT_MS, 'sendMigration()');
        t.ok((sent.records?.pages ?? 0) > 6400 + 256, `${format}: pages came again`);
        await checkGuest(t, qemu, guest);
      }
    },
  );
}

t.test("a real libvirt's images, raw and sparse, load into a QEMU with that machine", async (t) => {
  for (const [format, image] of [
    ['raw', RAW],
    ['sparse', readImage('sparse')],
  ] as const) {
    const file = path.join(folder, 'real.save');
    fs.writeFileSync(file, image);
    const extra = ['-m', '16M', '-uuid', UUID];
    const { qemu, to } = await waiting(t, 'pc-i440fx-9.2', extra);
    await within(sendMigration({ file, to, ...side }), WAIT_MS, 'sendMigration()');
    t.equal((await qemu.migrationEnd()).status, 'completed', format);
    t.equal(await qemu.status(), 'paused');
    // As `pmemsave` of libvirt's own QEMU said before it was saved.
    const dump = path.join(folder, 'high.ram');
    await qemu.execute('pmemsave', { val: 2 ** 20, size: 15 * 2 ** 20, filename: dump });
    const sha256 = createHash('sha256').update(fs.readFileSync(dump)).digest('hex');
    t.equal(
      sha256,
      '6050033312cd47262e34448d2dfe65feee9063d66288884a52493a79f8db0605',
      'its RAM above 1 MiB',
    );
    await qemu.kill();
  }
});

t.test('discarded: the source has failed and its guest counts on, unless all is accepted', async (t) => {
  const source = await Qemu.start(t, program, folder);
  await source.waitUntilReady();
  for (const discard of ['refuse', 'accept'] as const) {
    let listen!: (address: Address) => void;
    const listening = new Promise<Address>((resolve) => (listen = resolve));
    const address = `unix:${path.join(folder, `${discard}.sock`)}` as const;
    const result = receiveMigration({ address, discard, ...side, onListening: listen });
    result.catch(() => {});
    const to = formatAddress(await listening);
    await migrate(source, to, { ...side, returnPath: true });
    t.match(await within(result, WAIT_MS, 'receiveMigration()'), { discarded: discard });
    const { status } = await source.migrationEnd();
    t.equal(status, discard === 'refuse' ? 'failed' : 'completed');
    t.equal(await source.status(), discard === 'refuse' ? 'running' : 'postmigrate');
  }
});
