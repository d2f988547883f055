import { execFile } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import t from 'tap';

const fixture = fileURLToPath(new URL('../fixtures/other-realm.js', import.meta.url));

t.test('the library works in a realm that is not that of Node, as in a test of jest', async (t) => {
  const flags = ['--experimental-vm-modules', '--no-warnings'];
  const { stdout } = await promisify(execFile)(process.execPath, [...flags, fixture], { timeout: 60_000 });
  t.strictSame(stdout.trim().split('\n'), [
    'shared true 7',
    'owned true 7',
    'bytes true 7',
    'function true 7',
    'buffer true 7',
    'own true 7',
    `ERR_MULTIFD_IO RAM block "ram": open: ENOENT: no such file or directory, stat '/nowhere/at/all'`,
  ]);
});
