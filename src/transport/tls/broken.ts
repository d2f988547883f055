/** What breaks a connection behind its handshake: an alert, or a peer that judges this side only then. */
import { MultifdError } from '../../errors.js';
import type { TlsCredentials } from './credentials.js';
import { explainEarlyEnd, explainTlsFailure, isTlsError } from './explain.js';

/** For a connection that has ended, or broken, before a byte came. */
export function brokenEarly(tls: TlsCredentials, cause?: Error): MultifdError {
  if (isTlsError(cause)) return explainTlsFailure({ credentials: tls, error: cause });
  return new MultifdError('ERR_MULTIFD_TLS', `TLS as ${tls.role}: ${explainEarlyEnd(tls)}`, { cause });
}

/** For an error of a socket, with TLS or without. */
export function brokenBy(tls: TlsCredentials | undefined, error: Error, what: string): MultifdError {
  if (tls !== undefined && isTlsError(error)) return explainTlsFailure({ credentials: tls, error });
  return MultifdError.wrap(error, 'ERR_MULTIFD_CONNECTION', what);
}
