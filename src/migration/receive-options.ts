/** What receiveMigration() is told, checked before anything is opened; and what it answers. */
import { callback, fileName, flag, integer, wrong } from '../option-checks.js';
import { checkReceiverOptions, type CheckedReceiverOptions, type ReceiverOptions } from '../options.js';
import { PACK_LEVEL } from '../packed/pack.js';
import type { Receiver as PublicReceiver } from '../public-session.js';
import { checkDirectIo } from '../ram/direct-io.js';
import type { ReceiverStats } from '../recv/receiver.js';
import { threadOptions } from '../runtime.js';
import { BOUND_KEYS, checkBounds, type BoundOptions, type Bounds } from '../stream/bounds.js';
import type { Address } from '../transport/address.js';
import { loadTls } from '../transport/tls/loaded.js';
import { checkDiscard, type Discard } from './discard.js';
import { CONNECT_TIMEOUT_MS, requireOptions } from './options.js';
import { PACKED_SUFFIX } from './pack.js';
import { checkSwitchoverAck, type SwitchoverAck } from './switchover-ack.js';

export interface ReceiveMigrationOptions extends Omit<ReceiverOptions, 'blocks' | 'devices'>, BoundOptions {
  /** Milliseconds for all connections to come in, once the first has (default 8000). */
  connectTimeoutMs?: number;
  /** The file that is made. It must not exist yet unless `overwrite` is set. Needed without `discard`. */
  out?: string;
  /**
   * Keep nothing: all is read, decoded, checked and counted, for throughput tests of a source. `true` and `refuse`: the source
   * is told that it failed, so that its guest runs on; one without return path is refused. `accept`: it is told that all is
   * well and gives its guest up. Default false.
   */
  discard?: boolean | Discard;
  overwrite?: boolean;
  /**
   * Pack the file when all is there, in the seekable zstd format (packMigration()); as long the source waits, and there is a
   * plain file beside. Default: where `out` ends with `.zst`.
   */
  packed?: boolean;
  /** zstd level of a packed file, 1 to 20 (default 3). */
  packLevel?: number;
  /** Called now and then while it is packed, with the bytes of the plain file done so far, and all of them. */
  onPacking?: (bytes: number, totalBytes: number) => void;
  /** After a failure, leave the partial file under `OUT.part` (default false: it is removed). */
  keepPartial?: boolean;
  /**
   * Write the pages past the page cache (O_DIRECT; default false). A file system that does not let that be done is refused
   * before anything is listened on. QEMU: direct-io.
   */
  directIo?: boolean;
  /**
   * With the return path: the source's SWITCHOVER_ACK, without which one with capability switchover-ack goes on for ever.
   * Default `auto`: where the source can be told to bear it; see switchover-ack.ts.
   */
  switchoverAck?: SwitchoverAck;
  /** Called once the address is listened on. */
  onListening?: (address: Address) => void;
  /** Called when the source has told what it sends. */
  onStart?: (start: { machine: string; blocks: { name: string; size: number }[] }) => void;
  /** Called with the session, for progress() and stats(). */
  onSession?: (receiver: PublicReceiver) => void;
}

/** Those that are not a receiver's. */
const OWN_OPTIONS: Record<Exclude<keyof ReceiveMigrationOptions, keyof ReceiverOptions>, true> = {
  ...BOUND_KEYS,
  out: true,
  discard: true,
  overwrite: true,
  packed: true,
  packLevel: true,
  onPacking: true,
  keepPartial: true,
  directIo: true,
  switchoverAck: true,
  onListening: true,
  onStart: true,
  onSession: true,
};

export interface ReceivedMigration {
  /** The file; empty where nothing is kept. */
  out: string;
  /** What the source was told of what was discarded; undefined where there is a file. */
  discarded?: Discard;
  /** The machine type's full name; empty if the source sent none. */
  machine: string;
  blocks: { name: string; size: number; presentPages: number }[];
  /** Target page size, in bytes. */
  pageSize: number;
  /** The VM's uuid in text, as its channels told it: `send` has to be given it, the file has no place for it. */
  uuid: string | null;
  /** Length of the file, holes included; of one that is packed, that of the plain one. */
  fileBytes: number;
  /** Length of a file that is packed. */
  packedBytes?: number;
  returnPath: boolean;
  stats: ReceiverStats;
}

/** The file to be made. */
export interface CheckedOutput {
  out: string;
  overwrite: boolean;
  keepPartial: boolean;
  directIo: boolean;
  isPacked: boolean;
  level: number;
}

export interface CheckedReceive {
  session: CheckedReceiverOptions;
  output: CheckedOutput;
  discard: Discard | undefined;
  bounds: Bounds;
  switchoverAck: SwitchoverAck;
  /** As it was given; the stream may tell it. */
  pageSize: number | undefined;
  anyUuid: boolean;
}

/** @throws MultifdError ERR_MULTIFD_OPTION and ERR_MULTIFD_RUNTIME, ERR_MULTIFD_TLS for credentials that cannot be read */
export async function checkReceive(options: ReceiveMigrationOptions): Promise<CheckedReceive> {
  const {
    out = '',
    discard: givenDiscard,
    overwrite,
    packed,
    packLevel,
    onPacking,
    keepPartial,
    switchoverAck: ack,
    onListening,
    onStart,
    onSession,
    ...others
  } = requireOptions(options);
  const { maxRam, maxBlocks, maxDescription, directIo: direct, ...receiver } = others;
  const directIo = checkDirectIo(direct);
  const bounds = checkBounds({ maxRam, maxBlocks, maxDescription });
  const switchoverAck = checkSwitchoverAck(ack);
  const discard = checkDiscard(givenDiscard);
  if (discard === undefined) fileName('out', options.out);
  else if (options.out !== undefined) throw wrong('out', options.out, 'none beside option discard');
  for (const [name, hook] of Object.entries({ onPacking, onListening, onStart, onSession }))
    callback(name, hook);
  const flags = { overwrite: flag('overwrite', overwrite), keepPartial: flag('keepPartial', keepPartial) };
  if (discard !== undefined) refuseOfFiles({ ...flags, packed, directIo });
  const isPacked = packed === undefined ? out.endsWith(PACKED_SUFFIX) : flag('packed', packed);
  if (packLevel !== undefined && !isPacked)
    throw wrong(
      'packLevel',
      packLevel,
      'none for a file that is not packed (option packed, or a name that ends with .zst)',
    );
  const level = integer('packLevel', packLevel, PACK_LEVEL, 1, 20);
  if (isPacked) threadOptions('pack', 'zstd');
  await loadTls(receiver.tls);
  const session = checkReceiverOptions(
    { ...receiver, connectTimeoutMs: receiver.connectTimeoutMs ?? CONNECT_TIMEOUT_MS },
    true,
    Object.keys(OWN_OPTIONS),
  );
  const { pageSize, uuid } = receiver;
  const output = { out, ...flags, directIo, isPacked, level };
  return { session, output, discard, bounds, switchoverAck, pageSize, anyUuid: uuid === undefined };
}

/** @throws MultifdError ERR_MULTIFD_OPTION */
function refuseOfFiles(flags: Record<string, boolean | undefined>): void {
  for (const [name, value] of Object.entries(flags)) {
    if (value === true) throw wrong(name, value, 'false with option discard: there is no file');
  }
}
