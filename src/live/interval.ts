/** Option `intervalMs` of progress(). */
import { checkKeys, integer } from '../option-checks.js';

const INTERVAL_MS = 200;

/** @throws MultifdError ERR_MULTIFD_OPTION */
export function checkInterval(options: { intervalMs?: number } | null | undefined): number {
  checkKeys(options ?? {}, ['intervalMs']);
  return integer('intervalMs', options?.intervalMs, INTERVAL_MS, 1, 2 ** 31 - 1);
}
