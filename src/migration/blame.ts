/**
 * What a source did that the bytes alone do not say in plain words: it sends without multifd, or it broke off.
 *
 * A multifd source sends no page with data on the main stream before its channels are through their first sync point.
 * One without multifd sends them right behind ram's START, and connects no channel; so such a PAGE tells.
 */
import { MultifdError } from '../errors.js';
import { STREAM_ERRORS } from '../stream/codes.js';

/** For a PAGE on the main stream that no channel went before. */
export function multifdIsOff(): MultifdError {
  const message =
    'the source sends its pages on the main stream: capability multifd is off there: ' +
    'switch it on with migrate_set_capability multifd on';
  return new MultifdError(STREAM_ERRORS.unsupported, message);
}

/** An end or a break of one of the source's connections before ram's END: the whole migration's, whichever was seen first. */
export function brokenOff(error: MultifdError): MultifdError {
  if (error.code !== 'ERR_MULTIFD_EOF' && error.code !== 'ERR_MULTIFD_CONNECTION') return error;
  const what = "the source broke the migration off (cancelled, failed or ended) before ram's END";
  return error.reworded(`${error.message}: ${what}`);
}

/** With the return path a source keeps its main stream open until it is told that all has arrived. */
export function closedUntold(): MultifdError {
  const message = 'the source closed its main stream before it was told';
  return new MultifdError('ERR_MULTIFD_CONNECTION', message);
}
