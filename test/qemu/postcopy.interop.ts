/** A guest that runs in a stock QEMU before its memory has been read from the file. */
import fs from 'node:fs';
import path from 'node:path';
import t, { type Test } from 'tap';
import { findQemu111 } from '../../src/cli/demo/qemu/programs.js';
import { differingPages } from '../../src/cli/demo/qemu/compare-ram.js';
import { within } from '../support/within.js';
import { Run, run } from '../cli/cli.js';
import { park, type Parked } from './park.js';
import { MIGRATION_MS, begin, destinationOf, done, nextSocket } from './postcopy.js';
import { requirePrograms } from './programs.js';
import { Qemu, workFolder } from './qemu.js';
import { makeFolders, ourTls, setTls } from './tls.js';

const programs = requirePrograms();
const newest = findQemu111();
const folder = workFolder(t);

async function parked(t: Test, paused: boolean): Promise<Parked> {
  const source = await Qemu.start(t, programs.qemu, folder, { machine: 'pc' });
  await source.waitUntilReady();
  const guest = await park(t, source, { channels: 2, compression: 'none', paused, returnPath: true });
  await source.kill();
  return guest;
}

let guest: Parked;
t.test('a guest is parked while it runs', async (t) => {
  guest = await parked(t, false);
});

async function counts(t: Test, destination: Qemu, from: number): Promise<void> {
  await destination.waitForSerial(/\.{2}/);
  t.equal(await destination.status(), 'running', 'the guest runs');
  t.ok((await destination.counter()) > from, 'and counts on');
}

t.test('a paused destination has all RAM of the file', async (t) => {
  const { destination, to } = await destinationOf(t, programs.qemu, folder, guest.machine, { paused: true });
  const { stats } = await done(begin({ file: guest.file, to }));
  t.equal((await destination.migrationEnd()).status, 'completed');
  t.equal(stats.pagesLeft, 0);
  t.comment(JSON.stringify(stats));
  t.same(differingPages(await destination.ram(), guest.ram), [], 'all guest RAM is equal');
  await destination.execute('cont');
  await counts(t, destination, guest.counter);
  await destination.kill();
});

t.test('the guest runs while most of its memory is still in the file, and counts on', async (t) => {
  const { destination, to } = await destinationOf(t, programs.qemu, folder, guest.machine);
  // What it touches comes all the same: only the background waits.
  const migration = begin({ file: guest.file, to, maxBandwidth: 2 ** 16 });
  await within(migration.running, MIGRATION_MS, 'RUN');
  await counts(t, destination, guest.counter);
  const session = await migration.session;
  const early = session.stats();
  t.comment(JSON.stringify(early));
  t.ok(early.pagesLeft > 1000, `${early.pagesLeft} pages are not there yet`);
  t.ok(early.pagesRequested > 0);
  session.maxBandwidth = 0;
  const { stats } = await done(migration);
  t.comment(JSON.stringify(stats));
  t.equal((await destination.migrationEnd()).status, 'completed');
  await destination.kill();
});

t.test('three guests run from one file at once, with the same memory', async (t) => {
  const all = await Promise.all(
    [1, 2, 3].map(async () => destinationOf(t, programs.qemu, folder, guest.machine, { paused: true })),
  );
  await Promise.all(all.map(async ({ to }) => done(begin({ file: guest.file, to }))));
  for (const { destination } of all) {
    t.equal((await destination.migrationEnd()).status, 'completed');
    t.same(differingPages(await destination.ram(), guest.ram), [], 'all guest RAM is equal');
    await destination.execute('cont');
    await counts(t, destination, guest.counter);
    await destination.kill();
  }
});

for (const paused of [true, false]) {
  t.test(
    `a connection that breaks leaves a ${paused ? 'paused' : 'running'} guest that goes on from the same file`,
    async (t) => {
      const { destination, to } = await destinationOf(t, programs.qemu, folder, guest.machine, { paused });
      let at = to;
      for (const recover of [false, true]) {
        const abort = new AbortController();
        const broken = begin({
          file: guest.file,
          to: at,
          recover,
          maxBandwidth: 2 ** 21,
          signal: abort.signal,
        });
        await within(broken.running, MIGRATION_MS, recover ? 'RESUME_ACK' : 'RUN');
        abort.abort(new Error('enough'));
        await t.rejects(done(broken), {
          code: 'ERR_MULTIFD_ABORTED',
          message: /postcopy-paused.*migrate-recover/,
        });
        await destination.migrationReaches('postcopy-paused');
        at = nextSocket(folder);
        await destination.execute('migrate-recover', { uri: at });
      }
      const { stats } = await done(begin({ file: guest.file, to: at, recover: true }));
      t.equal((await destination.migrationEnd()).status, 'completed');
      t.equal(stats.state, 'completed');
      if (paused) {
        t.same(differingPages(await destination.ram(), guest.ram), [], 'all guest RAM is equal');
        await destination.execute('cont');
      }
      await counts(t, destination, guest.counter);
      await destination.kill();
    },
  );
}

t.test('a destination without postcopy-ram refuses, and is told what it may lack', async (t) => {
  const { destination, to } = await destinationOf(t, programs.qemu, folder, guest.machine);
  await destination.setCapabilities({ 'postcopy-ram': false });
  await t.rejects(done(begin({ file: guest.file, to })), {
    message: /POSTCOPY_ADVISE: is capability postcopy-ram on/,
  });
  await destination.kill();
});

t.test('huge pages that the destination does not have are refused before the guest runs', async (t) => {
  const { destination, to } = await destinationOf(t, programs.qemu, folder, guest.machine);
  await t.rejects(done(begin({ file: guest.file, to, hugePages: { 'pc.ram': 2 ** 21 } })), {
    message: /hugePages/,
  });
  await destination.kill();
});

t.test('a destination that is killed while its guest runs is told apart', async (t) => {
  const { destination, to } = await destinationOf(t, programs.qemu, folder, guest.machine);
  const migration = begin({ file: guest.file, to, maxBandwidth: 2 ** 16 });
  await within(migration.running, MIGRATION_MS, 'RUN');
  await destination.kill();
  await t.rejects(done(migration), { code: 'ERR_MULTIFD_POSTCOPY_PAUSED', message: /migrate-recover/ });
});

t.test("a file that QEMU made itself, in another QEMU's stead, and by TCP", async (t) => {
  for (const [program, machine] of [
    [programs.qemu, 'pc'],
    [programs.qemu72, 'pc-i440fx-7.2'],
    ...(newest === undefined ? [] : [[newest, 'pc'] as const]),
  ] as const) {
    // The file is of the one that writes such; 7.2 loads it as one of its own machine.
    const maker = program === programs.qemu72 ? programs.qemu : program;
    const source = await Qemu.start(t, maker, folder, { machine });
    await source.waitUntilReady();
    await source.setCapabilities({ 'mapped-ram': true });
    await source.execute('stop');
    const file = path.join(folder, 'own.mig');
    await source.execute('migrate', { uri: `file:${file}` });
    t.equal((await source.migrationEnd()).status, 'completed');
    const ram = await source.ram();
    const counter = await source.counter();
    await source.kill();
    const { destination, to } = await destinationOf(t, program, folder, machine, { paused: true });
    // It breaks and goes on as well.
    const abort = new AbortController();
    const broken = begin({ file, to, maxBandwidth: 2 ** 21, signal: abort.signal });
    await within(broken.running, MIGRATION_MS, `RUN in QEMU ${program.version}`);
    abort.abort();
    await t.rejects(done(broken), { code: 'ERR_MULTIFD_ABORTED' });
    await destination.migrationReaches('postcopy-paused');
    await destination.execute('migrate-recover', { uri: 'tcp:127.0.0.1:0' });
    const port = await destination.incomingPort();
    const { stats } = await done(begin({ file, to: `tcp:127.0.0.1:${port}`, recover: true }));
    t.equal(stats.state, 'completed');
    t.equal((await destination.migrationEnd()).status, 'completed', `QEMU ${program.version}`);
    t.same(differingPages(await destination.ram(), ram), [], 'all guest RAM is equal');
    await destination.execute('cont');
    await counts(t, destination, counter);
    await destination.kill();
    fs.rmSync(file);
  }
});

t.test(
  'the command line starts the guest, says what a Ctrl-C left, and goes on with --recover',
  async (t) => {
    const { destination, to } = await destinationOf(t, programs.qemu, folder, guest.machine, {
      paused: true,
    });
    const args = ['send', guest.file, '--mode', 'postcopy', '--json'];
    const broken = new Run(t, [...args, '--to', to, '--max-bandwidth', '2M']);
    await broken.line(({ type }) => type === 'running');
    broken.child.kill('SIGINT');
    const { code, stderr } = await broken.ended;
    t.equal(code, 130);
    t.match(stderr, /postcopy-paused.*--recover/);
    await destination.migrationReaches('postcopy-paused');
    const again = nextSocket(folder);
    await destination.execute('migrate-recover', { uri: again });
    const ended = await run(t, [...args, '--to', again, '--recover']);
    t.equal(ended.code, 0, ended.stderr);
    t.match(JSON.parse(ended.stdout.trim().split('\n').at(-1) as string), {
      mode: 'postcopy',
      state: 'completed',
    });
    t.equal((await destination.migrationEnd()).status, 'completed');
    t.same(differingPages(await destination.ram(), guest.ram), [], 'all guest RAM is equal');
    await destination.kill();
  },
);

t.test('by TLS as well', async (t) => {
  const { x509: dir } = await makeFolders(folder);
  const destination = await Qemu.start(t, programs.qemu, folder, { machine: guest.machine, incoming: true });
  await destination.setCapabilities({ 'postcopy-ram': true, 'return-path': true });
  await setTls(destination, { kind: 'x509', dir, endpoint: 'server' });
  await destination.execute('migrate-incoming', { uri: 'tcp:127.0.0.1:0' });
  const to = `tcp:127.0.0.1:${await destination.incomingPort()}` as const;
  await done(begin({ file: guest.file, to, tls: ourTls('x509', dir, 'client') }));
  t.equal((await destination.migrationEnd()).status, 'completed');
  t.same(differingPages(await destination.ram(), guest.ram), [], 'all guest RAM is equal');
  await destination.kill();
});
