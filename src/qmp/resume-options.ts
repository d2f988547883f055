/** What resumeVm() is told, checked before anything is opened. */
import { checkKeys, wrong } from '../option-checks.js';
import type { Compression } from '../options.js';
import { OUTGOING_KEYS, requireOptions } from '../migration/options.js';
import { checkSend, type CheckedSend, type SendMigrationOptions } from '../migration/send.js';
import { BOUND_KEYS } from '../stream/bounds.js';
import { checkAddress, checkToldAddress, type Address, type AddressText } from '../transport/address.js';
import { checkQemuTls, type QemuTlsOptions } from './qemu-tls.js';

export interface ResumeVmOptions extends Omit<SendMigrationOptions, 'to'> {
  /** The control socket (-qmp) of a QEMU that was started with `-incoming defer`; no other client holds it. */
  qmp: Address | AddressText;
  /**
   * Where QEMU listens. Default: a unix socket in a folder that only this user may enter. A QEMU on another host, or of another
   * user, needs an address of its own.
   */
  to?: Address | AddressText;
  /**
   * Shall the guest run in the end? Default: as it did when it was parked, unless QEMU was started with -S. At once (mode
   * `postcopy`), too: one that was paused stays paused. What libvirt saved runs if the domain ran then, with -S as well unless
   * it is started at once.
   */
  run?: boolean;
  /** QEMU's side of TLS; goes with `tls`, which is ours. */
  qemuTls?: QemuTlsOptions;
}

/** Those of resumeVm() and of sendMigration() that are not a sender's. */
const OTHER_KEYS: Record<
  Exclude<keyof ResumeVmOptions, keyof Omit<SendMigrationOptions, 'file' | 'offset' | 'directIo' | 'peer'>>,
  true
> = {
  qmp: true,
  run: true,
  qemuTls: true,
  file: true,
  offset: true,
  directIo: true,
  peer: true,
};
const KEYS = [
  ...Object.keys(OTHER_KEYS),
  ...OUTGOING_KEYS,
  ...Object.keys(BOUND_KEYS),
  'tls',
  'to',
  'mode',
  'onStart',
  'onSession',
  'onRecords',
];

export interface CheckedResume {
  qmp: Address;
  to: Address | undefined;
  run: boolean | undefined;
  channels: number;
  compression: Compression;
  qemuTls: QemuTlsOptions | undefined;
  signal: AbortSignal | undefined;
  /** As sendMigration() wants it. */
  send: Omit<SendMigrationOptions, 'to'>;
  /** What it makes of that. */
  checked: CheckedSend;
}

/** What is sent to stands for: what is wrong with the rest is to be known before QEMU listens anywhere. */
export function addressToBe(to: Address | undefined): Address {
  if (to === undefined) return { path: '/private/resume.sock' };
  return to.port === 0 ? { ...to, port: 1 } : to;
}

/** @throws MultifdError as sendMigration() before it opens anything */
export async function checkResumeOptions(options: ResumeVmOptions): Promise<CheckedResume> {
  const { qmp, to, run, qemuTls, ...send } = requireOptions(options);
  checkKeys(options, KEYS);
  if (run !== undefined && typeof run !== 'boolean') throw wrong('run', run, 'true or false');
  const address = to === undefined ? undefined : checkToldAddress(to, 0, 'to');
  const monitor = checkAddress(qmp, 1, 'qmp');
  const checked = await checkSend({ ...send, to: addressToBe(address) });
  return {
    qmp: monitor,
    to: address,
    run,
    channels: checked.channels,
    compression: checked.compression,
    qemuTls: checkQemuTls(qemuTls, send.tls),
    signal: send.signal,
    send,
    checked,
  };
}
