/**
 * Does what a channel fails with look as if the source's pages were of another size? Then its message asks so.
 *
 * A header's length depends on the page size, and nothing in it tells that. A source with another one shows itself by a
 * second packet that does not begin where it should, by more pages than one has room for, or by headers that are shorter
 * and have an end where one of ours goes on.
 */
import { MultifdError } from '../errors.js';
import { SET_UP } from '../set-up.js';
import { MAX_PAGE_SIZE, PACKET_START_BYTES, packetHeaderBytes } from '../wire/packet.js';

/** Where the channel was. */
export interface HintPosition {
  pageSize: number;
  /** Whole ones, before this. */
  packets: number;
  /** Bytes of the header behind the packet's first 12; undefined outside a RAM header. */
  headerHas: number | undefined;
}

/** @returns the same error where nothing points to the page size */
export function hintAtPageSize(error: MultifdError, at: HintPosition): MultifdError {
  const isLost = error.code === 'ERR_MULTIFD_MAGIC' && at.packets > 0;
  if (!isLost && !endsWithShorterHeaders(at) && error.code !== 'ERR_MULTIFD_PAGES_ALLOC') return error;
  const hint = `are the source's pages of another size than ${at.pageSize} (${SET_UP.pageSize})?`;
  return new MultifdError(error.code, `${error.message}; ${hint}`, { ...error, cause: error.cause });
}

function endsWithShorterHeaders({ pageSize, headerHas }: HintPosition): boolean {
  if (headerHas === undefined) return false;
  const bytes = PACKET_START_BYTES + headerHas;
  for (let size = 2 * pageSize; size <= MAX_PAGE_SIZE; size *= 2) {
    if (bytes % packetHeaderBytes(size) === 0) return true;
  }
  return false;
}
