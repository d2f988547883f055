/**
 * What a file may be and a guest may have, beside the usual: parked by us, told apart from QEMU's own by nothing, loaded
 * by QEMU, and sent back.
 */
import { createHash } from 'node:crypto';
import fs from 'node:fs';
import path from 'node:path';
import { spawnSync } from 'node:child_process';
import t, { type Test } from 'tap';
import { formatAddress, type Address } from '../../src/transport/address.js';
import { readMappedRam, receiveMigration, sendMigration } from '../../src/index.js';
import { differingPages } from '../../src/cli/demo/qemu/compare-ram.js';
import { analyze } from '../support/analyze.js';
import { within } from '../support/within.js';
import { load, park, send, type Parked } from './park.js';
import { requirePrograms, type Program } from './programs.js';
import { Qemu, workFolder } from './qemu.js';

const MIGRATION_MS = 60_000;
const programs = requirePrograms();
const folder = workFolder(t);
const sending = { channels: 2, compression: 'none' } as const;
const options = { ...sending, paused: true, returnPath: true } as const;

async function parked(t: Test, program: Program, machine: string): Promise<Parked> {
  const source = await Qemu.start(t, program, folder, { machine });
  await source.waitUntilReady();
  const result = await park(t, source, options);
  await source.kill();
  return result;
}

t.test(
  'a parked file is read by its VM description alone, and may be padded, or lie on a block device',
  async (t) => {
    for (const [program, machine] of [
      [programs.qemu, 'pc'],
      [programs.qemu72, 'pc-i440fx-7.2'],
    ] as const) {
      const guest = await parked(t, program, machine);
      const analyzed = analyze(fs.readFileSync(guest.file));
      t.same(analyzed.capabilities, ['mapped-ram']);
      t.equal(analyzed.machine, guest.machine);
      const { blocks } = await readMappedRam(guest.file);
      t.equal(analyzed.ram.size, blocks.length);
      // Below the hole at 640 KiB the guest's RAM is the block's begin.
      const at = blocks[0].pagesOffset;
      t.ok(blocks[0].presentPages > 6144 && at > 0);
      t.not(
        analyzed.ram.get('pc.ram'),
        createHash('sha256')
          .update(Buffer.alloc(128 * 2 ** 20))
          .digest('hex'),
      );
      fs.appendFileSync(guest.file, Buffer.alloc(2 ** 20, program === programs.qemu ? 0 : 0xa5));
      await load(t, programs.qemu, guest, folder);
      await send(t, programs.qemu, guest, folder, { channels: 3, compression: 'zstd' });
      // As root, and where there are loop devices.
      const loop = spawnSync('losetup', ['-f', '--show', guest.file], { encoding: 'utf8', timeout: 10_000 });
      const device = (loop.stdout ?? '').trim();
      if (loop.status === 0 && device !== '') {
        try {
          await send(t, programs.qemu, { ...guest, file: device }, folder, sending);
        } finally {
          spawnSync('losetup', ['-d', device], { timeout: 10_000 });
        }
      } else t.comment('no loop device is to be had here');
      fs.rmSync(guest.file);
    }
  },
);

t.test('a machine without VM description is parked, loaded and sent, padded as well', async (t) => {
  const machine = 'pc,suppress-vmdesc=on';
  const source = await Qemu.start(t, programs.qemu, folder, { machine });
  await source.waitUntilReady();
  const { guest } = await parkPaused(source);
  await source.kill();
  const file = { ...guest, machine };
  await load(t, programs.qemu, file, folder);
  for (const padding of ['', '\0'.repeat(5000), 'anything']) {
    fs.appendFileSync(guest.file, padding);
    const { problems } = await readMappedRam(guest.file);
    t.same(
      problems.map(({ kind, fatal }) => [kind, fatal]),
      [['tail', false]],
    );
    await send(t, programs.qemu, file, folder, sending);
  }
});

/** Targets with pages of 8 KiB: sparc64 as .ci/qemu installs it, alpha (qemu-system-misc) only where it is named. */
const { MULTIFD_QEMU_ALPHA: alpha, MULTIFD_QEMU_SPARC64: sparc64 = 'qemu-system-sparc64' } = process.env;
const TARGETS = [{ command: sparc64, machine: 'sun4u' }];
if (alpha !== undefined) TARGETS.push({ command: alpha, machine: 'clipper' });

for (const { command, machine } of TARGETS) {
  t.test(`pages of 8 KiB: a guest of machine ${machine} is parked and sent back`, async (t) => {
    const said = spawnSync(command, ['--version'], { encoding: 'utf8', timeout: 20_000 }).stdout ?? '';
    const version = /version (\S+)/.exec(said)?.[1];
    t.ok(version, `${command} is there (.ci/qemu installs it)`);
    const program = { version: version ?? '', command, firmware: [], env: process.env };
    const source = await Qemu.start(t, program, folder, { machine, extra: ['-S'] });
    const { guest, pageSize } = await parkPaused(source);
    t.equal(pageSize, 8192);
    t.equal((await readMappedRam(guest.file)).pageSize, 8192);
    const destination = await Qemu.start(t, program, folder, { machine, incoming: true });
    await destination.setMultifd(options);
    const to = `unix:${path.join(folder, `${machine}.sock`)}` as const;
    await destination.execute('migrate-incoming', { uri: to });
    await within(sendMigration({ file: guest.file, to, channels: 2 }), MIGRATION_MS, 'sendMigration()');
    t.equal((await destination.migrationEnd()).status, 'completed');
    t.same(differingPages(await destination.ram(), guest.ram), [], 'all guest RAM is equal');
  });
}

let files = 0;

/** As park(), of a guest that need not be the boot sector's, nor have a VM description. */
async function parkPaused(
  source: Qemu,
): Promise<{ guest: Pick<Parked, 'file' | 'machine' | 'ram' | 'counter'>; pageSize: number }> {
  const name = path.join(folder, `paused${files++}`);
  let listen!: (address: Address) => void;
  const listening = new Promise<Address>((resolve) => (listen = resolve));
  const result = receiveMigration({
    address: `unix:${name}.sock`,
    out: `${name}.mig`,
    onListening: listen,
  });
  result.catch(() => {});
  const to = formatAddress(await Promise.race([listening, result.then(() => listening)]));
  await source.execute('stop');
  await source.setMultifd(options);
  await source.execute('migrate', { uri: to });
  const { machine, pageSize } = await within(result, MIGRATION_MS, 'receiveMigration()');
  await source.migrationEnd();
  const counter = await source.counter();
  return { guest: { file: `${name}.mig`, machine, ram: await source.ram(), counter }, pageSize };
}
