/**
 * Option directIo: files are the same as without it, what the file system or the platform refuses is said at once, and the
 * page cache stays out of it. Without koffi and without a real QEMU; that one loads such files is shown in test/qemu.
 */
import { execFileSync, spawnSync } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import t, { type Test } from 'tap';
import {
  readMappedRam,
  receiveMigration,
  sendMigration,
  verifyMappedRam,
  type Compression,
  type MultifdError,
} from '../../src/index.js';
import { checkDirectIo } from '../../src/ram/direct-io.js';
import { Random } from '../support/random.js';
import { CAPTURES, PC_RAM, play, ramOf, readBytes, streamsOf } from './captures.js';
import { cached, folder, receive, refusedHere } from './direct.js';
import { migrateRounds, type Round } from './rounds.js';

const WAIT_MS = 60_000;
const PAGE = 4096;
const MIB = 2 ** 20;
const here = folder(t);

/** Of both files: every byte of RAM as a loader sees it, and all that is no page. */
async function checkSame(t: Test, file: string, plain: string): Promise<void> {
  const [one, other] = [await readMappedRam(file), await readMappedRam(plain)];
  t.same(one, other, 'described alike');
  for (const { name } of one.blocks) t.ok((await ramOf(file, name)).equals(await ramOf(plain, name)), name);
  const [bytes, theirs] = [file, plain].map((name) => fs.readFileSync(name));
  let at = 0;
  for (const { pagesOffset, usedLength } of [...one.blocks, { pagesOffset: bytes.length, usedLength: 0 }]) {
    t.ok(bytes.subarray(at, pagesOffset).equals(theirs.subarray(at, pagesOffset)), 'what is no page');
    at = pagesOffset + usedLength;
  }
}

for (const capture of CAPTURES) {
  t.test(`${capture.name}: received with directIo, the file is the one without it`, async (t) => {
    if (await refusedHere(t)) return;
    const directory = folder(t);
    const files = [true, false].map((directIo) => ({
      directIo,
      out: path.join(directory, `${directIo}.mig`),
    }));
    const { compression } = capture;
    for (const { directIo, out } of files) {
      await receive(out, (address) => play(address, streamsOf(capture)), { compression, directIo });
    }
    t.ok((await ramOf(files[0].out)).equals(PC_RAM), 'RAM');
    await checkSame(t, files[0].out, files[1].out);
    t.same(fs.readdirSync(directory).sort(), ['false.mig', 'true.mig'], 'and nothing beside it');
  });
}

/** Runs of zero and other pages, of 1 to 40 each. */
function fillMixed(memory: SharedArrayBuffer, seed: number): void {
  const random = new Random(seed);
  for (let page = 0, zero = false; page < memory.byteLength / PAGE; zero = !zero) {
    const count = Math.min(1 + random.below(40), memory.byteLength / PAGE - page);
    const bytes = new Uint8Array(memory, page * PAGE, count * PAGE);
    if (zero) bytes.fill(0);
    else for (let i = 0; i < count; i++) random.bytes(bytes.subarray(i * PAGE, i * PAGE + 64));
    page += count;
  }
}

for (const compression of ['none', 'zlib', 'zstd'] as Compression[]) {
  t.test(
    `${compression}: rounds that change, clear and fill pages, by channels and PAGE records`,
    async (t) => {
      if (await refusedHere(t)) return;
      const out = path.join(folder(t), 'vm.mig');
      const memory = new SharedArrayBuffer(8 * MIB);
      const bytes = Buffer.from(memory);
      const pages = memory.byteLength / PAGE;
      const random = new Random(3);
      const rounds: Round[] = [{ write: () => fillMixed(memory, 1) }];
      for (let i = 0; i < 6; i++) {
        const dirty = random.shuffle(Array.from({ length: pages }, (_, page) => page)).slice(0, 400);
        // No page is on both ways in a round; from round to round it changes sides.
        const [records, rest] = [dirty.slice(0, 40), dirty.slice(40).sort((a, b) => a - b)];
        rounds.push({
          write: () => {
            for (const page of records) bytes.fill(i + 1, page * PAGE, (page + 1) * PAGE);
            for (const page of rest) bytes.fill(random.below(2) * (i + 100), page * PAGE, (page + 1) * PAGE);
          },
          records,
          runs: rest.map((page) => [page, 1] as const),
        });
      }
      await receive(out, (address) => migrateRounds(address, memory, rounds, { channels: 3, compression }), {
        channels: 3,
        compression,
        directIo: true,
      });
      t.ok((await ramOf(out)).equals(bytes), 'RAM');
      const description = await readMappedRam(out);
      const [plain] = await verifyMappedRam(out, description);
      t.same(await verifyMappedRam(out, description, { directIo: true }), [plain], 'verified past the cache');
      // On to another file, read and written so.
      const again = path.join(folder(t), 'vm.mig');
      await receive(again, (to) => sendMigration({ file: out, to, compression, directIo: true }), {
        compression,
        directIo: true,
      });
      t.ok((await ramOf(again)).equals(bytes), 'RAM, sent with directIo');
    },
  );
}

t.test("QEMU's own file is sent with directIo, and verified", async (t) => {
  if (await refusedHere(t)) return;
  const directory = folder(t);
  for (const name of ['q100-mappedram-multifd', 'q100-mappedram-single']) {
    const file = path.join(directory, `${name}.mig`);
    fs.writeFileSync(file, readBytes(`${name}.mig`));
    const out = path.join(directory, `${name}-again.mig`);
    for (const zeroPageDetection of ['multifd', 'legacy'] as const) {
      await receive(out, (to) => sendMigration({ file, to, directIo: true, zeroPageDetection }), {
        directIo: true,
        overwrite: true,
      });
      t.ok((await ramOf(out)).equals(PC_RAM), `${name}, ${zeroPageDetection}`);
    }
    const description = await readMappedRam(file);
    const verified = await verifyMappedRam(file, description, { directIo: true });
    t.same(verified, await verifyMappedRam(file, description));
  }
});

t.test(
  'a file that others have laid out as O_DIRECT cannot read it is refused by the name of its block',
  async (t) => {
    if (await refusedHere(t)) return;
    const file = path.join(folder(t), 'qemu.mig');
    fs.writeFileSync(file, readBytes('q100-mappedram-multifd.mig'));
    const description = await readMappedRam(file);
    const blocks = description.blocks.map((block) => ({ ...block, pagesOffset: block.pagesOffset + 100 }));
    const verifying = verifyMappedRam(file, { ...description, blocks }, { directIo: true });
    // Some file systems read it all the same, by the page cache.
    const message = await verifying.then(
      () => 'read',
      (error: MultifdError) => error.message,
    );
    t.match(
      message,
      /^read$|^pages of "pc\.ram": read at \d+: received EINVAL, expected .*leave option directIo out$/,
    );
  },
);

t.test('keepPartial leaves what came, and without it nothing is left', async (t) => {
  if (await refusedHere(t)) return;
  const directory = folder(t);
  const out = path.join(directory, 'vm.mig');
  const streams = streamsOf(CAPTURES[0]);
  const cut = { ...streams, main: streams.main.subarray(0, streams.main.length - 2000) };
  for (const keepPartial of [false, true]) {
    await t.rejects(
      receive(out, (address) => play(address, cut), { directIo: true, keepPartial }),
      { code: 'ERR_MULTIFD_EOF' },
      `keepPartial ${keepPartial}`,
    );
    t.same(fs.readdirSync(directory), keepPartial ? ['vm.mig.part'] : []);
  }
  const kept = fs.readFileSync(`${out}.part`);
  const whole = path.join(directory, 'whole.mig');
  await receive(whole, (address) => play(address, streams), { directIo: true });
  const { blocks } = await readMappedRam(whole);
  const { pagesOffset, usedLength } = blocks[0];
  const theirs = fs.readFileSync(whole).subarray(pagesOffset, pagesOffset + usedLength);
  t.ok(kept.subarray(pagesOffset, pagesOffset + usedLength).equals(theirs), 'the pages that came');
});

t.test('no descriptor is left behind, after success and failure', async (t) => {
  if (await refusedHere(t)) return;
  const directory = folder(t);
  const out = path.join(directory, 'vm.mig');
  const open = (): string[] =>
    fs
      .readdirSync('/proc/self/fd')
      .map((fd) => {
        try {
          return fs.readlinkSync(`/proc/self/fd/${fd}`);
        } catch {
          return '';
        }
      })
      .filter((file) => file.startsWith(directory));
  const streams = streamsOf(CAPTURES[0]);
  const cut = { ...streams, main: streams.main.subarray(0, 100) };
  await t.rejects(receive(out, (address) => play(address, cut), { directIo: true }));
  t.same(open(), []);
  await receive(out, (address) => play(address, streams), { directIo: true });
  t.same(open(), []);
  await t.rejects(sendMigration({ file: out, to: `unix:${directory}/nobody`, directIo: true }), {
    code: 'ERR_MULTIFD_CONNECT',
  });
  t.same(open(), []);
});

t.test('a wrong value is refused, and a platform without O_DIRECT says so', async (t) => {
  const option = {
    code: 'ERR_MULTIFD_OPTION',
    message: /^option directIo: given "?yes"?, allowed true or false/,
  };
  const directIo = 'yes' as unknown as boolean;
  await t.rejects(
    receiveMigration({ address: { port: 0 }, out: path.join(here, 'x.mig'), directIo }),
    option,
  );
  await t.rejects(sendMigration({ file: 'nofile', to: 'unix:nobody', directIo }), option);
  const file = path.join(here, 'qemu.mig');
  fs.writeFileSync(file, readBytes('q100-mappedram-multifd.mig'));
  await t.rejects(verifyMappedRam(file, await readMappedRam(file), { directIo }), option);
  t.throws(() => checkDirectIo(true, {}), {
    code: 'ERR_MULTIFD_OPTION',
    message: /^option directIo: given true, allowed false on \w+: Node has O_DIRECT on Linux alone$/,
  });
  t.equal(checkDirectIo(undefined), false);
  t.equal(checkDirectIo(false, {}), false);
});

t.test('a file system that refuses O_DIRECT is named with the option, before anything is sent', async (t) => {
  // procfs has regular files and no O_DIRECT.
  const refused = {
    code: 'ERR_MULTIFD_IO',
    message:
      '/proc/version: received EINVAL, expected a file system and a place that O_DIRECT suits: leave option directIo out',
  };
  if (await refusedHere(t)) return;
  await t.rejects(sendMigration({ file: '/proc/version', to: 'unix:/nobody', directIo: true }), refused);
  const file = path.join(here, 'any.mig');
  fs.writeFileSync(file, readBytes('q100-mappedram-multifd.mig'));
  await t.rejects(verifyMappedRam('/proc/version', await readMappedRam(file), { directIo: true }), refused);
});

/** Runs a script where `directory` is a file system of its own; undefined where that is not allowed. */
function inMount(directory: string, mount: string, script: string): string | undefined {
  const probe = spawnSync('unshare', ['-rm', 'sh', '-c', `mount ${mount} ${directory}`], {
    timeout: WAIT_MS,
  });
  if (probe.status !== 0) return undefined;
  const command = `mount ${mount} "$1" && exec "$2" --input-type=module -e "$3"`;
  const args = ['-rm', 'sh', '-c', command, 'sh', directory, process.execPath, script];
  return execFileSync('unshare', args, { encoding: 'utf8', timeout: WAIT_MS });
}

const LIBRARY = new URL('../../src/index.js', import.meta.url).href;

t.test(
  'a receive is refused before it listens, and leaves nothing, where O_DIRECT is not to be had',
  async (t) => {
    if (await refusedHere(t)) return;
    const directory = folder(t);
    const said = inMount(
      directory,
      '-t ramfs none',
      `import fs from 'node:fs';
    import { receiveMigration } from ${JSON.stringify(LIBRARY)};
    let listened = false;
    const onListening = () => (listened = true);
    const out = ${JSON.stringify(path.join(directory, 'vm.mig'))};
    receiveMigration({ address: { port: 0 }, out, directIo: true, onListening, acceptTimeoutMs: 1 }).catch((error) =>
      console.log(JSON.stringify({ code: error.code, message: error.message, listened, left: fs.readdirSync(${JSON.stringify(directory)}) })));`,
    );
    if (said === undefined) {
      t.comment('no file system may be mounted here');
      return;
    }
    t.match(JSON.parse(said), {
      code: 'ERR_MULTIFD_IO',
      message: /vm\.mig\.part: received EINVAL, expected .*leave option directIo out$/,
      listened: false,
      left: [],
    });
  },
);

t.test('a disk that gets full in the middle of it fails the call, and leaves nothing', async (t) => {
  if (await refusedHere(t)) return;
  const directory = folder(t);
  const rounds = new URL('./rounds.js', import.meta.url).href;
  const said = inMount(
    directory,
    '-t tmpfs -o size=4m none',
    `import fs from 'node:fs';
    import { receiveMigration } from ${JSON.stringify(LIBRARY)};
    import { migrateRounds } from ${JSON.stringify(rounds)};
    const memory = new SharedArrayBuffer(2 ** 24);
    new Uint8Array(memory).fill(1);
    const out = ${JSON.stringify(path.join(directory, 'vm.mig'))};
    const onListening = (address) => migrateRounds(address, memory, [{}]).catch(() => {});
    receiveMigration({ address: { port: 0 }, out, directIo: true, onListening }).catch((error) =>
      console.log(JSON.stringify({ code: error.code, message: error.message, left: fs.readdirSync(${JSON.stringify(directory)}) })));`,
  );
  if (said === undefined) {
    t.comment('no file system may be mounted here');
    return;
  }
  const failed = JSON.parse(said) as MultifdError & { left: string[] };
  if (/directIo/.test(failed.message)) t.comment('tmpfs has no O_DIRECT here');
  else t.match(failed, { code: 'ERR_MULTIFD_IO', message: /ENOSPC/ });
  t.same(failed.left, []);
});

t.test('the page cache has next to nothing of a file that was received and sent with directIo', async (t) => {
  if (await refusedHere(t)) return;
  const directory = folder(t);
  const memory = new SharedArrayBuffer(64 * MIB);
  const bytes = Buffer.from(memory);
  new Random(9).bytes(bytes.subarray(0, MIB));
  for (let at = MIB; at < bytes.length; at += MIB) bytes.copy(bytes, at, 0, MIB);
  const plain = path.join(directory, 'plain.mig');
  await receive(plain, (address) => migrateRounds(address, memory, [{}]));
  const usual = cached(plain);
  if (usual === undefined) {
    t.comment('there is no fincore, or no disk, here');
    return;
  }
  t.ok(usual > bytes.length / 2, `without the option ${usual} bytes`);
  const out = path.join(directory, 'vm.mig');
  await receive(out, (address) => migrateRounds(address, memory, [{}]), { directIo: true });
  const received = cached(out) as number;
  t.ok(received < MIB, `received: ${received} bytes`);
  const description = await readMappedRam(out);
  await verifyMappedRam(out, description, { directIo: true });
  const verified = cached(out) as number;
  t.ok(verified < MIB, `verified: ${verified} bytes`);
  const again = path.join(directory, 'again.mig');
  await receive(again, (to) => sendMigration({ file: out, to, directIo: true }), { directIo: true });
  const sent = cached(out) as number;
  t.ok(sent < MIB, `sent: ${sent} bytes`);
  t.ok((await ramOf(again)).equals(bytes));
});
