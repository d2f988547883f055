/** Credentials for the commands, as one file of tests needs them, and what of them may be told nowhere. */
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import t, { type Test } from 'tap';
import { writePskCredentials, writeX509Credentials } from '../../src/transport/tls/make-credentials.js';

export const root = fs.mkdtempSync(path.join(os.tmpdir(), 'mft-'));
t.teardown(() => fs.rmSync(root, { recursive: true, force: true }));
export const [psk, other, x509] = ['psk', 'other', 'x509'].map((name) => path.join(root, name));
await writePskCredentials(psk);
await writePskCredentials(other, { identity: 'other' });
export const [host] = await writeX509Credentials(x509, ['host1,127.0.0.1']);

/** Every run of digits of a key that could be told by mistake. */
const secrets = [psk, other].map(
  (dir) => /:(\S+)/.exec(fs.readFileSync(path.join(dir, 'keys.psk'), 'utf8'))![1],
);
secrets.push(
  ...fs
    .readFileSync(path.join(host, 'server-key.pem'), 'utf8')
    .split('\n')
    .filter((line) => /^[^-]/.test(line)),
);

export function tellsNoKey(t: Test, ...texts: string[]): void {
  for (const secret of secrets) {
    for (const text of texts) t.notOk(text.includes(secret), 'no key is told');
  }
}
