/** `multifd demo --qemu`. */
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import t from 'tap';
import { Run, run } from '../cli/cli.js';

for (const compression of ['none', 'zstd']) {
  t.test(`demo --qemu, ${compression}: RAM equal, the guest runs on`, { timeout: 120_000 }, async (t) => {
    const { code, stderr, result, lines } = await run(t, [
      'demo',
      '--qemu',
      '--json',
      '--compression',
      compression,
    ]);
    t.equal(code, 0, stderr);
    t.match(result, { ok: true, equal: true, differing: [], running: true, ramBytes: 128 * 2 ** 20 });
    t.match(lines[0], { type: 'start', compression });
  });
}

t.test(
  'cancelled in the middle: exit code 130, no QEMU and no file is left',
  { timeout: 60_000 },
  async (t) => {
    // A short path: QEMU's sockets are in it.
    const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'mfi-'));
    t.teardown(() => fs.rmSync(folder, { recursive: true, force: true }));
    const command = new Run(t, ['demo', '--qemu', '--json'], { env: { TMPDIR: folder } });
    await command.line((line) => line.type === 'start');
    const qemus = processesOf(folder);
    t.equal(qemus.length, 1, 'one QEMU runs');
    command.child.kill('SIGINT');
    t.equal((await command.ended).code, 130);
    t.match(command.result, { ok: false, error: { code: 'ERR_CLI_SIGNAL' } });
    t.same(fs.readdirSync(folder), []);
    t.same(processesOf(folder), []);
  },
);

function processesOf(folder: string): string[] {
  return fs.readdirSync('/proc').filter((pid) => {
    if (!/^\d+$/.test(pid)) return false;
    try {
      return fs.readFileSync(`/proc/${pid}/cmdline`, 'utf8').includes(folder);
    } catch {
      return false;
    }
  });
}
