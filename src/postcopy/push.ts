/**
 * Writes all pages, in the order that the schedule says, with a few pieces read ahead.
 *
 *     schedule --> pieces being read, and read    --> main connection
 *                  [r r | b b b b b b]
 *                   ^ what is asked for goes in here: behind what was asked for before, and behind
 *                     a huge page that has been begun
 *
 * A page that is asked for while it waits in a piece takes that piece with it to the front.
 *
 * Memory: PIECES pieces. Some of them are kept free for what is asked for.
 */
import { performance } from 'node:perf_hooks';
import { MultifdError } from '../errors.js';
import type { MainConnection } from '../transport/main-connection.js';
import type { HotPage } from './hot-file.js';
import type { PageMap } from './page-map.js';
import { Piece, type PageFile } from './piece.js';
import { Rate } from './rate.js';
import { Schedule, type Batch } from './schedule.js';

const PIECES = 12;
const KEPT_FREE = 4;

/** What has gone out. */
export interface PushCounts {
  /** Pages that were sent because they were asked for, absent ones included. */
  pagesRequested: number;
  /** Because a hint says that they will be, absent ones included. */
  pagesHot: number;
  /** All others. */
  pagesPushed: number;
  /** Of all of them those that the file does not have. */
  zeroPages: number;
  /** That asked for pages which were on their way or there already. */
  requestsRepeated: number;
}

export class Pusher {
  readonly counts: PushCounts = {
    pagesRequested: 0,
    pagesHot: 0,
    pagesPushed: 0,
    zeroPages: 0,
    requestsRepeated: 0,
  };
  /** Why pages could not be read. */
  fileError: MultifdError | undefined;
  readonly rate: Rate;
  readonly #main: Pick<MainConnection, 'write'>;
  readonly #file: PageFile;
  readonly #schedule: Schedule;
  readonly #free: Piece[];
  #ahead: Piece[] = [];
  /** The group of what was written last. */
  #begun = 0;
  #last: PageMap | undefined;
  #error: MultifdError | undefined;
  /** Bytes of the hint's pages that may go out before the guest runs; undefined when it does. */
  #early: number | undefined;
  #isSleeping = false;
  #wake: (() => void) | undefined;
  #room: (() => void) | undefined;

  constructor(
    main: Pick<MainConnection, 'write'>,
    file: PageFile,
    maps: readonly PageMap[],
    pageSize: number,
    maxBandwidth: number,
    hot: readonly HotPage[] = [],
  ) {
    this.#main = main;
    this.#file = file;
    this.#schedule = new Schedule(maps, hot);
    this.rate = new Rate(maxBandwidth);
    const sink = Piece.sink();
    this.#free = Array.from({ length: PIECES }, () => new Piece(pageSize, sink, file.direct !== undefined));
  }

  /** Does it wait for maxBandwidth? */
  get isSleeping(): boolean {
    return this.#isSleeping;
  }

  /** Pages in the file that have not gone out; a little less, as some are being read. */
  get left(): number {
    return this.#schedule.left;
  }

  /**
   * A request for a host page. Who has asked for very much waits until that has gone out.
   *
   * @param page of the target: the first of the host page
   */
  async request(map: PageMap, page: number): Promise<void> {
    if (map.isTaken(page)) {
      this.counts.requestsRepeated++;
      this.#hurry(map, page);
      return;
    }
    while (this.#schedule.isFull && this.#error === undefined) {
      await new Promise<void>((resolve) => (this.#room = resolve));
    }
    this.#schedule.request(map, page);
    // Read at once, while a piece is being written perhaps.
    this.#fill();
    this.wake();
  }

  /** Ends run() with this error; the first one counts. */
  fail(error: MultifdError): void {
    this.#error ??= error;
    this.wake();
    this.#room?.();
  }

  /** After a change of the rate. */
  wake(): void {
    this.#wake?.();
  }

  /**
   * Before the guest runs: pages of the hint, as many as go out in so many bytes and milliseconds. maxBandwidth does not hold
   * them back, as nothing that a guest waits for; but they count.
   */
  async early(mostBytes: number, mostMs: number): Promise<void> {
    const late = performance.now() + mostMs;
    this.#early = mostBytes;
    for (;;) {
      if (performance.now() > late) this.#early = 0;
      this.#fill();
      if (this.#error !== undefined) throw this.#error;
      const head = this.#ahead[0];
      if (head === undefined) break;
      if (!head.isReady) {
        await this.#sleep(0);
        continue;
      }
      this.#ahead.shift();
      await this.#write(head);
    }
    this.#early = undefined;
    // The next section's first record names its block.
    this.#last = undefined;
  }

  /** Until all pages that the file has are with the kernel. */
  async run(): Promise<void> {
    for (;;) {
      this.#fill();
      if (this.#error !== undefined) throw this.#error;
      const head = this.#ahead[0];
      if (head === undefined) return;
      const waitMs = head.isUrgent || this.#isWithinGroup(head) ? 0 : this.rate.waitMs;
      if (!head.isReady || waitMs > 0) {
        await this.#sleep(waitMs);
        continue;
      }
      this.#ahead.shift();
      await this.#write(head);
    }
  }

  async #write(piece: Piece): Promise<void> {
    const { map, pages, kind, group } = piece.batch as Batch;
    const bytes = piece.bytes(map === this.#last);
    this.#last = map;
    this.#begun = group;
    await this.#main.write(bytes);
    this.rate.add(bytes.length);
    if (kind === 'requested') this.counts.pagesRequested += pages.length;
    else if (kind === 'hot') this.counts.pagesHot += pages.length;
    else this.counts.pagesPushed += pages.length;
    for (const page of pages) if (!map.isPresent(page)) this.counts.zeroPages++;
    piece.batch = undefined;
    this.#free.push(piece);
  }

  /** Reads on, as far as there are pieces. */
  #fill(): void {
    while (this.#free.length > 0 && this.#error === undefined) {
      const batch = this.#next();
      if (batch === undefined) break;
      const piece = this.#free.pop() as Piece;
      piece.batch = batch;
      piece.isReady = false;
      piece.isUrgent = batch.kind === 'requested';
      this.#ahead.splice(this.#placeOf(batch), 0, piece);
      piece.fill(batch, this.#file).then(
        () => {
          piece.isReady = true;
          this.wake();
        },
        (error: unknown) => {
          this.fileError ??= MultifdError.wrap(error, 'ERR_MULTIFD_IO', 'read');
          this.fail(this.fileError);
        },
      );
    }
    if (!this.#schedule.isFull) this.#room?.();
  }

  #next(): Batch | undefined {
    if (this.#early === undefined) return this.#schedule.next(this.#free.length > KEPT_FREE);
    // A huge page that has been begun is sent as a whole.
    if (this.#early <= 0 && !this.#schedule.isOpen) return undefined;
    const batch = this.#schedule.nextHot();
    if (batch !== undefined) this.#early -= batch.pages.length * batch.map.pageSize;
    return batch;
  }

  #placeOf({ group, kind }: Batch): number {
    const before = this.#ahead.findLastIndex(({ batch }) => batch?.group === group);
    if (before >= 0) return before + 1;
    if (group === this.#begun) return 0;
    return kind === 'requested' ? this.#front() : this.#ahead.length;
  }

  /** Behind what may not be overtaken. */
  #front(): number {
    const index = this.#ahead.findIndex((piece) => !piece.isUrgent && !this.#isWithinGroup(piece));
    return index < 0 ? this.#ahead.length : index;
  }

  /** Has the huge page been begun that it belongs to? */
  #isWithinGroup({ batch }: Piece): boolean {
    return batch?.group === this.#begun;
  }

  /** A page that waits in a piece: that goes first. */
  #hurry(map: PageMap, page: number): void {
    if (map.hostPages > 1) return;
    const index = this.#ahead.findIndex(({ batch }) => batch?.map === map && batch.pages.includes(page));
    if (index < 0) return;
    const [piece] = this.#ahead.splice(index, 1);
    this.#ahead.splice(Math.min(this.#front(), index), 0, piece);
    piece.isUrgent = true;
    this.wake();
  }

  async #sleep(waitMs: number): Promise<void> {
    let timer: NodeJS.Timeout | undefined;
    this.#isSleeping = waitMs > 0;
    await new Promise<void>((resolve) => {
      this.#wake = resolve;
      if (waitMs > 0) timer = setTimeout(resolve, waitMs);
    });
    clearTimeout(timer);
    this.#isSleeping = false;
    this.#wake = undefined;
  }
}
