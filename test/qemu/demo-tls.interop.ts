/** `multifd demo --qemu --tls`: both QEMUs speak TLS with this package. */
import t from 'tap';
import { run } from '../cli/cli.js';

for (const kind of ['x509', 'psk']) {
  t.test(
    `demo --qemu --tls ${kind}: RAM equal, the guest runs on, ciphers told`,
    { timeout: 120_000 },
    async (t) => {
      const { code, stderr, result } = await run(t, ['demo', '--qemu', '--json', '--tls', kind]);
      t.equal(code, 0, stderr);
      const session = { credentials: `throw-away ${kind}`, tlsVersion: /^TLSv1\.[23]$/, cipher: /./ };
      t.match(result, { ok: true, equal: true, running: true, tls: { park: session, resume: session } });
    },
  );
}
