/**
 * Each way in which two ends may not fit, over a socket, in TLS 1.2 and 1.3: what is said at the end that refuses, and
 * what at the other. What an end can know depends on the version: a client of TLS 1.3 is done before its server has
 * looked at its certificate.
 */
import { once } from 'node:events';
import net from 'node:net';
import type { AddressInfo } from 'node:net';
import tls from 'node:tls';
import t from 'tap';
import { MultifdError } from '../../src/errors.js';
import { checkTlsOptions } from '../../src/transport/tls/check-options.js';
import { TlsCredentials, type PlainTlsCredentials } from '../../src/transport/tls/credentials.js';
import { explainEarlyEnd, explainTlsFailure, isTlsError } from '../../src/transport/tls/explain.js';
import { handshake, type SecureConnection } from '../../src/transport/tls/handshake.js';
import { ticketsCanBeStopped } from '../../src/transport/tls/session-tickets.js';
import type { TlsRole, TlsVersion } from '../../src/transport/tls/options.js';
import type { Issued } from '../../src/transport/tls/write-certificate.js';
import { CLIENT_NAME, makeCertificates, PSK } from '../support/certificates.js';

const TIMEOUT_MS = 20_000;
const certificates = makeCertificates();
const { authority, server, client, stranger, crl, oldCrl } = certificates;
type More = Partial<PlainTlsCredentials>;

/** Unchecked: the other side of a test has what checkTlsOptions() refuses, such as an expired certificate. */
function credentials(role: TlsRole, more: More): TlsCredentials {
  return TlsCredentials.fromPlain({
    kind: more.psks === undefined ? 'x509' : 'psk',
    role,
    option: 'tls',
    origin: 'folder /pki',
    hostname: role === 'client' ? 'localhost' : undefined,
    verifyPeer: true,
    authz: undefined,
    asks: false,
    minVersion: 'TLSv1.2',
    maxVersion: 'TLSv1.3',
    ciphers: undefined,
    identity: 'qemu',
    ca: undefined,
    cert: undefined,
    key: undefined,
    crl: undefined,
    psks: new Map(),
    ...more,
  });
}

function x509(own: Issued | undefined, more: More = {}): More {
  return { ca: authority.certificate, cert: own?.certificate, key: own?.key, ...more };
}

function psk(keys: Record<string, string>, more: More = {}): More {
  const psks = Object.entries(keys).map(([identity, key]) => [identity, Buffer.from(key, 'hex')] as const);
  return { psks: new Map(psks), ...more };
}

async function socketPair(): Promise<[net.Socket, net.Socket]> {
  const listener = net.createServer();
  const incoming = new Promise<net.Socket>((resolve) => listener.once('connection', resolve));
  await new Promise<void>((resolve) => listener.listen(0, '127.0.0.1', resolve));
  const out = net.connect((listener.address() as AddressInfo).port, '127.0.0.1');
  const pair: [net.Socket, net.Socket] = [out, await incoming];
  listener.close();
  for (const socket of pair) t.teardown(() => socket.destroy());
  return pair;
}

/** `done`, or how it failed; and what came of a handshake that was done only for this side. */
async function outcome(under: Promise<SecureConnection>, mine: TlsCredentials): Promise<string> {
  let secure: SecureConnection;
  try {
    secure = await under;
  } catch (error) {
    if (!(error instanceof MultifdError)) throw error;
    return `${error.code}: ${error.message}`;
  }
  const { socket } = secure;
  // So that the other end sees that this one is content.
  socket.write('x');
  return new Promise((resolve) => {
    socket.once('data', () => resolve('done'));
    socket.once('error', (error: Error) =>
      resolve(
        `later: ${isTlsError(error) ? explainTlsFailure({ credentials: mine, error }).message : error.message}`,
      ),
    );
    socket.once('close', () => resolve(`later: ${explainEarlyEnd(mine)}`));
  });
}

async function meet(ours: More, theirs: More): Promise<{ client: string; server: string }> {
  const [out, incoming] = await socketPair();
  const [one, other] = [credentials('client', ours), credentials('server', theirs)];
  const [clientSays, serverSays] = await Promise.all([
    outcome(handshake(out, one, { timeoutMs: TIMEOUT_MS }), one),
    outcome(handshake(incoming, other, { timeoutMs: TIMEOUT_MS }), other),
  ]);
  out.destroy();
  incoming.destroy();
  return { client: clientSays, server: serverSays };
}

/** By version where it differs. */
type Says = RegExp | Record<TlsVersion, RegExp>;
interface Case {
  name: string;
  client: More;
  server: More;
  clientSays: Says;
  serverSays: Says;
}

/** The client has refused: in TLS 1.2 the server's handshake is done by then. */
const SERVER_IS_LEFT: Says = {
  'TLSv1.2':
    /^later: the client closed right after .*this side's certificate, of folder \/pki \(its authority/,
  'TLSv1.3':
    /^ERR_MULTIFD_TLS: TLS as server: the client closed .*refused this side's certificate, of folder \/pki/,
};
/** The server has refused. */
const CLIENT_IS_LEFT: Says = {
  'TLSv1.2':
    /^ERR_MULTIFD_TLS: TLS as client: the server closed .*refused this side's certificate, of folder \/pki/,
  'TLSv1.3': /^later: the server closed right after .*this side's certificate, of folder \/pki \(tls-authz/,
};
const OTHER_KIND = /no cipher in common, or another kind of credentials/;

const CASES: Case[] = [
  {
    name: 'good certificates',
    client: x509(client),
    server: x509(server),
    clientSays: /^done$/,
    serverSays: /^done$/,
  },
  {
    name: 'a certificate that names the address',
    client: x509(client, { hostname: '127.0.0.1' }),
    server: x509(server),
    clientSays: /^done$/,
    serverSays: /^done$/,
  },
  {
    name: 'an authority that the client does not know',
    client: x509(client),
    server: x509(certificates.strangeServer),
    clientSays:
      /the server's certificate "CN=host1\.example" is signed by an authority that this side does not know, "CN=another authority".*folder \/pki/,
    serverSays: SERVER_IS_LEFT,
  },
  {
    name: 'an authority that the server does not know',
    client: x509(certificates.strangeClient, { ca: authority.certificate }),
    server: x509(server),
    clientSays: CLIENT_IS_LEFT,
    serverSays:
      /the client's certificate "C=GB,O=Acme,CN=source1" is signed by an authority .*"CN=another authority"/,
  },
  {
    name: 'another name',
    client: x509(client),
    server: x509(certificates.otherServer),
    clientSays:
      /is not for "localhost": its names are "elsewhere\.example", "192\.0\.2\.7"; option tls\.hostname \(QEMU: tls-hostname\)/,
    serverSays: SERVER_IS_LEFT,
  },
  {
    name: 'another address',
    client: x509(client, { hostname: '192.0.2.1' }),
    server: x509(server),
    clientSays: /is not for "192\.0\.2\.1": its names are "localhost", "host1\.example", "127\.0\.0\.1"/,
    serverSays: SERVER_IS_LEFT,
  },
  {
    name: 'a server that has expired',
    client: x509(client),
    server: x509(certificates.expiredServer),
    clientSays: /the server's certificate "CN=host1\.example" has expired, on \w+ /,
    serverSays: SERVER_IS_LEFT,
  },
  {
    name: 'a client that has expired',
    client: x509(certificates.expiredClient),
    server: x509(server),
    clientSays: CLIENT_IS_LEFT,
    serverSays: /the client's certificate "C=GB,O=Acme,CN=old1" has expired, on \w+ /,
  },
  {
    name: 'a server that is not yet valid',
    client: x509(client),
    server: x509(certificates.earlyServer),
    clientSays: /certificate "CN=host1\.example" is not valid before .*clocks/,
    serverSays: SERVER_IS_LEFT,
  },
  {
    name: 'a client that is not yet valid',
    client: x509(certificates.earlyClient),
    server: x509(server),
    clientSays: CLIENT_IS_LEFT,
    serverSays: /certificate "C=GB,O=Acme,CN=new1" is not valid before .*clocks/,
  },
  {
    name: 'a server that is revoked',
    client: x509(client, { crl }),
    server: x509(certificates.revokedServer),
    clientSays: /certificate "CN=host1\.example" is revoked, by the list \(CRL\) of folder \/pki/,
    serverSays: SERVER_IS_LEFT,
  },
  {
    name: 'a client that is revoked',
    client: x509(certificates.revoked),
    server: x509(server, { crl }),
    clientSays: CLIENT_IS_LEFT,
    serverSays: /certificate "C=GB,O=Acme,CN=revoked1" is revoked/,
  },
  {
    name: 'others than the revoked ones',
    client: x509(client, { crl }),
    server: x509(server, { crl }),
    clientSays: /^done$/,
    serverSays: /^done$/,
  },
  {
    name: 'a list that is out of date',
    client: x509(client, { crl: oldCrl }),
    server: x509(server),
    clientSays: /the list of revoked certificates \(CRL\) of folder \/pki is out of date/,
    serverSays: SERVER_IS_LEFT,
  },
  {
    name: 'a list of another authority',
    client: x509(client),
    server: x509(server, { ca: authority.certificate + stranger.certificate, crl: certificates.strangeCrl }),
    clientSays: CLIENT_IS_LEFT,
    serverSays:
      /is of an authority that the list of revoked certificates \(CRL\) of folder \/pki is not from/,
  },
  {
    name: "a client's certificate for a server",
    client: x509(client),
    server: x509(client),
    clientSays: /certificate "C=GB,O=Acme,CN=source1" is not for a server/,
    serverSays: SERVER_IS_LEFT,
  },
  {
    name: "a server's certificate for a client",
    client: x509(server),
    server: x509(server),
    clientSays: CLIENT_IS_LEFT,
    serverSays: /certificate "CN=host1\.example" is not for a client/,
  },
  {
    name: 'a client without a certificate',
    client: x509(undefined),
    server: x509(server),
    clientSays: {
      'TLSv1.2': /the server closed .*refused a client without a certificate/,
      'TLSv1.3': /^later: .*it may have refused a client without a certificate, as folder \/pki has none/,
    },
    serverSays:
      /the client sent no certificate; it needs one, signed by .*folder \/pki \(QEMU sends none .*option tls\.verifyPeer false/,
  },
  {
    name: 'a client without a certificate, where none is asked for',
    client: x509(undefined),
    server: x509(server, { verifyPeer: false }),
    clientSays: /^done$/,
    serverSays: /^done$/,
  },
  {
    name: 'a server that is not checked',
    client: x509(client, { verifyPeer: false, ca: undefined }),
    server: x509(certificates.strangeServer),
    clientSays: /^done$/,
    serverSays: /^done$/,
  },
  {
    name: 'a client that tls-authz names',
    client: x509(client),
    server: x509(server, { authz: { source: `^${CLIENT_NAME}$`, flags: '' } }),
    clientSays: /^done$/,
    serverSays: /^done$/,
  },
  {
    name: 'a client that tls-authz does not name',
    client: x509(client),
    server: x509(server, { authz: { source: '^CN=source2$', flags: '' } }),
    clientSays: CLIENT_IS_LEFT,
    serverSays:
      /the client "C=GB,O=Acme,CN=source1" may not come, says option tls\.authorize \(QEMU: tls-authz\)/,
  },
  {
    name: 'the same PSK',
    client: psk({ qemu: PSK }),
    server: psk({ joe: 'aaaaaaaa', qemu: PSK }),
    clientSays: /^done$/,
    serverSays: /^done$/,
  },
  {
    name: 'the longest PSK and identity, and the shortest',
    client: psk({ ['i'.repeat(256)]: 'ab'.repeat(256) }, { identity: 'i'.repeat(256) }),
    server: psk({ ['i'.repeat(256)]: 'ab'.repeat(256) }),
    clientSays: /^done$/,
    serverSays: /^done$/,
  },
  {
    name: 'the shortest PSK',
    client: psk({ q: 'abababab' }, { identity: 'q' }),
    server: psk({ q: 'abababab' }),
    clientSays: /^done$/,
    serverSays: /^done$/,
  },
  {
    name: 'an identity that the server has not',
    client: psk({ joe: PSK }, { identity: 'joe' }),
    server: psk({ qemu: PSK, ann: PSK }),
    clientSays: {
      'TLSv1.2':
        /the server refused \(unknown psk identity\): it has no PSK of the identity "joe"; its log has more/,
      'TLSv1.3': /the server refused \(handshake failure\): .*this side has a PSK of the identity "joe"/,
    },
    serverSays:
      /the client has the PSK of the identity "joe", which folder \/pki has not: it has "qemu", "ann"/,
  },
  {
    name: 'an identity that tls-authz does not name',
    client: psk({ joe: PSK }, { identity: 'joe' }),
    server: psk({ joe: PSK }, { authz: { source: '^ann$', flags: '' } }),
    clientSays: {
      'TLSv1.2': /the server closed .*refused the PSK of the identity "joe"/,
      'TLSv1.3': /^later: .*it may have refused the PSK of the identity "joe"/,
    },
    serverSays: /the client "joe" may not come/,
  },
  {
    name: 'another key of the same identity',
    client: psk({ qemu: PSK }),
    server: psk({ qemu: 'aabbccdd' }),
    clientSays:
      /the server refused \([a-z ]+\): the keys \(PSK\) of the identity "qemu" differ, or the server has none .*its log has more/,
    serverSays:
      /the keys \(PSK\) of the identity "qemu" differ: both ends need the same keys\.psk; here it is folder/,
  },
  {
    name: 'a PSK for a server with certificates',
    client: psk({ qemu: PSK }),
    server: x509(server),
    clientSays: {
      'TLSv1.2': OTHER_KIND,
      'TLSv1.3': /the server proved itself with a certificate, not with the PSK/,
    },
    serverSays: { 'TLSv1.2': OTHER_KIND, 'TLSv1.3': /the client closed the connection during the handshake/ },
  },
  {
    name: 'certificates for a server with a PSK',
    client: x509(client),
    server: psk({ qemu: PSK }),
    clientSays: OTHER_KIND,
    serverSays: OTHER_KIND,
  },
  {
    name: 'no cipher in common',
    client: x509(client, { ciphers: 'TLS_AES_128_GCM_SHA256:ECDHE-ECDSA-AES128-GCM-SHA256' }),
    server: x509(server, { ciphers: 'TLS_AES_256_GCM_SHA384:ECDHE-ECDSA-AES256-GCM-SHA384' }),
    clientSays:
      /the server refused \(handshake failure\): no cipher in common.*option tls\.ciphers here is "TLS_AES_128/,
    serverSays: /no cipher in common.*option tls\.ciphers here is "TLS_AES_256/,
  },
];

for (const version of ['TLSv1.2', 'TLSv1.3'] as const) {
  for (const { name, client: ours, server: theirs, clientSays, serverSays } of CASES) {
    t.test(`${version}: ${name}`, async (t) => {
      const only = { minVersion: version, maxVersion: version };
      const said = await meet({ ...ours, ...only }, { ...theirs, ...only });
      const of = (says: Says): RegExp => (says instanceof RegExp ? says : says[version]);
      t.match(said.client, of(clientSays), 'the client');
      t.match(said.server, of(serverSays), 'the server');
      for (const text of Object.values(said)) t.notMatch(text, new RegExp(PSK, 'i'));
    });
  }
}

t.test('no version in common, either way', async (t) => {
  const old = { maxVersion: 'TLSv1.2' } as const;
  const fresh = { minVersion: 'TLSv1.3' } as const;
  const one = await meet(x509(client, old), x509(server, fresh));
  t.match(one.client, /the server refused \(protocol version\): no version .*takes TLSv1\.2 \(options min/);
  t.match(
    one.server,
    /no version of TLS in common: this side takes TLSv1\.3 \(options minVersion, maxVersion\)/,
  );
  const other = await meet(x509(client, fresh), x509(server, old));
  t.match(other.client, /no version of TLS in common: this side takes TLSv1\.3/);
  t.match(other.server, /no version of TLS in common: this side takes TLSv1\.2/);
});

for (const role of ['client', 'server'] as const) {
  const mine = credentials(role, x509(role === 'client' ? client : server));
  const fails = async (
    more: Partial<Parameters<typeof handshake>[2]>,
    peer: (socket: net.Socket) => void,
  ) => {
    const [socket, far] = await socketPair();
    far.on('error', () => undefined);
    peer(far);
    try {
      await handshake(socket, mine, { timeoutMs: TIMEOUT_MS, ...more });
    } catch (error) {
      t.ok(socket.destroyed, 'and the connection is gone');
      return error as MultifdError;
    }
    throw new Error('done');
  };

  t.test(`a ${role} tells plain text from TLS`, async (t) => {
    const hello = Buffer.alloc(68);
    hello.writeUInt32BE(0x11223344, 0);
    const texts = [hello, 'QEVM\x00\x00\x00\x03\x07', 'GET / HTTP/1.1\r\n\r\n', 'SSH-2.0-OpenSSH_9.2p1\r\n'];
    for (const text of texts) {
      const error = await fails({}, (far) => far.write(text));
      t.equal(error.code, 'ERR_MULTIFD_TLS');
      t.match(
        error.message,
        /speaks no TLS, but plain text; give it credentials \(QEMU: tls-creds\), or leave out/,
      );
    }
  });

  t.test(`a ${role} tells a peer that is silent from one that stops`, async (t) => {
    const silent = await fails({ timeoutMs: 100 }, () => undefined);
    t.match(
      silent.message,
      /the handshake was not done within 100 ms: does the \w+ speak TLS \(QEMU: tls-creds\)\?/,
    );
    // The head of a record, and nothing after it.
    const stopped = await fails({ timeoutMs: 100 }, (far) => far.write(Buffer.from([0x16, 3, 3, 0, 90, 1])));
    t.match(stopped.message, /the handshake was not done within 100 ms$/);
    t.equal(stopped.code, 'ERR_MULTIFD_TLS');
  });

  t.test(`a ${role} tells a peer that closes before it says anything`, async (t) => {
    const error = await fails({}, (far) => far.end());
    t.equal(error.code, 'ERR_MULTIFD_TLS');
    t.match(error.message, /closed the connection during the handshake: it said nothing/);
  });

  t.test(`a ${role} tells a peer that resets the connection`, async (t) => {
    const error = await fails({}, (far) => setImmediate(() => far.resetAndDestroy()));
    t.equal(error.code, 'ERR_MULTIFD_TLS');
    t.match(error.message, /closed the connection during the handshake: it said nothing/);
  });

  t.test(`a handshake of a ${role} ends with its signal`, async (t) => {
    const control = new AbortController();
    const error = await fails({ signal: control.signal }, () => setImmediate(() => control.abort('why')));
    t.match(error, { code: 'ERR_MULTIFD_ABORTED', cause: 'why' });
    const before = await fails({ signal: AbortSignal.abort('so') }, () => undefined);
    t.match(before, { code: 'ERR_MULTIFD_ABORTED', cause: 'so' });
  });
}

t.test('a function is asked about each client, and only true lets it in', async (t) => {
  const one = credentials('client', x509(client));
  const other = credentials('server', x509(server, { asks: true }));
  const said = async (authorize: unknown): Promise<string> => {
    const [out, incoming] = await socketPair();
    const options = { timeoutMs: TIMEOUT_MS, authorize: authorize as () => boolean };
    const both = [
      outcome(handshake(incoming, other, options), other),
      outcome(handshake(out, one, options), one),
    ];
    const [serverSays] = await Promise.all(both);
    out.destroy();
    incoming.destroy();
    return serverSays;
  };
  let asked: unknown;
  const remember = (answer: unknown) => (peer: unknown) => {
    asked = peer;
    return answer;
  };
  t.equal(await said(remember(true)), 'done');
  t.match(asked, {
    distinguishedName: CLIENT_NAME,
    names: [],
    fingerprint256: /^([\dA-F]{2}:){31}[\dA-F]{2}$/,
    identity: undefined,
  });
  t.equal(await said(remember(Promise.resolve(true))), 'done');
  for (const answer of [false, undefined, 1, Promise.resolve(false)]) {
    t.match(await said(remember(answer)), /^ERR_MULTIFD_TLS: .*"C=GB,O=Acme,CN=source1" may not come/);
  }
  t.match(await said(undefined), /may not come/, 'nobody to be asked');
  const thrown = (): never => {
    throw new Error('no database');
  };
  t.match(await said(thrown), /^ERR_MULTIFD_HOOK: authorize\(\) of option tls failed: no database/);
});

t.test('a client that goes while authorize is asked is an error of this handshake', async (t) => {
  const one = credentials('client', x509(client));
  const other = credentials('server', x509(server, { asks: true }));
  const [out, incoming] = await socketPair();
  const authorize = async (): Promise<boolean> => {
    const closed = new Promise((resolve) => incoming.once('close', resolve));
    out.resetAndDestroy();
    await closed;
    return true;
  };
  const gone = handshake(incoming, other, { timeoutMs: TIMEOUT_MS, authorize });
  const there = handshake(out, one, { timeoutMs: TIMEOUT_MS }).then(
    ({ socket }) => socket.on('error', () => undefined),
    () => undefined,
  );
  await t.rejects(gone, { code: 'ERR_MULTIFD_TLS', message: /the client closed the connection during/ });
  await there;
});

t.test('an authorize that never answers holds nobody up', async (t) => {
  const one = credentials('client', x509(client));
  const other = credentials('server', x509(server, { asks: true }));
  const never = (): Promise<boolean> => new Promise(() => undefined);
  const start = async (more: Partial<Parameters<typeof handshake>[2]>) => {
    const [out, incoming] = await socketPair();
    const there = handshake(out, one, { timeoutMs: TIMEOUT_MS }).then(
      ({ socket }) => socket.on('error', () => undefined),
      () => undefined,
    );
    const here = handshake(incoming, other, { timeoutMs: TIMEOUT_MS, authorize: never, ...more });
    return { out, here, there };
  };
  const late = await start({ timeoutMs: 1000 });
  await t.rejects(late.here, {
    code: 'ERR_MULTIFD_TLS',
    message: /authorize\(\) of option tls did not answer within 1000 ms/,
  });
  const control = new AbortController();
  const authorize = (): Promise<boolean> => {
    setImmediate(() => control.abort('why'));
    return never();
  };
  const stopped = await start({ signal: control.signal, authorize });
  await t.rejects(stopped.here, { code: 'ERR_MULTIFD_ABORTED', cause: 'why' });
  await Promise.all([late.there, stopped.there]);
});

t.test('alerts of other TLS libraries say what the other side did not like', async (t) => {
  const mine = credentials('client', x509(client));
  const bare = credentials('client', x509(undefined));
  const say = (code: string, by = mine): string =>
    explainTlsFailure({ credentials: by, error: Object.assign(new Error('x'), { code }) }).message;
  const cases: [string, RegExp][] = [
    [
      'SSLV3_ALERT_BAD_CERTIFICATE',
      /the server refused \(bad certificate\): it does not take this side's certificate/,
    ],
    ['SSL/TLS_ALERT_BAD_CERTIFICATE', /refused \(bad certificate\)/],
    ['TLSV1_ALERT_UNKNOWN_CA', /refused \(unknown ca\): it does not know the authority.*same ca-cert\.pem/],
    ['SSLV3_ALERT_CERTIFICATE_EXPIRED', /refused \(certificate expired\): .*has expired or is not valid yet/],
    ['SSLV3_ALERT_CERTIFICATE_REVOKED', /refused \(certificate revoked\): .*is revoked/],
    ['TLSV1_ALERT_ACCESS_DENIED', /refused \(access denied\): .*tls-authz/],
    ['TLSV1_ALERT_PROTOCOL_VERSION', /refused \(protocol version\): no version of TLS in common/],
    ['TLSV1_ALERT_INTERNAL_ERROR', /refused \(internal error\): something failed there/],
    ['TLSV1_UNRECOGNIZED_NAME', /refused \(unrecognized name\): it does not know the name "localhost"/],
    ['TLSV1_ALERT_SOMETHING_NEW', /refused \(something new\): its log says why/],
  ];
  for (const [code, message] of cases) t.match(say(`ERR_SSL_${code}`), message);
  const required = 'ERR_SSL_TLSV13_ALERT_CERTIFICATE_REQUIRED';
  t.match(
    say(required, bare),
    /refused \(certificate required\): it asks for a client's certificate.*has none/,
  );
  t.match(say(required), /does not take the one of folder \/pki/);
  // GnuTLS and OpenSSL in TLS 1.2, where the client sends no certificate; QEMU's server sends nothing.
  for (const code of ['TLSV1_ALERT_DECODE_ERROR', 'SSLV3_ALERT_HANDSHAKE_FAILURE']) {
    t.match(say(`ERR_SSL_${code}`, bare), /it asks for a client's certificate, and folder \/pki has none/);
  }
  t.match(say('ERR_SSL_SOMETHING_ELSE'), /the handshake failed: x/);
});

t.test('an error has the cause, and no other code than its own', async (t) => {
  const cause = Object.assign(new Error('x'), { code: 'ERR_SSL_NO_SHARED_CIPHER' });
  const error = explainTlsFailure({ credentials: credentials('server', x509(server)), error: cause });
  t.equal(error.code, 'ERR_MULTIFD_TLS');
  t.equal(error.cause, cause);
  t.match(MultifdError.fromPlain(structuredClone(error.toPlain())), { message: error.message });
});

t.test('what checkTlsOptions() gives is what a handshake needs', async (t) => {
  const own = (issued: Issued) => ({ ca: authority.certificate, cert: issued.certificate, key: issued.key });
  const one = checkTlsOptions(own(client), 'client', 'tls', { host: 'host1.example', port: 1 }).credentials;
  const other = checkTlsOptions({ ...own(server), authorize: '*,CN=source1' }, 'server').credentials;
  const [out, incoming] = await socketPair();
  const said = await Promise.all([
    outcome(handshake(out, one, { timeoutMs: TIMEOUT_MS }), one),
    outcome(handshake(incoming, other, { timeoutMs: TIMEOUT_MS }), other),
  ]);
  t.strictSame(said, ['done', 'done']);
});

t.test(
  'a server sends no session ticket: who closes with one unread would reset, and lose what it has sent',
  { skip: !ticketsCanBeStopped() && 'this Node cannot leave them out' },
  async (t) => {
    const [out, incoming] = await socketPair();
    const secure = tls.connect({
      socket: out,
      minVersion: 'TLSv1.3',
      ciphers: 'TLS_AES_128_GCM_SHA256',
      pskCallback: () => ({ psk: Buffer.from(PSK, 'hex'), identity: 'qemu' }),
      checkServerIdentity: () => undefined,
    });
    t.teardown(() => secure.destroy());
    let tickets = 0;
    secure.on('session', () => tickets++);
    const closed = once(secure.resume(), 'close');
    const { socket } = await handshake(incoming, credentials('server', psk({ qemu: PSK })), {
      timeoutMs: TIMEOUT_MS,
    });
    t.teardown(() => socket.destroy());
    // Behind the tickets, if there were any; Node tells of those a while later.
    socket.end('x');
    await closed;
    t.equal(tickets, 0);
  },
);
