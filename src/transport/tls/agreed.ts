/** What the two ends of a connection agreed on, for traces and reports. */
import type net from 'node:net';
import type { TLSSocket } from 'node:tls';

export interface TlsAgreed {
  /** `TLSv1.2` or `TLSv1.3`. */
  tlsVersion: string;
  /** OpenSSL's name of it, such as TLS_AES_256_GCM_SHA384. */
  cipher: string;
}

/** @returns undefined without TLS, and of a connection that has broken */
export function tlsAgreed(socket: net.Socket): TlsAgreed | undefined {
  // By what it has: without TLS nothing of it is loaded.
  if (!('getCipher' in socket)) return undefined;
  const secure = socket as TLSSocket;
  // Null once it is gone, whatever its type says.
  const cipher = secure.getCipher() as ReturnType<TLSSocket['getCipher']> | null;
  const tlsVersion = secure.getProtocol();
  return cipher === null || tlsVersion === null ? undefined : { tlsVersion, cipher: cipher.name };
}
