/** Addresses: an object, or the text that QEMU and virsh write. */
import { resolve } from 'node:path';
import { didYouMean } from '../did-you-mean.js';
import { wrong } from '../option-checks.js';

export type Address =
  { host?: string; port: number; path?: undefined } | { path: string; host?: undefined; port?: undefined };
/** Text of an address; of one that is no literal parseAddress() makes an Address. */
export type AddressText =
  | `tcp:${string}:${number}${'' | '/'}`
  | `tcp:${'' | '//'}[${string}]:${number}${'' | '/'}`
  | `unix:${string}`;

/** sun_path, without its end. */
export const MAX_UNIX_PATH_BYTES = process.platform === 'linux' ? 107 : 103;

/** @throws MultifdError ERR_MULTIFD_OPTION */
export function checkAddress(address: unknown, lowestPort: number, name = 'address'): Address {
  const allowed = "{ host, port }, { path }, 'tcp:HOST:PORT' or 'unix:PATH'";
  if (typeof address === 'string') {
    // With and without slashes: as QEMU writes them, and as virsh does.
    const tcp = /^tcp:(?:\/\/)?(?:\[([^\]]+)\]|([^:[\]/]*)):(\d+)\/?$/.exec(address);
    if (tcp !== null) {
      return checkAddress(
        { host: tcp[1] ?? (tcp[2] || '127.0.0.1'), port: Number(tcp[3]) },
        lowestPort,
        name,
      );
    }
    if (address.startsWith('unix:///')) return checkAddress({ path: address.slice(7) }, lowestPort, name);
    if (address.startsWith('unix:') && address.length > 5)
      return checkAddress({ path: address.slice(5) }, lowestPort, name);
    throw wrong(name, address, `${allowed}${addressMeant(address)}`);
  }
  if (address === null || typeof address !== 'object') throw wrong(name, address, allowed);
  const { host, port, path } = address as { host?: unknown; port?: unknown; path?: unknown };
  const keys = ['host', 'port', 'path'];
  const unknown = Object.keys(address).find((key) => !keys.includes(key));
  if (unknown !== undefined) throw wrong(name, address, `${allowed}${didYouMean(unknown, keys)}`);
  if (path !== undefined) {
    if (typeof path !== 'string' || path === '' || port !== undefined || host !== undefined) {
      throw wrong(name, address, allowed);
    }
    requirePathFits(path, name);
    return { path };
  }
  if (host !== undefined && (typeof host !== 'string' || host === '')) throw wrong(name, address, allowed);
  if (!Number.isInteger(port) || (port as number) < lowestPort || (port as number) > 65535) {
    throw wrong(`${name}.port`, port, `an integer from ${lowestPort} to 65535`);
  }
  return { host: host ?? '127.0.0.1', port: port as number };
}

/** The system would cut it off in silence. */
function requirePathFits(path: string, name: string): void {
  const bytes = Buffer.byteLength(path);
  if (bytes > MAX_UNIX_PATH_BYTES || path.includes('\0'))
    throw wrong(name, `a path of ${bytes} bytes`, `at most ${MAX_UNIX_PATH_BYTES}, none of them 0`);
}

/**
 * One that another process is told: its folder is another than ours, so that a path is made absolute.
 *
 * @throws MultifdError ERR_MULTIFD_OPTION
 */
export function checkToldAddress(given: unknown, lowestPort: number, name: string): Address {
  const address = checkAddress(given, lowestPort, name);
  if (address.path === undefined) return address;
  const path = resolve(address.path);
  requirePathFits(path, name);
  return { path };
}

/** For the end of a message: the address with what it lacks in front. */
export function addressMeant(text: string): string {
  if (/^(?!(?:tcp|unix|fd|vsock|rdma):)[^:/\s]*:\d+$/.test(text)) return `; did you mean tcp:${text}?`;
  return /^\.*\//.test(text) ? `; did you mean unix:${text}?` : '';
}

/**
 * An address of text that comes from elsewhere: a configuration, a command line.
 *
 * @param text `tcp:HOST:PORT`, `tcp:[V6]:PORT` or `unix:PATH`
 * @throws MultifdError ERR_MULTIFD_OPTION
 */
export function parseAddress(text: string): Address {
  return checkAddress(String(text), 0);
}

/** Text form of an address, for messages. */
export function formatAddress(address: Address): string {
  if (address.path !== undefined) return `unix:${address.path}`;
  const host = address.host ?? '127.0.0.1';
  return `tcp:${host.includes(':') ? `[${host}]` : host}:${address.port}`;
}
