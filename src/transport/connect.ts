/** Connecting, on whichever thread: with a time limit, an abort, TLS, and one error that says where to. */
import net from 'node:net';
import { MultifdError } from '../errors.js';
import { formatAddress, type Address } from './address.js';
import type { TlsCredentials } from './tls/credentials.js';

/** A connection that stands: TCP or unix, with TLS or without. */
export interface Connection {
  /** What is read and written. */
  socket: net.Socket;
  /** What lies beneath: the same without TLS. */
  raw: net.Socket;
  /** With TLS: what it was made with. */
  tls: TlsCredentials | undefined;
}

export interface ConnectOptions {
  address: Address;
  timeoutMs: number;
  /** Ends what is under way with ERR_MULTIFD_ABORTED. */
  signal?: AbortSignal | undefined;
  /** A client's. */
  tls: TlsCredentials | undefined;
}

/**
 * Connects. The caller owns the connection from then on, and its events: no listener but one that keeps an error from being
 * uncaught is left on it.
 *
 * @param begun gets the socket beneath at once, for a caller that may have to destroy it
 * @throws MultifdError ERR_MULTIFD_CONNECT, ERR_MULTIFD_TIMEOUT, ERR_MULTIFD_ABORTED, ERR_MULTIFD_TLS
 */
export async function connect(
  { address, timeoutMs, signal, tls }: ConnectOptions,
  begun?: (raw: net.Socket) => void,
): Promise<Connection> {
  const where = formatAddress(address);
  const socket = net.connect({ ...address, noDelay: true, allowHalfOpen: true } as net.NetConnectOpts);
  begun?.(socket);
  let abort: (() => void) | undefined;
  let timer: NodeJS.Timeout | undefined;
  try {
    await new Promise<void>((resolve, reject) => {
      timer = setTimeout(() => {
        reject(new MultifdError('ERR_MULTIFD_TIMEOUT', `no connection to ${where} within ${timeoutMs} ms`));
      }, timeoutMs);
      abort = (): void => {
        reject(
          new MultifdError('ERR_MULTIFD_ABORTED', 'aborted while connecting', { cause: signal?.reason }),
        );
      };
      if (signal?.aborted === true) abort();
      signal?.addEventListener('abort', abort, { once: true });
      socket.once('connect', resolve);
      socket.once('error', (error) => {
        reject(MultifdError.wrap(error, 'ERR_MULTIFD_CONNECT', `cannot connect to ${where}`));
      });
      socket.once('close', () => {
        reject(new MultifdError('ERR_MULTIFD_CONNECT', `connection to ${where} was given up`));
      });
    });
  } catch (error) {
    socket.destroy();
    throw error;
  } finally {
    clearTimeout(timer);
    if (abort !== undefined) signal?.removeEventListener('abort', abort);
    socket.removeAllListeners();
    socket.on('error', () => {});
  }
  if (tls === undefined) return { socket, raw: socket, tls };
  // Loaded where it is used: a thread without TLS starts some milliseconds sooner.
  const { handshake } = await import('./tls/handshake.js');
  const { socket: secure } = await handshake(socket, tls, { timeoutMs, ...(signal && { signal }) });
  secure.on('error', () => {});
  return { socket: secure, raw: socket, tls };
}
