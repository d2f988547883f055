/** `demo --tls`: through TLS in truth, with credentials that are made for the run, told by nobody, and gone with it. */
import fs from 'node:fs';
import path from 'node:path';
import t from 'tap';
import { Run, run, tempRoot } from './cli.js';

const SMALL = ['demo', '--size', '1M', '--json'];

for (const [kind, files] of [
  ['psk', ['keys.psk']],
  ['x509', ['ca-cert.pem', 'ca-key.pem', '127.0.0.1']],
] as const) {
  t.test(
    `--tls ${kind}: the cipher is told, no key is, and the folder goes`,
    { timeout: 60_000 },
    async (t) => {
      const root = tempRoot(t);
      const slow = ['--max-bandwidth', '8M', '--dirty-rounds', '20', '--verbose'];
      const command = new Run(t, [...SMALL, '--tls', kind, ...slow], { env: root.env });
      await command.line((line) => line.type === 'start');
      const [folder] = root.left();
      const dir = path.join(root.path, folder, 'tls');
      t.same(fs.readdirSync(dir).sort(), [...files].sort());
      t.equal(fs.statSync(dir).mode & 0o777, 0o700);
      const text = fs.readFileSync(path.join(dir, kind === 'psk' ? 'keys.psk' : 'ca-key.pem'), 'utf8');
      const secrets = text.split(/[:\n]/).filter((line) => line.length > 20 && !line.startsWith('-'));
      t.not(secrets.length, 0);
      const { code, stdout, stderr } = await command.ended;
      t.equal(code, 0, stderr);
      t.match(command.result, {
        ok: true,
        tls: { credentials: `throw-away ${kind}`, tlsVersion: 'TLSv1.3', cipher: /^TLS_/ },
      });
      for (const secret of secrets) t.notOk((stdout + stderr).includes(secret), 'no key is told');
      t.same(root.left(), []);
    },
  );
}

t.test('for people: version, cipher and rate', { timeout: 60_000 }, async (t) => {
  const { code, stdout, stderr } = await run(t, ['demo', '--size', '1M', '--tls']);
  t.equal(code, 0, stderr);
  t.match(stdout, /^TLS +TLSv1\.3, TLS_\S+, throw-away x509 credentials$/m);
  t.match(stdout, /^migration +[\d.]+ s, [\d.]+ .B\/s$/m);
});

t.test('without --tls there is none', { timeout: 60_000 }, async (t) => {
  const { result } = await run(t, SMALL);
  t.equal(result?.tls, null);
});

t.test("what cannot be together is wrong usage, in the flags' words", { timeout: 60_000 }, async (t) => {
  const cases: [string[], RegExp][] = [
    [['--tls', 'none'], /'--tls \[kind\]'.*'none'.*x509, psk/],
    [['--tls', '--tls-creds', '/x'], /cannot be used with option '--tls/],
    [['--qemu', '--tls-creds', '/x'], /'--qemu' cannot be used with option '--tls-creds/],
    [['--tls-identity', 'a'], /'--tls-identity' needs option '--tls-creds <folder>'/],
  ];
  for (const [args, message] of cases) {
    const { code, stdout, stderr } = await run(t, ['demo', ...args]);
    t.equal(code, 2, args.join(' '));
    t.equal(stdout, '');
    t.match(stderr, message);
  }
  const { code, stderr } = await run(t, ['demo', '--size', '1M', '--tls-creds', '/no/such/folder']);
  t.equal(code, 1);
  t.match(stderr, /^multifd: ERR_MULTIFD_TLS: .*no such folder \(option --tls-creds\)/);
});
