/**
 * TLS in the demo: throw-away credentials, and what the two ends agreed on.
 *
 * The credentials are new for each run and lie in the demo's own folder, which goes with it; whoever looks for them
 * while it runs must be its user.
 */
import diagnostics from 'node:diagnostics_channel';
import path from 'node:path';
import type { TlsAgreed } from '../../transport/tls/agreed.js';
import type { TlsFolderOptions } from '../../transport/tls/options.js';

export const TLS_KINDS = ['x509', 'psk'] as const;
export type TlsKind = (typeof TLS_KINDS)[number];

/** For either side; it crosses to the destination process. */
export interface DemoTls {
  server: TlsFolderOptions;
  client: TlsFolderOptions;
}

/** Of what kind, or those of --tls-creds. */
export type DemoTlsPlan = TlsKind | DemoTls;

/** What is told of it: never more than names. */
export interface TlsReport extends Partial<TlsAgreed> {
  credentials: string;
}

/** @param host the name of both hosts in their certificate, and what the client asks for */
export async function throwAwayCredentials(kind: TlsKind, folder: string, host: string): Promise<DemoTls> {
  const { writePskCredentials, writeX509Credentials } =
    await import('../../transport/tls/make-credentials.js');
  const dir = path.join(folder, 'tls');
  if (kind === 'psk') {
    await writePskCredentials(dir);
    return { server: { dir }, client: { dir } };
  }
  const [own] = await writeX509Credentials(dir, [host], { days: 1 });
  return { server: { dir: own }, client: { dir: own, hostname: host } };
}

export function credentialsText(plan: DemoTlsPlan): string {
  return typeof plan === 'string' ? `throw-away ${plan}` : plan.server.dir;
}

/** What the first channel tells as it starts. To be made before the session, which asks then whether anybody listens. */
export class AgreedWatch {
  agreed: TlsAgreed | undefined;
  readonly #point: string;

  constructor(point: 'multifd_send_thread_start' | 'multifd_recv_thread_start') {
    this.#point = point;
    diagnostics.subscribe(point, this.#heard);
  }

  end(): void {
    diagnostics.unsubscribe(this.#point, this.#heard);
  }

  readonly #heard = (message: unknown): void => {
    const { tlsVersion, cipher } = message as Partial<TlsAgreed>;
    if (tlsVersion !== undefined && cipher !== undefined) this.agreed = { tlsVersion, cipher };
    // Each packet is told from now on, and is not to be.
    this.end();
  };
}

export function tlsText({ credentials, tlsVersion, cipher }: TlsReport): string {
  return [tlsVersion, cipher, `${credentials} credentials`].filter((part) => part !== undefined).join(', ');
}
