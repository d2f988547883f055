/**
 * Calls of the C library, as they are declared in its headers, and what their errno means here.
 *
 * A test gives calls of its own that fail as it likes; nothing else knows where they come from.
 */
import { getSystemErrorMap } from 'node:util';
import { MultifdError, type ErrorCode } from '../errors.js';
import { loadAddon } from './addon-gate.js';
import { declareAll, findKoffi, requireKoffi, type CFunction, type Koffi } from './koffi.js';

/** Arguments and results as in C (ssize_t is intptr_t in koffi's words); all return -1 where they fail. */
const DECLARATIONS = {
  sendmsg: 'intptr_t sendmsg(int fd, const void *message, int flags)',
  recvmsg: 'intptr_t recvmsg(int fd, void *message, int flags)',
  setsockopt: 'int setsockopt(int fd, int level, int name, const void *value, uint32_t length)',
  poll: 'int poll(void *fds, unsigned long count, int timeoutMs)',
  madvise: 'int madvise(void *address, size_t length, int advice)',
  lseek: 'int64_t lseek(int fd, int64_t offset, int whence)',
} as const;

export type CallName = keyof typeof DECLARATIONS;

export type SystemCalls = Record<CallName, CFunction> & {
  /** Of the last call that failed. */
  errno(): number;
  address(view: Uint8Array): bigint;
};

let found: SystemCalls | undefined;

/** Undefined where there is no door to them. */
export function findSystemCalls(): SystemCalls | undefined {
  const koffi = findKoffi();
  return koffi === undefined ? undefined : (found ??= declare(koffi));
}

/**
 * @param option what they are needed for
 * @throws MultifdError ERR_MULTIFD_RUNTIME
 */
export function requireSystemCalls(option: string): SystemCalls {
  return (found ??= declare(requireKoffi(option)));
}

function declare(koffi: Koffi): SystemCalls {
  const calls = loadAddon(() => declareAll(koffi.load(null), DECLARATIONS));
  return { ...calls, errno: () => koffi.errno(), address: (view) => koffi.address(view) };
}

/** An error of the system's as Node's own are: code, errno (below 0), syscall. */
export function systemError(name: CallName, errno: number): NodeJS.ErrnoException {
  const [code, text] = getSystemErrorMap().get(-errno) ?? [`errno ${errno}`, 'unknown error'];
  return Object.assign(new Error(`${name} ${code}: ${text}`), { code, errno: -errno, syscall: name });
}

/**
 * Makes the call.
 *
 * @param passes errnos that are answers as well: returned, below 0
 * @returns what the call returns, 0 or more
 * @throws MultifdError with `code`; its cause is the system's error
 */
export function callSystem(
  calls: SystemCalls,
  name: CallName,
  args: Parameters<CFunction>,
  code: ErrorCode,
  passes: readonly number[] = [],
): number {
  const result = Number(calls[name](...args));
  if (result >= 0) return result;
  const errno = calls.errno();
  if (passes.includes(errno)) return -errno;
  const cause = systemError(name, errno);
  throw new MultifdError(code, cause.message, { cause });
}

const addresses = new WeakMap<ArrayBufferLike, bigint>();

/** Where the view's bytes are: memory of an ArrayBuffer, shared or not, stays where it is until it is detached. */
export function addressOf(calls: Pick<SystemCalls, 'address'>, view: Uint8Array): bigint {
  let base = addresses.get(view.buffer);
  if (base === undefined) {
    // A view of all of it may be larger than Node 20 has one (4 GiB).
    base = calls.address(new Uint8Array(view.buffer, 0, Math.min(1, view.buffer.byteLength)));
    addresses.set(view.buffer, base);
  }
  return base + BigInt(view.byteOffset);
}
