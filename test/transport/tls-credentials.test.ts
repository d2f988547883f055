/** The `tls` option: what it takes, what it refuses, and that no key gets out of it but where it must. */
import { chmodSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { inspect } from 'node:util';
import t from 'tap';
import type { ErrorCode, MultifdError } from '../../src/errors.js';
import { checkTlsOptions } from '../../src/transport/tls/check-options.js';
import { TlsCredentials } from '../../src/transport/tls/credentials.js';
import type { TlsRole } from '../../src/transport/tls/options.js';
import { matchesPattern, pskPeer } from '../../src/transport/tls/peer.js';
import {
  CLIENT_NAME,
  makeCertificates,
  PSK,
  writeLibvirtFolder,
  writeQemuFolder,
} from '../support/certificates.js';

const certificates = makeCertificates();
const { authority, server, client, crl } = certificates;
const root = mkdtempSync(path.join(os.tmpdir(), 'multifd-tls-'));
t.teardown(() => rmSync(root, { recursive: true, force: true }));
const folder = (name: string): string => path.join(root, name);
const HOST = { host: 'host1.example', port: 4444 };
const X509 = { ca: authority.certificate, cert: client.certificate, key: client.key };

function check(options: unknown, role: TlsRole = 'client', address: object = HOST): TlsCredentials {
  return checkTlsOptions(options, role, 'tls', address as typeof HOST).credentials;
}

function refusal(options: unknown, role: TlsRole = 'client', address: object = HOST): MultifdError {
  try {
    check(options, role, address);
  } catch (error) {
    return error as MultifdError;
  }
  throw new Error('taken');
}

t.test("a folder with QEMU's names serves both roles", async (t) => {
  const dir = writeQemuFolder(folder('qemu'), { ca: authority, crl, server, client });
  const source = check({ dir });
  t.match(source, { kind: 'x509', role: 'client', ca: authority.certificate, cert: client.certificate, crl });
  t.equal(source.privateKey(), client.key);
  t.match(source, { hostname: 'host1.example', verifyPeer: true });
  const destination = check({ dir }, 'server');
  t.match(destination, { kind: 'x509', role: 'server', cert: server.certificate });
  t.equal(destination.privateKey(), server.key);
});

t.test("a server's folder needs no client's files, and a client may have none of its own", async (t) => {
  t.ok(check({ dir: writeQemuFolder(folder('s'), { ca: authority, server }) }, 'server').hasCertificate);
  t.notOk(check({ dir: writeQemuFolder(folder('c'), { ca: authority }) }).hasCertificate);
});

t.test("libvirt's folders are read in each of their layouts", async (t) => {
  const dir = writeLibvirtFolder(folder('pki'), { ca: authority, crl, server, client });
  t.match(check({ dir }, 'server'), { ca: authority.certificate, cert: server.certificate, crl });
  t.match(check({ dir }), { cert: client.certificate });
  const flat = folder('flat');
  mkdirSync(flat);
  writeFileSync(path.join(flat, 'cacert.pem'), authority.certificate);
  writeFileSync(path.join(flat, 'clientcert.pem'), client.certificate);
  writeFileSync(path.join(flat, 'clientkey.pem'), client.key);
  t.equal(check({ dir: flat }).privateKey(), client.key);
});

t.test(
  'a folder with keys.psk is one of PSK, in which a client takes one key and a server all',
  async (t) => {
    const dir = writeQemuFolder(folder('psk'), { psk: `\nqemu:${PSK}\r\njoe:00ff00ff\nqemu:11111111\n` });
    const source = check({ dir });
    t.match(source, { kind: 'psk', identity: 'qemu', hostname: undefined });
    t.strictSame(source.psk('qemu'), Uint8Array.from(Buffer.from(PSK, 'hex')), 'the first line of two');
    t.equal(check({ dir, identity: 'joe' }).identity, 'joe');
    t.strictSame(check({ dir }, 'server').identities(), ['qemu', 'joe']);
    t.match(refusal({ dir, identity: 'ann' }), {
      code: 'ERR_MULTIFD_TLS',
      message: /keys\.psk has no key of the identity "ann", but of "qemu", "joe"; option tls\.identity/,
    });
  },
);

t.test('a PSK is taken in bytes, in hex, by identity and as the text of a keys.psk', async (t) => {
  const bytes = Buffer.from(PSK, 'hex');
  const wanted = Uint8Array.from(bytes);
  t.strictSame(check({ psk: bytes }).psk('qemu'), wanted);
  t.strictSame(check({ psk: PSK, identity: 'joe' }).psk('joe'), wanted);
  t.strictSame(check({ psk: { joe: PSK, ann: bytes } }, 'server').identities(), ['joe', 'ann']);
  t.strictSame(check({ psk: new Map([['joe', bytes]]), identity: 'joe' }).psk('joe'), wanted);
  t.strictSame(check({ psk: `joe:${PSK}\n` }, 'server').psk('joe'), wanted);
  const mine = Buffer.from(bytes);
  const credentials = check({ psk: mine });
  mine.fill(0);
  t.strictSame(credentials.psk('qemu'), wanted, 'a copy, so the caller may clear his');
});

t.test('the sizes of a PSK and of an identity are held at their edges', async (t) => {
  t.ok(check({ psk: Buffer.alloc(4) }) && check({ psk: Buffer.alloc(256), identity: 'i'.repeat(256) }));
  for (const psk of [
    Buffer.alloc(3),
    Buffer.alloc(257),
    'a',
    'ababab',
    'abababa',
    'ab'.repeat(257),
    'xyz0',
    {},
    [],
    5,
    null,
  ]) {
    t.match(refusal({ psk }), { code: 'ERR_MULTIFD_OPTION', message: /^option tls\.psk: given / });
  }
  for (const identity of ['', 'i'.repeat(257), 'a:b', 'a\nb', 5]) {
    t.match(refusal({ psk: PSK, identity }), { code: 'ERR_MULTIFD_OPTION', message: /tls\.identity/ });
  }
});

t.test('each wrong option is refused with its name and what is allowed', async (t) => {
  const cases: [unknown, TlsRole, RegExp][] = [
    [undefined, 'client', /^option tls: given undefined, allowed an object: \{ dir \}/],
    [PSK, 'client', /^option tls: given a string of 64 characters/],
    [{}, 'client', /^option tls: given no credentials, allowed one of/],
    [{ dir: '/x', psk: PSK }, 'client', /^option tls: given dir, psk, allowed one of/],
    [{ ...X509, psk: PSK }, 'client', /^option tls: given ca, cert, key, psk/],
    [{ dri: '/x' }, 'client', /tls\.dri: given "an unknown option".*did you mean dir/],
    [{ dir: 5 }, 'client', /tls\.dir: given a number/],
    [{ ...X509, identity: 'x' }, 'client', /tls\.identity: given one, allowed none/],
    [{ cert: X509.cert, key: X509.key }, 'client', /tls\.ca: given none/],
    [{ ca: X509.ca, cert: X509.cert }, 'client', /tls\.key: given none, allowed one, since tls\.cert/],
    [{ ca: X509.ca, key: X509.key }, 'client', /tls\.cert: given none/],
    [{ ca: X509.ca }, 'server', /tls\.cert: given none.*a server has them/],
    [
      { ...X509, ca: '/etc/pki/ca.pem' },
      'client',
      /tls\.ca: given a string of 15 characters without "-----BEGIN"/,
    ],
    [{ ...X509, ca: client.key }, 'client', /option tls\.ca has no certificate in PEM/],
    [
      { ...X509, key: server.key },
      'client',
      /option tls\.key is not the key of the certificate in option tls\.cert/,
    ],
    [{ ...X509, key: client.certificate }, 'client', /option tls\.key has no private key/],
    [{ ...X509, crl: client.certificate }, 'client', /option tls\.crl has no list of revoked/],
    [{ ...X509, cert: server.certificate, key: server.key }, 'client', /not for a client \(extendedKeyUsage/],
    [{ ...X509, verifyPeer: 'no' }, 'client', /tls\.verifyPeer: given a string/],
    [
      { ...X509, minVersion: 'TLSv1.1' },
      'client',
      /tls\.minVersion: given "TLSv1\.1", allowed one of TLSv1\.2/,
    ],
    [{ ...X509, minVersion: 'TLSv1.3', maxVersion: 'TLSv1.2' }, 'client', /tls\.maxVersion: given TLSv1\.2/],
    [{ ...X509, ciphers: 'NONE-SUCH' }, 'client', /tls\.ciphers: given "NONE-SUCH"/],
    [{ ...X509, ciphers: 1 }, 'client', /tls\.ciphers: given a number/],
    [{ ...X509, authorize: 'x' }, 'client', /tls\.authorize: given one, allowed none: a client/],
    [{ ...X509, hostname: '' }, 'client', /tls\.hostname: given "", allowed a host name/],
    [{ psk: PSK, hostname: 'h' }, 'client', /tls\.hostname: given "h", allowed none with a PSK/],
    [{ psk: PSK, hostname: 'h' }, 'server', /tls\.hostname: given "h", allowed none: it is a server's/],
    [{ psk: PSK, verifyPeer: false }, 'client', /tls\.verifyPeer: given false/],
    [{ psk: PSK, authorize: 5 }, 'server', /tls\.authorize: given a number/],
    [{ psk: PSK, authorize: '' }, 'server', /tls\.authorize: given an empty string/],
  ];
  for (const [options, role, message] of cases) {
    t.match(refusal(options, role), { code: 'ERR_MULTIFD_OPTION' satisfies ErrorCode, message });
  }
  const own = { ca: X509.ca, cert: server.certificate, key: server.key, verifyPeer: false, authorize: 'x' };
  t.match(refusal(own, 'server'), { message: /tls\.authorize.*since verifyPeer is false/ });
});

t.test('a unix socket has no name, so a client with certificates must give one', async (t) => {
  const unix = { path: '/run/x.sock' };
  t.match(refusal(X509, 'client', unix), { code: 'ERR_MULTIFD_OPTION', message: /option tls\.hostname/ });
  t.equal(check({ ...X509, hostname: 'host1' }, 'client', unix).hostname, 'host1');
  t.ok(check({ ...X509, verifyPeer: false }, 'client', unix));
  t.ok(check({ psk: PSK }, 'client', unix));
});

t.test('a file that is missing or unfit is named, with the option', async (t) => {
  const good = { 'ca-cert.pem': X509.ca, 'client-cert.pem': X509.cert, 'client-key.pem': X509.key };
  const cases: [string, Record<string, string | undefined>, RegExp][] = [
    [
      'none',
      { 'ca-cert.pem': undefined, 'client-cert.pem': undefined },
      /has neither ca-cert\.pem .* nor keys\.psk/,
    ],
    ['no-ca', { 'ca-cert.pem': undefined }, /ca-cert\.pem is missing; a client needs it/],
    ['no-key', { 'client-key.pem': undefined }, /client-key\.pem is missing/],
    ['no-cert', { 'client-cert.pem': undefined }, /client-cert\.pem is missing/],
    ['other-key', { 'client-key.pem': server.key }, /client-key\.pem is not the key of .*client-cert\.pem/],
    ['both', { 'keys.psk': `qemu:${PSK}` }, /has both keys\.psk and certificates; give an identity/],
    ['empty', { 'ca-cert.pem': '' }, /ca-cert\.pem has no certificate in PEM/],
    ['expired', ownFiles('expiredClient'), /client-cert\.pem: the certificate has expired, on /],
    ['early', ownFiles('earlyClient'), /client-cert\.pem: the certificate is not valid before .*clock/],
    ['locked', { 'client-key.pem': encryptedKey() }, /client-key\.pem is encrypted/],
    ['crl', { 'ca-crl.pem': 'x' }, /ca-crl\.pem has no list of revoked/],
  ];
  for (const [name, more, message] of cases) {
    const dir = folder(`bad-${name}`);
    mkdirSync(dir);
    for (const [file, text] of Object.entries({ ...good, ...more })) {
      if (text !== undefined) writeFileSync(path.join(dir, file), text);
    }
    const error = refusal({ dir });
    t.match(error, { code: 'ERR_MULTIFD_TLS', message }, name);
    t.match(error.message, /\(option tls\.dir\)$/, name);
  }
  const lines: [string, RegExp][] = [
    [`qemu:${PSK}\nqemu`, /keys\.psk, line 2: given a line without a colon/],
    ['qemu:zz', /keys\.psk, line 1, identity "qemu": given a key with other characters/],
    ['qemu:abc', /line 1, identity "qemu": given a key of 3 hex digits/],
    ['\n', /keys\.psk has no line/],
  ];
  for (const [index, [psk, message]] of lines.entries()) {
    const dir = writeQemuFolder(folder(`bad-psk-${index}`), { psk });
    t.match(refusal({ dir }), { code: 'ERR_MULTIFD_TLS', message });
  }
  t.match(refusal({ dir: folder('nowhere') }), { message: /nowhere: no such folder \(option tls\.dir\)/ });
  t.match(refusal({ dir: path.join(root, 'qemu/ca-cert.pem') }), { message: /not a folder/ });
  mkdirSync(folder('loop/keys.psk'), { recursive: true });
  t.match(refusal({ dir: folder('loop') }), { code: 'ERR_MULTIFD_TLS', message: /keys\.psk is not a file/ });
});

t.test('a key that may not be read is named', { skip: process.getuid?.() === 0 }, async (t) => {
  const dir = writeQemuFolder(folder('closed'), { ca: authority, client });
  chmodSync(path.join(dir, 'client-key.pem'), 0);
  t.match(refusal({ dir }), { code: 'ERR_MULTIFD_TLS', message: /client-key\.pem cannot be read: EACCES/ });
});

t.test('with an identity the PSK of a folder with both is meant', async (t) => {
  const dir = writeQemuFolder(folder('two'), { ca: authority, client, psk: `qemu:${PSK}` });
  t.equal(check({ dir, identity: 'qemu' }).kind, 'psk');
});

t.test('credentials cross to a thread whole, and their functions stay', async (t) => {
  const authorize = (): boolean => true;
  const options = { ca: X509.ca, cert: server.certificate, key: server.key, crl, authorize };
  const checked = checkTlsOptions(options, 'server');
  t.equal(checked.authorize, authorize);
  const there = TlsCredentials.fromPlain(structuredClone(checked.credentials.toPlain()));
  t.equal(there.asks, true);
  t.equal(there.privateKey(), server.key);
  t.strictSame(there.toPlain(), checked.credentials.toPlain());
  const psk = TlsCredentials.fromPlain(structuredClone(check({ psk: PSK }).toPlain()));
  t.equal(Buffer.from(psk.psk('qemu') ?? []).toString('hex'), PSK);
});

t.test('no key is seen in what is printed or made JSON of, nor in an error', async (t) => {
  const secret = new RegExp(
    `${PSK.slice(0, 16)}|${[...Buffer.from(PSK, 'hex')].slice(0, 5).join(',\\s*')}|c0 ff ee|PRIVATE`,
  );
  for (const credentials of [check({ psk: PSK }), check(X509)]) {
    for (const text of [inspect(credentials, { showHidden: true, depth: 9 }), JSON.stringify(credentials)]) {
      t.match(text, /"?role"?:/);
      t.notMatch(text, secret);
    }
  }
  const dir = writeQemuFolder(folder('leak'), { psk: `qemu:${PSK}z` });
  const wrongs = [
    PSK,
    Buffer.from(PSK, 'hex'),
    { psk: `${PSK}z` },
    { psk: [PSK] },
    { psk: { qemu: `${PSK}0` } },
    { psk: `${PSK}\nqemu:${PSK}` },
    { psk: PSK, dir: '/x' },
    { psk: PSK, authorize: { PSK } },
    { ...X509, key: `${client.key.slice(0, 80)}\n-----END PRIVATE KEY-----` },
    { ca: X509.ca, key: client.key },
    { dir },
  ];
  for (const options of wrongs) {
    t.notMatch(inspect(refusal(options), { depth: 9 }), secret, refusal(options).message);
  }
});

t.test('authorize takes a pattern, as a name with * and ? or as a RegExp', async (t) => {
  const own = { ca: X509.ca, cert: server.certificate, key: server.key };
  const may = (authorize: unknown, distinguishedName: string): boolean => {
    const credentials = TlsCredentials.fromPlain(
      structuredClone(check({ ...own, authorize }, 'server').toPlain()),
    );
    return matchesPattern({ ...pskPeer(undefined), distinguishedName }, credentials);
  };
  t.ok(may(undefined, 'CN=any'));
  t.ok(may(CLIENT_NAME, CLIENT_NAME));
  t.notOk(may(CLIENT_NAME, `${CLIENT_NAME}0`), 'the whole of it');
  t.ok(may('*,CN=source?', CLIENT_NAME));
  t.notOk(may('CN=source?', CLIENT_NAME));
  t.ok(may('CN=a\\,b(c)', 'CN=a\\,b(c)'), 'signs of a RegExp are themselves');
  t.notOk(may('CN=a.c', 'CN=abc'));
  t.ok(may(/cn=SOURCE\d$/gi, CLIENT_NAME));
  const psk = check({ psk: { joe: PSK }, authorize: 'j*' }, 'server');
  t.ok(matchesPattern(pskPeer('joe'), psk));
  t.notOk(matchesPattern(pskPeer('ann'), psk));
});

function ownFiles(which: 'expiredClient' | 'earlyClient'): Record<string, string> {
  return { 'client-cert.pem': certificates[which].certificate, 'client-key.pem': certificates[which].key };
}

function encryptedKey(): string {
  const options = { type: 'pkcs8', format: 'pem', cipher: 'aes-256-cbc', passphrase: 'x' } as const;
  return client.privateKey.export(options).toString();
}

t.test('a Buffer is taken for PEM', async (t) => {
  const file = path.join(writeQemuFolder(folder('buffers'), { ca: authority, client }), 'ca-cert.pem');
  t.equal(check({ ...X509, ca: readFileSync(file) }).ca, authority.certificate);
});
