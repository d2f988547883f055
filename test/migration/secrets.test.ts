/** Guest memory is its owner's alone, and nothing that a link leads to is written: whatever is made, with umask 0. */
import fs from 'node:fs';
import net from 'node:net';
import os from 'node:os';
import path from 'node:path';
import { once } from 'node:events';
import t, { type Test } from 'tap';
import { receiveMigration } from '../../src/index.js';
import { FileRam } from '../../src/cli/demo/guest-ram.js';
import { TempDirectory } from '../../src/cli/demo/temp-directory.js';
import { makeFolder } from '../../src/cli/demo/qemu/qemu.js';
import { within } from '../support/within.js';
import { CAPTURES, play, streamsOf } from './captures.js';

const WAIT_MS = 20_000;
const SECRET = "somebody else's";

const before = process.umask(0);
t.teardown(() => process.umask(before));

/** Short, since a socket's path is. */
function folderOf(t: Test): string {
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'mfd-secret-'));
  t.teardown(() => fs.rmSync(folder, { recursive: true, force: true }));
  return folder;
}

const modeOf = (file: string): number => fs.lstatSync(file).mode & 0o777;

/** Of all that is made while a guest comes, and of what stays. */
async function receive(out: string, overwrite: boolean): Promise<Record<string, number>> {
  const modes: Record<string, number> = {};
  const folder = path.dirname(out);
  const address = { path: path.join(folder, 'park.sock') };
  await new Promise<void>((resolve, reject) => {
    const result = receiveMigration({
      address,
      out,
      overwrite,
      onListening: () => {
        for (const name of fs.readdirSync(folder)) modes[name] = modeOf(path.join(folder, name));
        play(address, streamsOf(CAPTURES[0])).catch(reject);
      },
    });
    within(result, WAIT_MS, 'receiveMigration()').then(() => resolve(), reject);
  });
  modes.out = modeOf(out);
  return modes;
}

t.test('umask 0: file, partial file, lock and socket are 0600', async (t) => {
  const folder = folderOf(t);
  const modes = await receive(path.join(folder, 'vm.mig'), false);
  t.same(modes, { 'park.sock': 0o600, 'vm.mig.lock': 0o600, 'vm.mig.part': 0o600, out: 0o600 });
  t.same(fs.readdirSync(folder), ['vm.mig']);
});

t.test('umask 0: folders of the demo are 0700, and its RAM files 0600', async (t) => {
  const directory = TempDirectory.make(1);
  t.teardown(() => directory.remove());
  t.equal(modeOf(directory.path), 0o700);
  const folder = makeFolder();
  t.teardown(() => fs.rmSync(folder, { recursive: true, force: true }));
  t.equal(modeOf(folder), 0o700);
  const file = directory.file('ram');
  const ram = new FileRam([{ name: 'ram', size: 4096 }], file, 'w+');
  t.teardown(() => ram.close());
  t.equal(modeOf(file), 0o600);
  const target = path.join(folder, 'target');
  fs.writeFileSync(target, SECRET);
  fs.symlinkSync(target, directory.file('link'));
  t.throws(() => new FileRam([{ name: 'ram', size: 4096 }], directory.file('link'), 'w+'), {
    code: 'EEXIST',
  });
  t.equal(fs.readFileSync(target, 'utf8'), SECRET);
});

/** A name with a link in its place: to nothing, to a file, to a socket that lives. */
async function links(t: Test, name: string, to: string): Promise<{ out: string; target: string }> {
  const folder = folderOf(t);
  const target = path.join(folder, 'target');
  if (to === 'a file') fs.writeFileSync(target, SECRET);
  if (to === 'a socket') {
    const server = net.createServer().listen(target);
    await once(server, 'listening');
    t.teardown(() => server.close());
  }
  fs.symlinkSync(target, path.join(folder, name));
  return { out: path.join(folder, 'vm.mig'), target };
}

for (const to of ['nothing', 'a file', 'a socket']) {
  for (const name of ['vm.mig', 'vm.mig.part', 'vm.mig.lock']) {
    for (const overwrite of [false, true]) {
      const isReplaced = overwrite && name === 'vm.mig';
      const what = isReplaced ? 'the link is replaced' : 'refused';
      t.test(
        `${name} is a link to ${to}, overwrite ${overwrite}: ${what}, and nobody follows it`,
        async (t) => {
          const { out, target } = await links(t, name, to);
          if (isReplaced) {
            t.match(await receive(out, true), { out: 0o600 });
            t.ok(fs.lstatSync(out).isFile());
          } else {
            await t.rejects(receive(out, overwrite), { code: 'ERR_MULTIFD_IO' });
            t.ok(fs.lstatSync(path.join(path.dirname(out), name)).isSymbolicLink(), 'the link is there');
          }
          if (to === 'a file') t.equal(fs.readFileSync(target, 'utf8'), SECRET);
          else t.equal(fs.existsSync(target), to === 'a socket');
        },
      );
    }
  }
}
