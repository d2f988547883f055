/**
 * The other side of a handshake that went well, as far as it said who it is; and whether it may come (QEMU: tls-authz).
 * It crosses to the calling thread, where a function of the user's is asked.
 */
import type { X509Certificate } from 'node:crypto';
import { distinguishedName } from './distinguished-name.js';
import type { TlsCredentials } from './credentials.js';
import type { TlsPeer } from './options.js';

export function describeCertificate(certificate: X509Certificate): TlsPeer {
  return {
    distinguishedName: distinguishedName(certificate.raw),
    names: namesOf(certificate),
    fingerprint256: certificate.fingerprint256,
    identity: undefined,
  };
}

export function pskPeer(identity: string | undefined): TlsPeer {
  return { distinguishedName: '', names: [], fingerprint256: '', identity };
}

/** By the pattern alone; a function is asked elsewhere. */
export function matchesPattern(peer: TlsPeer, { authz }: TlsCredentials): boolean {
  if (authz === undefined) return true;
  return new RegExp(authz.source, authz.flags).test(peer.identity ?? peer.distinguishedName);
}

function namesOf({ subjectAltName }: X509Certificate): string[] {
  if (subjectAltName === undefined) return [];
  // A name with a comma comes in quotes, and is none of a host.
  const entries = subjectAltName.split(', ');
  return entries.flatMap((entry) => /^(?:DNS|IP Address):(.+)$/.exec(entry)?.slice(1) ?? []);
}
