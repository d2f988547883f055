/**
 * The zstd of a Node that has none of its own: the system's libzstd, where it and koffi are, else @mongodb-js/zstd.
 *
 * Asked on the calling thread before anything connects, and again in each channel's thread.
 */
import { MultifdError } from '../errors.js';
import { findLibzstd, whyNoLibzstd } from '../native/libzstd.js';
import { zstdBinding } from './zstd-binding.js';

/** @throws MultifdError ERR_MULTIFD_RUNTIME: there is none */
export function outsideZstd(): 'libzstd' | 'binding' {
  if (findLibzstd() !== undefined) return 'libzstd';
  try {
    zstdBinding();
    return 'binding';
  } catch (cause) {
    throw new MultifdError('ERR_MULTIFD_RUNTIME', whyNone(cause as NodeJS.ErrnoException), { cause });
  }
}

function whyNone({ code, message }: NodeJS.ErrnoException): string {
  if (code === 'ERR_DLOPEN_DISABLED') {
    return 'received --permission without --allow-addons, expected both: on this Node zstd is a native addon';
  }
  const why =
    code === 'MODULE_NOT_FOUND'
      ? `its part for ${process.platform} on ${process.arch} is not installed: npm install --include=optional`
      : message.split('\n', 1)[0];
  return (
    'compression zstd: this Node has none of its own (22.15 and later have), ' +
    `the system's libzstd is out of reach (${whyNoLibzstd()}), and @mongodb-js/zstd cannot be loaded (${why})`
  );
}
