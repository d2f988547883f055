/**
 * Folders with TLS credentials, and names in certificates. An input is the files of a folder, each behind a line with its
 * name: `== ca-cert.pem`.
 */
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { checkTlsOptions } from '../../../src/transport/tls/check-options.js';
import { distinguishedName } from '../../../src/transport/tls/distinguished-name.js';
import { makeCertificates } from '../../support/certificates.js';
import { bytes, tokens, type Fuzzer, type Piece, type Seed } from '../contract.js';

const FILES = [
  'ca-cert.pem',
  'ca-crl.pem',
  'server-cert.pem',
  'server-key.pem',
  'client-cert.pem',
  'client-key.pem',
  'keys.psk',
];
const PSK = 'qemu:9f86d081884c7d659a2feaa0c55ad015\n\nother:name:00112233\r\n';

function file(name: string, text: string): Piece[] {
  return [bytes(Buffer.from(`== ${name}\n`)), ...lines(text)];
}

function lines(text: string): Piece[] {
  return text.split(/(?<=\n)/).map((line) => bytes(Buffer.from(line)));
}

/** DER in its elements, as far as names are. */
function derSeed(pem: string): Seed {
  const der = Buffer.from(pem.replaceAll(/-----[^\n]*\n|\n/g, ''), 'base64');
  const seed: Seed = [bytes(Buffer.from('== der\n'))];
  for (let at = 0; at < der.length; at += 2)
    seed.push({ bytes: der.subarray(at, at + 2), kind: at < 400 ? 'number' : 'bytes' });
  return seed;
}

const fuzzer: Fuzzer = {
  name: 'tls-creds',
  what: 'folders with credentials (certificates, keys, lists of revoked ones, keys.psk), names in certificates',
  runs: 700,
  most: { bytes: 2 ** 20, perByte: 60 },
  maxBytes: 2 ** 15,
  words: [
    ...FILES.map((name) => Buffer.from(`== ${name}\n`)),
    Buffer.from(':'),
    Buffer.from('-----BEGIN CERTIFICATE-----\n'),
    Buffer.from('-----BEGIN ENCRYPTED PRIVATE KEY-----\n'),
    Buffer.from('\0'),
  ],
  seeds() {
    const { authority, server, client, crl } = makeCertificates();
    return [
      [
        ...file('ca-cert.pem', authority.certificate),
        ...file('ca-crl.pem', crl),
        ...file('server-cert.pem', server.certificate),
        ...file('server-key.pem', server.key),
        ...file('client-cert.pem', client.certificate),
        ...file('client-key.pem', client.key),
      ],
      [bytes(Buffer.from('== keys.psk\n')), ...tokens(PSK)],
      derSeed(server.certificate),
    ];
  },
  open() {
    const root = mkdtempSync(path.join(os.tmpdir(), 'multifd-fuzz-'));
    const dir = path.join(root, 'tls');
    mkdirSync(dir);
    return {
      run(input) {
        const given = filesOf(input);
        const der = given.get('der');
        if (der !== undefined) return void distinguishedName(der);
        for (const name of FILES) {
          const content = given.get(name);
          if (content === undefined) rmSync(path.join(dir, name), { force: true });
          else writeFileSync(path.join(dir, name), content);
        }
        for (const role of ['server', 'client'] as const) {
          const options = {
            dir,
            ...(role === 'client' && !given.has('keys.psk') && { hostname: 'host1.example' }),
          };
          const { credentials } = checkTlsOptions(options, role, 'tls', { host: '127.0.0.1', port: 1 });
          for (const identity of credentials.identities()) credentials.psk(identity);
        }
      },
      close: () => rmSync(root, { recursive: true, force: true }),
    };
  },
};
export default fuzzer;

function filesOf(input: Buffer): Map<string, Buffer> {
  const files = new Map<string, Buffer>();
  for (let at = input.indexOf('== '); at >= 0;) {
    const line = input.indexOf('\n', at);
    if (line < 0) break;
    const next = input.indexOf('== ', line + 1);
    files.set(
      input.toString('latin1', at + 3, line),
      input.subarray(line + 1, next < 0 ? input.length : next),
    );
    at = next;
  }
  return files;
}
