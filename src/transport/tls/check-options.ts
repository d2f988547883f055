/**
 * The `tls` option, checked and turned into TlsCredentials.
 *
 * A wrong option is ERR_MULTIFD_OPTION, a file that is missing or unfit ERR_MULTIFD_TLS, each with the option's name; what
 * was given is printed only where it cannot be a key. What TLS itself would only tell in the middle of a migration (a key
 * of another certificate, one's own certificate expired) is said here, by check-x509.ts.
 */
import tls from 'node:tls';
import { didYouMean } from '../../did-you-mean.js';
import { describeThrown, MultifdError } from '../../errors.js';
import { checkKeys } from '../../option-checks.js';
import type { Address } from '../address.js';
import { quote } from '../../printable.js';
import { checkX509 } from './check-x509.js';
import { TlsCredentials, type PlainPattern, type PlainTlsCredentials } from './credentials.js';
import { readTlsFolder } from './credentials-folder.js';
import type { TlsPeer, TlsRole, TlsVersion } from './options.js';
import { parsePskFile, parsePskHex, PSK_SIZES } from './psk-file.js';

const KINDS = {
  x509: ['ca', 'cert', 'key', 'crl'],
  psk: ['psk', 'identity'],
};
const COMMON_KEYS = ['hostname', 'verifyPeer', 'authorize', 'minVersion', 'maxVersion', 'ciphers'];
const ALL_KEYS = ['dir', ...KINDS.x509, ...KINDS.psk, ...COMMON_KEYS];
const VERSIONS: readonly TlsVersion[] = ['TLSv1.2', 'TLSv1.3'];
const DEFAULT_IDENTITY = 'qemu';

/** What checkTlsOptions() gives. */
export interface CheckedTls {
  credentials: TlsCredentials;
  /** To be asked on the calling thread. */
  authorize: ((peer: TlsPeer) => boolean | Promise<boolean>) | undefined;
}

/**
 * @param option the option's name, for messages
 * @param address what a client connects to
 * @throws MultifdError ERR_MULTIFD_OPTION; ERR_MULTIFD_TLS for files that are missing or unfit
 */
export function checkTlsOptions(
  options: unknown,
  role: TlsRole,
  option = 'tls',
  address?: Address,
): CheckedTls {
  // Not checkKeys() alone: it would print what was given, and that may be a key.
  if (options === null || typeof options !== 'object') {
    throw wrong(option, kindOf(options), 'an object: { dir }, { ca, cert, key } or { psk }');
  }
  checkKeys(options, ALL_KEYS, `${option}.`);
  const given = options as Partial<Record<string, unknown>>;
  const common = checkCommon(given, role, option);
  const material = checkMaterial(given, role, option, common.verifyPeer);
  const { authorize, ...rest } = common;
  const plain: PlainTlsCredentials = { role, option, ...rest, hostname: undefined, ...material };
  plain.hostname = checkHostname(given.hostname, plain, address);
  if (plain.kind === 'psk' && !plain.verifyPeer) {
    throw wrong(`${option}.verifyPeer`, 'false', 'true with a PSK: the key itself is the check');
  }
  checkTogether(plain);
  return { credentials: TlsCredentials.fromPlain(plain), authorize };
}

function checkCommon(given: Partial<Record<string, unknown>>, role: TlsRole, option: string) {
  const { verifyPeer = true, ciphers } = given;
  if (typeof verifyPeer !== 'boolean') throw wrong(`${option}.verifyPeer`, kindOf(verifyPeer), 'a boolean');
  const minVersion = version(`${option}.minVersion`, given.minVersion, 'TLSv1.2');
  const maxVersion = version(`${option}.maxVersion`, given.maxVersion, 'TLSv1.3');
  if (minVersion > maxVersion) {
    throw wrong(`${option}.maxVersion`, maxVersion, `${minVersion} or later, as minVersion says`);
  }
  if (ciphers !== undefined && (typeof ciphers !== 'string' || ciphers === '')) {
    throw wrong(`${option}.ciphers`, kindOf(ciphers), 'a list of OpenSSL such as TLS_AES_128_GCM_SHA256');
  }
  // Names of OpenSSL for those without encryption or without proof of who it is; those behind a ! are left out of the list.
  const open = ciphers
    ?.split(/[:, ]/)
    .find((name) => /^[^!-].*(?:NULL|ADH|AECDH|anon|SECLEVEL=0)|^NULL/i.test(name));
  if (open !== undefined) {
    throw wrong(`${option}.ciphers`, quote(open), 'ciphers that encrypt, and prove who is there');
  }
  const { authz, authorize } = checkAuthorize(given.authorize, `${option}.authorize`);
  const asks = authorize !== undefined;
  if (given.authorize !== undefined) {
    if (role === 'client') throw wrong(`${option}.authorize`, 'one', 'none: a client asks for a hostname');
    if (!verifyPeer) throw wrong(`${option}.authorize`, 'one', 'none, since verifyPeer is false');
  }
  return { verifyPeer, minVersion, maxVersion, ciphers, authz, authorize, asks };
}

function version(name: string, given: unknown, byDefault: TlsVersion): TlsVersion {
  if (given === undefined) return byDefault;
  if (!VERSIONS.includes(given as TlsVersion)) {
    throw wrong(name, kindOrText(given), `one of ${VERSIONS.join(', ')}${didYouMean(given, VERSIONS)}`);
  }
  return given as TlsVersion;
}

function checkAuthorize(
  given: unknown,
  name: string,
): { authz: PlainPattern | undefined; authorize: CheckedTls['authorize'] } {
  if (given === undefined) return { authz: undefined, authorize: undefined };
  if (typeof given === 'function') return { authz: undefined, authorize: given as CheckedTls['authorize'] };
  if (typeof given === 'string' && given !== '') return { authz: glob(given), authorize: undefined };
  if (Object.prototype.toString.call(given) === '[object RegExp]') {
    const { source, flags } = given as RegExp;
    // With these a match would depend on the one before.
    return { authz: { source, flags: flags.replaceAll(/[gy]/g, '') }, authorize: undefined };
  }
  const allowed = 'a function, a RegExp, or a name in which * and ? stand for others';
  throw wrong(name, kindOf(given), allowed);
}

/** `*` for any text and `?` for one character; the backslashes of a name are its own. */
function glob(pattern: string): PlainPattern {
  const source = pattern
    .replaceAll(/[\\^$.+()[\]{}|/]/g, '\\$&')
    .replaceAll('*', '[^]*')
    .replaceAll('?', '[^]');
  return { source: `^${source}$`, flags: 'u' };
}

type Material = Pick<
  PlainTlsCredentials,
  'kind' | 'origin' | 'identity' | 'ca' | 'cert' | 'key' | 'crl' | 'psks'
>;

function checkMaterial(
  given: Partial<Record<string, unknown>>,
  role: TlsRole,
  option: string,
  verifyPeer: boolean,
): Material {
  const has = (names: string[]): string[] => names.filter((name) => given[name] !== undefined);
  const kinds = [has(['dir']), has(KINDS.x509), has(['psk'])].filter((names) => names.length > 0);
  if (kinds.length !== 1) {
    const names = kinds.flat().join(', ');
    throw wrong(
      option,
      names === '' ? 'no credentials' : names,
      'one of { dir }, { ca, cert, key }, { psk }',
    );
  }
  const identity = checkIdentity(given.identity, `${option}.identity`);
  if (given.dir !== undefined) {
    const { dir } = given;
    if (typeof dir !== 'string' || dir === '' || dir.includes('\0')) {
      throw wrong(`${option}.dir`, kindOf(dir), "a folder's path");
    }
    const folder = readTlsFolder(dir, role, `${option}.dir`, given.identity !== undefined, verifyPeer);
    const origin = `folder ${dir}`;
    if (folder.kind === 'psk') {
      const psks = parsePskFile(folder.text, folder.file, (text) => unfit(text, `${option}.dir`));
      checkHasIdentity(psks, identity, role, folder.file, `${option}.identity`);
      return { ...NO_X509, kind: 'psk', origin, identity, psks };
    }
    if (given.identity !== undefined) {
      throw wrong(`${option}.identity`, 'one', `none, since ${dir} has certificates and no keys.psk`);
    }
    const names = {
      ca: folder.files.ca,
      cert: folder.files.cert,
      key: folder.files.key,
      crl: folder.files.crl,
    };
    checkX509(folder.pem, role, names, (text) => unfit(text, `${option}.dir`));
    return { ...folder.pem, kind: 'x509', origin, identity, psks: new Map() };
  }
  const origin = `option ${option}`;
  if (given.psk !== undefined) {
    const psks = checkPsks(given.psk, identity, `${option}.psk`);
    checkHasIdentity(psks, identity, role, `option ${option}.psk`, `${option}.identity`);
    return { ...NO_X509, kind: 'psk', origin, identity, psks };
  }
  if (given.identity !== undefined) throw wrong(`${option}.identity`, 'one', 'none with certificates');
  const pem = {
    ca: pemText(given.ca, `${option}.ca`),
    cert: pemText(given.cert, `${option}.cert`),
    key: pemText(given.key, `${option}.key`),
    crl: pemText(given.crl, `${option}.crl`),
  };
  if (pem.ca === undefined && verifyPeer) {
    throw wrong(`${option}.ca`, 'none', 'the certificate of the authority, since verifyPeer is not false');
  }
  if ((pem.cert === undefined) !== (pem.key === undefined)) {
    const [missing, there] = pem.cert === undefined ? ['cert', 'key'] : ['key', 'cert'];
    throw wrong(`${option}.${missing}`, 'none', `one, since ${option}.${there} is given`);
  }
  if (role === 'server' && pem.cert === undefined) {
    throw wrong(`${option}.cert`, 'none', 'a certificate and its key: a server has them');
  }
  const names = {
    ca: `option ${option}.ca`,
    cert: `option ${option}.cert`,
    key: `option ${option}.key`,
    crl: `option ${option}.crl`,
  };
  checkX509(pem, role, names, (text) => new MultifdError('ERR_MULTIFD_OPTION', text));
  return { ...pem, kind: 'x509', origin, identity, psks: new Map() };
}

const NO_X509 = { ca: undefined, cert: undefined, key: undefined, crl: undefined };

function checkIdentity(given: unknown, name: string): string {
  if (given === undefined) return DEFAULT_IDENTITY;
  const bytes = typeof given === 'string' ? Buffer.byteLength(given) : 0;
  const { maxIdentityBytes } = PSK_SIZES;
  if (typeof given !== 'string' || bytes < 1 || bytes > maxIdentityBytes || /[\0\r\n:]/.test(given)) {
    const what = typeof given === 'string' ? `a name of ${bytes} bytes` : kindOf(given);
    throw wrong(name, what, `1 to ${maxIdentityBytes} bytes, no colon and no line end among them`);
  }
  return given;
}

function checkHasIdentity(
  psks: Map<string, Uint8Array>,
  identity: string,
  role: TlsRole,
  where: string,
  name: string,
): void {
  // A server takes whoever has one of the keys.
  if (role === 'server' || psks.has(identity)) return;
  const there = [...psks.keys()].map(quote).join(', ');
  throw new MultifdError(
    'ERR_MULTIFD_TLS',
    `${where} has no key of the identity ${quote(identity)}, but of ${there}; option ${name} says which`,
  );
}

function checkPsks(given: unknown, identity: string, name: string): Map<string, Uint8Array> {
  const refuse = (text: string): MultifdError => new MultifdError('ERR_MULTIFD_OPTION', text);
  const where = `option ${name}`;
  if (typeof given === 'string' && given.includes(':')) return parsePskFile(given, where, refuse);
  if (typeof given === 'string' || given instanceof Uint8Array) {
    return new Map([[identity, checkPsk(given, where, refuse)]]);
  }
  if (given === null || typeof given !== 'object' || Array.isArray(given)) {
    throw wrong(name, kindOf(given), 'bytes, hex, or keys by identity');
  }
  const entries: [unknown, unknown][] = given instanceof Map ? [...given] : Object.entries(given);
  if (entries.length === 0) throw wrong(name, 'no key', 'one or more, by identity');
  return new Map(
    entries.map(([of, key]) => {
      const user = checkIdentity(of, name);
      return [user, checkPsk(key, `${where}, identity ${quote(user)}`, refuse)];
    }),
  );
}

function checkPsk(given: unknown, where: string, refuse: (text: string) => MultifdError): Uint8Array {
  if (typeof given === 'string') return parsePskHex(given, where, refuse);
  const { minKeyBytes, maxKeyBytes } = PSK_SIZES;
  if (!(given instanceof Uint8Array)) throw refuse(`${where}: given ${kindOf(given)}, allowed bytes or hex`);
  if (given.length < minKeyBytes || given.length > maxKeyBytes) {
    throw refuse(`${where}: given ${given.length} bytes, allowed ${minKeyBytes} to ${maxKeyBytes}`);
  }
  // The caller may go on to clear his.
  return Uint8Array.from(given);
}

function pemText(given: unknown, name: string): string | undefined {
  if (given === undefined) return undefined;
  const text = given instanceof Uint8Array ? Buffer.from(given).toString('latin1') : given;
  if (typeof text !== 'string') throw wrong(name, kindOf(given), 'PEM in a string or a Buffer');
  if (!text.includes('-----BEGIN ')) {
    throw wrong(name, `${kindOf(given)} without "-----BEGIN"`, 'PEM, not a path and not DER');
  }
  return text;
}

function checkHostname(
  given: unknown,
  { role, kind, verifyPeer, option }: PlainTlsCredentials,
  address: Address | undefined,
): string | undefined {
  const name = `${option}.hostname`;
  if (given !== undefined) {
    if (typeof given !== 'string' || given === '' || /[\s\0]/.test(given)) {
      throw wrong(name, kindOrText(given), 'a host name or an IP address');
    }
    // None of them without effect: it would be taken for a check that is made.
    if (role === 'server') throw wrong(name, quote(given), "none: it is a server's name that is checked");
    if (kind === 'psk') throw wrong(name, quote(given), 'none with a PSK, which names no host');
    return given;
  }
  if (role === 'server' || kind === 'psk') return undefined;
  if (address?.host !== undefined) return address.host;
  if (!verifyPeer) return undefined;
  throw wrong(name, 'none', 'the name in the certificate of the server, since a unix socket has none');
}

/** What OpenSSL alone can say. */
function checkTogether(plain: PlainTlsCredentials): void {
  const { option, ciphers } = plain;
  if (ciphers !== undefined) {
    try {
      tls.createSecureContext({ ciphers });
    } catch {
      throw wrong(`${option}.ciphers`, quote(ciphers), 'names of ciphers that this OpenSSL has');
    }
  }
  if (plain.kind !== 'x509') return;
  try {
    tls.createSecureContext({ ca: plain.ca, cert: plain.cert, key: plain.key, crl: plain.crl });
  } catch (error) {
    // A key that is too small for the security level, for instance.
    throw unfit(`${plain.origin}: TLS does not take the certificate: ${describeThrown(error)}`, option);
  }
}

function unfit(text: string, option: string): MultifdError {
  return new MultifdError('ERR_MULTIFD_TLS', `${text} (option ${option})`);
}

function wrong(name: string, given: string, allowed: string): MultifdError {
  return new MultifdError('ERR_MULTIFD_OPTION', `option ${name}: given ${given}, allowed ${allowed}`);
}

function kindOrText(given: unknown): string {
  return typeof given === 'string' ? quote(given.slice(0, 100)) : kindOf(given);
}

/** For messages: of what may be a secret only what it is. */
function kindOf(given: unknown): string {
  if (given === null || given === undefined) return String(given);
  if (typeof given === 'string')
    return given === '' ? 'an empty string' : `a string of ${given.length} characters`;
  if (given instanceof Uint8Array) return `a Buffer of ${given.length} bytes`;
  if (Array.isArray(given)) return 'an array';
  return typeof given === 'object' ? 'an object' : `a ${typeof given}`;
}
