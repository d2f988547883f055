/**
 * QEMU's side of TLS for a migration that we ask it for. Its credentials are an object of its own, made where QEMU is started
 * (`-object tls-creds-x509,id=...`) or by `object-add`: keys are nothing that we hand to it.
 *
 *     here          QEMU's tls-creds     through
 *     option tls    any                  any address               those of option qemuTls, for the run
 *     none          none                 any address               plain text
 *     none          set                  a socket of our own       plain text, they are off for the run, which is told
 *     none          set                  any other address         ERR_MULTIFD_TLS: whoever set them wants no plain text
 *
 * Its tls-authz, and its tls-hostname unless that is given, hold as its operator has them.
 */
import { MultifdError } from '../errors.js';
import { checkKeys, wrong } from '../option-checks.js';
import { printable } from '../printable.js';
import { formatAddress, type Address } from '../transport/address.js';
import { textOf } from './json.js';
import type { Qmp } from './qmp.js';

export interface QemuTlsOptions {
  /** The id of its tls-creds object: of a client to park, of a server to resume. QEMU: tls-creds. */
  creds: string;
  /**
   * The name that our certificate must have, where it is the client; needed with certificates over a unix socket. Default: as
   * the VM has it. QEMU: tls-hostname.
   */
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

export interface TlsAsked {
  qemuTls: QemuTlsOptions | undefined;
  /** Is there option tls? */
  ours: boolean;
  /** QEMU's role. */
  endpoint: 'client' | 'server';
  /** Its tls-creds as they are, empty if it has none. */
  present: string;
  /** Where the migration goes; undefined: through a socket in a folder of our own, which nobody else comes near. */
  address: Address | undefined;
}

/**
 * @returns parameters of a migration; without TLS those that keep QEMU from it
 * @throws MultifdError ERR_MULTIFD_OPTION that says which objects there are; ERR_MULTIFD_TLS where QEMU alone would speak it
 */
export async function qemuTlsParameters(qmp: Qmp, asked: TlsAsked): Promise<Record<string, string>> {
  const { qemuTls, ours, endpoint, present, address } = asked;
  if (!ours) {
    if (address !== undefined) requireNoCreds(qmp, present, address);
    return { 'tls-creds': '' };
  }
  const there = await tlsObjects(qmp, endpoint);
  const listed = there.length === 0 ? 'it has none' : `it has ${there.join(', ')}`;
  const allowed = `a tls-creds object of QEMU's with endpoint=${endpoint}: ${listed}`;
  if (qemuTls === undefined) {
    const message = `option qemuTls.creds: not given, allowed the id of ${allowed}`;
    throw new MultifdError('ERR_MULTIFD_OPTION', message);
  }
  const { creds, hostname } = qemuTls;
  if (!there.includes(creds)) throw wrong('qemuTls.creds', creds, allowed);
  return { 'tls-creds': creds, ...(hostname !== undefined && { 'tls-hostname': hostname }) };
}

/** @throws MultifdError ERR_MULTIFD_TLS */
export function requireNoCreds(qmp: Qmp, present: string, address: Address): void {
  if (present === '') return;
  throw new MultifdError(
    'ERR_MULTIFD_TLS',
    `${qmp.address}: QEMU has tls-creds ${JSON.stringify(printable(present))}, and there are no credentials here: the guest's RAM ` +
      `would go through ${formatAddress(address)} in plain text. Give options tls and qemuTls (--tls-creds and ` +
      '--qemu-tls-creds), or, if it may be read and changed on the way, say in QEMU: migrate_set_parameter tls-creds ""',
  );
}

/** Ids of those that fit the role, sorted. One that does not say what it is for is QEMU's to judge. */
async function tlsObjects(qmp: Qmp, role: TlsAsked['endpoint']): Promise<string[]> {
  const objects = await qmp.execute('qom-list', { path: '/objects' });
  if (!Array.isArray(objects)) return [];
  const fitting: string[] = [];
  for (const object of objects as ({ name?: unknown; type?: unknown } | null)[]) {
    if (!textOf(object?.type).startsWith('child<tls-creds')) continue;
    const name = textOf(object?.name);
    const endpoint = await qmp
      .execute('qom-get', { path: `/objects/${name}`, property: 'endpoint' })
      .catch((error: unknown) => {
        if (!qmp.isOpen) throw error;
      });
    if (endpoint === role || typeof endpoint !== 'string') fitting.push(name);
  }
  return fitting.sort();
}
