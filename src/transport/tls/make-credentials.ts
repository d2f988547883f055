/**
 * New credentials for a pair of hosts, as files with QEMU's names:
 *
 *     writePskCredentials()     keys.psk: one random key, the same file for both hosts and both roles
 *     writeX509Credentials()    an authority, and for each host a folder that serves it in both roles
 *                                   DIR/ca-cert.pem, ca-key.pem      ca-key.pem signs more hosts: kept off them
 *                                   DIR/HOST/ca-cert.pem, server-cert.pem, server-key.pem, client-cert.pem, client-key.pem
 *
 * Whoever has a key can be a host, so folders are for their owner alone, and a file is made with its mode, not given it
 * later. Without `overwrite` nothing that is there is replaced: the other host would be locked out.
 */
import crypto from 'node:crypto';
import { mkdir, open, rename, rm, stat } from 'node:fs/promises';
import net from 'node:net';
import path from 'node:path';
import { codeOf, describeThrown, MultifdError } from '../../errors.js';
import { quote } from '../../printable.js';
import { PSK_SIZES } from './psk-file.js';
import { writeCertificate, type CertificateOptions, type Issued } from './write-certificate.js';

const FOLDER_MODE = 0o700;
const FILE_MODE = 0o600;
/** As psktool of GnuTLS makes them. */
const PSK_BYTES = 32;
const DAY_MS = 86_400_000;
/** Clocks of hosts differ. */
const BACKDATED_DAYS = 1;

export interface WriteOptions {
  /** Replace files that are there (default false). */
  overwrite?: boolean;
}

export interface WritePskOptions extends WriteOptions {
  /** Whose key it is (default `qemu`, as QEMU's username). */
  identity?: string;
}

export interface WriteX509Options extends WriteOptions {
  /** For how long (default 365). */
  days?: number;
}

/**
 * @returns the file's path
 * @throws MultifdError ERR_MULTIFD_OPTION, ERR_MULTIFD_IO
 */
export async function writePskCredentials(dir: string, options: WritePskOptions = {}): Promise<string> {
  const { identity = 'qemu', overwrite = false } = options;
  const bytes = Buffer.byteLength(identity);
  const { maxIdentityBytes } = PSK_SIZES;
  if (bytes < 1 || bytes > maxIdentityBytes || /[\0\r\n:]/.test(identity)) {
    throw new MultifdError(
      'ERR_MULTIFD_OPTION',
      `option identity: given ${quote(identity)}, allowed 1 to ${maxIdentityBytes} bytes, no colon and no line end`,
    );
  }
  const file = path.join(dir, 'keys.psk');
  const key = crypto.randomBytes(PSK_BYTES).toString('hex');
  await makeFolder(dir);
  await writeFiles({ [file]: `${identity}:${key}\n` }, overwrite);
  return file;
}

/**
 * @param hosts their names or IP addresses, each as the other side connects to it; several names of one host are joined
 *     by commas, and its folder has the first
 * @returns the folders of the hosts
 * @throws MultifdError ERR_MULTIFD_OPTION, ERR_MULTIFD_IO
 */
export async function writeX509Credentials(
  dir: string,
  hosts: readonly string[],
  options: WriteX509Options = {},
): Promise<string[]> {
  const { days = 365, overwrite = false } = options;
  if (!Number.isInteger(days) || days < 1 || days > 36_500) {
    throw new MultifdError('ERR_MULTIFD_OPTION', `option days: given ${days}, allowed 1 to 36500`);
  }
  const named = hosts.map((names) => names.split(','));
  checkNames(named);
  const valid = {
    notBefore: new Date(Date.now() - BACKDATED_DAYS * DAY_MS),
    notAfter: new Date(Date.now() + days * DAY_MS),
  };
  const authority = writeCertificate({ subject: [['CN', 'multifd authority']], kind: 'ca', ...valid });
  const files: Record<string, string> = {
    [path.join(dir, 'ca-cert.pem')]: authority.certificate,
    [path.join(dir, 'ca-key.pem')]: authority.key,
  };
  await makeFolder(dir);
  const folders: string[] = [];
  for (const names of named) {
    const folder = path.join(dir, names[0]);
    await makeFolder(folder);
    folders.push(folder);
    files[path.join(folder, 'ca-cert.pem')] = authority.certificate;
    for (const kind of ['server', 'client'] as const) {
      const issued = issue(authority, kind, names, valid);
      files[path.join(folder, `${kind}-cert.pem`)] = issued.certificate;
      files[path.join(folder, `${kind}-key.pem`)] = issued.key;
    }
  }
  await writeFiles(files, overwrite);
  return folders;
}

function issue(
  issuer: Issued,
  kind: 'server' | 'client',
  names: string[],
  valid: Pick<CertificateOptions, 'notBefore' | 'notAfter'>,
): Issued {
  // The name's first is what tls-authz of the destination is compared with: CN=HOST.
  return writeCertificate({ subject: [['CN', names[0]]], kind, issuer, names, ...valid });
}

function checkNames(hosts: string[][]): void {
  const seen = new Set<string>();
  if (hosts.length === 0)
    throw new MultifdError('ERR_MULTIFD_OPTION', 'option hosts: given none, allowed 1 or more');
  for (const name of hosts.flat()) {
    // One of the folder's own, too: no slash and no dots alone. 64 is the limit of a CN.
    const good = net.isIP(name) !== 0 || /^(?=.{1,64}$)[a-z\d_](?:[a-z\d_.-]*[a-z\d_])?$/i.test(name);
    if (!good || seen.has(name)) {
      const given = `${quote(name)}${good ? ' twice' : ''}`;
      throw new MultifdError(
        'ERR_MULTIFD_OPTION',
        `option hosts: given ${given}, allowed a host's name of at most 64 characters, or an IP address, each once`,
      );
    }
    seen.add(name);
  }
}

async function makeFolder(dir: string): Promise<void> {
  try {
    await makeFolders(path.resolve(dir));
  } catch (error) {
    throw MultifdError.wrap(error, 'ERR_MULTIFD_IO', `${dir} cannot be made`);
  }
}

/** Not mkdir's own `recursive`: where a file system says ENOENT whatever there is above (/proc), that never ends. */
async function makeFolders(dir: string, above = true): Promise<void> {
  try {
    await mkdir(dir, { mode: FOLDER_MODE });
  } catch (error) {
    const code = codeOf(error);
    if (code === 'EEXIST' && (await stat(dir)).isDirectory()) return;
    if (code !== 'ENOENT' || !above) throw error;
    await makeFolders(path.dirname(dir));
    await makeFolders(dir, false);
  }
}

/** All of them or, as far as it goes, none: a folder with half of new credentials fits nobody. */
async function writeFiles(files: Record<string, string>, overwrite: boolean): Promise<void> {
  const written: string[] = [];
  try {
    for (const [file, text] of Object.entries(files)) {
      // In another file first, so that a reader never sees a half of it, nor a mode that was there before.
      const target = overwrite ? `${file}.${crypto.randomBytes(4).toString('hex')}` : file;
      // 'wx' follows no link and takes no file that is there.
      const handle = await open(target, 'wx', FILE_MODE);
      written.push(target);
      try {
        await handle.writeFile(text);
        await handle.sync();
      } finally {
        await handle.close();
      }
    }
    if (overwrite) {
      for (const [index, file] of Object.keys(files).entries()) await rename(written[index], file);
    }
  } catch (error) {
    for (const file of written) await rm(file, { force: true });
    const { path: where } = error as NodeJS.ErrnoException;
    const text =
      codeOf(error) === 'EEXIST'
        ? `${where} is there; it is replaced with overwrite only, since the other host would no longer fit`
        : `${where ?? 'the credentials'} cannot be written: ${describeThrown(error)}`;
    throw new MultifdError('ERR_MULTIFD_IO', text, { cause: error });
  }
}
