/** Which addresses `multifd stress qemu` takes without --yes-this-host. */
import t from 'tap';
import { isThisHost } from '../../src/transport/this-host.js';
import { run } from '../cli/cli.js';

t.test('this host is a loopback number, or localhost', async (t) => {
  for (const host of ['127.0.0.1', '127.255.0.9', '::1', '0:0:0:0:0:0:0:1', '::ffff:127.0.0.1', 'LocalHost'])
    t.equal(isThisHost(host), true, host);
});

t.test('and no other number, and no name that only looks like one', async (t) => {
  const others = ['127.0.0.1.nip.io', '127.example.invalid', '127.1', '127.', '::ffff:10.0.0.1', '128.0.0.1'];
  for (const host of [...others, '0.0.0.0', '::', '::1.example', 'localhost.example', ''])
    t.equal(isThisHost(host), false, host);
});

t.test('the command refuses such a name before it looks it up', async (t) => {
  const { code, stderr } = await run(t, ['stress', 'qemu', '--qmp', 'tcp:127.example.invalid:4444']);
  t.equal(code, 2);
  t.match(stderr, /names host 127.example.invalid: .*give --yes-this-host 127.example.invalid/);
});
