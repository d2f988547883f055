/** What a guest asked for first is kept beside the file, and sent before the guest runs the next time. */
import fs from 'node:fs';
import t, { type Test } from 'tap';
import { findQemu111 } from '../../src/cli/demo/qemu/programs.js';
import { differingPages } from '../../src/cli/demo/qemu/compare-ram.js';
import type { PostcopyStats } from '../../src/index.js';
import { within } from '../support/within.js';
import { park } from './park.js';
import { MIGRATION_MS, begin, destinationOf, done } from './postcopy.js';
import { requirePrograms } from './programs.js';
import { Qemu, workFolder } from './qemu.js';

const programs = requirePrograms();
const newest = findQemu111();
const folder = workFolder(t);
/** Next to nothing comes that is not asked for. */
const SLOW = 2 ** 16;

for (const [program, machine] of [
  [programs.qemu, 'pc'],
  [programs.qemu72, 'pc-i440fx-7.2'],
  ...(newest === undefined ? [] : [[newest, 'pc'] as const]),
] as const) {
  t.test(`QEMU ${program.version}: a guest asks for less the second time`, async (t) => {
    const source = await Qemu.start(t, program, folder, { machine });
    await source.waitUntilReady();
    const parked = await park(t, source, { channels: 2, compression: 'none', returnPath: true });
    await source.kill();
    const hint = `${parked.file}.hot`;
    const start = async (t: Test): Promise<PostcopyStats> => {
      const { destination, to } = await destinationOf(t, program, folder, parked.machine);
      const warnings: string[] = [];
      const migration = begin({
        file: parked.file,
        to,
        hot: true,
        maxBandwidth: SLOW,
        onWarning: (message) => warnings.push(message),
      });
      await within(migration.running, MIGRATION_MS, 'RUN');
      await destination.waitForSerial(/\.{3}/);
      const session = await migration.session;
      session.maxBandwidth = 0;
      const { stats } = await done(migration);
      t.equal((await destination.migrationEnd()).status, 'completed');
      t.ok((await destination.counter()) > parked.counter, 'the guest counts on');
      t.same(warnings, []);
      t.comment(JSON.stringify(stats));
      await destination.kill();
      return stats;
    };
    const first = await start(t);
    t.equal(first.pagesHot, 0);
    t.equal(fs.statSync(hint).mode & 0o777, 0o600);
    const kept = JSON.parse(fs.readFileSync(hint, 'utf8')) as { pages: unknown[][] };
    const pages = kept.pages.reduce((sum, run) => sum + run.length - 1, 0);
    const second = await start(t);
    t.ok(second.pagesHot >= pages, `${second.pagesHot} pages went ahead, ${pages} are in the hint`);
    t.ok(
      second.pagesRequested < first.pagesRequested / 2,
      `asked for ${first.pagesRequested} pages, then for ${second.pagesRequested}`,
    );

    // And all of it is right, the hint's pages too.
    const { destination, to } = await destinationOf(t, program, folder, parked.machine, { paused: true });
    const third = await done(begin({ file: parked.file, to, hot: true }));
    t.ok(third.stats.pagesHot >= pages);
    t.equal((await destination.migrationEnd()).status, 'completed');
    t.same(differingPages(await destination.ram(), parked.ram), [], 'all guest RAM is equal');
    await destination.kill();
  });
}
