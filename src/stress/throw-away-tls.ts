/** Credentials of both kinds for the time of a stress, made by this package itself: no other program is needed. */
import path from 'node:path';
import type { TlsFolderOptions } from '../transport/tls/options.js';
import type { SideName } from './engine-plan.js';

const HOST = '127.0.0.1';

export type StressTls = Record<SideName, TlsFolderOptions>;

export async function makeStressTls(folder: string): Promise<Record<'psk' | 'x509', StressTls>> {
  const { writePskCredentials, writeX509Credentials } = await import('../transport/tls/make-credentials.js');
  const psk = path.join(folder, 'psk');
  await writePskCredentials(psk);
  const [dir] = await writeX509Credentials(path.join(folder, 'x509'), [HOST], { days: 2 });
  return {
    psk: { source: { dir: psk }, destination: { dir: psk } },
    // Of a unix socket no name is known.
    x509: { source: { dir, hostname: HOST }, destination: { dir } },
  };
}
