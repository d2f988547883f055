/**
 * What a receive channel says when it fails: where in a packet it was, and whether it looks as if the source's pages were
 * of another size.
 *
 * A header's length depends on the page size, and nothing in it tells that. A source with another one shows itself by a
 * second packet that does not begin where it should, by more pages than one has room for, or by headers that are shorter
 * and have an end where one of ours goes on.
 */
import { MultifdError, receivedExpected } from '../errors.js';
import { SET_UP } from '../set-up.js';
import { MAX_PAGE_SIZE, PACKET_START_BYTES, packetHeaderBytes } from '../wire/packet.js';

/** Where the channel was. */
export interface ChannelPosition {
  state: string;
  /** Bytes of what the state wants. */
  have: number;
  wanted: number;
  /** Whole ones, before this. */
  packets: number;
  pageSize: number;
}

export function stalledInside(at: ChannelPosition, ms: number): MultifdError {
  const where = `inside a packet (${at.state}) the peer has sent nothing for ${ms} ms: `;
  const message = where + receivedExpected('bytes', at.have, at.wanted);
  return hintAtPageSize(new MultifdError('ERR_MULTIFD_STALL', message), at);
}

export function endedInside(at: ChannelPosition): MultifdError {
  const where = `the channel ended inside a packet (${at.state}): `;
  const message = where + receivedExpected('bytes', at.have, at.wanted);
  return hintAtPageSize(new MultifdError('ERR_MULTIFD_EOF', message), at);
}

/** @returns the same error where nothing points to the page size */
export function hintAtPageSize(error: MultifdError, at: ChannelPosition): MultifdError {
  const isLost = error.code === 'ERR_MULTIFD_MAGIC' && at.packets > 0;
  const isShort = at.state === 'HEADER' && endsWithShorterHeaders(at);
  if (!isLost && !isShort && error.code !== 'ERR_MULTIFD_PAGES_ALLOC') return error;
  const hint = `are the source's pages of another size than ${at.pageSize} (${SET_UP.pageSize})?`;
  return error.reworded(`${error.message}; ${hint}`);
}

function endsWithShorterHeaders({ pageSize, have }: ChannelPosition): boolean {
  const bytes = PACKET_START_BYTES + have;
  for (let size = 2 * pageSize; size <= MAX_PAGE_SIZE; size *= 2) {
    if (bytes % packetHeaderBytes(size) === 0) return true;
  }
  return false;
}
