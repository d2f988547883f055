/**
 * Hooks that take their time. While a migration goes on a hook may take as long as it likes: the other side is kept informed
 * meanwhile, and who does not want to wait cancels. When it has failed or was cancelled, a hook that is under way is waited for,
 * since what is being stopped cannot be let run; but not for ever, since a hook that hangs may be just why it was cancelled.
 */
import { withLimit } from '../migration/limits.js';

/** By choice; less where stallTimeoutMs is less. */
const LATE_HOOK_MS = 5000;

/** @param stallTimeoutMs the option */
export function lateHookMs(stallTimeoutMs: number): number {
  return Math.min(LATE_HOOK_MS, stallTimeoutMs);
}

/** @throws MultifdError ERR_MULTIFD_HOOK, and what the hook throws */
export function inTime<T>(name: string, hook: Promise<T>, ms: number): Promise<T> {
  const late = `${name}() has not returned within ${ms} ms behind the end of the migration; it is not waited for any more`;
  return withLimit(hook, ms, 'ERR_MULTIFD_HOOK', late);
}
