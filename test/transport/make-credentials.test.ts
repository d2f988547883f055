/** Credentials that are made for a pair of hosts: both sides take the files, and nobody else can read them. */
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
} from 'node:fs';
import net, { type AddressInfo } from 'node:net';
import os from 'node:os';
import path from 'node:path';
import t from 'tap';
import { checkTlsOptions } from '../../src/transport/tls/check-options.js';
import { handshake } from '../../src/transport/tls/handshake.js';
import { writePskCredentials, writeX509Credentials } from '../../src/transport/tls/make-credentials.js';

const root = mkdtempSync(path.join(os.tmpdir(), 'multifd-make-'));
t.teardown(() => rmSync(root, { recursive: true, force: true }));
const modeOf = (file: string): number => statSync(file).mode & 0o777;

/** Of a handshake between the two folders: cipher, and what the server knows of the client. */
async function meet(
  source: string,
  destination: string,
  host: string,
): Promise<{ cipher: string; client: string }> {
  const listener = net.createServer();
  await new Promise<void>((resolve) => listener.listen(0, '127.0.0.1', resolve));
  const incoming = new Promise<net.Socket>((resolve) => listener.once('connection', resolve));
  const out = net.connect((listener.address() as AddressInfo).port, '127.0.0.1');
  const socket = await incoming;
  listener.close();
  const one = checkTlsOptions({ dir: source }, 'client', 'tls', { host, port: 1 }).credentials;
  const other = checkTlsOptions({ dir: destination }, 'server').credentials;
  const [, there] = await Promise.all([
    handshake(out, one, { timeoutMs: 20_000 }),
    handshake(socket, other, { timeoutMs: 20_000 }),
  ]);
  const { peer } = there;
  const cipher = there.socket.getCipher().name;
  out.destroy();
  socket.destroy();
  return { cipher, client: peer.identity ?? peer.distinguishedName };
}

t.test('one keys.psk serves both hosts, and its owner alone', async (t) => {
  const dir = path.join(root, 'psk/new');
  const file = await writePskCredentials(dir);
  t.equal(file, path.join(dir, 'keys.psk'));
  t.match(readFileSync(file, 'utf8'), /^qemu:[\da-f]{64}\n$/);
  t.equal(modeOf(dir), 0o700);
  t.equal(modeOf(file), 0o600);
  t.match(await meet(dir, dir, 'any'), { client: 'qemu' });
});

t.test('a keys.psk that is there is replaced with overwrite only', async (t) => {
  const dir = path.join(root, 'again');
  const file = await writePskCredentials(dir, { identity: 'joe' });
  const before = readFileSync(file, 'utf8');
  t.match(before, /^joe:/);
  await t.rejects(writePskCredentials(dir), {
    code: 'ERR_MULTIFD_IO',
    message: /keys\.psk is there; .*overwrite/,
  });
  t.equal(readFileSync(file, 'utf8'), before);
  await writePskCredentials(dir, { overwrite: true });
  t.match(readFileSync(file, 'utf8'), /^qemu:/);
  t.equal(modeOf(file), 0o600);
  t.strictSame(readdirSync(dir), ['keys.psk'], 'and nothing is left beside it');
});

t.test('no link is followed to another file', async (t) => {
  const dir = path.join(root, 'link');
  mkdirSync(dir);
  symlinkSync(path.join(root, 'elsewhere'), path.join(dir, 'keys.psk'));
  await t.rejects(writePskCredentials(dir), { code: 'ERR_MULTIFD_IO' });
  await writePskCredentials(dir, { overwrite: true });
  t.notOk(existsSync(path.join(root, 'elsewhere')));
});

t.test('a folder that cannot be made is an error at once, also where nothing is ever made', async (t) => {
  for (const dir of ['/proc/x', '/proc/x/y', '/dev/null', '/dev/null/x']) {
    await t.rejects(writePskCredentials(dir), { code: 'ERR_MULTIFD_IO', message: `${dir} cannot be made` });
  }
});

t.test('an identity that no keys.psk can have is refused', async (t) => {
  for (const identity of ['', 'a:b', 'a\nb', 'i'.repeat(257)]) {
    await t.rejects(writePskCredentials(root, { identity }), {
      code: 'ERR_MULTIFD_OPTION',
      message: /identity/,
    });
  }
  t.notOk(existsSync(path.join(root, 'keys.psk')));
});

t.test('certificates for two hosts fit each other in both directions', async (t) => {
  const dir = path.join(root, 'x509');
  const [a, b] = await writeX509Credentials(dir, ['host-a.example,10.0.0.1', '192.0.2.2']);
  t.strictSame([a, b], [path.join(dir, 'host-a.example'), path.join(dir, '192.0.2.2')]);
  t.strictSame(readdirSync(a), [
    'ca-cert.pem',
    'client-cert.pem',
    'client-key.pem',
    'server-cert.pem',
    'server-key.pem',
  ]);
  for (const file of readdirSync(a)) t.equal(modeOf(path.join(a, file)), 0o600, file);
  t.equal(modeOf(a), 0o700);
  t.match(await meet(a, b, '192.0.2.2'), { client: 'CN=host-a.example' });
  t.match(await meet(b, a, 'host-a.example'), { client: 'CN=192.0.2.2' });
  t.match(await meet(b, a, '10.0.0.1'), { client: 'CN=192.0.2.2' });
  await t.rejects(writeX509Credentials(dir, ['host-a.example']), {
    code: 'ERR_MULTIFD_IO',
    message: /is there/,
  });
});

t.test('what stands in the way leaves nothing of new certificates', async (t) => {
  const dir = path.join(root, 'half');
  mkdirSync(path.join(dir, 'b/server-key.pem'), { recursive: true });
  await t.rejects(writeX509Credentials(dir, ['a', 'b']), {
    code: 'ERR_MULTIFD_IO',
    message: /b\/server-key\.pem/,
  });
  t.strictSame(readdirSync(dir), ['a', 'b']);
  t.strictSame(
    [readdirSync(path.join(dir, 'a')), readdirSync(path.join(dir, 'b'))],
    [[], ['server-key.pem']],
  );
});

t.test('names that are none of a host are refused', async (t) => {
  for (const hosts of [[], [''], ['..'], ['a/b'], ['a', 'a'], ['-a'], ['a b'], ['a'.repeat(65)], ['a,']]) {
    await t.rejects(writeX509Credentials(root, hosts), {
      code: 'ERR_MULTIFD_OPTION',
      message: /option hosts/,
    });
  }
  for (const days of [0, 36_501, 1.5]) {
    await t.rejects(writeX509Credentials(root, ['a'], { days }), {
      code: 'ERR_MULTIFD_OPTION',
      message: /days/,
    });
  }
});
