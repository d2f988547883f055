/** The `tls` option as callers write it. check-options.ts checks it, and makes TlsCredentials of it. */

export type TlsVersion = 'TLSv1.2' | 'TLSv1.3';
/** The source of a migration connects, and is the client; its destination is the server. */
export type TlsRole = 'client' | 'server';

/** Who has connected, for `authorize`. */
export interface TlsPeer {
  /** The distinguished name of its certificate in QEMU's form, `C=GB,O=Acme,CN=host1`; empty with a PSK. */
  distinguishedName: string;
  /** The host names and IP addresses of its certificate. */
  names: string[];
  /** SHA-256 of its certificate, as `AB:CD:...`; empty with a PSK. */
  fingerprint256: string;
  /** With a PSK: whose key it has. */
  identity: string | undefined;
}

/** Options of either kind of credentials. */
export interface TlsCommonOptions {
  /**
   * For a client: the name or IP address that the server's certificate must carry. By default the host that is connected
   * to; a unix socket has none, so there it must be given. QEMU: tls-hostname.
   */
  hostname?: string;
  /**
   * With certificates: is the other side's checked (default true)? Without, whoever is on the way can read and change
   * the guest's memory. QEMU: verify-peer.
   */
  verifyPeer?: boolean;
  /**
   * For a server: which clients may come, of those with good credentials. A function is asked about each connection; a
   * RegExp or a text with `*` and `?` is compared with the distinguished name of the client's certificate as QEMU prints
   * it, `C=GB,O=Acme,CN=host1`; with the identity, where the credentials are a PSK. QEMU: tls-authz.
   */
  authorize?: ((peer: TlsPeer) => boolean | Promise<boolean>) | RegExp | string;
  /** `TLSv1.2` (default) or `TLSv1.3`. */
  minVersion?: TlsVersion;
  /** `TLSv1.3` (default) or `TLSv1.2`. */
  maxVersion?: TlsVersion;
  /** A list of OpenSSL, such as `TLS_AES_128_GCM_SHA256:ECDHE-PSK-CHACHA20-POLY1305`. */
  ciphers?: string;
}

/** A folder with the files of QEMU's tls-creds-x509 (ca-cert.pem, ...), of libvirt's, or of tls-creds-psk (keys.psk). */
export interface TlsFolderOptions extends TlsCommonOptions {
  dir: string;
  /** Which key of keys.psk a client uses (default `qemu`). QEMU: username. */
  identity?: string;
}

/** Certificates, in PEM. A server needs `cert` and `key`; a client may do without, if the server does not ask. */
export interface TlsX509Options extends TlsCommonOptions {
  /** Whose signatures are believed. Needed unless `verifyPeer` is false. */
  ca?: string | Uint8Array;
  /** One's own certificate, the ones between it and the authority behind it. */
  cert?: string | Uint8Array;
  /** The private key of `cert`, not encrypted. */
  key?: string | Uint8Array;
  /** What the authority has taken back. */
  crl?: string | Uint8Array;
}

/** A key that both ends have, and no certificates. */
export interface TlsPskOptions extends TlsCommonOptions {
  /**
   * The key in bytes or in hex; or several, by identity: a Map, an object, or the text of a keys.psk with lines
   * `identity:hexkey`.
   */
  psk: Uint8Array | string | Record<string, string | Uint8Array> | ReadonlyMap<string, string | Uint8Array>;
  /** Whose key it is (default `qemu`). Of several, the one that a client uses. QEMU: username. */
  identity?: string;
}

/** Credentials for TLS, as one of three kinds. */
export type TlsOptions = TlsFolderOptions | TlsX509Options | TlsPskOptions;
