/**
 * What one end of a connection proves itself with, and what it asks of the other; checked in check-options.ts.
 *
 *     TlsOptions ──checkTlsOptions()──> TlsCredentials   on the calling thread; files are read there, once
 *                                         │ toPlain()    crosses to a channel's thread, which does its own handshakes
 *                                       fromPlain()
 *                    authorize            a function stays behind: it is asked on the calling thread (handshake.ts)
 *
 * Keys are in private fields: neither util.inspect() nor JSON.stringify() nor an error shows them.
 */
import type { TlsRole, TlsVersion } from './options.js';

/** A pattern, as it crosses to a thread. */
export interface PlainPattern {
  source: string;
  flags: string;
}

/** Credentials as they cross to a thread. Holds keys: for `workerData` and messages alone. */
export interface PlainTlsCredentials {
  kind: 'x509' | 'psk';
  role: TlsRole;
  option: string;
  origin: string;
  hostname: string | undefined;
  verifyPeer: boolean;
  authz: PlainPattern | undefined;
  asks: boolean;
  minVersion: TlsVersion;
  maxVersion: TlsVersion;
  ciphers: string | undefined;
  identity: string;
  ca: string | undefined;
  cert: string | undefined;
  key: string | undefined;
  crl: string | undefined;
  psks: Map<string, Uint8Array>;
}

type Secrets = Pick<PlainTlsCredentials, 'key' | 'psks'>;

/** What one end needs for its handshakes. The fields that can be seen are no secrets. */
export class TlsCredentials {
  readonly kind: 'x509' | 'psk';
  readonly role: TlsRole;
  /** The option's name, for messages: `tls`, or `in.tls` of a relay. */
  readonly option: string;
  /** Where they come from, for messages: `folder /etc/pki/qemu`, or `option tls`. */
  readonly origin: string;
  /** What the server's certificate must name. Of a client with certificates and verifyPeer it is there. */
  readonly hostname: string | undefined;
  readonly verifyPeer: boolean;
  /** The clients that may come; undefined for all with good credentials. */
  readonly authz: PlainPattern | undefined;
  /** Is there a function on the calling thread to be asked about each client? */
  readonly asks: boolean;
  readonly minVersion: TlsVersion;
  readonly maxVersion: TlsVersion;
  readonly ciphers: string | undefined;
  readonly identity: string;
  readonly ca: string | undefined;
  readonly cert: string | undefined;
  readonly crl: string | undefined;
  readonly #secrets: Secrets;

  private constructor(plain: PlainTlsCredentials) {
    this.kind = plain.kind;
    this.role = plain.role;
    this.option = plain.option;
    this.origin = plain.origin;
    this.hostname = plain.hostname;
    this.verifyPeer = plain.verifyPeer;
    this.authz = plain.authz;
    this.asks = plain.asks;
    this.minVersion = plain.minVersion;
    this.maxVersion = plain.maxVersion;
    this.ciphers = plain.ciphers;
    this.identity = plain.identity;
    this.ca = plain.ca;
    this.cert = plain.cert;
    this.crl = plain.crl;
    this.#secrets = { key: plain.key, psks: plain.psks };
  }

  static fromPlain(plain: PlainTlsCredentials): TlsCredentials {
    return new TlsCredentials(plain);
  }

  toPlain(): PlainTlsCredentials {
    return { ...this, ...this.#secrets };
  }

  get hasCertificate(): boolean {
    return this.cert !== undefined;
  }

  /** The private key of the certificate, in PEM. */
  privateKey(): string | undefined {
    return this.#secrets.key;
  }

  /** The key of an identity. */
  psk(identity: string): Uint8Array | undefined {
    return this.#secrets.psks.get(identity);
  }

  identities(): string[] {
    return [...this.#secrets.psks.keys()];
  }
}
