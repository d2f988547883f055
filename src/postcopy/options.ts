/** The options of `sendMigration({ mode: 'postcopy' })`, checked before anything is opened, and against the file then. */
import { MultifdError } from '../errors.js';
import type { MappedRamDescription } from '../mapped-ram/description.js';
import { CONNECT_TIMEOUT_MS, checkOffset, checkOutgoing, checkPeer } from '../migration/options.js';
import { STALL_TIMEOUT_MS } from '../migration/watch.js';
import { callback, checkKeys, fileName, flag, integer, wrong } from '../option-checks.js';
import { SENDER_KEYS, checkTls, type CommonOptions } from '../options.js';
import { checkDirectIo } from '../ram/direct-io.js';
import { BOUND_KEYS, type BoundOptions, type Bounds, checkBounds } from '../stream/bounds.js';
import type { QemuVersion } from '../stream/machine.js';
import { checkAddress, type Address, type AddressText } from '../transport/address.js';
import type { CheckedTls } from '../transport/tls/check-options.js';
import { loadTls } from '../transport/tls/loaded.js';
import type { PostcopySession, PostcopyStart } from './session.js';

/** Of a host's pages and the target's: where the option says nothing else. */
const HOST_PAGE_SIZE = 4096;
const MAX_HOST_PAGE_SIZE = 2 ** 34;
/** By choice: a tenth of a second at 3 Gbit/s, and more than a guest touches in its first second. */
const MAX_HOT = 2 ** 25;
/** All that a hint can have. */
const MOST_HOT = 2 ** 40;

export interface PostcopyOptions
  extends
    Pick<CommonOptions, 'pageSize' | 'stallTimeoutMs' | 'connectTimeoutMs' | 'tls' | 'signal'>,
    BoundOptions {
  mode: 'postcopy';
  /** A mapped-ram file: from receiveMigration(), from QEMU's `file:` migration, or what libvirt saves in format sparse. */
  file: string;
  /** Where the stream begins in the file, in bytes (default 0). */
  offset?: number;
  /** Read the pages past the page cache (O_DIRECT; default false). QEMU: direct-io. */
  directIo?: boolean;
  /** Where a QEMU waits with capabilities postcopy-ram and return-path, and without multifd. */
  to: Address | AddressText;
  /** The destination's program version, such as `7.2`, where it is older than the machine type asks for. */
  peer?: string;
  /** Bytes a second of what nobody has asked for; 0 (default) for no limit. QEMU: max-postcopy-bandwidth. */
  maxBandwidth?: number;
  /** Size of the destination host's normal pages, in bytes (default 4096). */
  hostPageSize?: number;
  /** By RAM block: size of the huge pages that it has at the destination, in bytes. */
  hugePages?: Record<string, number>;
  /**
   * Keep beside the file, as FILE.hot, which pages the guest asks for, and send those first that it asked for in earlier starts
   * (default false): nothing but the order of pages depends on that file. It has mode 0600.
   */
  hot?: boolean;
  /** Bytes of such pages that are sent before the guest runs, in half a second at most (default 32 MiB). */
  maxHot?: number;
  /**
   * Go on after a connection that broke while the guest ran: the destination is in `postcopy-paused`, and listens anew by QMP's
   * `migrate-recover`. The same file must be given.
   */
  recover?: boolean;
  /** Called when the file has been read and the destination is connected, before anything is sent. */
  onStart?: (start: PostcopyStart) => void;
  /** Called with the session, for progress() and stats(). */
  onSession?: (session: PostcopySession) => void;
  /**
   * Called when the guest has been loaded and told to run, with the milliseconds since the call: it does unless its QEMU was
   * started with -S. By resumeVm(), which asks QEMU, only if it does.
   */
  onRunning?: (afterMs: number) => void;
  /** Called with what is amiss and changes nothing: a hint that is of another file, or cannot be kept. */
  onWarning?: (message: string) => void;
}

const KEYS: Record<keyof PostcopyOptions, true> = {
  ...BOUND_KEYS,
  mode: true,
  file: true,
  offset: true,
  directIo: true,
  to: true,
  peer: true,
  pageSize: true,
  maxBandwidth: true,
  hostPageSize: true,
  hugePages: true,
  hot: true,
  maxHot: true,
  recover: true,
  connectTimeoutMs: true,
  stallTimeoutMs: true,
  tls: true,
  signal: true,
  onStart: true,
  onSession: true,
  onRunning: true,
  onWarning: true,
};

export interface CheckedPostcopy {
  file: string;
  offset: number;
  directIo: boolean;
  address: Address;
  peer: QemuVersion | undefined;
  pageSize: number | undefined;
  maxBandwidth: number;
  hostPageSize: number;
  hugePages: ReadonlyMap<string, number>;
  hot: boolean;
  maxHot: number;
  recover: boolean;
  connectTimeoutMs: number;
  stallTimeoutMs: number;
  bounds: Bounds;
  tls: CheckedTls | undefined;
  signal: AbortSignal | undefined;
}

/** @throws MultifdError ERR_MULTIFD_OPTION, ERR_MULTIFD_TLS */
export async function checkPostcopy(options: PostcopyOptions): Promise<CheckedPostcopy> {
  for (const key of Object.keys(options)) {
    if (!SENDER_KEYS.includes(key) || key in KEYS) continue;
    const given = (options as unknown as Record<string, unknown>)[key];
    if (given !== undefined)
      throw wrong(key, given, "only without mode 'postcopy', which has one plain connection");
  }
  const { maxRam, maxBlocks, maxDescription, ...others } = options;
  checkKeys(others, [...Object.keys(KEYS), ...SENDER_KEYS]);
  const address = checkAddress(options.to, 1, 'to');
  const { connectTimeoutMs = CONNECT_TIMEOUT_MS, stallTimeoutMs = STALL_TIMEOUT_MS, signal } = options;
  const { pageSize, maxBandwidth = 0 } = options;
  // What it shares with a sender is checked as a sender's.
  checkOutgoing(
    {
      address,
      connectTimeoutMs,
      stallTimeoutMs,
      maxBandwidth,
      ...(pageSize !== undefined && { pageSize }),
      ...(signal !== undefined && { signal }),
    },
    options.tls,
  );
  for (const hook of ['onStart', 'onSession', 'onRunning', 'onWarning'] as const)
    callback(hook, options[hook]);
  await loadTls(options.tls);
  const maxHot = integer('maxHot', options.maxHot, MAX_HOT, 0, MOST_HOT);
  if (options.maxHot !== undefined && options.hot !== true)
    throw wrong('maxHot', options.maxHot, 'none without option hot');
  return {
    file: fileName('file', options.file),
    offset: checkOffset(options.offset),
    directIo: checkDirectIo(options.directIo),
    address,
    peer: checkPeer(options.peer),
    pageSize,
    maxBandwidth,
    hostPageSize: checkHostPage('hostPageSize', options.hostPageSize ?? HOST_PAGE_SIZE),
    hugePages: checkHugePages(options.hugePages),
    hot: flag('hot', options.hot),
    maxHot,
    recover: flag('recover', options.recover),
    connectTimeoutMs,
    stallTimeoutMs,
    bounds: checkBounds({
      ...(maxRam !== undefined && { maxRam }),
      ...(maxBlocks !== undefined && { maxBlocks }),
      ...(maxDescription !== undefined && { maxDescription }),
    }),
    tls: checkTls(options.tls, 'client', 'tls', address),
    signal,
  };
}

function checkHostPage(name: string, size: unknown): number {
  const isSize =
    typeof size === 'number' &&
    size >= HOST_PAGE_SIZE &&
    size <= MAX_HOST_PAGE_SIZE &&
    Number.isInteger(Math.log2(size));
  if (!isSize) throw wrong(name, size, `a power of two from ${HOST_PAGE_SIZE} to ${MAX_HOST_PAGE_SIZE}`);
  return size;
}

function checkHugePages(given: unknown): ReadonlyMap<string, number> {
  if (given === undefined) return new Map();
  if (given === null || typeof given !== 'object' || Array.isArray(given))
    throw wrong('hugePages', given, "an object such as { 'pc.ram': 2097152 }");
  return new Map(
    Object.entries(given).map(([name, size]) => [
      name,
      checkHostPage(`hugePages[${JSON.stringify(name)}]`, size),
    ]),
  );
}

/**
 * Size of the host's pages at the destination, of each block.
 *
 * @throws MultifdError ERR_MULTIFD_OPTION
 */
export function hostPageSizes(
  { hostPageSize, hugePages }: Pick<CheckedPostcopy, 'hostPageSize' | 'hugePages'>,
  { blocks, pageSize }: Pick<MappedRamDescription, 'blocks' | 'pageSize'>,
): Map<string, number> {
  const names = blocks.map(({ name }) => name);
  for (const name of hugePages.keys()) {
    if (!names.includes(name))
      throw wrong('hugePages', name, `one of the file's blocks: ${names.join(', ')}`);
  }
  if (hostPageSize < pageSize) {
    // As QEMU: postcopy places pages of the host, and has no part of one.
    throw wrong('hostPageSize', hostPageSize, `${pageSize} or more: the target's page size`);
  }
  return new Map(
    blocks.map(({ name, usedLength }) => {
      const size = hugePages.get(name) ?? hostPageSize;
      if (usedLength % size === 0) return [name, size];
      const option = hugePages.has(name) ? `hugePages[${JSON.stringify(name)}]` : 'hostPageSize';
      throw wrong(
        option,
        size,
        `a part of the block's size: ${JSON.stringify(name)} has ${usedLength} bytes`,
      );
    }),
  );
}

/** For a mode that is none. */
export function wrongMode(mode: unknown): MultifdError {
  return wrong('mode', mode, "'precopy' or 'postcopy'");
}
