/**
 * Why a handshake failed, for people: who did not like what, and which option or file changes it.
 *
 *     verdict    judge() of handshake.ts refused the peer: a verify code of OpenSSL, or one of ours in capitals
 *     refused    authz said no
 *     error      Node's: ERR_SSL_..._ALERT_...   the OTHER side refused, and sent an alert
 *                        ERR_SSL_...             this side's TLS refused
 *     closed, timeoutMs
 *
 * OpenSSL 3.0 (Node 20) and 3.5 (Node 24, 26) name some alerts differently: SSLV3_ALERT_X is SSL/TLS_ALERT_X.
 */
import type { X509Certificate } from 'node:crypto';
import { codeOf, describeThrown, MultifdError } from '../../errors.js';
import { quote } from '../../printable.js';
import type { TlsCredentials } from './credentials.js';
import type { TlsPeer } from './options.js';
import { describeCertificate } from './peer.js';

/** What is known of a handshake that failed. */
export interface TlsFailure {
  credentials: TlsCredentials;
  /** Of a PSK server: the identity that the client named. */
  identity?: string;
  certificate?: X509Certificate | undefined;
  verdict?: string;
  refused?: TlsPeer;
  error?: Error;
  /** The peer closed, and nothing else is known. */
  closed?: boolean;
  /** Not a byte came. */
  silent?: boolean;
  timeoutMs?: number;
}

const UNREADABLE = 'the handshake failed';

/**
 * Did the other side go far enough to have credentials, or plain text, that are told apart here? Else it may be anybody, who
 * tries what is there or is slow.
 *
 * @param error of explainTlsFailure(), from another thread as well
 */
export function isOfCredentials({ message, cause }: MultifdError): boolean {
  return codeOf(cause) !== 'ERR_TLS_HANDSHAKE_TIMEOUT' && !message.includes(`: ${UNREADABLE}`);
}

/** What a client looks at in a server's certificate. */
const SERVER_CHECKS = 'its authority, its names, its dates; QEMU: tls-hostname';

type Explain = (failure: TlsFailure) => string;

const option = ({ credentials }: TlsFailure, name: string): string => `option ${credentials.option}.${name}`;
const other = ({ credentials }: TlsFailure): string => (credentials.role === 'client' ? 'server' : 'client');
const ours = ({ credentials }: TlsFailure): string => credentials.origin;
const theirs = (failure: TlsFailure): string => {
  const { certificate } = failure;
  if (certificate === undefined) return `the ${other(failure)}'s certificate`;
  return `the ${other(failure)}'s certificate ${quote(describeCertificate(certificate).distinguishedName)}`;
};

const UNKNOWN_CA: Explain = (failure) =>
  `${theirs(failure)} is signed by an authority that this side does not know, ` +
  `${quote(failure.certificate?.issuer.replaceAll('\n', ',') ?? '')}; ` +
  `it knows what stands in ca-cert.pem, or ca, of ${ours(failure)}`;

/** Of OpenSSL's verify codes, as Node names them; and our own. */
const VERDICTS: Record<string, Explain> = {
  // GnuTLS keeps its certificate back if none of the authorities that the server names has signed it.
  NO_CERTIFICATE: (failure) =>
    `the ${other(failure)} sent no certificate; it needs one, signed by the authority in ${ours(failure)} ` +
    `(QEMU sends none of another), or ${option(failure, 'verifyPeer')} false here`,
  CERTIFICATE_FOR_PSK: () =>
    'the server proved itself with a certificate, not with the PSK; both ends need the same kind of credentials',
  NAME_MISMATCH: (failure) => {
    const { hostname = '' } = failure.credentials;
    const names = failure.certificate === undefined ? [] : describeCertificate(failure.certificate).names;
    const there = names.length === 0 ? 'none' : names.map(quote).join(', ');
    return (
      `${theirs(failure)} is not for ${quote(hostname)}: its names are ${there}; ` +
      `${option(failure, 'hostname')} (QEMU: tls-hostname) says which one to expect`
    );
  },
  UNABLE_TO_VERIFY_LEAF_SIGNATURE: UNKNOWN_CA,
  UNABLE_TO_GET_ISSUER_CERT: UNKNOWN_CA,
  UNABLE_TO_GET_ISSUER_CERT_LOCALLY: UNKNOWN_CA,
  SELF_SIGNED_CERT_IN_CHAIN: UNKNOWN_CA,
  DEPTH_ZERO_SELF_SIGNED_CERT: UNKNOWN_CA,
  CERT_UNTRUSTED: UNKNOWN_CA,
  // An authority of the same name with another key: made anew, with one of the hosts left out.
  CERT_SIGNATURE_FAILURE: (failure) =>
    `${theirs(failure)} has a signature that is not of the authority of that name in ${ours(failure)}: has it a new key?`,
  CERT_HAS_EXPIRED: (failure) => `${theirs(failure)} has expired, on ${failure.certificate?.validTo}`,
  CERT_NOT_YET_VALID: (failure) =>
    `${theirs(failure)} is not valid before ${failure.certificate?.validFrom}; are the clocks of both hosts right?`,
  CERT_REVOKED: (failure) => `${theirs(failure)} is revoked, by the list (CRL) of ${ours(failure)}`,
  CRL_HAS_EXPIRED: (failure) =>
    `the list of revoked certificates (CRL) of ${ours(failure)} is out of date: get a new one from the authority`,
  CRL_NOT_YET_VALID: (failure) =>
    `the list of revoked certificates (CRL) of ${ours(failure)} is not valid yet; is this host's clock right?`,
  UNABLE_TO_GET_CRL: (failure) =>
    `${theirs(failure)} is of an authority that the list of revoked certificates (CRL) of ${ours(failure)} is not from`,
  INVALID_PURPOSE: (failure) =>
    `${theirs(failure)} is not for a ${other(failure)} (extendedKeyUsage); it needs one made for that role`,
};

/** By the names of RFC 8446; sent by the other side. */
const ALERTS: Record<string, Explain> = {
  BAD_CERTIFICATE: (failure) => `it does not take this side's certificate, of ${ours(failure)}`,
  UNSUPPORTED_CERTIFICATE: (failure) =>
    `it does not take this kind of certificate, of ${ours(failure)}: is it made for a ${failure.credentials.role}?`,
  CERTIFICATE_REVOKED: (failure) => `for it this side's certificate, of ${ours(failure)}, is revoked`,
  CERTIFICATE_EXPIRED: (failure) =>
    `for it this side's certificate, of ${ours(failure)}, has expired or is not valid yet; are both clocks right?`,
  CERTIFICATE_UNKNOWN: (failure) => `it does not take this side's certificate, of ${ours(failure)}`,
  UNKNOWN_CA: (failure) =>
    `it does not know the authority that signed this side's certificate, of ${ours(failure)}; ` +
    'both ends need the same ca-cert.pem',
  CERTIFICATE_REQUIRED: (failure) => noCertificate(failure),
  ACCESS_DENIED: (failure) =>
    `it does not let this side in, with ${credentialsOf(failure)} (tls-authz, or its check)`,
  UNKNOWN_PSK_IDENTITY: (failure) => `it has no PSK of ${identity(failure)}`,
  DECRYPT_ERROR: (failure) =>
    failure.credentials.kind === 'psk' ? wrongPsk(failure) : "this side's signature or keys do not fit",
  BAD_RECORD_MAC: (failure) =>
    failure.credentials.kind === 'psk' ? wrongPsk(failure) : 'a record was damaged',
  ILLEGAL_PARAMETER: (failure) =>
    failure.credentials.kind === 'psk' ? wrongPsk(failure) : 'it found a field that does not fit',
  HANDSHAKE_FAILURE: (failure) => noAgreement(failure),
  INSUFFICIENT_SECURITY: (failure) => noAgreement(failure),
  MISSING_EXTENSION: (failure) => noAgreement(failure),
  PROTOCOL_VERSION: (failure) => noVersion(failure),
  RECORD_OVERFLOW: () => 'it took the bytes for no TLS: does it speak plain text?',
  UNEXPECTED_MESSAGE: () => 'it did not expect that message',
  NO_RENEGOTIATION: () => 'it does not renegotiate',
  INTERNAL_ERROR: () => 'something failed there',
  // GnuTLS in TLS 1.2, of a client that sends none.
  DECODE_ERROR: (failure) => (isBareClient(failure) ? noCertificate(failure) : 'it could not read a message'),
  USER_CANCELED: () => 'it was told to stop',
  UNRECOGNIZED_NAME: (failure) => `it does not know the name ${quote(failure.credentials.hostname ?? '')}`,
};

/** OpenSSL's own reasons, on this side. */
const REASONS: Record<string, Explain> = {
  WRONG_VERSION_NUMBER: plainText,
  HTTP_REQUEST: plainText,
  HTTPS_PROXY_REQUEST: plainText,
  PACKET_LENGTH_TOO_LONG: plainText,
  RECORD_LAYER_FAILURE: plainText,
  BAD_RECORD_TYPE: plainText,
  UNKNOWN_PROTOCOL: plainText,
  UNSUPPORTED_PROTOCOL: noVersion,
  VERSION_TOO_LOW: noVersion,
  VERSION_TOO_HIGH: noVersion,
  TLSV1_ALERT_PROTOCOL_VERSION: noVersion,
  NO_PROTOCOLS_AVAILABLE: noVersion,
  NO_SHARED_CIPHER: noAgreement,
  NO_SUITABLE_SIGNATURE_ALGORITHM: noAgreement,
  NO_SHARED_GROUP: noAgreement,
  NO_SUITABLE_KEY_SHARE: noAgreement,
  NO_CIPHERS_AVAILABLE: noAgreement,
  PSK_IDENTITY_NOT_FOUND: (failure) => unknownIdentity(failure),
  BINDER_DOES_NOT_VERIFY: wrongPsk,
  DIGEST_CHECK_FAILED: wrongPsk,
  DECRYPTION_FAILED_OR_BAD_RECORD_MAC: (failure) =>
    failure.credentials.kind === 'psk' ? wrongPsk(failure) : 'a record is damaged',
  BAD_DECRYPT: (failure) => (failure.credentials.kind === 'psk' ? wrongPsk(failure) : 'a record is damaged'),
  PEER_DID_NOT_RETURN_A_CERTIFICATE: (failure) => VERDICTS.NO_CERTIFICATE(failure),
};

export function explainTlsFailure(failure: TlsFailure): MultifdError {
  const { role } = failure.credentials;
  return new MultifdError('ERR_MULTIFD_TLS', `TLS as ${role}: ${reason(failure)}`, { cause: failure.error });
}

/**
 * For a connection that ended before a byte came: a QEMU judges the other side behind the handshake, in either role, so it
 * may have refused this one then.
 */
export function explainEarlyEnd(credentials: TlsCredentials): string {
  const failure = { credentials };
  const checks = credentials.role === 'client' ? 'tls-authz, verify-peer' : SERVER_CHECKS;
  return (
    `the ${other(failure)} closed right after the TLS handshake: ` +
    `it may have refused ${credentialsOf(failure)} (${checks}); its log says more`
  );
}

/** Is it a failure of TLS, such as an alert that came after the handshake? */
export function isTlsError(error: unknown): boolean {
  const code = (error as NodeJS.ErrnoException | null)?.code;
  return typeof code === 'string' && /^ERR_(?:SSL|TLS|OSSL)_/.test(code);
}

function reason(failure: TlsFailure): string {
  const { verdict, refused, error, closed, timeoutMs, credentials } = failure;
  if (verdict !== undefined) {
    const explain = VERDICTS[verdict] as Explain | undefined;
    return explain?.(failure) ?? `${theirs(failure)} is refused (${verdict})`;
  }
  if (refused !== undefined) {
    const name = refused.identity === undefined ? refused.distinguishedName : refused.identity;
    return `the client ${quote(name)} may not come, says ${option(failure, 'authorize')} (QEMU: tls-authz)`;
  }
  if (timeoutMs !== undefined) {
    const hint = failure.silent === false ? '' : `: does the ${other(failure)} speak TLS (QEMU: tls-creds)?`;
    return `the handshake was not done within ${timeoutMs} ms${hint}`;
  }
  const code = error === undefined ? '' : codeOf(error);
  const alert = /^ERR_SSL_(?:(?:SSLV3|TLSV1|TLSV13|SSL\/TLS)_ALERT|TLSV1)_(\w+)$/.exec(code)?.[1];
  // Above what came of it: without a known identity the handshake goes on, and fails for want of a certificate.
  const unknown = failure.identity !== undefined && credentials.psk(failure.identity) === undefined;
  if (unknown) return unknownIdentity(failure);
  if (alert !== undefined) {
    const explain = ALERTS[alert] as Explain | undefined;
    const name = alert.toLowerCase().replaceAll('_', ' ');
    return `the ${other(failure)} refused (${name}): ${explain?.(failure) ?? 'its log says why'}; its log has more`;
  }
  const known = REASONS[code.replace(/^ERR_SSL_/, '')] as Explain | undefined;
  if (known !== undefined) return known(failure);
  if (closed === true || ['ECONNRESET', 'EPIPE'].includes(code)) return closedByPeer(failure);
  if (error === undefined) return UNREADABLE;
  // OpenSSL's whole text has addresses and file names of its own in it.
  const said = (error as { reason?: unknown }).reason;
  return `${UNREADABLE}: ${typeof said === 'string' ? said : describeThrown(error)}`;
}

function closedByPeer(failure: TlsFailure): string {
  const { kind, role, origin } = failure.credentials;
  let why = `it may have refused ${credentialsOf(failure)}, or have credentials of another kind`;
  if (failure.silent === true) {
    // QEMU sends no alert: of credentials of another kind or of a PSK that it has not, it says nothing either.
    why =
      role === 'client'
        ? `it said nothing, so it may speak plain text (QEMU: no tls-creds), not know ${credentialsOf(failure)}, ` +
          'or have no version of TLS or cipher in common (options minVersion, maxVersion, ciphers; QEMU: priority)'
        : 'it said nothing';
  } else if (kind === 'x509' && role === 'server') {
    why =
      `it may have refused this side's certificate, of ${origin} (${SERVER_CHECKS}), ` +
      'or have credentials of another kind';
  }
  return `the ${other(failure)} closed the connection during the handshake: ${why}; its log says more`;
}

function plainText(failure: TlsFailure): string {
  return (
    `the ${other(failure)} speaks no TLS, but plain text; ` +
    `give it credentials (QEMU: tls-creds), or leave out option ${failure.credentials.option} here`
  );
}

function noVersion(failure: TlsFailure): string {
  const { minVersion, maxVersion } = failure.credentials;
  const range = minVersion === maxVersion ? minVersion : `${minVersion} to ${maxVersion}`;
  return `no version of TLS in common: this side takes ${range} (options minVersion, maxVersion)`;
}

function noAgreement(failure: TlsFailure): string {
  const { kind, ciphers } = failure.credentials;
  const there = kind === 'psk' ? `a PSK of ${identity(failure)}` : 'certificates';
  const list = ciphers === undefined ? '' : `; ${option(failure, 'ciphers')} here is ${quote(ciphers)}`;
  // OpenSSL in TLS 1.2 has no alert of its own for it.
  const bare = isBareClient(failure) ? `, or ${noCertificate(failure)}` : '';
  return (
    `no cipher in common, or another kind of credentials: this side has ${there}, ` +
    `and the ${other(failure)} needs the same${list}${bare}`
  );
}

function isBareClient({ credentials: { kind, role, hasCertificate } }: TlsFailure): boolean {
  return kind === 'x509' && role === 'client' && !hasCertificate;
}

/** What this side proves itself with. */
function credentialsOf(failure: TlsFailure): string {
  const { kind, hasCertificate, origin } = failure.credentials;
  if (kind === 'psk') return `the PSK of ${identity(failure)}, of ${origin}`;
  return hasCertificate
    ? `this side's certificate, of ${origin}`
    : `a client without a certificate, as ${origin} has none`;
}

function noCertificate({ credentials }: TlsFailure): string {
  return credentials.hasCertificate
    ? `it asks for a certificate, and does not take the one of ${credentials.origin}`
    : `it asks for a client's certificate, and ${credentials.origin} has none (client-cert.pem, client-key.pem; cert, key)`;
}

function identity({ credentials, identity: named }: TlsFailure): string {
  return `the identity ${quote(named ?? credentials.identity)}`;
}

function unknownIdentity(failure: TlsFailure): string {
  const there = failure.credentials.identities().map(quote).join(', ');
  return (
    `the client has the PSK of ${identity(failure)}, which ${ours(failure)} has not: it has ${there}; ` +
    'both ends need the same line of keys.psk (QEMU: username)'
  );
}

function wrongPsk(failure: TlsFailure): string {
  const text = `the keys (PSK) of ${identity(failure)} differ`;
  // GnuTLS goes on with a random key where it knows no identity, so that nobody can find out which there are.
  const hidden = failure.credentials.role === 'client' ? ', or the server has none of it' : '';
  return `${text}${hidden}: both ends need the same keys.psk; here it is ${ours(failure)}`;
}
