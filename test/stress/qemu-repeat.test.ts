/** The command that plays a run of `multifd stress qemu` again: all that the run had, for a shell. */
import { spawnSync } from 'node:child_process';
import t from 'tap';
import { repeatOf } from '../../src/cli/commands/stress-qemu.js';

t.test('as a destination, with a command of many words', async (t) => {
  const start = "exec qemu -incoming 'unix:/run/in put'";
  const qemu = {
    role: 'destination' as const,
    incoming: { path: '/run/in.sock' },
    file: 'vm.mig',
    channels: 2,
    compression: 'zlib' as const,
    start,
    limitMs: 4000,
  };
  const text = repeatOf({ limit: 4, fault: 'flip' }, qemu, { seed: 7, run: 3 });
  const { stdout } = spawnSync('sh', ['-c', `printf '%s\\n' ${text}`], { encoding: 'utf8' });
  t.same(stdout.trimEnd().split('\n'), [
    ...['multifd', 'stress', 'qemu', '--incoming', 'unix:/run/in.sock', '--file', 'vm.mig', '--start', start],
    ...['--channels', '2', '--compression', 'zlib', '--limit', '4', '--fault', 'flip'],
    ...['--seed', '7', '--run', '3'],
  ]);
});

t.test('as a source', async (t) => {
  const channels = { channels: 4, compression: 'none' as const };
  const qemu = {
    role: 'source' as const,
    qmp: { host: 'vm.example', port: 4 },
    pageSize: 4096,
    limitMs: 1,
    ...channels,
  };
  t.equal(
    repeatOf({ limit: 10, yesThisHost: 'vm.example' }, qemu, { seed: 1, run: 0 }),
    'multifd stress qemu --qmp tcp:vm.example:4 --page-size 4096 --channels 4 --compression none --limit 10 --yes-this-host vm.example --seed 1 --run 0',
  );
});
