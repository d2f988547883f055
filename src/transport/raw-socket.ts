/** The socket beneath a connection: opened by a descriptor that another thread has accepted, read ahead, closed for sure. */
import net from 'node:net';

export type RawSocket = net.Socket;

/** @param surplus what has been read of it: read again, before anything that is still to come */
export function reopen(fd: number, surplus: Uint8Array): RawSocket {
  const raw = new net.Socket({ fd, readable: true, writable: true, allowHalfOpen: true });
  raw.on('error', () => {});
  raw.unshift(Buffer.from(surplus));
  return raw;
}

/** At least `count` bytes, and what has come with them; undefined if they do not come. The socket is paused then. */
export async function readAhead(
  socket: RawSocket,
  count: number,
  timeoutMs: number,
): Promise<Buffer | undefined> {
  const chunks: Buffer[] = [];
  return new Promise((resolve) => {
    const done = (bytes: Buffer | undefined): void => {
      clearTimeout(timer);
      socket.pause();
      socket.off('data', take).off('end', no).off('close', no);
      resolve(bytes);
    };
    const no = (): void => done(undefined);
    const take = (chunk: Buffer): void => {
      chunks.push(chunk);
      const bytes = Buffer.concat(chunks);
      if (bytes.length >= count) done(bytes);
    };
    const timer = setTimeout(no, timeoutMs);
    socket.on('data', take).on('end', no).on('close', no);
  });
}

/** Closes a connection, or waits for it to be closed: its descriptor is free then. */
export async function destroyed(raw: RawSocket): Promise<void> {
  if (raw.closed) return;
  await new Promise<void>((resolve) => {
    raw.once('close', () => resolve());
    raw.destroy();
  });
}
