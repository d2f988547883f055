/** `multifd tls-creds`: which files it writes, with which modes, and that it tells no key. */
import fs from 'node:fs';
import path from 'node:path';
import t from 'tap';
import { run } from './cli.js';

t.test('a PSK for its owner alone, which is told by nobody and replaced with --force only', async (t) => {
  const dir = path.join(t.testdir({}), 'tls');
  const file = path.join(dir, 'keys.psk');
  const first = await run(t, ['tls-creds', dir, '--identity', 'vm']);
  t.equal(first.code, 0, first.stderr);
  t.equal(fs.statSync(file).mode & 0o777, 0o600);
  t.equal(fs.statSync(dir).mode & 0o777, 0o700);
  const text = fs.readFileSync(file, 'utf8');
  const [, key] = /^vm:([\da-f]{64})\n$/.exec(text) as RegExpExecArray;
  t.match(first.stdout, `tls-creds-psk,id=tls0,endpoint=client,dir=${dir},username=vm`);
  const again = await run(t, ['tls-creds', dir, '--json', '--verbose']);
  t.equal(again.code, 1);
  t.match(again.result, { ok: false, error: { code: 'ERR_MULTIFD_IO', message: /with --force only/ } });
  t.equal(fs.readFileSync(file, 'utf8'), text);
  const forced = await run(t, ['tls-creds', dir, '--force', '--json']);
  t.equal(forced.code, 0);
  t.match(forced.result, { ok: true, kind: 'psk', identity: 'qemu' });
  const key2 = fs.readFileSync(file, 'utf8').slice('qemu:'.length).trim();
  for (const { stdout, stderr } of [first, again, forced]) {
    for (const secret of [key, key2]) t.notOk((stdout + stderr).includes(secret), 'no key is told');
  }
});

t.test(
  'a folder whose name is several words, or keys to QEMU: what may be copied has it in quotes',
  async (t) => {
    const dir = path.join(t.testdir({}), 'a b,c');
    const { stdout } = await run(t, ['tls-creds', dir]);
    t.match(stdout, `receive ... --tls-creds '${dir}'\n`);
    t.match(stdout, `-object 'tls-creds-psk,id=tls0,endpoint=server,dir=${dir.replace(',', ',,')}'\n`);
  },
);

t.test('certificates: a folder for each host, and the key that signs kept apart', async (t) => {
  const dir = path.join(t.testdir({}), 'tls');
  const { code, result, stderr } = await run(t, ['tls-creds', dir, '--x509', 'host1,10.0.0.2', '--json']);
  t.equal(code, 0, stderr);
  t.match(result, {
    kind: 'x509',
    authority: path.join(dir, 'ca-key.pem'),
    folders: [{ host: 'host1' }, {}],
  });
  for (const host of ['host1', '10.0.0.2']) {
    t.same(fs.readdirSync(path.join(dir, host)).sort(), [
      'ca-cert.pem',
      'client-cert.pem',
      'client-key.pem',
      'server-cert.pem',
      'server-key.pem',
    ]);
  }
});

t.test('what is typed wrongly: exit code 2, and nothing is written', async (t) => {
  const dir = path.join(t.testdir({}), 'tls');
  const cases: [string[], RegExp][] = [
    [['--x509', 'a,a'], /option --x509: given "a" twice/],
    [['--identity', 'a:b'], /option --identity: given "a:b"/],
    [['--x509', 'a', '--identity', 'b'], /'--identity <name>' cannot be used with option '--x509/],
  ];
  for (const [args, message] of cases) {
    const { code, stderr } = await run(t, ['tls-creds', dir, ...args]);
    t.equal(code, 2);
    t.match(stderr, message);
    t.notOk(fs.existsSync(dir));
  }
});
