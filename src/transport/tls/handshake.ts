/**
 * A handshake on a connection that stands, for either role, on whichever thread owns the connection.
 *
 *     net.Socket ──> TLS ──> is it who it should be? ──> { socket, peer }
 *                     └───────────────┴──> ERR_MULTIFD_TLS of explain.ts; the connection is destroyed
 *
 * Node is told not to refuse a certificate (rejectUnauthorized: false), and judge() does it with Node's verdict: so the
 * certificate is still there to be named, and a server treats its clients as QEMU's does, which judges after the
 * handshake. Nothing is read or written before that, and no other code makes TLS sockets.
 *
 * Node calls a PSK client's session authorized whatever the server proved itself with. A server that answers a PSK with a
 * certificate, which TLS 1.3 allows, is refused here: anyone could be that server.
 */
import type { X509Certificate } from 'node:crypto';
import net from 'node:net';
import tls from 'node:tls';
import { MultifdError } from '../../errors.js';
import type { TlsCredentials } from './credentials.js';
import { explainTlsFailure, type TlsFailure } from './explain.js';
import type { TlsPeer, TlsVersion } from './options.js';
import { describeCertificate, matchesPattern, pskPeer } from './peer.js';
import { stopTickets } from './session-tickets.js';

export interface HandshakeOptions {
  timeoutMs: number;
  /** Ends it with ERR_MULTIFD_ABORTED. */
  signal?: AbortSignal;
  /** In place of the credentials' own; see client-hello.ts. */
  maxVersion?: TlsVersion | undefined;
  /** Asks the caller's function; on another thread by a message. */
  authorize?: (peer: TlsPeer) => boolean | Promise<boolean>;
}

export interface SecureConnection {
  socket: tls.TLSSocket;
  peer: TlsPeer;
}

/**
 * TLS 1.2 without certificates is only spoken by PSK suites, and they must be named; those with a fresh key (ECDHE, DHE)
 * alone, so that a PSK that gets out does not open what was recorded. TLS 1.3 ties a PSK of OpenSSL to SHA-256.
 */
const PSK_CIPHERS = [
  'TLS_AES_128_GCM_SHA256',
  'TLS_CHACHA20_POLY1305_SHA256',
  'ECDHE-PSK-CHACHA20-POLY1305',
  'DHE-PSK-AES256-GCM-SHA384',
  'DHE-PSK-AES128-GCM-SHA256',
  'ECDHE-PSK-AES256-CBC-SHA384',
  'ECDHE-PSK-AES128-CBC-SHA256',
].join(':');

/** For tls.createSecureContext(). Holds keys. */
export function secureContextOptions(credentials: TlsCredentials): tls.SecureContextOptions {
  const { kind, ca, cert, crl, minVersion, maxVersion, ciphers } = credentials;
  if (kind === 'psk') {
    // No authority at all: Node would take the public ones.
    return { ca: [], ciphers: ciphers ?? PSK_CIPHERS, minVersion, maxVersion };
  }
  const own = { cert, key: credentials.privateKey() };
  // dhparam is not set: DHE-RSA adds nothing to ECDHE, which all QEMUs have.
  return { ca: ca ?? [], ...own, crl, minVersion, maxVersion, ...(ciphers === undefined ? {} : { ciphers }) };
}

/** For tls.connect(), beside `socket`. The caller must judge(). */
function connectOptions(credentials: TlsCredentials): tls.ConnectionOptions {
  const { kind, identity, hostname } = credentials;
  const options = {
    ...secureContextOptions(credentials),
    rejectUnauthorized: false,
    // judge() does it.
    checkServerIdentity: () => undefined,
  };
  if (kind === 'x509') {
    // An IP address may not stand there (RFC 6066).
    return hostname === undefined || net.isIP(hostname) !== 0
      ? options
      : { ...options, servername: hostname };
  }
  const psk = credentials.psk(identity);
  return { ...options, pskCallback: () => (psk === undefined ? null : { psk, identity }) };
}

/** For tls.createServer(). The caller must judge(). */
function serverOptions(credentials: TlsCredentials, failure: TlsFailure, timeoutMs: number): tls.TlsOptions {
  const { kind, verifyPeer } = credentials;
  const options = {
    ...secureContextOptions(credentials),
    handshakeTimeout: timeoutMs,
    requestCert: kind === 'x509' && verifyPeer,
    rejectUnauthorized: false,
  };
  if (kind === 'x509') return options;
  const pskCallback = (_socket: tls.TLSSocket, identity: string): Uint8Array | null => {
    failure.identity = identity;
    return credentials.psk(identity) ?? null;
  };
  return { ...options, pskCallback };
}

/**
 * The socket is this function's until it returns; if it throws, the socket is destroyed. Who gets the secure one listens
 * for its 'error' at once.
 *
 * @throws MultifdError ERR_MULTIFD_TLS, ERR_MULTIFD_ABORTED, ERR_MULTIFD_HOOK
 */
export async function handshake(
  socket: net.Socket,
  credentials: TlsCredentials,
  { timeoutMs, signal, maxVersion, authorize }: HandshakeOptions,
): Promise<SecureConnection> {
  const failure: TlsFailure = { credentials };
  const abort = (): void => void socket.destroy();
  signal?.addEventListener('abort', abort, { once: true });
  let secure: tls.TLSSocket | undefined;
  const remember = (error: Error): void => void (failure.error ??= error);
  try {
    if (signal?.aborted) throw aborted(signal);
    // While this was loaded, or the connection waited for its turn.
    if (socket.destroyed) throw Object.assign(new Error('closed'), { code: 'ECONNRESET' });
    secure = await (credentials.role === 'client' ? connect : accept)(
      socket,
      credentials,
      failure,
      timeoutMs,
      maxVersion,
    );
    // What breaks it while authorize is asked: the caller listens from then on only.
    secure.on('error', remember);
    const peer = judge(secure, failure);
    const { asks } = credentials;
    if (
      !matchesPattern(peer, credentials) ||
      (asks && !(await ask(authorize, peer, secure, credentials.option, timeoutMs)))
    ) {
      throw explainTlsFailure({ ...failure, refused: peer });
    }
    if (secure.destroyed) throw failure.error ?? new Error('closed');
    secure.off('error', remember);
    return { socket: secure, peer };
  } catch (error) {
    failure.silent = socket.bytesRead === 0;
    secure?.destroy();
    socket.destroy();
    if (signal?.aborted) throw aborted(signal);
    if (error instanceof MultifdError) throw error;
    if (failure.error === undefined && secure !== undefined) failure.closed = true;
    throw explainTlsFailure({ ...failure, error: error as Error });
  } finally {
    signal?.removeEventListener('abort', abort);
  }
}

/** Ends with the connection as well, and in time: authorize is the caller's, and may never answer. */
async function ask(
  authorize: HandshakeOptions['authorize'],
  peer: TlsPeer,
  secure: tls.TLSSocket,
  option: string,
  timeoutMs: number,
): Promise<boolean> {
  // Nobody to be asked is a refusal.
  if (authorize === undefined) return false;
  const name = `authorize() of option ${option}`;
  let timer: NodeJS.Timeout | undefined;
  const ended = new Promise<true>((resolve, reject) => {
    // No refusal: the caller looks at the socket next.
    secure.once('close', () => resolve(true));
    const late = (): void => {
      reject(
        new MultifdError('ERR_MULTIFD_TLS', `TLS as server: ${name} did not answer within ${timeoutMs} ms`),
      );
    };
    timer = setTimeout(late, timeoutMs);
  });
  let answer: boolean;
  try {
    answer = await Promise.race([authorize(peer), ended]);
  } catch (error) {
    throw MultifdError.wrap(error, 'ERR_MULTIFD_HOOK', `${name} failed`);
  } finally {
    clearTimeout(timer);
  }
  // What is no boolean is no consent: a forgotten await, for instance, is an object.
  return answer === true;
}

function connect(
  socket: net.Socket,
  credentials: TlsCredentials,
  failure: TlsFailure,
  timeoutMs: number,
): Promise<tls.TLSSocket> {
  return new Promise((resolve, reject) => {
    const secure = tls.connect({ ...connectOptions(credentials), socket });
    const timer = setTimeout(() => {
      failure.timeoutMs = timeoutMs;
      secure.destroy();
    }, timeoutMs);
    const close = (): void => {
      clearTimeout(timer);
      failure.closed = true;
      reject(new Error('closed'));
    };
    secure.once('secureConnect', () => {
      clearTimeout(timer);
      secure.off('close', close);
      secure.off('error', reject);
      resolve(secure);
    });
    secure.once('error', reject);
    secure.once('close', close);
  });
}

function accept(
  socket: net.Socket,
  credentials: TlsCredentials,
  failure: TlsFailure,
  timeoutMs: number,
  maxVersion: TlsVersion | undefined,
): Promise<tls.TLSSocket> {
  return new Promise((resolve, reject) => {
    const options = serverOptions(credentials, failure, timeoutMs);
    // It listens nowhere. One for each connection, so that what happens is known to be of this one.
    const server = tls.createServer(maxVersion === undefined ? options : { ...options, maxVersion });
    stopTickets(server);
    // A peer that ends in the middle of it is gone: half open nothing would be heard of that.
    const { allowHalfOpen } = socket;
    socket.allowHalfOpen = false;
    server.once('secureConnection', (secure) => {
      socket.allowHalfOpen = secure.allowHalfOpen = allowHalfOpen;
      resolve(secure);
    });
    server.once('tlsClientError', (error: NodeJS.ErrnoException) => {
      if (error.code === 'ERR_TLS_HANDSHAKE_TIMEOUT') failure.timeoutMs = timeoutMs;
      if (error.code === 'ECONNRESET' && error.syscall === undefined) failure.closed = true;
      reject(error);
    });
    server.emit('connection', socket);
  });
}

/** @throws MultifdError ERR_MULTIFD_TLS */
function judge(secure: tls.TLSSocket, failure: TlsFailure): TlsPeer {
  const { kind, role, verifyPeer, hostname } = failure.credentials;
  const certificate: X509Certificate | undefined = secure.getPeerX509Certificate();
  failure.certificate = certificate;
  if (kind === 'psk') {
    if (certificate !== undefined) throw explainTlsFailure({ ...failure, verdict: 'CERTIFICATE_FOR_PSK' });
    return pskPeer(role === 'server' ? failure.identity : undefined);
  }
  if (!verifyPeer) return certificate === undefined ? pskPeer(undefined) : describeCertificate(certificate);
  if (certificate === undefined) throw explainTlsFailure({ ...failure, verdict: 'NO_CERTIFICATE' });
  if (!secure.authorized) {
    const verdict = String(secure.authorizationError ?? 'CERT_REJECTED');
    throw explainTlsFailure({ ...failure, verdict });
  }
  if (role === 'client') {
    // Not tls.checkServerIdentity(): the object that it wants is empty in Node 20 and 24 once this one was asked for.
    const name = hostname ?? '';
    const found = net.isIP(name) === 0 ? certificate.checkHost(name) : certificate.checkIP(name);
    if (found === undefined) throw explainTlsFailure({ ...failure, verdict: 'NAME_MISMATCH' });
  }
  return describeCertificate(certificate);
}

function aborted(signal: AbortSignal | undefined): MultifdError {
  return new MultifdError('ERR_MULTIFD_ABORTED', 'the TLS handshake was aborted', { cause: signal?.reason });
}
