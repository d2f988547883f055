/**
 * Certificates, keys and lists of revoked ones, looked at before a migration begins: is there what should be there, does the
 * key belong to the certificate, and is it one that the other side will take?
 *
 * Called by check-options.ts on the calling thread, for what comes from a folder and from options alike. What was read of
 * a key is never part of a message.
 */
import crypto from 'node:crypto';
import tls from 'node:tls';
import { describeThrown, type MultifdError } from '../../errors.js';
import type { TlsRole } from './options.js';

/** extendedKeyUsage; without the extension a certificate is for everything. */
const PURPOSES = {
  server: ['1.3.6.1.5.5.7.3.1', 'serverAuth'],
  client: ['1.3.6.1.5.5.7.3.2', 'clientAuth'],
} as const;
const CERTIFICATE = /-----BEGIN CERTIFICATE-----[^]*?-----END CERTIFICATE-----/g;

/** What was given, each in PEM. */
export interface Pem {
  ca: string | undefined;
  cert: string | undefined;
  key: string | undefined;
  crl: string | undefined;
}

/**
 * @param names where each stands, for messages: a file's path, or an option
 * @param refuse makes the error: of an option, or of a file
 */
export function checkX509(
  pem: Pem,
  role: TlsRole,
  names: Record<keyof Pem, string>,
  refuse: (text: string) => MultifdError,
): void {
  if (pem.ca !== undefined) certificatesIn(pem.ca, names.ca, refuse);
  if (pem.cert !== undefined && pem.key !== undefined) {
    const [own] = certificatesIn(pem.cert, names.cert, refuse);
    const key = privateKeyOf(pem.key, names.key, refuse);
    if (!own.checkPrivateKey(key)) {
      throw refuse(`${names.key} is not the key of the certificate in ${names.cert}`);
    }
    checkOwn(own, role, names.cert, refuse);
  }
  if (pem.crl === undefined) return;
  try {
    tls.createSecureContext({ crl: pem.crl });
  } catch {
    throw refuse(`${names.crl} has no list of revoked certificates (X509 CRL) in PEM`);
  }
}

function certificatesIn(
  text: string,
  where: string,
  refuse: (text: string) => MultifdError,
): crypto.X509Certificate[] {
  const blocks = text.match(CERTIFICATE) ?? [];
  if (blocks.length === 0) throw refuse(`${where} has no certificate in PEM`);
  return blocks.map((block) => {
    try {
      return new crypto.X509Certificate(block);
    } catch (error) {
      throw refuse(`${where} has a certificate that cannot be read: ${describeThrown(error)}`);
    }
  });
}

function privateKeyOf(text: string, where: string, refuse: (text: string) => MultifdError): crypto.KeyObject {
  if (/-----BEGIN ENCRYPTED PRIVATE KEY-----|^Proc-Type: 4,ENCRYPTED/m.test(text)) {
    throw refuse(`${where} is encrypted; a key without a passphrase is needed, readable by its owner alone`);
  }
  try {
    return crypto.createPrivateKey(text);
  } catch {
    // Without the cause: it says nothing of use, and comes from what was read of a key.
    throw refuse(`${where} has no private key in PEM that can be read`);
  }
}

/** What the other side would refuse, and QEMU refuses of its own. */
function checkOwn(
  own: crypto.X509Certificate,
  role: TlsRole,
  where: string,
  refuse: (text: string) => MultifdError,
): void {
  const now = Date.now();
  if (now > Date.parse(own.validTo)) throw refuse(`${where}: the certificate has expired, on ${own.validTo}`);
  if (now < Date.parse(own.validFrom)) {
    throw refuse(
      `${where}: the certificate is not valid before ${own.validFrom}; is this host's clock right?`,
    );
  }
  const [purpose, name] = PURPOSES[role];
  const uses = own.keyUsage as string[] | undefined;
  if (uses !== undefined && !uses.includes(purpose)) {
    throw refuse(`${where}: the certificate is not for a ${role} (extendedKeyUsage without ${name})`);
  }
}
