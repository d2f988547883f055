/**
 * Certificates, keys and revocation lists (RFC 5280) as QEMU wants them: v3, with basicConstraints, keyUsage and
 * extendedKeyUsage, each of which it checks when it loads its own. Keys are EC P-256: TLS 1.2 and 1.3 of all QEMUs take
 * them, and a new one costs no time.
 */
import crypto, { type KeyObject } from 'node:crypto';
import net from 'node:net';
import { contextTag, element, integerOf, oid, sequence, Tag, time } from './der.js';

const ECDSA_SHA256 = '1.2.840.10045.4.3.2';
const EXTENSIONS = {
  subjectKeyIdentifier: '2.5.29.14',
  keyUsage: '2.5.29.15',
  subjectAltName: '2.5.29.17',
  basicConstraints: '2.5.29.19',
  crlNumber: '2.5.29.20',
  authorityKeyIdentifier: '2.5.29.35',
  extendedKeyUsage: '2.5.29.37',
};
const PURPOSES = { server: '1.3.6.1.5.5.7.3.1', client: '1.3.6.1.5.5.7.3.2' };
const ATTRIBUTES = { C: '2.5.4.6', O: '2.5.4.10', OU: '2.5.4.11', CN: '2.5.4.3' };
/**
 * keyUsage, with the number of unused bits in front: keyCertSign and cRLSign; digitalSignature and keyEncipherment, of
 * which an EC key can only the first, but QEMU loads no certificate without the other.
 */
const USAGE_CA = [1, 0x06];
const USAGE_END = [5, 0xa0];
const TRUE = element(Tag.BOOLEAN, Buffer.from([0xff]));
/** In the GeneralName of a subjectAltName. */
const DNS_NAME = 2;
const IP_ADDRESS = 7;

/** In the order in which they stand in the certificate. */
export type Name = [attribute: keyof typeof ATTRIBUTES, value: string][];

export interface CertificateOptions {
  subject: Name;
  kind: 'ca' | 'server' | 'client';
  /** Who signs it; without one it signs itself. */
  issuer?: Issued;
  /** Host names and IP addresses. */
  names?: string[];
  notBefore: Date;
  notAfter: Date;
}

export interface Issued {
  /** PEM. */
  certificate: string;
  /** PEM, PKCS #8. */
  key: string;
  serial: Buffer;
  subject: Name;
  privateKey: KeyObject;
  publicKey: KeyObject;
}

export function writeCertificate(options: CertificateOptions): Issued {
  const { subject, kind, issuer, names = [], notBefore, notAfter } = options;
  const { privateKey, publicKey } = crypto.generateKeyPairSync('ec', { namedCurve: 'P-256' });
  const serial = crypto.randomBytes(16);
  // Not negative, and as long as it is.
  serial[0] = (serial[0] & 0x7f) | 0x40;
  const extensions = [
    extension(EXTENSIONS.basicConstraints, kind === 'ca' ? sequence(TRUE) : sequence(), true),
    extension(
      EXTENSIONS.keyUsage,
      element(Tag.BIT_STRING, Buffer.from(kind === 'ca' ? USAGE_CA : USAGE_END)),
      true,
    ),
    extension(EXTENSIONS.subjectKeyIdentifier, element(Tag.OCTET_STRING, keyIdentifier(publicKey))),
    authorityKey(issuer?.publicKey ?? publicKey),
  ];
  if (kind !== 'ca') extensions.push(extension(EXTENSIONS.extendedKeyUsage, sequence(oid(PURPOSES[kind]))));
  if (names.length > 0) {
    extensions.push(extension(EXTENSIONS.subjectAltName, sequence(...names.map(generalName))));
  }
  const toSign = sequence(
    element(contextTag(0, true), integerOf(Buffer.from([2]))),
    integerOf(serial),
    sequence(oid(ECDSA_SHA256)),
    encodeName(issuer?.subject ?? subject),
    sequence(time(notBefore), time(notAfter)),
    encodeName(subject),
    publicKey.export({ type: 'spki', format: 'der' }),
    element(contextTag(3, true), sequence(...extensions)),
  );
  return {
    certificate: pem('CERTIFICATE', signed(toSign, issuer?.privateKey ?? privateKey)),
    key: privateKey.export({ type: 'pkcs8', format: 'pem' }).toString(),
    serial,
    subject,
    privateKey,
    publicKey,
  };
}

/** @returns PEM of a list (CRL) that takes back some of what the issuer has signed */
export function writeRevocationList(
  issuer: Issued,
  revoked: Issued[],
  thisUpdate: Date,
  nextUpdate: Date,
): string {
  const entries = revoked.map(({ serial }) => sequence(integerOf(serial), time(thisUpdate)));
  const toSign = sequence(
    integerOf(Buffer.from([1])),
    sequence(oid(ECDSA_SHA256)),
    encodeName(issuer.subject),
    time(thisUpdate),
    time(nextUpdate),
    ...(entries.length === 0 ? [] : [sequence(...entries)]),
    element(
      contextTag(0, true),
      sequence(authorityKey(issuer.publicKey), extension(EXTENSIONS.crlNumber, integerOf(Buffer.from([1])))),
    ),
  );
  return pem('X509 CRL', signed(toSign, issuer.privateKey));
}

function extension(id: string, value: Buffer, critical = false): Buffer {
  return sequence(oid(id), ...(critical ? [TRUE] : []), element(Tag.OCTET_STRING, value));
}

function authorityKey(key: KeyObject): Buffer {
  const value = sequence(element(contextTag(0, false), keyIdentifier(key)));
  return extension(EXTENSIONS.authorityKeyIdentifier, value);
}

/** Any value that is the key's own does; this one is RFC 7093's first. */
function keyIdentifier(key: KeyObject): Buffer {
  const spki = key.export({ type: 'spki', format: 'der' });
  return crypto.createHash('sha256').update(spki.subarray(-65)).digest().subarray(0, 20);
}

function encodeName(name: Name): Buffer {
  const rdns = name.map(([attribute, value]) => {
    // Of a country the standard wants this type.
    const tag = attribute === 'C' ? Tag.PRINTABLE_STRING : Tag.UTF8_STRING;
    return element(Tag.SET, sequence(oid(ATTRIBUTES[attribute]), element(tag, Buffer.from(value))));
  });
  return sequence(...rdns);
}

function generalName(name: string): Buffer {
  const family = net.isIP(name);
  if (family === 0) return element(contextTag(DNS_NAME, false), Buffer.from(name, 'ascii'));
  const address = family === 4 ? Buffer.from(name.split('.').map(Number)) : ipv6Bytes(name);
  return element(contextTag(IP_ADDRESS, false), address);
}

function ipv6Bytes(address: string): Buffer {
  // The URL parser knows each form of it, and gives hex groups only.
  const [head, tail] = new URL(`http://[${address}]`).hostname.slice(1, -1).split('::');
  const front = head === '' ? [] : head.split(':');
  const back = tail === undefined || tail === '' ? [] : tail.split(':');
  const groups = [...front, ...Array<string>(8 - front.length - back.length).fill('0'), ...back];
  return Buffer.from(groups.map((group) => group.padStart(4, '0')).join(''), 'hex');
}

function signed(toSign: Buffer, key: KeyObject): Buffer {
  const signature = crypto.sign('sha256', toSign, key);
  return sequence(toSign, sequence(oid(ECDSA_SHA256)), element(Tag.BIT_STRING, Buffer.from([0]), signature));
}

function pem(label: string, der: Buffer): string {
  const lines = der.toString('base64').match(/.{1,64}/g) ?? [];
  return `-----BEGIN ${label}-----\n${lines.join('\n')}\n-----END ${label}-----\n`;
}
