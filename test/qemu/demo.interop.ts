/** `multifd demo --qemu`. */
import fs from 'node:fs';
import os from 'node:os';
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
    const folders = (): string[] => fs.readdirSync(os.tmpdir()).filter((name) => name.startsWith('mfd-'));
    const before = folders();
    const command = new Run(t, ['demo', '--qemu', '--json']);
    await command.line((line) => line.type === 'start');
    command.child.kill('SIGINT');
    t.equal((await command.ended).code, 130);
    t.match(command.result, { ok: false, error: { code: 'ERR_CLI_SIGNAL' } });
    const left = folders().filter((name) => !before.includes(name));
    const used = left.filter((name) => processes().some((line) => line.includes(name)));
    t.same(used, []);
  },
);

function processes(): string[] {
  return fs
    .readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name))
    .map((pid) => {
      try {
        return fs.readFileSync(`/proc/${pid}/cmdline`, 'utf8');
      } catch {
        return '';
      }
    });
}
