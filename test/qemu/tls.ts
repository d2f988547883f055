/** TLS with a stock QEMU at the other end: its credentials objects, and ours out of the same folder. */
import path from 'node:path';
import type { TlsOptions, TlsVersion } from '../../src/index.js';
import { writePskCredentials, writeX509Credentials } from '../../src/transport/tls/make-credentials.js';
import type { Qemu } from './qemu.js';

export type Kind = 'x509' | 'psk';
export const HOST = 'localhost';

/** Two folders of credentials in `folder`. @returns where those of a kind lie */
export async function makeFolders(folder: string): Promise<Record<Kind, string>> {
  const [x509, psk] = [path.join(folder, 'x509'), path.join(folder, 'psk')];
  await writeX509Credentials(x509, [HOST]);
  await writePskCredentials(psk);
  return { x509: path.join(x509, HOST), psk };
}

export interface QemuTls {
  kind: Kind;
  dir: string;
  endpoint: 'client' | 'server';
  /** What QEMU speaks alone. */
  version?: TlsVersion | undefined;
  /** QEMU: tls-hostname. */
  hostname?: string;
  /** Other properties of the object. */
  more?: Record<string, unknown>;
}

let objects = 0;

/** Gives QEMU credentials for its next migration. */
export async function setTls(qemu: Qemu, options: QemuTls): Promise<void> {
  const { kind, dir, endpoint, version, hostname = '', more } = options;
  const id = `tls${objects++}`;
  const priority =
    version === undefined
      ? {}
      : {
          priority: `NORMAL:-VERS-ALL:+VERS-${version.replace('v', '')}${kind === 'psk' ? ':+ECDHE-PSK:+DHE-PSK:+PSK' : ''}`,
        };
  await qemu.execute('object-add', {
    'qom-type': `tls-creds-${kind}`,
    id,
    dir,
    endpoint,
    ...priority,
    ...more,
  });
  await qemu.setParameters({ 'tls-creds': id, 'tls-hostname': hostname });
}

/** Ours, for either role. */
export function ourTls(kind: Kind, dir: string, role: 'client' | 'server'): TlsOptions {
  return { dir, ...(kind === 'x509' && role === 'client' ? { hostname: HOST } : {}) };
}
