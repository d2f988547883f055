/**
 * QEMU's side of TLS for a migration that we ask it for. Its credentials are an object of its own, made where QEMU is started
 * (`-object tls-creds-x509,id=...`) or by `object-add`: keys are nothing that we hand to it.
 */
import { MultifdError } from '../errors.js';
import { checkKeys, wrong } from '../option-checks.js';
import { textOf } from './json.js';
import type { Qmp } from './qmp.js';

export interface QemuTlsOptions {
  /** The id of its tls-creds object: of a client to park, of a server to resume. QEMU: tls-creds. */
  creds: string;
  /** The name that our certificate must have, where it is the client; needed with certificates over a unix socket. QEMU: tls-hostname. */
  hostname?: string;
}

/**
 * @param ours option tls, as it was given
 * @throws MultifdError ERR_MULTIFD_OPTION
 */
export function checkQemuTls(qemuTls: QemuTlsOptions | undefined, ours: unknown): QemuTlsOptions | undefined {
  if (qemuTls === undefined) return undefined;
  checkKeys(qemuTls, ['creds', 'hostname'], 'qemuTls.');
  for (const [name, value] of Object.entries(qemuTls)) {
    if (typeof value !== 'string' || value === '') throw wrong(`qemuTls.${name}`, value, 'a text');
  }
  if (ours === undefined)
    throw wrong('qemuTls', qemuTls, 'only with option tls: both sides speak it, or none');
  return qemuTls;
}

/**
 * @param ours is there option tls?
 * @returns parameters of a migration; without TLS those that keep QEMU from it
 * @throws MultifdError ERR_MULTIFD_OPTION that says which objects there are
 */
export async function qemuTlsParameters(
  qmp: Qmp,
  qemuTls: QemuTlsOptions | undefined,
  ours: boolean,
): Promise<Record<string, string>> {
  if (!ours) return { 'tls-creds': '' };
  const there = await tlsObjects(qmp);
  const listed = there.length === 0 ? 'it has none' : `it has ${there.join(', ')}`;
  if (qemuTls === undefined) {
    const message = `option qemuTls.creds: given undefined, allowed the id of QEMU's tls-creds object: ${listed}`;
    throw new MultifdError('ERR_MULTIFD_OPTION', message);
  }
  const { creds, hostname } = qemuTls;
  if (!there.includes(creds)) throw wrong('qemuTls.creds', creds, `an object of this QEMU: ${listed}`);
  return { 'tls-creds': creds, ...(hostname !== undefined && { 'tls-hostname': hostname }) };
}

async function tlsObjects(qmp: Qmp): Promise<string[]> {
  const objects = await qmp.execute('qom-list', { path: '/objects' });
  if (!Array.isArray(objects)) return [];
  return (objects as ({ name?: unknown; type?: unknown } | null)[])
    .filter((object) => textOf(object?.type).startsWith('child<tls-creds'))
    .map((object) => textOf(object?.name));
}
