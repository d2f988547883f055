/** `multifd stress engine` with a folder for temporary files that is of no use: a code and a sentence, and no table of no runs. */
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import t, { type Test } from 'tap';
import { run } from '../cli/cli.js';

const ARGS = ['stress', 'engine', '--seed', '1', '--run', '5', '--fault', 'no-fault'];

async function refused(t: Test, tmp: string): Promise<string> {
  const { code, stdout, stderr } = await run(t, ARGS, { env: { TMPDIR: tmp } });
  t.equal(code, 1);
  t.equal(stdout, '', 'of no run there is no table');
  return stderr;
}

t.test('one whose sockets would have too long a path is refused at once', async (t) => {
  const root = fs.mkdtempSync(path.join(os.tmpdir(), 'multifd-test-'));
  t.teardown(() => fs.rmSync(root, { recursive: true, force: true }));
  const folder = path.join(root, 'x'.repeat(120 - root.length));
  fs.mkdirSync(folder);
  const stderr = await refused(t, folder);
  t.match(stderr, /ERR_MULTIFD_IO: TMPDIR .*: received a path of \d+ bytes, expected at most \d+/);
  t.same(fs.readdirSync(folder), []);
});

t.test('one that is not there has a code and names the variable', async (t) => {
  const stderr = await refused(t, path.join(os.tmpdir(), 'multifd-not-there'));
  t.match(
    stderr,
    /ERR_MULTIFD_IO: files of the stress in .*multifd-not-there \(TMPDIR names another folder\): ENOENT/,
  );
});

t.test('a QEMU that cannot be reached: no table either', async (t) => {
  const missing = path.join(os.tmpdir(), 'multifd-not-there.sock');
  const { code, stdout, stderr } = await run(t, ['stress', 'qemu', '--qmp', `unix:${missing}`]);
  t.equal(code, 1);
  t.equal(stdout, '');
  t.match(stderr, /ERR_MULTIFD_CONNECT/);
});
