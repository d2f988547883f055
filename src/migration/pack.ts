/**
 * A migration file packed, and unpacked: a file made of another, which stays.
 *
 *     vm.mig      --packMigration()-->    vm.mig.zst.part --> fsync, rename, fsync of the folder --> vm.mig.zst
 *     vm.mig.zst  --unpackMigration()-->  vm.mig.part     --> likewise                           --> vm.mig
 */
import { statSync } from 'node:fs';
import { MultifdError } from '../errors.js';
import { readSaveImage, requireSparse } from '../libvirt/save-image.js';
import { requireSound } from '../mapped-ram/description.js';
import { readMappedRam } from '../mapped-ram/read.js';
import { abortSignal, callback, checkKeys, fileName, flag, integer, wrong } from '../option-checks.js';
import { MigrationFile } from '../packed/open.js';
import { PACK_LEVEL, type OpenFile, packInto, unpackInto } from '../packed/pack.js';
import type { ReadableFile } from '../stream/positioned-file.js';
import { checkDirectIo } from '../ram/direct-io.js';
import { callHook, requireOptions } from './options.js';
import { OutputFile } from './output-file.js';

/** Of files that are packed. */
export const PACKED_SUFFIX = '.zst';

export interface UnpackMigrationOptions {
  /** The file that is read; it stays. */
  file: string;
  /** The file that is made. Default: `file` with, or without, `.zst`. It must not exist yet unless `overwrite` is set. */
  out?: string;
  overwrite?: boolean;
  /** Read and write past the page cache (O_DIRECT; default false). QEMU: direct-io. */
  directIo?: boolean;
  signal?: AbortSignal;
  /** Called now and then with the bytes of the plain file done so far, and all of them. */
  onProgress?: (bytes: number, totalBytes: number) => void;
}

export interface PackMigrationOptions extends UnpackMigrationOptions {
  /** zstd level, 1 to 20 (default 3). */
  zstdLevel?: number;
}

export interface PackedMigration {
  out: string;
  plainBytes: number;
  packedBytes: number;
}

const UNPACK_KEYS = ['file', 'out', 'overwrite', 'directIo', 'signal', 'onProgress'];

/**
 * Packs a mapped-ram file, or libvirt's save image in format sparse, into the seekable zstd format: `zstd -d` unpacks it, and
 * sendMigration() and the others read it as it is.
 *
 * @throws MultifdError ERR_MULTIFD_OPTION, ERR_MULTIFD_IO, ERR_MULTIFD_STREAM for a file that is none of these or not sound,
 *   ERR_MULTIFD_ABORTED, ERR_MULTIFD_RUNTIME without a zstd; then there is no `out`
 */
export async function packMigration(options: PackMigrationOptions): Promise<PackedMigration> {
  checkKeys(requireOptions(options), [...UNPACK_KEYS, 'zstdLevel']);
  const { file, onProgress, signal } = checkCommon(options);
  const level = integer('zstdLevel', options.zstdLevel, PACK_LEVEL, 1, 20);
  const directIo = checkDirectIo(options.directIo);
  await using from = await MigrationFile.open(file, directIo);
  if (from.packed !== undefined)
    throw wrong('file', file, `one that is not packed: it is already, in ${from.packed.table.count} frames`);
  await requireMappedRam(from.handle, 'pack');
  const out = options.out ?? `${file}${PACKED_SUFFIX}`;
  const before = await from.handle.stat({ bigint: true });
  const packedBytes = await make(options, out, directIo, async (to) => {
    const bytes = await packInto(from, to, level, { signal, onProgress: told(onProgress) });
    const after = await from.handle.stat({ bigint: true });
    if (after.mtimeNs === before.mtimeNs && after.size === before.size) return bytes;
    throw new MultifdError('ERR_MULTIFD_IO', `${file}: somebody has written to it while it was packed`);
  });
  return { out, plainBytes: Number(before.size), packedBytes };
}

/**
 * Makes the plain file again.
 *
 * @throws MultifdError as packMigration(), and ERR_MULTIFD_STREAM for one that is damaged
 */
export async function unpackMigration(options: UnpackMigrationOptions): Promise<PackedMigration> {
  checkKeys(requireOptions(options), UNPACK_KEYS);
  const { file, onProgress, signal } = checkCommon(options);
  const directIo = checkDirectIo(options.directIo);
  await using from = await MigrationFile.open(file, directIo);
  const table = from.packed?.table;
  if (table === undefined) throw wrong('file', file, 'one that `multifd pack` has made: it is not packed');
  if (options.out === undefined && !file.endsWith(PACKED_SUFFIX))
    throw wrong('out', options.out, `a path: the name of the file does not end with ${PACKED_SUFFIX}`);
  const out = options.out ?? file.slice(0, -PACKED_SUFFIX.length);
  // What another program has packed in this format may be anything.
  await requireMappedRam(from.content, 'unpack');
  const packedBytes = (await from.handle.stat()).size;
  const plainBytes = await make(options, out, directIo, (to) =>
    unpackInto(from, table, to, { signal, onProgress: told(onProgress) }),
  );
  return { out, plainBytes, packedBytes };
}

/** @throws MultifdError ERR_MULTIFD_STREAM for a file that is none, or not sound */
async function requireMappedRam(content: ReadableFile, what: string): Promise<void> {
  const image = await readSaveImage(content);
  if (image !== undefined) requireSparse(image, what);
  requireSound(await readMappedRam(content, { offset: image?.streamOffset ?? 0 }));
}

/** A new file, whole and on disk before it has its name. @returns what `fill` returns */
async function make(
  { file, overwrite }: UnpackMigrationOptions,
  out: string,
  directIo: boolean,
  fill: (to: OpenFile) => Promise<number>,
): Promise<number> {
  if (isSame(file, out)) throw wrong('out', out, 'another file than the one that is read');
  const output = await OutputFile.make(out, overwrite === true, directIo);
  try {
    const bytes = await fill(output);
    await output.handle.sync();
    output.name();
    await output.onDisk();
    await output.close();
    return bytes;
  } catch (error) {
    await output.giveUp();
    throw MultifdError.wrap(error, 'ERR_MULTIFD_IO', out);
  }
}

/** Before anything is opened. */
function checkCommon(options: UnpackMigrationOptions): UnpackMigrationOptions {
  fileName('file', options.file);
  if (options.out !== undefined) fileName('out', options.out);
  flag('overwrite', options.overwrite);
  abortSignal(options.signal);
  callback('onProgress', options.onProgress);
  return options;
}

function isSame(one: string, other: string): boolean {
  const [a, b] = [one, other].map((file) => statSync(file, { bigint: true, throwIfNoEntry: false }));
  return a !== undefined && a.ino === b?.ino && a.dev === b.dev;
}

/** What the caller's function throws has a name. */
function told(onProgress: PackMigrationOptions['onProgress']): PackMigrationOptions['onProgress'] {
  return onProgress && ((...bytes) => void callHook('onProgress', () => onProgress(...bytes)));
}
