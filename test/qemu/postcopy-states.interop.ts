/** Destinations of postcopy that are out of the ordinary: on huge pages, and killed in each state. */
import fs from 'node:fs';
import t from 'tap';
import { differingPages } from '../../src/cli/demo/qemu/compare-ram.js';
import { within } from '../support/within.js';
import { park, type Parked } from './park.js';
import { MIGRATION_MS, begin, destinationOf, done, nextSocket } from './postcopy.js';
import { requirePrograms } from './programs.js';
import { Qemu, workFolder } from './qemu.js';

const programs = requirePrograms();
const folder = workFolder(t);
const HUGE = 2 ** 21;
/** Of them, for the guest of 128 MiB. */
const HUGE_PAGES = 64;

let guest: Parked;
t.test('a guest is parked while it runs', async (t) => {
  const source = await Qemu.start(t, programs.qemu, folder, { machine: 'pc' });
  await source.waitUntilReady();
  guest = await park(t, source, { channels: 2, compression: 'none', returnPath: true });
  await source.kill();
});

t.test('a destination whose RAM is on huge pages of the system', async (t) => {
  const free = /^HugePages_Free: *(\d+)$/m.exec(fs.readFileSync('/proc/meminfo', 'utf8'));
  if (Number(free?.[1] ?? 0) < HUGE_PAGES) {
    t.comment(`skipped: it needs ${HUGE_PAGES} free huge pages of 2 MiB (vm.nr_hugepages)`);
    return;
  }
  const extra = ['-object', 'memory-backend-memfd,id=pc.ram,size=128M,hugetlb=on,hugetlbsize=2M'];
  const machine = `${guest.machine},memory-backend=pc.ram`;
  const options = { file: guest.file, hugePages: { 'pc.ram': HUGE }, hot: true };
  for (const paused of [false, true]) {
    const { destination, to } = await destinationOf(t, programs.qemu, folder, machine, { paused, extra });
    const { stats } = await done(begin({ ...options, to }));
    t.comment(JSON.stringify(stats));
    t.equal((await destination.migrationEnd()).status, 'completed');
    // The second time with a hint of the first.
    if (paused) {
      t.ok(stats.pagesHot > 0 && stats.pagesHot % (HUGE / 4096) === 0, `${stats.pagesHot} pages went ahead`);
      t.same(differingPages(await destination.ram(), guest.ram), [], 'all guest RAM is equal');
    } else {
      await destination.waitForSerial(/\.{2}/);
      t.ok((await destination.counter()) > guest.counter, 'the guest counts on');
    }
    await destination.kill();
  }
  const { destination, to } = await destinationOf(t, programs.qemu, folder, machine, { extra });
  await t.rejects(done(begin({ file: guest.file, to })), { message: /huge pages|hugePages/ });
  await destination.kill();
});

t.test('past the page cache', async (t) => {
  const { destination, to } = await destinationOf(t, programs.qemu, folder, guest.machine, { paused: true });
  await done(begin({ file: guest.file, to, directIo: true }));
  t.equal((await destination.migrationEnd()).status, 'completed');
  t.same(differingPages(await destination.ram(), guest.ram), [], 'all guest RAM is equal');
  await destination.kill();
});

t.test('a destination that is killed before it has answered has not had the guest', async (t) => {
  const { destination, to } = await destinationOf(t, programs.qemu, folder, guest.machine);
  destination.signal('SIGSTOP');
  const migration = begin({ file: guest.file, to });
  t.equal((await migration.session).stats().state, 'setup');
  await destination.kill();
  await t.rejects(done(migration), {
    code: 'ERR_MULTIFD_CONNECTION',
    message: /the destination may have refused/,
  });
});

t.test('a destination that is killed while it is asked what it has', async (t) => {
  const { destination, to } = await destinationOf(t, programs.qemu, folder, guest.machine);
  const abort = new AbortController();
  const broken = begin({ file: guest.file, to, maxBandwidth: 2 ** 20, signal: abort.signal });
  await within(broken.running, MIGRATION_MS, 'RUN');
  abort.abort();
  await t.rejects(done(broken), { code: 'ERR_MULTIFD_ABORTED' });
  await destination.migrationReaches('postcopy-paused');
  const at = nextSocket(folder);
  await destination.execute('migrate-recover', { uri: at });
  destination.signal('SIGSTOP');
  const migration = begin({ file: guest.file, to: at, recover: true });
  t.equal((await migration.session).stats().state, 'recovering');
  await destination.kill();
  await t.rejects(done(migration), {
    code: 'ERR_MULTIFD_CONNECTION',
    message: /the guest stays postcopy-paused at the destination/,
  });
});

t.test('a destination that is killed when it has all changes nothing', async (t) => {
  const { destination, to } = await destinationOf(t, programs.qemu, folder, guest.machine);
  const { stats } = await done(begin({ file: guest.file, to }));
  await destination.kill();
  t.equal(stats.state, 'completed');
});
