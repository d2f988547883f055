/**
 * A destination as send.ts and the relay see it: its main stream is connected first, a PING asks whether its channels are
 * all in, and it refuses without a word.
 */
import { MultifdError } from '../errors.js';
import type { Compression } from '../options.js';
import { printable } from '../printable.js';
import { requireRuntime } from '../runtime.js';
import { SET_UP } from '../set-up.js';
import type { Address } from '../transport/address.js';
import { connect } from '../transport/connect.js';
import { MainConnection } from '../transport/main-connection.js';
import type { CheckedTls } from '../transport/tls/check-options.js';
import { withLimit } from './limits.js';

/** QEMU's first PING. */
export const PING_VALUE = Buffer.of(0, 0, 0, 1);

/** Connects the main stream. */
export async function connectMain(
  address: Address,
  timeoutMs: number,
  signal: AbortSignal | undefined,
  tls: CheckedTls | undefined,
): Promise<MainConnection> {
  requireRuntime();
  const connection = await connect({ address, timeoutMs, signal, tls: tls?.credentials });
  return new MainConnection(connection, Buffer.alloc(0));
}

/**
 * A QEMU reads its main stream only when all the channels are there that it expects.
 *
 * @param pong settles with the answer to the PING
 * @throws MultifdError ERR_MULTIFD_TIMEOUT
 */
export async function allChannelsIn(pong: Promise<void>, timeoutMs: number): Promise<void> {
  const late = `the destination has not answered the PING within ${timeoutMs} ms: does it expect more channels (${SET_UP.channels})?`;
  await withLimit(pong, timeoutMs, 'ERR_MULTIFD_TIMEOUT', late);
}

/** All that QEMU compares with its own, closing its channels without a word. */
export function sentOf(
  machine: string,
  {
    channels = 2,
    compression = 'none',
    tls,
  }: { channels?: number; compression?: Compression; tls?: unknown },
  uuid: string | null | undefined,
): string {
  const withTheirNames = [
    `${channels} channels (${SET_UP.channels})`,
    `compression ${compression} (${SET_UP.compression})`,
    `uuid ${uuid ?? 'none'} (${SET_UP.uuid})`,
    `${tls === undefined ? 'no TLS' : 'TLS'} (${SET_UP.tls})`,
  ];
  return `machine ${printable(machine)}, ${withTheirNames.join(', ')}`;
}

/**
 * QEMU closes its connections where it refuses, and says why only in its own log.
 *
 * @param earlyEnd main's: it has not said a word, so it may have refused the credentials as well
 */
export function explain(error: MultifdError, sent: string, earlyEnd: string | undefined): MultifdError {
  // It closes its listening socket as well: a channel that comes later cannot connect any more, where the main stream could.
  const isLateChannel = error.code === 'ERR_MULTIFD_CONNECT' && error.channel !== undefined;
  const isClosed = error.code === 'ERR_MULTIFD_CONNECTION' || isLateChannel;
  const isTold = earlyEnd !== undefined && error.message.includes(earlyEnd);
  if (!isClosed && !isTold) return error;
  const credentials = earlyEnd === undefined || isTold ? '' : `; ${earlyEnd}`;
  const what = `the destination may have refused (its log says why) what was sent: ${sent}`;
  const message = `${error.message}${credentials}; ${earlyEnd === undefined ? '' : 'or '}${what}`;
  const code = earlyEnd === undefined ? error.code : 'ERR_MULTIFD_TLS';
  return error.reworded(message, { code });
}
