/**
 * A folder with credentials. Which kind it holds, its files tell:
 *
 *     QEMU, x509      ca-cert.pem   ca-crl.pem   server-cert.pem   server-key.pem          client-...
 *     QEMU, PSK       keys.psk
 *     libvirt         cacert.pem    cacrl.pem    servercert.pem    private/serverkey.pem   client...
 *                     the authority in ../CA (/etc/pki/libvirt), or all side by side (~/.pki/libvirt)
 *
 * Read once, on the calling thread: keys are often readable for a program's first moments only.
 */
import { readFileSync, statSync } from 'node:fs';
import path from 'node:path';
import { codeOf, MultifdError } from '../../errors.js';
import type { TlsRole } from './options.js';

export type TlsFolder =
  | { kind: 'psk'; text: string; file: string }
  | {
      kind: 'x509';
      pem: Record<Part, string | undefined>;
      /** Their paths, also of those that are not there. */
      files: Record<Part, string>;
    };
type Part = 'ca' | 'crl' | 'cert' | 'key';

const LAYOUTS: ((role: TlsRole) => Record<Part, string>)[] = [
  (role) => ({ ca: 'ca-cert.pem', crl: 'ca-crl.pem', cert: `${role}-cert.pem`, key: `${role}-key.pem` }),
  (role) => ({ ca: 'cacert.pem', crl: 'cacrl.pem', cert: `${role}cert.pem`, key: `private/${role}key.pem` }),
  (role) => ({ ca: 'cacert.pem', crl: 'cacrl.pem', cert: `${role}cert.pem`, key: `${role}key.pem` }),
  (role) => ({
    ca: '../CA/cacert.pem',
    crl: '../CA/cacrl.pem',
    cert: `${role}cert.pem`,
    key: `private/${role}key.pem`,
  }),
];
const PSK_FILE = 'keys.psk';
/** Far above any real one: a path that names something else (a disk) is not read to its end. */
const MAX_FILE_BYTES = 2 ** 20;

/**
 * @param option the option's name, for messages
 * @param wantsPsk an identity was given, so keys.psk is meant where both are there
 * @throws MultifdError ERR_MULTIFD_TLS
 */
export function readTlsFolder(
  dir: string,
  role: TlsRole,
  option: string,
  wantsPsk: boolean,
  verifyPeer: boolean,
): TlsFolder {
  const isFolder = attempt(() => statSync(dir).isDirectory(), dir, option);
  if (isFolder !== true) {
    throw refuse(`${dir}: ${isFolder === undefined ? 'no such folder' : 'not a folder'}`, option);
  }
  const psk = path.join(dir, PSK_FILE);
  const pskText = read(psk, option);
  const layouts = LAYOUTS.map((layout) => filesOf(dir, layout(role)));
  // By its authority, and by the server's or client's own where that is not asked for or stands alone.
  const layout =
    layouts.find(({ ca, key }) => exists(ca) && exists(key)) ??
    layouts.find(({ ca }) => exists(ca)) ??
    layouts.find(({ cert }) => exists(cert));
  if (pskText !== undefined && (wantsPsk || layout === undefined)) {
    return { kind: 'psk', text: pskText, file: psk };
  }
  if (layout === undefined) {
    const wanted = `neither ca-cert.pem (x509; libvirt: cacert.pem) nor ${PSK_FILE}`;
    throw refuse(`${dir} has ${wanted}`, option);
  }
  if (pskText !== undefined) {
    const both = `${dir} has both ${PSK_FILE} and certificates`;
    throw refuse(`${both}; give an identity for the PSK, or a folder for each kind`, option);
  }
  const pem = {
    ca: read(layout.ca, option),
    crl: read(layout.crl, option),
    cert: read(layout.cert, option),
    key: read(layout.key, option),
  };
  const needed: Part[] = role === 'server' ? ['cert', 'key'] : [];
  if (verifyPeer) needed.unshift('ca');
  if (pem.cert !== undefined) needed.push('key');
  if (pem.key !== undefined) needed.push('cert');
  const missing = needed.find((part) => pem[part] === undefined);
  if (missing !== undefined) throw refuse(`${layout[missing]} is missing; a ${role} needs it`, option);
  return { kind: 'x509', pem, files: layout };
}

function filesOf(dir: string, names: Record<Part, string>): Record<Part, string> {
  const of = (part: Part): string => path.join(dir, names[part]);
  return { ca: of('ca'), crl: of('crl'), cert: of('cert'), key: of('key') };
}

function exists(file: string): boolean {
  try {
    statSync(file);
    return true;
  } catch (error) {
    // One that may not be looked at is there: reading it says why not.
    return codeOf(error) === 'EACCES';
  }
}

/** @returns undefined if it is not there */
function read(file: string, option: string): string | undefined {
  return attempt(
    () => {
      const stats = statSync(file);
      if (!stats.isFile() || stats.size > MAX_FILE_BYTES) {
        throw refuse(`${file} is not a file of at most ${MAX_FILE_BYTES} bytes`, option);
      }
      return readFileSync(file, 'utf8');
    },
    file,
    option,
  );
}

function attempt<T>(action: () => T, file: string, option: string): T | undefined {
  try {
    return action();
  } catch (error) {
    if (codeOf(error) === 'ENOENT') return undefined;
    if (error instanceof MultifdError) throw error;
    throw new MultifdError('ERR_MULTIFD_TLS', `${file} cannot be read: ${codeOf(error)} (option ${option})`, {
      cause: error,
    });
  }
}

function refuse(text: string, option: string): MultifdError {
  return new MultifdError('ERR_MULTIFD_TLS', `${text} (option ${option})`);
}
