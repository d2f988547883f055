/** What a caller sees of a postcopy migration while it is under way, and what it is told at the end. */
import { setTimeout as sleep } from 'node:timers/promises';

/**
 *     state        where the guest is
 *     setup        nowhere: what fails now has not started it
 *     starting     it has been told to run, and has not answered: its devices are being loaded
 *     recovering   at the destination, paused: what the pages are that it has is being asked
 *     running      at the destination: what fails now leaves it postcopy-paused there
 *     completed    at the destination, with all its memory
 */
export type PostcopyState = 'setup' | 'starting' | 'recovering' | 'running' | 'completed';

export interface PostcopyStats {
  state: PostcopyState;
  /** Milliseconds from the call to where the guest is loaded, and told to run; undefined before. */
  runsAfterMs: number | undefined;
  /** Pages that were sent because the guest asked for them. */
  pagesRequested: number;
  /** Pages that were sent ahead because guests asked for them in earlier starts (option hot), most before the guest ran. */
  pagesHot: number;
  /** Pages that were sent without either. */
  pagesPushed: number;
  /** Of all, those that the file does not have: zero pages. */
  zeroPages: number;
  /** Requests for pages that were on their way, or there. */
  requestsRepeated: number;
  /** Pages of the file that have not been sent yet. */
  pagesLeft: number;
  /** (pagesRequested + pagesHot + pagesPushed) * page size. */
  pageBytes: number;
  /** On the wire. */
  bytes: number;
  /** Since the call. */
  elapsedMs: number;
}

/** What will be sent. */
export interface PostcopyStart {
  /** The machine type's full name; empty if the file has none. */
  machine: string;
  blocks: { name: string; size: number; presentPages: number }[];
  /** Page bytes that the file has. */
  pageBytes: number;
}

export interface PostcopyResult extends PostcopyStart {
  stats: PostcopyStats;
}

export interface PostcopySession {
  /** Bytes a second of what nobody has asked for; 0 for no limit. May be set at any time. */
  maxBandwidth: number;
  stats(): PostcopyStats;
  /** The same, now and then while something moves, and once more at the end. */
  progress(): AsyncGenerator<PostcopyStats, void, undefined>;
}

const PROGRESS_MS = 100;

/** @param ended settles, either way, when nothing moves any more */
export async function* followStats(
  stats: () => PostcopyStats,
  ended: Promise<unknown>,
): AsyncGenerator<PostcopyStats, void, undefined> {
  const end = new AbortController();
  const stop = (): void => end.abort();
  ended.then(stop, stop);
  let last = -1;
  while (!end.signal.aborted) {
    await sleep(PROGRESS_MS, undefined, { signal: end.signal, ref: false }).catch(() => {});
    const now = stats();
    if (now.bytes === last && !end.signal.aborted) continue;
    last = now.bytes;
    yield now;
  }
}
