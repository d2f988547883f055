/** What park and resume have in common: whose monitor is spoken to, and QEMU's side of TLS. */
import { Option, type Command } from 'commander';
import { MultifdError } from '../../errors.js';
import type { AddressText } from '../../transport/address.js';
import type { QemuTlsOptions } from '../../qmp/qemu-tls.js';
import { UsageError } from '../cli-error.js';
import { addressFrom, checked } from './migration-options.js';

export interface QmpFlags {
  qmp: AddressText;
  qemuTlsCreds?: string;
  qemuTlsHostname?: string;
}

export function qmpOption(): Option {
  return new Option(
    '--qmp <address>',
    "QEMU's control socket (-qmp): tcp:HOST:PORT or unix:PATH; one that no other client holds",
  ).argParser(addressFrom(1));
}

/** @param role QEMU's */
export function addQemuTlsOptions(command: Command, role: 'client' | 'server'): Command {
  command.option('--qemu-tls-creds <id>', `QEMU's own tls-creds object, endpoint=${role}. QEMU: tls-creds`);
  if (role === 'server') return command;
  return command.option(
    '--qemu-tls-hostname <name>',
    'the name that QEMU expects in our certificate; over a unix socket it needs one. QEMU: tls-hostname',
  );
}

export function qemuTlsFrom(command: Command, flags: QmpFlags, ours: unknown): QemuTlsOptions | undefined {
  const { qemuTlsCreds: creds, qemuTlsHostname: hostname } = flags;
  return checked(command, () => {
    if (creds === undefined) {
      if (hostname !== undefined) {
        throw new UsageError("option '--qemu-tls-hostname' needs option '--qemu-tls-creds <id>'");
      }
      return undefined;
    }
    if (ours === undefined) {
      throw new UsageError(
        "option '--qemu-tls-creds' needs option '--tls-creds <folder>': both sides speak TLS, or none",
      );
    }
    return { creds, ...(hostname !== undefined && { hostname }) };
  });
}

/**
 * A failure as it is told: the library's words in those of the command line. What an abort leaves behind, such as a guest that is
 * in its file already, is told as well, not only that there was a signal.
 */
export function toldByQmp(error: unknown, cancelled: AbortSignal): unknown {
  if (!(error instanceof MultifdError)) return error;
  error.message = error.message
    .replace('option mode: given "postcopy", allowed', 'option --instant: allowed')
    .replaceAll('option qemuTls.creds', 'option --qemu-tls-creds')
    .replaceAll('option qemuTls.hostname', 'option --qemu-tls-hostname');
  const isAbort = cancelled.aborted && error.cause === cancelled.reason;
  // Behind the first clause is what has become of things.
  if (!isAbort || !error.message.includes('; ')) return error;
  return new MultifdError(error.code, error.message, { cause: error });
}
