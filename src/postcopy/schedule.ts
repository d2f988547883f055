/**
 * What goes out next, page by page of all blocks: never one twice, and what is asked for first.
 *
 *     1  the rest of a host page that has been begun        QEMU places it as a whole, and takes no other in between
 *     2  pages that were asked for, oldest first            absent ones as well: their ZERO is what a guest waits for
 *     3  those that a hint says will be (hot.ts)            absent ones as well; before the guest runs, these alone
 *     4  the neighbourhood of 2, latest first               a guest that reads on does not ask again
 *     5  the neighbourhood of 3
 *     6  all others that the file has, block by block       in the background
 *
 * A page is taken (page-map.ts) as soon as it is in a batch, and what is asked for then is on its way already.
 *
 * Bounds: MAX_REQUESTS host pages that wait, MAX_NEAR neighbourhoods; who asks for more waits (isFull). A request is one host
 * page, as QEMU's are, so that what it costs does not depend on what it says.
 */
import type { HotPage } from './hot-file.js';
import type { PageMap } from './page-map.js';

export type BatchKind = 'requested' | 'hot' | 'near' | 'background';

/** Pages of one block, ascending, for one piece. */
export interface Batch {
  map: PageMap;
  pages: number[];
  kind: BatchKind;
  /** The same for all batches of one huge page; a batch of others has one of its own. */
  group: number;
}

interface Range {
  map: PageMap;
  page: number;
  end: number;
}

/** Bytes of pages in a batch: few enough that who asks for a page waits a fraction of a millisecond behind one. */
export const PIECE_BYTES = 2 ** 18;
type Open = Range & Pick<Batch, 'kind' | 'group'>;

/** No QEMU has as many threads that wait for a page. */
const MAX_REQUESTS = 4096;
const MAX_NEAR = 16;
/** Around a page that was asked for, in bytes: some before it, more behind it. By choice: two pieces. */
const NEAR_BEFORE = 2 ** 17;
const NEAR_BEHIND = 3 * 2 ** 17;
/** Of a hint, which is in the order of the requests: so many go out in the order of the file. By choice: 4 MiB. */
const HOT_TURN = 1024;

export class Schedule {
  readonly #maps: readonly PageMap[];
  readonly #requests: HotPage[] = [];
  readonly #near: Range[] = [];
  readonly #hot: readonly HotPage[];
  #hotAt = 0;
  #hotNearAt = 0;
  /** Of a huge page that has been begun: what is left of it. */
  #open: Open | undefined;
  #block = 0;
  #page = 0;
  #group = 0;

  /** @param hot pages that will be asked for, the first ones first */
  constructor(maps: readonly PageMap[], hot: readonly HotPage[] = []) {
    this.#maps = maps;
    this.#hot = inTurns(maps, hot);
  }

  get isFull(): boolean {
    return this.#requests.length >= MAX_REQUESTS;
  }

  /** Pages in the file that are in no batch yet. */
  get left(): number {
    let left = 0;
    for (const map of this.#maps) left += map.left;
    return left;
  }

  /** @param page of the target: the first of a host page */
  request(map: PageMap, page: number): void {
    this.#requests.push({ map, page });
  }

  /** Undefined when nothing is left, but for what may be asked for still. */
  next(background: boolean): Batch | undefined {
    if (this.#open !== undefined)
      return background || this.#open.kind === 'requested' ? this.#goOn() : undefined;
    const requested = this.#nextRequested();
    if (requested !== undefined || !background) return requested;
    return this.#nextHot() ?? this.#nextNear() ?? this.#nextHotNear() ?? this.#nextBackground();
  }

  /** Has a huge page been begun? */
  get isOpen(): boolean {
    return this.#open !== undefined;
  }

  /** Before anybody asks: of what a hint has. */
  nextHot(): Batch | undefined {
    return this.#open === undefined ? this.#nextHot() : this.#goOn();
  }

  #nextHot(): Batch | undefined {
    const pages: number[] = [];
    let map: PageMap | undefined;
    for (; this.#hotAt < this.#hot.length; this.#hotAt++) {
      const hot = this.#hot[this.#hotAt];
      if (hot.map.isTaken(hot.page)) continue;
      if (map === undefined && hot.map.hostPages > 1) return this.#begin(hot.map, hot.page, 'hot');
      map ??= hot.map;
      if (hot.map !== map || pages.length === PIECE_BYTES / map.pageSize) break;
      if (pages.length > 0 && hot.page <= pages[pages.length - 1]) break;
      pages.push(hot.page);
    }
    return map && this.#taken(map, pages, 'hot');
  }

  #nextHotNear(): Batch | undefined {
    for (; this.#hotNearAt < this.#hot.length; this.#hotNearAt++) {
      const { map, page } = this.#hot[this.#hotNearAt];
      const batch = this.#nextOf(map, ...nearOf(map, page), 'near');
      if (batch !== undefined) return batch;
    }
    return undefined;
  }

  #nextRequested(): Batch | undefined {
    for (let next = this.#requests.shift(); next !== undefined; next = this.#requests.shift()) {
      const { map, page } = next;
      if (map.isTaken(page)) continue;
      this.#addNear(map, page);
      return map.hostPages > 1 ? this.#begin(map, page, 'requested') : this.#taken(map, [page], 'requested');
    }
    return undefined;
  }

  #addNear(map: PageMap, page: number): void {
    const [from, end] = nearOf(map, page);
    this.#near.push({ map, page: from, end });
    if (this.#near.length > MAX_NEAR) this.#near.shift();
  }

  #nextNear(): Batch | undefined {
    for (let range = this.#near.at(-1); range !== undefined; range = this.#near.at(-1)) {
      const batch = this.#nextOf(range.map, range.page, range.end, 'near');
      if (batch !== undefined) return batch;
      this.#near.pop();
    }
    return undefined;
  }

  #nextBackground(): Batch | undefined {
    for (; this.#block < this.#maps.length; this.#block++, this.#page = 0) {
      const map = this.#maps[this.#block];
      if (map.left === 0) continue;
      const batch = this.#nextOf(map, this.#page, map.block.pageCount, 'background');
      if (batch === undefined) continue;
      this.#page = (batch.pages.at(-1) as number) + 1;
      return batch;
    }
    return undefined;
  }

  /** As many pages that the file has as fit into a piece. */
  #nextOf(map: PageMap, from: number, end: number, kind: BatchKind): Batch | undefined {
    let page = map.next(from, end);
    if (page < 0) return undefined;
    if (map.hostPages > 1) return this.#begin(map, page, kind);
    const most = PIECE_BYTES / map.pageSize;
    const pages: number[] = [];
    for (; page >= 0 && pages.length < most; page = map.next(page + 1, end)) pages.push(page);
    return this.#taken(map, pages, kind);
  }

  #taken(map: PageMap, pages: number[], kind: BatchKind): Batch {
    for (const page of pages) map.take(page, 1);
    return { map, pages, kind, group: ++this.#group };
  }

  /** A host page of many pages, as a whole. */
  #begin(map: PageMap, page: number, kind: BatchKind): Batch {
    const first = page - (page % map.hostPages);
    map.take(first, map.hostPages);
    this.#open = { map, page: first, end: first + map.hostPages, kind, group: ++this.#group };
    return this.#goOn();
  }

  #goOn(): Batch {
    const open = this.#open as Open;
    const { map, kind, group } = open;
    const count = Math.min(PIECE_BYTES / map.pageSize, open.end - open.page);
    const pages = Array.from({ length: count }, (_, i) => open.page + i);
    open.page += count;
    if (open.page >= open.end) this.#open = undefined;
    return { map, pages, kind, group };
  }
}

/** Where the neighbourhood of a page begins and ends. */
function nearOf(map: PageMap, page: number): [from: number, end: number] {
  const from = Math.max(0, page - NEAR_BEFORE / map.pageSize);
  return [from, Math.min(map.block.pageCount, page + NEAR_BEHIND / map.pageSize)];
}

/** So that pieces are full, and a disk is not read here and there. */
function inTurns(maps: readonly PageMap[], hot: readonly HotPage[]): HotPage[] {
  const turns: HotPage[] = [];
  for (let at = 0; at < hot.length; at += HOT_TURN) {
    const turn = hot.slice(at, at + HOT_TURN);
    turn.sort((a, b) => maps.indexOf(a.map) - maps.indexOf(b.map) || a.page - b.page);
    turns.push(...turn);
  }
  return turns;
}
