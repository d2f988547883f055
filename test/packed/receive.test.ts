/** A migration received into a packed file: what is there, and what its source is told, whatever happens while it is packed. */
import { createHash } from 'node:crypto';
import { spawnSync } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import t from 'tap';
import {
  packMigration,
  readMappedRam,
  sendMigration,
  unpackMigration,
  verifyMappedRam,
} from '../../src/index.js';
import { within } from '../support/within.js';
import { WAIT_MS, folderOf, makeRam, park, receiving, sourceTo } from './vm.js';

/** Of a frame, as on a disk that is slow: in pieces that let this thread breathe. */
const SLOW_MS = 150;

t.test('it is what packing the plain file makes, and nothing else is left', async (t) => {
  const at = folderOf(t);
  await park(t, at('vm.mig'));
  await packMigration({ file: at('vm.mig') });
  const told: number[] = [];
  const received = await park(t, at('other.mig.zst'), { onPacking: (bytes) => told.push(bytes) });
  const packedBytes = fs.statSync(at('other.mig.zst')).size;
  t.match(received, { fileBytes: fs.statSync(at('vm.mig')).size, packedBytes });
  t.equal(told.at(-1), received.fileBytes);
  t.ok(fs.readFileSync(at('other.mig.zst')).equals(fs.readFileSync(at('vm.mig.zst'))));
  t.same(fs.readdirSync(at('.')).sort(), ['other.mig.zst', 'vm.mig', 'vm.mig.zst']);
  t.equal(fs.statSync(at('other.mig.zst')).mode & 0o777, 0o600);
  await park(t, at('plain.zst'), { packed: false });
  t.ok(fs.readFileSync(at('plain.zst')).equals(fs.readFileSync(at('vm.mig'))), 'packed: false');
  await park(t, at('named'), { packed: true, packLevel: 1 });
  await unpackMigration({ file: at('named'), out: at('back') });
  t.ok(fs.readFileSync(at('back')).equals(fs.readFileSync(at('vm.mig'))), 'packed: true');
});

for (const [compression, directIo] of [
  ['none', false],
  ['zlib', false],
  ['zstd', true],
] as const) {
  t.test(`it is sent as it is: ${compression}, directIo ${directIo}`, async (t) => {
    const at = folderOf(t);
    const file = at('vm.mig.zst');
    await park(t, file);
    const options = { channels: 3, compression };
    const { address, result } = await receiving(at('there.mig'), options);
    const sending = sendMigration({ file, to: address, directIo, ...options });
    const [sent] = await within(Promise.all([sending, result]), WAIT_MS, 'the migration');
    t.equal(sent.machine, 'packed-1.0');
    const description = await readMappedRam(at('there.mig'));
    const [ram] = await verifyMappedRam(at('there.mig'), description);
    t.equal(ram.sha256, createHash('sha256').update(makeRam()).digest('hex'));
  });
}

t.test('a damaged frame ends the sending, and the destination has nothing', async (t) => {
  const at = folderOf(t);
  const file = at('vm.mig.zst');
  await park(t, file);
  const bytes = fs.readFileSync(file);
  // Within the random pages, which are the most of it.
  bytes[bytes.length >> 1] ^= 1;
  fs.writeFileSync(file, bytes);
  const { address, result } = await receiving(at('there.mig'));
  const sending = sendMigration({ file, to: address, channels: 2 });
  await t.rejects(within(sending, WAIT_MS, 'the source'), {
    code: 'ERR_MULTIFD_STREAM',
    message: /packed file: frame \d+ at byte/,
  });
  await t.rejects(within(result, WAIT_MS, 'the destination'));
  t.notOk(fs.existsSync(at('there.mig')));
});

t.test('an abort while it is packed: the source runs on, and nothing is left', async (t) => {
  const at = folderOf(t);
  const stop = new AbortController();
  const { address, result } = await receiving(at('vm.mig.zst'), {
    signal: stop.signal,
    onPacking: () => stop.abort('by the test'),
  });
  const source = await sourceTo(t, address);
  await t.rejects(within(result, WAIT_MS, 'the abort'), {
    code: 'ERR_MULTIFD_ABORTED',
    cause: 'by the test',
  });
  await t.rejects(within(source.done, WAIT_MS, 'the source'));
  t.equal(source.stats().status, 'failed');
  t.same(fs.readdirSync(at('.')), []);
});

t.test(
  'a source that goes while it is packed: what may be the only guest there is is kept, plain',
  async (t) => {
    const at = folderOf(t);
    const busy = new Int32Array(new SharedArrayBuffer(4));
    let gone: Promise<void> | undefined;
    const { address, result } = await receiving(at('vm.mig.zst'), {
      onPacking: () => {
        gone ??= source.cancel();
        Atomics.wait(busy, 0, 0, SLOW_MS);
      },
    });
    const source = await sourceTo(t, address);
    source.done.catch(() => {});
    const kept = at('vm.mig.zst.plain.part');
    await t.rejects(within(result, WAIT_MS, 'the destination'), {
      code: 'ERR_MULTIFD_CONNECTION',
      message: new RegExp(`the whole file is kept as ${kept}$`),
      kept,
    });
    await gone;
    t.same(fs.readdirSync(at('.')), ['vm.mig.zst.plain.part']);
    const [ram] = await verifyMappedRam(kept, await readMappedRam(kept));
    t.equal(ram.sha256, createHash('sha256').update(makeRam()).digest('hex'));
  },
);

t.test('the disk is full while it is packed', async (t) => {
  const at = folderOf(t);
  // Not in that folder: it goes before what is mounted in it.
  const disk = fs.mkdtempSync(path.join(os.tmpdir(), 'mfd-'));
  // The plain file has 5 MiB that are not holes, the packed one 4.
  const mounted = spawnSync('mount', ['-t', 'tmpfs', '-o', 'size=8m', 'tmpfs', disk], { timeout: WAIT_MS });
  if (mounted.status !== 0) {
    t.pass('nothing can be mounted here');
    return;
  }
  t.teardown(() => {
    spawnSync('umount', ['-l', disk], { timeout: WAIT_MS });
    fs.rmdirSync(disk);
  });
  const full = { code: 'ERR_MULTIFD_IO', message: /ENOSPC/ };
  for (const keepPartial of [false, true]) {
    const { address, result } = await receiving(path.join(disk, 'vm.mig.zst'), { keepPartial });
    const source = await sourceTo(t, address);
    source.done.catch(() => {});
    await t.rejects(within(result, WAIT_MS, 'the destination'), full);
    await t.rejects(within(source.done, WAIT_MS, 'the source'));
    t.equal(source.stats().status, 'failed', 'the source is told');
    t.same(fs.readdirSync(disk), keepPartial ? ['vm.mig.zst.plain.part'] : []);
  }
  const file = path.join(disk, 'vm.mig.zst.plain.part');
  const [ram] = await verifyMappedRam(file, await readMappedRam(file));
  t.equal(ram.sha256, createHash('sha256').update(makeRam()).digest('hex'));
  await t.rejects(packMigration({ file }), full);
  t.same(fs.readdirSync(disk), ['vm.mig.zst.plain.part'], 'pack leaves nothing');
  await packMigration({ file, out: at('vm.mig.zst') });
  await t.rejects(unpackMigration({ file: at('vm.mig.zst'), out: path.join(disk, 'vm.mig') }), full);
  t.same(fs.readdirSync(disk), ['vm.mig.zst.plain.part'], 'nor does unpack');
});

t.test('with keepPartial what came is kept, plain', async (t) => {
  const at = folderOf(t);
  const { address, result } = await receiving(at('vm.mig.zst'), {
    keepPartial: true,
    onPacking: () => {
      throw new Error('of the test');
    },
  });
  const source = await sourceTo(t, address);
  source.done.catch(() => {});
  await t.rejects(within(result, WAIT_MS, 'the destination'), { code: 'ERR_MULTIFD_HOOK' });
  t.same(fs.readdirSync(at('.')), ['vm.mig.zst.plain.part']);
  await t.rejects(within(source.done, WAIT_MS, 'the source'));
  t.equal(source.stats().status, 'failed');
});

t.test(
  'it takes longer than the source would wait for a silent destination, and the source is told',
  async (t) => {
    const at = folderOf(t);
    const busy = new Int32Array(new SharedArrayBuffer(4));
    let waits = 0;
    const { address, result } = await receiving(at('again.mig.zst'), {
      onPacking: () => {
        if (waits++ < 8) Atomics.wait(busy, 0, 0, SLOW_MS);
      },
    });
    await park(t, at('vm.mig'));
    const sending = sendMigration({ file: at('vm.mig'), to: address, channels: 2, stallTimeoutMs: 800 });
    await within(Promise.all([sending, result]), WAIT_MS, 'the migration');
    t.ok(fs.existsSync(at('again.mig.zst')));
  },
);

t.test('options that do not go together are refused before anybody is listened to', async (t) => {
  const at = folderOf(t);
  const option = (message: RegExp) => ({ code: 'ERR_MULTIFD_OPTION', message });
  await t.rejects(receiving(at('x.zst'), { packLevel: 21 }), option(/packLevel/));
  await t.rejects(receiving(at('x'), { packLevel: 3 }), option(/packLevel: .*not packed/));
  await t.rejects(receiving(at('x.zst'), { packed: 'yes' as never }), option(/packed/));
  await t.rejects(
    receiving('', { out: undefined, discard: true, packed: true }),
    option(/packed: .*discard/),
  );
  fs.writeFileSync(at('x.zst.plain.part'), 'of one that was killed');
  await t.rejects(receiving(at('x.zst')), { code: 'ERR_MULTIFD_IO', message: /plain\.part exists/ });
  t.same(fs.readdirSync(at('.')), ['x.zst.plain.part'], 'nothing of ours is left');
  await park(t, at('x.zst'), { overwrite: true });
  t.same(fs.readdirSync(at('.')), ['x.zst']);
});

t.test(
  'what a killed one has left is refused, and neither of its locks stays; a living one keeps them',
  async (t) => {
    // A socket's path is short.
    const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'mfd-'));
    t.teardown(() => fs.rmSync(folder, { recursive: true, force: true }));
    const out = path.join(folder, 'x.zst');
    for (const lock of [`${out}.lock`, `${out}.plain.lock`]) {
      const script = `require('net').createServer().listen(${JSON.stringify(lock)}, () => process.kill(process.pid, 'SIGKILL'))`;
      spawnSync(process.execPath, ['-e', script], { timeout: WAIT_MS });
      t.ok(fs.existsSync(lock));
    }
    for (const part of ['x.zst.part', 'x.zst.plain.part']) fs.writeFileSync(path.join(folder, part), 'its');
    await t.rejects(receiving(out), { code: 'ERR_MULTIFD_IO', message: /x\.zst\.part exists/ });
    t.same(fs.readdirSync(folder).sort(), ['x.zst.part', 'x.zst.plain.part']);
    const abort = new AbortController();
    const { result } = await receiving(out, { overwrite: true, signal: abort.signal });
    await t.rejects(receiving(out), { code: 'ERR_MULTIFD_IO', message: /being received by another process/ });
    t.ok(fs.existsSync(`${out}.plain.lock`), 'who lives has it');
    abort.abort();
    await t.rejects(result, { code: 'ERR_MULTIFD_ABORTED' });
    t.same(fs.readdirSync(folder), []);
  },
);
