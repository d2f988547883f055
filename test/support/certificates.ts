/**
 * Throw-away credentials: an authority with a server and clients, each fault once, and keys.psk. Made once for a file of
 * tests; writeQemuFolder() and writeLibvirtFolder() lay them out.
 *
 *     authority ── server      localhost, host1.example, 127.0.0.1, ::1
 *               ├─ client      C=GB,O=Acme,CN=source1
 *               ├─ revoked     a client of the list (CRL)
 *               ├─ expired, early (not yet valid), other (named elsewhere.example): servers; likewise clients
 *     stranger  ── strangeServer, strangeClient
 */
import { mkdirSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import {
  writeCertificate,
  writeRevocationList,
  type CertificateOptions,
  type Issued,
} from '../../src/transport/tls/write-certificate.js';

const DAY_MS = 86_400_000;
export const SERVER_NAMES = ['localhost', 'host1.example', '127.0.0.1', '::1'];
export const CLIENT_NAME = 'C=GB,O=Acme,CN=source1';
export const PSK = 'c0ffee00112233445566778899aabbccddeeff0102030405060708090a0b0c0d';

export type Certificates = ReturnType<typeof makeCertificates>;

export function makeCertificates() {
  const days = (count: number): Date => new Date(Date.now() + count * DAY_MS);
  const valid = { notBefore: days(-1), notAfter: days(30) };
  const past = { notBefore: days(-30), notAfter: days(-2) };
  const future = { notBefore: days(2), notAfter: days(30) };
  const authority = writeCertificate({ subject: [['CN', 'test authority']], kind: 'ca', ...valid });
  const stranger = writeCertificate({ subject: [['CN', 'another authority']], kind: 'ca', ...valid });
  const server = (more: Partial<CertificateOptions> = {}): Issued =>
    writeCertificate({
      subject: [['CN', 'host1.example']],
      kind: 'server',
      issuer: authority,
      names: SERVER_NAMES,
      ...valid,
      ...more,
    });
  const client = (name: string, more: Partial<CertificateOptions> = {}): Issued =>
    writeCertificate({
      subject: [
        ['C', 'GB'],
        ['O', 'Acme'],
        ['CN', name],
      ],
      kind: 'client',
      issuer: authority,
      ...valid,
      ...more,
    });
  const revoked = client('revoked1');
  const revokedServer = server();
  return {
    authority,
    stranger,
    server: server(),
    client: client('source1'),
    revoked,
    revokedServer,
    crl: writeRevocationList(authority, [revoked, revokedServer], days(-1), days(30)),
    oldCrl: writeRevocationList(authority, [], days(-9), days(-2)),
    strangeCrl: writeRevocationList(stranger, [], days(-1), days(30)),
    expiredServer: server(past),
    expiredClient: client('old1', past),
    earlyServer: server(future),
    earlyClient: client('new1', future),
    otherServer: server({ names: ['elsewhere.example', '192.0.2.7'] }),
    strangeServer: server({ issuer: stranger }),
    strangeClient: client('source1', { issuer: stranger }),
  };
}

/** QEMU's names in one folder; only what is given. */
export function writeQemuFolder(
  dir: string,
  files: { ca?: Issued; crl?: string; server?: Issued; client?: Issued; psk?: string },
): string {
  return writeFolder(dir, {
    'ca-cert.pem': files.ca?.certificate,
    'ca-crl.pem': files.crl,
    'server-cert.pem': files.server?.certificate,
    'server-key.pem': files.server?.key,
    'client-cert.pem': files.client?.certificate,
    'client-key.pem': files.client?.key,
    'keys.psk': files.psk,
  });
}

/** libvirt's own, as in /etc/pki. @returns the folder that is named to a program: pki/libvirt */
export function writeLibvirtFolder(
  dir: string,
  files: { ca?: Issued; crl?: string; server?: Issued; client?: Issued },
): string {
  writeFolder(dir, {
    'CA/cacert.pem': files.ca?.certificate,
    'CA/cacrl.pem': files.crl,
    'libvirt/servercert.pem': files.server?.certificate,
    'libvirt/private/serverkey.pem': files.server?.key,
    'libvirt/clientcert.pem': files.client?.certificate,
    'libvirt/private/clientkey.pem': files.client?.key,
  });
  return path.join(dir, 'libvirt');
}

function writeFolder(dir: string, files: Record<string, string | undefined>): string {
  mkdirSync(dir, { recursive: true, mode: 0o700 });
  for (const [name, text] of Object.entries(files)) {
    if (text === undefined) continue;
    const file = path.join(dir, name);
    mkdirSync(path.dirname(file), { recursive: true, mode: 0o700 });
    writeFileSync(file, text, { mode: 0o600 });
  }
  return dir;
}
