/**
 * Wrong credentials between us and a real QEMU, in either role: ERR_MULTIFD_TLS with the cause in words, in seconds, no
 * file, and a source that keeps its guest.
 *
 *     receive    QEMU source, the client    ->  receiveMigration(), the server
 *     relay in   QEMU source, the client    ->  relayMigration(), the server
 *     send       sendMigration(), the client ->  QEMU destination, the server
 *     relay out  relayMigration(), the client ->  QEMU destination, the server; a plain QEMU source behind it
 */
import fs from 'node:fs';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import file, { type Test } from 'tap';
import {
  type ErrorCode,
  MultifdError,
  type RelaySide,
  receiveMigration,
  relayMigration,
  sendMigration,
  type TlsOptions,
} from '../../src/index.js';
import { CLIENT_NAME, PSK, makeCertificates, writeQemuFolder } from '../support/certificates.js';
import { within } from '../support/within.js';
import { park } from './park.js';
import { Qemu, workFolder } from './qemu.js';
import type { Program } from './programs.js';
import { HOST, type QemuTls, setTls } from './tls.js';

/** For an error; a receiver that has heard of wrong credentials alone waits for CONNECT_MS. */
const ERROR_MS = 10_000;
const CONNECT_MS = 1000;
const CLEARED_MS = 1000;

type Qemus = Omit<QemuTls, 'endpoint'> & { authz?: string };

interface Wrong {
  /** Undefined: plain text. */
  ours: TlsOptions | undefined;
  qemu: Qemus | undefined;
  message: RegExp;
  /** Default ERR_MULTIFD_TLS. */
  code?: ErrorCode;
}

/** @param dir where credentials are made */
function wrongCases(dir: string): { server: Record<string, Wrong>; client: Record<string, Wrong> } {
  const made = makeCertificates();
  let folders = 0;
  const x509 = (files: Partial<Parameters<typeof writeQemuFolder>[1]> = {}): string =>
    writeQemuFolder(path.join(dir, `x${folders++}`), {
      ca: made.authority,
      server: made.server,
      client: made.client,
      ...files,
    });
  const psk = (lines: string): string => writeQemuFolder(path.join(dir, `p${folders++}`), { psk: lines });
  const good = x509();
  const key = psk(`qemu:${PSK}\n`);
  const otherKey = psk(`qemu:${PSK.replaceAll('0', '1')}\n`);
  const otherUser = psk(`host7:${PSK}\n`);
  const only = (version: string): string => `NORMAL:-VERS-ALL:+VERS-${version}`;
  const old = (cipher: string): string => `${only('TLS1.2')}:-CIPHER-ALL:+${cipher}`;
  /** QEMU's, which it loads whatever is wrong with them. */
  const theirs = (more: Partial<Qemus> & { priority?: string } = {}): Qemus => {
    const { priority, ...rest } = more;
    const properties = { 'sanity-check': false, ...(priority === undefined ? {} : { priority }) };
    return { kind: 'x509', dir: good, ...rest, more: { ...properties, ...rest.more } };
  };
  const theirPsk = (keys: string, more: Record<string, unknown> = {}): Qemus => ({
    kind: 'psk',
    dir: keys,
    more: { priority: 'NORMAL:+ECDHE-PSK:+DHE-PSK:+PSK', ...more },
  });
  const refusedUs = /client closed .*may have refused this side's certificate|refused \(/;
  // QEMU is the client. It judges our certificate when the handshake is done, and says nothing.
  const client = (more: Partial<Qemus> & { priority?: string } = {}): Qemus =>
    theirs({ hostname: HOST, ...more });
  const server: Record<string, Wrong> = {
    'its authority is not known here': {
      ours: { dir: good },
      qemu: client({ dir: x509({ client: made.strangeClient }) }),
      message: /sent no certificate; it needs one, signed by the authority/,
    },
    'our authority is not known there': {
      ours: { dir: good },
      qemu: client({ dir: x509({ ca: made.stranger }) }),
      message: refusedUs,
    },
    'our authority is not known there, TLS 1.2': {
      ours: { dir: good },
      qemu: client({ dir: x509({ ca: made.stranger }), priority: only('TLS1.2') }),
      message: refusedUs,
    },
    'our name does not match': {
      ours: { dir: good },
      qemu: client({ hostname: 'elsewhere.example' }),
      message: refusedUs,
    },
    'its certificate has expired': {
      ours: { dir: good },
      qemu: client({ dir: x509({ client: made.expiredClient }) }),
      message: /certificate "C=GB,O=Acme,CN=old1" has expired, on /,
    },
    'its certificate is not valid yet': {
      ours: { dir: good },
      qemu: client({ dir: x509({ client: made.earlyClient }) }),
      message: /certificate "C=GB,O=Acme,CN=new1" is not valid before /,
    },
    'its certificate is revoked': {
      ours: { dir: x509({ crl: made.crl }) },
      qemu: client({ dir: x509({ client: made.revoked }) }),
      message: /certificate "C=GB,O=Acme,CN=revoked1" is revoked/,
    },
    'it may not come': {
      ours: { dir: good, authorize: 'C=GB,O=Acme,CN=source2' },
      qemu: client(),
      message: /the client "C=GB,O=Acme,CN=source1" may not come, says option \S*tls\.authorize/,
    },
    'it may not come, says a function': {
      ours: { dir: good, authorize: () => false },
      qemu: client(),
      message: /the client "C=GB,O=Acme,CN=source1" may not come/,
    },
    'it has no certificate': {
      ours: { dir: good },
      qemu: client({ dir: x509({ client: undefined }) }),
      message: /sent no certificate/,
    },
    'it has no certificate, TLS 1.2': {
      ours: { dir: good },
      qemu: client({ dir: x509({ client: undefined }), priority: only('TLS1.2') }),
      message: /sent no certificate/,
    },
    'its identity is unknown': {
      ours: { dir: key },
      qemu: theirPsk(otherUser, { username: 'host7' }),
      message: /the identity "host7", which .* has not: it has "qemu"/,
    },
    'its key is another': {
      ours: { dir: key },
      qemu: theirPsk(otherKey),
      message: /the keys \(PSK\) of the identity "qemu" differ/,
    },
    'its key is another, TLS 1.2': {
      ours: { dir: key },
      qemu: theirPsk(otherKey, { priority: `${only('TLS1.2')}:+ECDHE-PSK` }),
      message: /the keys \(PSK\) of the identity "qemu" differ/,
    },
    'it has a certificate, and we a PSK': {
      ours: { dir: key },
      qemu: client(),
      message: /another kind of credentials/,
    },
    'it has a PSK, and we a certificate': {
      ours: { dir: good },
      qemu: theirPsk(key),
      message: /another kind|sent no certificate/,
    },
    'it speaks plain text': {
      ours: { dir: good },
      qemu: undefined,
      message: /the client speaks no TLS, but plain text; give it credentials \(QEMU: tls-creds\)/,
    },
    'it speaks TLS, and we plain text': {
      ours: undefined,
      qemu: client(),
      message: /a TLS ClientHello: the source has tls-creds set/,
    },
    'its TLS is too old': {
      ours: { dir: good, minVersion: 'TLSv1.3' },
      qemu: client({ priority: only('TLS1.2') }),
      message: /no version of TLS in common: this side takes TLSv1\.3 /,
    },
    'its TLS is too new': {
      ours: { dir: good, maxVersion: 'TLSv1.2' },
      qemu: client({ priority: only('TLS1.3') }),
      message: /no version of TLS in common: this side takes TLSv1\.2 /,
    },
    'there is no cipher in common': {
      ours: { dir: good, ciphers: 'ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256' },
      qemu: client({ priority: old('AES-256-GCM') }),
      message: /no cipher in common/,
    },
  };
  // QEMU is the server. A client is judged by it when the handshake is done.
  const ours = (files = good): TlsOptions => ({ dir: files, hostname: HOST });
  const afterwards = /the server closed right after the TLS handshake: it may have refused|refused \(/;
  const clients: Record<string, Wrong> = {
    'its authority is not known here': {
      ours: ours(),
      qemu: theirs({ dir: x509({ server: made.strangeServer }) }),
      message: /signed by an authority that this side does not know, "CN=another authority"/,
    },
    'our authority is not known there': {
      ours: ours(x509({ client: made.strangeClient })),
      qemu: theirs(),
      message: afterwards,
    },
    'its name does not match': {
      ours: { dir: good, hostname: 'elsewhere.example' },
      qemu: theirs(),
      message: /is not for "elsewhere\.example": its names are "localhost", "host1\.example", "127\.0\.0\.1"/,
    },
    'its certificate has expired': {
      ours: ours(),
      qemu: theirs({ dir: x509({ server: made.expiredServer }) }),
      message: /has expired, on /,
    },
    'its certificate is not valid yet': {
      ours: ours(),
      qemu: theirs({ dir: x509({ server: made.earlyServer }) }),
      message: /is not valid before /,
    },
    'its certificate is revoked': {
      ours: ours(x509({ crl: made.crl })),
      qemu: theirs({ dir: x509({ server: made.revokedServer }) }),
      message: /is revoked/,
    },
    'our certificate is revoked': {
      ours: ours(x509({ client: made.revoked })),
      qemu: theirs({ dir: x509({ crl: made.crl }) }),
      message: afterwards,
    },
    'we may not come': {
      ours: ours(),
      qemu: theirs({ authz: CLIENT_NAME.replace('source1', 'source2') }),
      message: afterwards,
    },
    'we may not come, TLS 1.2': {
      ours: ours(),
      qemu: theirs({ authz: CLIENT_NAME.replace('source1', 'source2'), priority: only('TLS1.2') }),
      message: afterwards,
    },
    'we have no certificate': {
      ours: ours(x509({ client: undefined })),
      qemu: theirs(),
      message: /a client without a certificate|asks for a client's certificate/,
    },
    'we have no certificate, TLS 1.2': {
      ours: ours(x509({ client: undefined })),
      qemu: theirs({ priority: only('TLS1.2') }),
      message: /a client without a certificate|asks for a client's certificate/,
    },
    'our identity is unknown': {
      ours: { dir: otherUser, identity: 'host7' },
      qemu: theirPsk(key),
      message: /the identity "host7"/,
    },
    'our key is another': {
      ours: { dir: otherKey },
      qemu: theirPsk(key),
      message: /PSK.* of the identity "qemu"/,
    },
    'our key is another, TLS 1.2': {
      ours: { dir: otherKey },
      qemu: theirPsk(key, { priority: `${only('TLS1.2')}:+ECDHE-PSK` }),
      message: /PSK.* of the identity "qemu"/,
    },
    'we have a PSK, and it a certificate': {
      ours: { dir: key },
      qemu: theirs(),
      message: /another kind of credentials|with a certificate, not with the PSK|PSK of the identity/,
    },
    'it speaks plain text': {
      ours: ours(),
      qemu: undefined,
      // 7.2 waits for more bytes.
      message: /plain text|does the server speak TLS \(QEMU: tls-creds\)/,
    },
    'we speak plain text': {
      ours: undefined,
      qemu: theirs(),
      // It closes, and says as little as of any other fault.
      code: 'ERR_MULTIFD_CONNECTION',
      message: /the destination may have refused .* no TLS \(option tls/,
    },
    'its TLS is too old': {
      ours: { ...ours(), minVersion: 'TLSv1.3' },
      qemu: theirs({ priority: only('TLS1.2') }),
      message: /no version of TLS or cipher in common|no version of TLS in common/,
    },
    'its TLS is too new': {
      ours: { ...ours(), maxVersion: 'TLSv1.2' },
      qemu: theirs({ priority: only('TLS1.3') }),
      message: /no version of TLS or cipher in common|no version of TLS in common/,
    },
    'there is no cipher in common': {
      ours: { ...ours(), ciphers: 'ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256' },
      qemu: theirs({ priority: old('AES-256-GCM') }),
      message: /no version of TLS or cipher in common|no cipher in common/,
    },
  };
  return { server, client: clients };
}

let made = 0;

async function setWrong(qemu: Qemu, endpoint: QemuTls['endpoint'], it: Qemus | undefined): Promise<void> {
  if (it === undefined) {
    await qemu.setParameters({ 'tls-creds': '', 'tls-hostname': '', 'tls-authz': '' });
    return;
  }
  const { authz, ...tls } = it;
  await setTls(qemu, { ...tls, endpoint });
  if (authz === undefined) return;
  const id = `authz${made++}`;
  await qemu.execute('object-add', { 'qom-type': 'authz-simple', id, identity: authz });
  await qemu.setParameters({ 'tls-authz': id });
}

/**
 * QEMU says that it failed before it has cleared up, and until then takes no other migration. Where its channels fail at
 * once, its migration thread may wait for them for ever (10.0, all of its connections closed).
 */
async function cleared(qemu: Qemu): Promise<boolean> {
  const late = performance.now() + CLEARED_MS;
  while (performance.now() < late) {
    const users = (await qemu.execute('query-yank')) as { type: string }[];
    if (!users.some(({ type }) => type === 'migration')) return true;
    await sleep(20);
  }
  return false;
}

async function fails(
  t: Test,
  call: Promise<unknown>,
  message: RegExp,
  code: ErrorCode = 'ERR_MULTIFD_TLS',
): Promise<void> {
  const failed = call.then(
    () => undefined,
    (error: unknown) => error,
  );
  const error = (await within(failed, ERROR_MS, 'an error').catch((late: unknown) => late)) as MultifdError;
  t.ok(error instanceof MultifdError, String(error));
  t.equal(error.code, code, String(error));
  t.match(error.message, message);
  t.notMatch(error.message, /PRIVATE KEY|c0ffee/, 'no secret in it');
}

/** @param call listens @returns the call's own result, once it listens */
async function listening<T>(make: (onListening: () => void) => Promise<T>): Promise<{ result: Promise<T> }> {
  let listen!: () => void;
  const listens = new Promise<void>((resolve) => (listen = resolve));
  const result = make(listen);
  result.catch(() => {});
  await Promise.race([listens, result]);
  return { result };
}

const none = { channels: 2, compression: 'none' } as const;

export function runWrongCredentials(program: Program): void {
  const folder = workFolder(file);
  const cases = wrongCases(folder);
  let names = 0;
  const newPath = (suffix: string): string => path.join(folder, `w${names++}${suffix}`);
  let started: Promise<Qemu> | undefined;
  const source = async (): Promise<Qemu> => {
    started ??= Qemu.start(file, program, folder).then(async (qemu) => {
      await qemu.waitUntilReady();
      await qemu.setMultifd(none);
      return qemu;
    });
    return started;
  };
  const runsOn = async (t: Test, qemu: Qemu): Promise<void> => {
    const { status } = await qemu.migrationEnd();
    t.equal(status, 'failed', 'the source hears of it');
    t.equal(await qemu.status(), 'running', 'and its guest runs on');
    if (await cleared(qemu)) return;
    started = undefined;
    await qemu.kill();
  };

  for (const [name, it] of Object.entries(cases.server)) {
    file.test(`receiving from QEMU ${program.version}: ${name}`, async (t) => {
      const qemu = await source();
      await setWrong(qemu, 'client', it.qemu);
      const [address, out] = [newPath('.sock'), newPath('.mig')];
      const { result } = await listening((onListening) =>
        receiveMigration({
          ...none,
          address: { path: address },
          out,
          connectTimeoutMs: CONNECT_MS,
          ...(it.ours && { tls: it.ours }),
          onListening,
        }),
      );
      await qemu.execute('migrate', { uri: `unix:${address}` });
      await fails(t, result, it.message);
      t.notOk(fs.existsSync(out), 'nothing under the final name');
      t.notOk(fs.existsSync(`${out}.part`), 'and no partial file');
      await runsOn(t, qemu);
    });
  }

  const relays = [
    'it has no certificate',
    'our name does not match',
    'it speaks plain text',
    'its key is another',
  ];
  for (const name of relays) {
    const it = cases.server[name];
    file.test(`relaying from QEMU ${program.version}: ${name}`, async (t) => {
      const qemu = await source();
      const destination = await Qemu.start(t, program, folder, { incoming: true });
      await destination.setMultifd(none);
      await setWrong(qemu, 'client', it.qemu);
      await relayFails(t, qemu, destination, it.message, { ...none, ...(it.ours && { tls: it.ours }) }, none);
    });
  }

  /** The one QEMU, the relay, the other; the source keeps its guest. */
  async function relayFails(
    t: Test,
    qemu: Qemu,
    destination: Qemu,
    message: RegExp,
    near: RelaySide,
    far: RelaySide,
  ): Promise<void> {
    const [listen, to] = [newPath('.sock'), newPath('.sock')];
    await destination.execute('migrate-incoming', { uri: `unix:${to}` });
    const { result } = await listening((onListening) =>
      relayMigration({
        listen: { path: listen },
        to: { path: to },
        in: near,
        out: far,
        connectTimeoutMs: CONNECT_MS,
        onListening,
      }),
    );
    await qemu.execute('migrate', { uri: `unix:${listen}` });
    await fails(t, result, message);
    await runsOn(t, qemu);
    await destination.kill();
  }

  let parked = '';
  file.test('what works: a guest is parked', async (t) => {
    const qemu = await Qemu.start(t, program, folder);
    await qemu.waitUntilReady();
    parked = (await park(t, qemu, { ...none, paused: true })).file;
  });

  for (const [name, it] of Object.entries(cases.client)) {
    file.test(`sending to QEMU ${program.version}: ${name}`, async (t) => {
      const destination = await Qemu.start(t, program, folder, { incoming: true });
      await destination.setMultifd(none);
      await setWrong(destination, 'server', it.qemu);
      const to = newPath('.sock');
      await destination.execute('migrate-incoming', { uri: `unix:${to}` });
      const call = sendMigration({
        ...none,
        file: parked,
        to: { path: to },
        connectTimeoutMs: CONNECT_MS,
        ...(it.ours && { tls: it.ours }),
      });
      await fails(t, call, it.message, it.code);
      await destination.kill();
    });
  }

  const outs = ['its name does not match', 'we may not come', 'our key is another', 'it speaks plain text'];
  for (const name of outs) {
    const it = cases.client[name];
    file.test(`relaying to QEMU ${program.version}: ${name}`, async (t) => {
      const qemu = await source();
      const destination = await Qemu.start(t, program, folder, { incoming: true });
      await destination.setMultifd(none);
      await setWrong(qemu, 'client', undefined);
      await setWrong(destination, 'server', it.qemu);
      await relayFails(t, qemu, destination, it.message, none, { ...none, ...(it.ours && { tls: it.ours }) });
    });
  }
}
