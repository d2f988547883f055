/**
 * What a failure means for the guest, in the error's own words: whoever reads it must know whether the guest runs, and what to
 * do about it.
 *
 *     state        the error                                             the guest
 *     setup        what failed, and what the destination may have        has not been started, and the destination fails
 *                  refused, by the PING that it answered last
 *     starting     what failed                                           unknown; most likely the devices were refused
 *     recovering   what failed                                           stays postcopy-paused
 *     running      ERR_MULTIFD_POSTCOPY_PAUSED, with the cause;          runs on as far as it has its memory, postcopy-paused
 *                  ERR_MULTIFD_ABORTED for an abort
 */
import { MultifdError } from '../errors.js';
import { printable } from '../printable.js';
import type { PostcopyState } from './session.js';
import { PONG_ADVISED, PONG_BLOCKS, PONG_CONNECTED } from './stream.js';

/** What a destination may refuse behind each PONG; it says why in its log alone. */
const REFUSED: Record<number, string> = {
  0: 'the stream as such: is it a QEMU with -incoming, capability return-path on and multifd off, of this machine type?',
  [PONG_CONNECTED]:
    'POSTCOPY_ADVISE: is capability postcopy-ram on, may it use userfaultfd (root, /dev/userfaultfd, or vm.unprivileged_userfaultfd=1), is its RAM anonymous, tmpfs or hugetlbfs, with the pages that options hostPageSize and hugePages say (--host-page-size, --huge-pages)?',
  [PONG_ADVISED]:
    'the RAM blocks: are memory size, machine and devices the same, and the huge pages of each block those of option hugePages (--huge-pages)?',
  [PONG_BLOCKS]: "the devices' state: are machine and devices the same?",
};

const RECOVER =
  'there, QMP migrate-recover with a new uri, then sendMigration with mode postcopy and recover (multifd send --mode postcopy --recover) from the same file';

/** Codes of what the destination has done, or may have. */
const ITS_OWN = new Set([
  'ERR_MULTIFD_CONNECTION',
  'ERR_MULTIFD_STREAM',
  'ERR_MULTIFD_TIMEOUT',
  'ERR_MULTIFD_EOF',
]);

export interface Fate {
  state: PostcopyState;
  /** The last that it answered; 0 for none. */
  pong: number;
  machine: string;
  pagesLeft: number;
  /** The destination has said that it failed. */
  isRefused: boolean;
  /** It was our own file that could not be read. */
  isOfFile: boolean;
}

/** Says that the file is what keeps it from going on: in each such message. */
export const SOUND_COPY = 'a sound copy of it';

export function told(error: MultifdError, fate: Fate): MultifdError {
  switch (fate.state) {
    case 'setup': {
      const sent = `machine ${printable(fate.machine)}`;
      const refused = `; the destination may have refused (its log says why) ${REFUSED[fate.pong] ?? ''} What was sent: ${sent}`;
      return again(error, ITS_OWN.has(error.code) ? refused : '; the guest has not been started');
    }
    case 'starting':
      return again(
        error,
        `; the destination has not said that it loaded the devices: it may have refused them (its log says why), then the guest has not run; or the connection broke just then, and query-migrate there says postcopy-paused: then ${RECOVER}`,
      );
    case 'recovering':
      return again(error, `; the guest stays postcopy-paused at the destination: ${RECOVER}`);
    case 'running': {
      if (fate.isRefused) {
        return again(error, '; the destination has failed while its guest ran: its log says why');
      }
      const missing = fate.pagesLeft > 0 ? `${fate.pagesLeft} pages` : 'none or the last pages';
      const code = error.code === 'ERR_MULTIFD_ABORTED' ? error.code : 'ERR_MULTIFD_POSTCOPY_PAUSED';
      const lost = fate.isOfFile
        ? `, which could not be read from the file. It is postcopy-paused there, and goes on only when they can, or with ${SOUND_COPY}`
        : ': it is postcopy-paused there, and nothing is lost; to go on';
      const what = `the guest runs at the destination and lacks ${missing} of its memory${lost}: ${RECOVER}. (A QEMU that has ended by itself had not run it yet: send anew.)`;
      return error.reworded(`${error.message}; ${what}`, {
        code,
        cause: code === error.code ? error.cause : error,
      });
    }
    case 'completed':
      return error;
  }
}

function again(error: MultifdError, more: string): MultifdError {
  return error.reworded(`${error.message}${more}`);
}
