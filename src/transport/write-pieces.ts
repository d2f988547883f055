/** Handing what a channel holds to its socket. */
import type { Socket } from 'node:net';

/** What a socket's stream calls when it is uncorked: a Writable's implementer provides it. */
const WRITES_PIECES = '_writev';
type Chunks = { chunk: Uint8Array }[] & { allBuffers?: boolean };
interface PieceWriter {
  [WRITES_PIECES](chunks: Chunks, written: Written): void;
}
type Written = (error?: Error | null) => void;

/**
 * Writes the pieces, at least one, in one system call. To be called only while nothing else is being written: the
 * socket's own implementation is called directly, since the stream's accounts of each piece cost as much as the kernel's
 * copy of a page. Where there is none, the stream has to do.
 *
 * @param written called once, when the last piece is with the kernel or a write has failed
 */
export function writePieces(socket: Socket, pieces: readonly Uint8Array[], written: Written): void {
  const writer = socket as unknown as Partial<PieceWriter>;
  if (typeof writer[WRITES_PIECES] === 'function') {
    const chunks: Chunks = pieces.map((chunk) => ({ chunk }));
    chunks.allBuffers = true;
    writer[WRITES_PIECES](chunks, written);
    return;
  }
  const last = pieces.length - 1;
  socket.cork();
  for (let i = 0; i < last; i++) socket.write(pieces[i]);
  socket.write(pieces[last], written);
  socket.uncork();
}
