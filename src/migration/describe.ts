/**
 * Says what a file holds: a mapped-ram file, or a capture of a main migration stream; either of them also behind the head of
 * a save image of libvirt's, where a stream may be packed and is read to its end.
 */
import type { FileHandle } from 'node:fs/promises';
import { MultifdError } from '../errors.js';
import { type SaveImage, readSaveImage } from '../libvirt/save-image.js';
import { UNPACKED_NAME, unpack } from '../libvirt/unpack.js';
import { abortSignal, checkKeys, fileName } from '../option-checks.js';
import { checkOffset } from './options.js';
import { BOUND_KEYS, type BoundOptions, checkBounds } from '../stream/bounds.js';
import { ByteReader, CHUNK_BYTES } from '../stream/byte-reader.js';
import { describeMainStream, type MainStreamDescription } from '../stream/describe-main-stream.js';
import { STREAM_ERRORS } from '../stream/codes.js';
import { MainStreamReader } from '../stream/main-stream.js';
import { MigrationFile } from '../packed/open.js';
import { refusePacked } from '../packed/packed-file.js';
import { FileSource, type ReadableFile, sizeOf } from '../stream/positioned-file.js';
import type { MappedRamDescription } from '../mapped-ram/description.js';
import { notMappedRam, readMappedRam } from '../mapped-ram/read.js';
import { brokenTail, cutTail } from '../stream/tail-end.js';
import { STALL_TIMEOUT_MS } from './watch.js';

export type MigrationFileDescription = (
  ({ kind: 'mapped-ram' } & MappedRamDescription) | ({ kind: 'main-stream' } & MainStreamDescription)
) & {
  /** What libvirt says of the domain, where it has made the file. */
  libvirt?: SaveImage;
  /** Of a file that `multifd pack` made: its length, and that of the plain one that all places here are of. */
  packed?: { bytes: number; plainBytes: number };
};

export interface DescribeOptions extends BoundOptions {
  /** Where the stream begins in the file, in bytes (default 0). */
  offset?: number;
  /** Target page size where the stream does not tell it (default 4096). */
  pageSize?: number;
  /** Ends the reading of a stream that libvirt has saved: only its end says whether it is whole. */
  signal?: AbortSignal;
}

const OPTIONS: Record<keyof DescribeOptions, true> = {
  ...BOUND_KEYS,
  offset: true,
  pageSize: true,
  signal: true,
};

/** @throws MultifdError ERR_MULTIFD_IO, and ERR_MULTIFD_STREAM if it is no migration stream at all */
export async function describeMigrationFile(
  file: string,
  options: DescribeOptions = {},
): Promise<MigrationFileDescription> {
  checkKeys(options, Object.keys(OPTIONS));
  fileName('file', file);
  abortSignal(options.signal);
  const offset = checkOffset(options.offset);
  checkBounds(options);
  await using opened = await MigrationFile.open(file);
  const { content, packed } = opened;
  const description = await describeContent(opened, options, offset);
  if (packed === undefined) return description;
  return {
    ...description,
    packed: { bytes: await sizeOf(opened.handle), plainBytes: await sizeOf(content) },
  };
}

async function describeContent(
  { content, packed, handle }: MigrationFile,
  options: DescribeOptions,
  offset: number,
): Promise<MigrationFileDescription> {
  const libvirt = await readSaveImage(content, offset);
  if (libvirt === undefined) return describeAt(content, { ...own(options), offset });
  if (libvirt.format === 'sparse') {
    const description = await describeAt(content, { ...own(options), offset: libvirt.streamOffset });
    if (description.kind !== 'mapped-ram') description.problem = notMappedRam(description.machine);
    return { ...description, libvirt };
  }
  if (packed !== undefined) refusePacked("libvirt's save image of a stream");
  return { ...(await describeImage(handle, libvirt, options)), libvirt };
}

/** Without what is this function's alone. */
function own({ pageSize, maxRam, maxBlocks, maxDescription }: DescribeOptions): DescribeOptions {
  return { pageSize, maxRam, maxBlocks, maxDescription };
}

async function describeAt(
  file: ReadableFile,
  options: DescribeOptions & { offset: number },
): Promise<MigrationFileDescription> {
  const { pageSize, offset } = options;
  const reader = (): ByteReader =>
    new ByteReader(new FileSource(file, offset), { name: 'migration file', start: offset });
  const stream = new MainStreamReader(reader(), pageSize === undefined ? {} : { pageSize });
  await stream.next();
  // What comes first is the configuration; a stream that breaks in it is described as far as it goes.
  await stream.next().catch(() => {});
  if (stream.mappedRam) return { kind: 'mapped-ram', ...(await readMappedRam(file, options)) };
  const description = await describeMainStream(reader(), options);
  const { tailIsWhole, tailBytes = 0, vmDescription } = description;
  // On a connection nothing comes behind a tail, and receiveMigration() takes such a one for cut.
  if (tailIsWhole === false) description.problem ??= cutTail('migration file', tailBytes);
  else if (vmDescription === undefined && description.tailBreaks === true)
    description.problem ??= brokenTail('migration file', tailBytes);
  return { kind: 'main-stream', ...description };
}

async function describeImage(
  handle: FileHandle,
  image: SaveImage,
  options: DescribeOptions,
): Promise<MigrationFileDescription> {
  const { signal } = options;
  const source = unpack(handle, image, STALL_TIMEOUT_MS);
  const read = async (): Promise<Buffer | null> => {
    if (signal?.aborted !== true) return (await source.read(CHUNK_BYTES)) as Buffer | null;
    throw new MultifdError('ERR_MULTIFD_ABORTED', 'aborted', { cause: signal.reason });
  };
  try {
    const reader = new ByteReader(read, { name: UNPACKED_NAME });
    const description = await describeMainStream(reader, own(options));
    try {
      // Behind the stream's end a codec says whether it was whole.
      if (image.format !== 'raw' && description.problem === undefined) while ((await read()) !== null);
    } catch (error) {
      if (!(error instanceof MultifdError) || !isOfTheFile(error)) throw error;
      description.problem = error;
    }
    if (description.tailIsWhole === false)
      description.problem ??= cutTail(UNPACKED_NAME, description.tailBytes ?? 0);
    return { kind: 'main-stream', ...description };
  } finally {
    await source.close();
  }
}

/** An abort and a disk that fails say nothing of what the file holds. */
function isOfTheFile({ code }: MultifdError): boolean {
  return code === STREAM_ERRORS.file || code === STREAM_ERRORS.eof;
}
