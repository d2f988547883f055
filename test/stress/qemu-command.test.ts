/** `multifd stress qemu` as it is typed wrongly: nothing is done to a QEMU that was not meant. */
import t from 'tap';
import { run } from '../cli/cli.js';

for (const [what, args, says] of [
  ['no QEMU', [], /one of options '--incoming <address>' and '--qmp <address>' is needed/],
  ['both roles', ['--incoming', 'unix:/a', '--qmp', 'unix:/b'], /cannot be used with option/],
  ['no file', ['--incoming', 'unix:/a'], /needs option '--file <file>'/],
  ['a file for a source', ['--qmp', 'unix:/a', '--file', 'vm.mig'], /'--file' is for --incoming alone/],
  [
    'a start at a port',
    ['--incoming', 'tcp:127.0.0.1:1', '--file', 'f', '--start', 'true'],
    /needs option '--incoming unix:PATH'/,
  ],
  [
    'another host',
    ['--qmp', 'tcp:192.0.2.1:4444'],
    /names host 192\.0\.2\.1: .* give --yes-this-host 192\.0\.2\.1/,
  ],
  [
    'yet another',
    ['--qmp', 'tcp:192.0.2.1:4444', '--yes-this-host', '192.0.2.2'],
    /give --yes-this-host 192\.0\.2\.1/,
  ],
  ['a wrong kind', ['--qmp', 'unix:/a', '--fault', 'dorp'], /Did you mean drop\?/],
] as const) {
  t.test(`${what}: exit code 2`, async (t) => {
    const { code, stderr } = await run(t, ['stress', 'qemu', ...args]);
    t.equal(code, 2);
    t.match(stderr, says);
  });
}

t.test('a QEMU that does not start is told with what it says', async (t) => {
  const args = [
    '--file',
    'test/captures/none',
    '--incoming',
    'unix:/nowhere/in.sock',
    '--start',
    'true',
    '--json',
  ];
  const { code, result } = await run(t, ['stress', 'qemu', ...args]);
  t.equal(code, 1);
  t.match(result, { ok: false, error: { code: /^ERR_MULTIFD_/ }, runs: 0 });
});
