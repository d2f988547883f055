/** Says what a file holds: a mapped-ram file, or a capture of a main migration stream. */
import { checkKeys } from '../option-checks.js';
import { checkOffset } from './options.js';
import { BOUND_KEYS, type BoundOptions, checkBounds } from '../stream/bounds.js';
import { ByteReader } from '../stream/byte-reader.js';
import { describeMainStream, type MainStreamDescription } from '../stream/describe-main-stream.js';
import { MainStreamReader } from '../stream/main-stream.js';
import { FileSource, openToRead } from '../stream/positioned-file.js';
import type { MappedRamDescription } from '../mapped-ram/description.js';
import { readMappedRam } from '../mapped-ram/read.js';

export type MigrationFileDescription =
  ({ kind: 'mapped-ram' } & MappedRamDescription) | ({ kind: 'main-stream' } & MainStreamDescription);

export interface DescribeOptions extends BoundOptions {
  /** Where the stream begins in the file, in bytes (default 0). */
  offset?: number;
  /** Target page size where the stream does not tell it (default 4096). */
  pageSize?: number;
}

const OPTIONS: Record<keyof DescribeOptions, true> = { ...BOUND_KEYS, offset: true, pageSize: true };

/** @throws MultifdError ERR_MULTIFD_IO, and ERR_MULTIFD_STREAM if it is no migration stream at all */
export async function describeMigrationFile(
  file: string,
  options: DescribeOptions = {},
): Promise<MigrationFileDescription> {
  checkKeys(options, Object.keys(OPTIONS));
  const offset = checkOffset(options.offset);
  checkBounds(options);
  const handle = await openToRead(file);
  const reader = (): ByteReader =>
    new ByteReader(new FileSource(handle, offset), { name: 'migration file', start: offset });
  try {
    const { pageSize } = options;
    const stream = new MainStreamReader(reader(), pageSize === undefined ? {} : { pageSize });
    await stream.next();
    // What comes first is the configuration; a stream that breaks in it is described as far as it goes.
    await stream.next().catch(() => {});
    if (stream.mappedRam) return { kind: 'mapped-ram', ...(await readMappedRam(handle, options)) };
    return { kind: 'main-stream', ...(await describeMainStream(reader(), options)) };
  } finally {
    await handle.close();
  }
}
