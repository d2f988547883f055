/** Guests that go over all their memory, in order and at random, while it comes; they look at each page themselves. */
import fs from 'node:fs';
import t, { type Test } from 'tap';
import { readMappedRam, type PostcopyResult } from '../../src/index.js';
import { within } from '../support/within.js';
import { MIGRATION_MS, begin, destinationOf, done, nextSocket } from './postcopy.js';
import { requirePrograms } from './programs.js';
import type { Qemu } from './qemu.js';
import type { AddressText } from '../../src/transport/address.js';
import { moves, parkWalker, walks, type Walker } from './walkers.js';

const programs = requirePrograms();
const MiB = 2 ** 20;
/** So slow that nearly all has to be asked for. */
const SLOW = 2 ** 16;
/** Of a guest of 64 MiB that are asked for, at least; the neighbours of the others have come with them. */
const LEAST_ASKED = 50;

async function into(t: Test, walker: Walker): Promise<{ destination: Qemu; to: AddressText }> {
  const { folder, machine, extra } = walker;
  return destinationOf(t, programs.qemu, folder, machine, { extra });
}

async function right(t: Test, destination: Qemu): Promise<void> {
  t.notMatch(destination.serial, /X/, 'the guest has found all its memory right');
  t.equal(await destination.status(), 'running');
}

for (const [order, by] of [
  ['in order', 'us'],
  ['at random', 'QEMU'],
] as const) {
  t.test(`memory that a guest goes over ${order}, from a file made by ${by}`, async (t) => {
    const walker = await parkWalker(t, programs.qemu, { memoryBytes: 64 * MiB, order }, by);
    const { file, folder } = walker;

    await t.test('all of it comes as it is asked for', async (t) => {
      const { destination, to } = await into(t, walker);
      const migration = begin({ file, to, maxBandwidth: SLOW });
      await within(migration.running, MIGRATION_MS, 'RUN');
      // The rest of one time, and all of the next.
      await walks(destination, 2);
      await right(t, destination);
      const session = await migration.session;
      const { pagesRequested } = session.stats();
      t.ok(pagesRequested >= LEAST_ASKED, `${pagesRequested} pages were asked for`);
      session.maxBandwidth = 0;
      t.equal((await done(migration)).stats.state, 'completed');
      await right(t, destination);
      await destination.kill();
    });

    await t.test('all of it comes as fast as it can, into three guests at once', async (t) => {
      const all = await Promise.all([1, 2, 3].map(async () => into(t, walker)));
      const results = await Promise.all(all.map(async ({ to }) => done(begin({ file, to, directIo: true }))));
      t.same(
        results.map(({ stats }: PostcopyResult) => stats.state),
        ['completed', 'completed', 'completed'],
      );
      for (const { destination } of all) {
        await walks(destination, 2);
        await right(t, destination);
        await destination.kill();
      }
    });

    await t.test('connections break again and again, and the guest goes on', async (t) => {
      const { destination, to } = await into(t, walker);
      let at = to;
      for (const recover of [false, true, true]) {
        const abort = new AbortController();
        const options = { file, to: at, recover, maxBandwidth: SLOW, signal: abort.signal };
        const broken = begin(options);
        await within(broken.running, MIGRATION_MS, recover ? 'RESUME_ACK' : 'RUN');
        abort.abort();
        await t.rejects(done(broken), { code: 'ERR_MULTIFD_ABORTED' });
        await destination.migrationReaches('postcopy-paused');
        at = nextSocket(folder);
        await destination.execute('migrate-recover', { uri: at });
      }
      await done(begin({ file, to: at, recover: true }));
      await walks(destination, 2);
      await right(t, destination);
      await destination.kill();
    });

    await t.test('what was asked for goes ahead the next time', async (t) => {
      const asked: number[] = [];
      for (const hot of [0, 1]) {
        const { destination, to } = await into(t, walker);
        const migration = begin({ file, to, maxBandwidth: SLOW, hot: true, maxHot: 64 * MiB });
        await within(migration.running, MIGRATION_MS, 'RUN');
        await walks(destination, 2);
        await right(t, destination);
        const session = await migration.session;
        session.maxBandwidth = 0;
        const { stats } = await done(migration);
        t.equal(stats.pagesHot > 0, hot === 1);
        asked.push(stats.pagesRequested);
        await destination.kill();
      }
      const said = `asked for ${asked[0]} pages, then for ${asked[1]}`;
      // At random there are as many neighbours that came along the first time, and are asked for the second time.
      if (order === 'in order') t.ok(asked[1] < asked[0] / 2, said);
      else t.comment(said);
    });

    await t.test('and one page that is wrong is seen', async (t) => {
      const block = (await readMappedRam(file)).blocks.find(({ name }) => name === 'pc.ram');
      if (block === undefined) throw new Error('no pc.ram');
      const handle = await fs.promises.open(file, 'r+');
      await handle.write(Buffer.from([0x55]), 0, 1, block.pagesOffset + 48 * MiB);
      await handle.close();
      const { destination, to } = await into(t, walker);
      await done(begin({ file, to }));
      await walks(destination, 2);
      t.match(destination.serial, /X/);
      await destination.kill();
    });
  });
}

/** Of the stream, up to where the guest runs: the blocks and the devices. */
const MOST_BEFORE = 2 ** 20;

for (const [gib, by] of [
  [1, 'us'],
  [4, 'QEMU'],
  [8, 'us'],
] as const) {
  t.test(`a guest of ${gib} GiB runs, and goes over its memory, when no more has been sent`, async (t) => {
    const memoryBytes = gib * 2 ** 30;
    // 32 MiB of pages, whatever the size: the sources and destinations of all have room on one machine.
    const oneOf = 32 * gib;
    const walker = await parkWalker(t, programs.qemu, { memoryBytes, order: 'at random', oneOf }, by);
    const { destination, to } = await into(t, walker);
    const migration = begin({ file: walker.file, to, maxBandwidth: SLOW });
    await within(migration.running, MIGRATION_MS, 'RUN');
    const session = await migration.session;
    const before = session.stats().bytes;
    t.ok(before < MOST_BEFORE, `${before} bytes before the guest ran`);
    await moves(destination);
    session.maxBandwidth = 0;
    const { stats } = await done(migration);
    t.comment(JSON.stringify(stats));
    t.equal((await destination.migrationEnd()).status, 'completed');
    await walks(destination, 2);
    await right(t, destination);
    await destination.kill();
  });
}
