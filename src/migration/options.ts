/** What the migrations check of their options before anything is opened. */
import { MultifdError, describeThrown, receivedExpected } from '../errors.js';
import { flag, wrong } from '../option-checks.js';
import {
  SENDER_KEYS,
  checkSenderOptions,
  checkZeroCopySend,
  type CheckedSenderOptions,
  type SenderOptions,
} from '../options.js';
import { SET_UP } from '../set-up.js';
import { atMost } from '../stream/bounds.js';
import { refusal } from '../stream/codes.js';
import { parseQemuVersion, type QemuVersion } from '../stream/machine.js';
import type { TailScanner } from '../stream/vm-description.js';

/**
 * For all connections to be there, and for a destination to answer. QEMU opens all its connections at once: who has fewer
 * channels than expected shall not be waited for long.
 */
export const CONNECT_TIMEOUT_MS = 8000;

/** @throws MultifdError ERR_MULTIFD_OPTION */
export function requireOptions<T extends object>(options: T): T {
  if (options !== null && typeof options === 'object') return options;
  throw new MultifdError('ERR_MULTIFD_OPTION', `options: given ${String(options)}, allowed an object`);
}

/** Of a sender's options those that a migration's caller may give. */
export const OUTGOING_KEYS = SENDER_KEYS.filter(
  (key) => key !== 'address' && key !== 'blocks' && key !== 'onZeroPages' && key !== 'tls',
);

/**
 * All of a sender's options but the blocks, which are not known yet and stand for nothing in what is returned, and TLS, whose
 * credentials are read later.
 *
 * @param tls that option, as it was given
 * @throws MultifdError ERR_MULTIFD_OPTION, ERR_MULTIFD_RUNTIME
 */
export function checkOutgoing(
  options: Omit<SenderOptions, 'blocks' | 'tls'>,
  tls: unknown,
): CheckedSenderOptions {
  const { zeroCopySend, ...others } = options;
  const { pageSize = 4096 } = others;
  const size = Number.isInteger(pageSize) && pageSize > 0 ? pageSize : 4096;
  const checked = checkSenderOptions({
    ...others,
    ...(others.zeroPageDetection === 'legacy' && { onZeroPages: () => {} }),
    blocks: [{ name: 'ram', memory: new SharedArrayBuffer(size) }],
  });
  if (flag('zeroCopySend', zeroCopySend)) checkZeroCopySend({ ...others, address: checked.address, tls });
  return checked;
}

/**
 * Is a page size that was given that of the stream? Without one, what the stream tells is taken.
 *
 * @param told of the configuration: toldPageSize()
 * @throws MultifdError ERR_MULTIFD_STREAM
 */
export function requirePageSizeTold(told: number | undefined, given: number | undefined): void {
  if (told === undefined || given === undefined || told === given) return;
  const message = receivedExpected('target page size', told, `${given} (${SET_UP.pageSize})`);
  throw new MultifdError('ERR_MULTIFD_STREAM', message);
}

/** What is wrong with the VM description, as far as it has come: is it above its bound? */
export function descriptionError({ tooLong, maxBytes }: TailScanner): MultifdError | undefined {
  if (tooLong === undefined) return undefined;
  const expected = atMost('maxDescription', maxBytes);
  return refusal('limit', 'main stream: bytes of the VM description', tooLong, expected);
}

/** @throws MultifdError ERR_MULTIFD_OPTION */
export function checkPeer(peer: unknown): QemuVersion | undefined {
  const version = typeof peer === 'string' ? parseQemuVersion(peer) : undefined;
  if (peer !== undefined && version === undefined) throw wrong('peer', peer, 'such as "7.2"');
  return version;
}

/** @throws MultifdError ERR_MULTIFD_OPTION */
export function checkOffset(offset: unknown): number {
  if (offset === undefined) return 0;
  if (typeof offset === 'number' && Number.isSafeInteger(offset) && offset >= 0) return offset;
  const given = typeof offset === 'number' ? String(offset) : JSON.stringify(offset);
  throw new MultifdError('ERR_MULTIFD_OPTION', `option offset: given ${given}, allowed an integer from 0 on`);
}

/** @throws MultifdError ERR_MULTIFD_HOOK */
export function callHook(name: string, hook: () => void): void {
  try {
    hook();
  } catch (cause) {
    throw new MultifdError('ERR_MULTIFD_HOOK', `${name}() failed: ${describeThrown(cause)}`, { cause });
  }
}

/**
 * The same for a hook that may take its time, and give something.
 *
 * @throws MultifdError ERR_MULTIFD_HOOK
 */
export async function awaitHook<T>(name: string, hook: () => T | PromiseLike<T>): Promise<T> {
  try {
    return await hook();
  } catch (cause) {
    throw new MultifdError('ERR_MULTIFD_HOOK', `${name}() failed: ${describeThrown(cause)}`, { cause });
  }
}
