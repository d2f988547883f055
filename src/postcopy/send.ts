/**
 * Postcopy from a mapped-ram file: the guest runs in a stock QEMU before its memory has been read, and what it touches comes
 * first. One plain connection; the stream is in stream.ts.
 *
 *     source                                                     destination
 *     header, POSTCOPY_ADVISE, PING 2             ---->          makes its RAM empty, catches its faults
 *                                                 <----          PONG 2
 *     blocks, PING 4, RAM_DISCARD                 ---->
 *     with option hot: pages that it will touch   ---->          hot.ts; bounded
 *     PACKAGED                                    ---->          loads the devices
 *         LISTEN, devices, PING 3, RUN            <----          PONG 3: the guest runs
 *     pages, those that are asked for first       ---->
 *                                                 <----          REQ_PAGES
 *     EOS, END, EOF                               ---->          what was never sent reads as zero from here on
 *                                                 <----          SHUT 0: completed
 *
 * Nothing of this grows with the guest's size but the last but one: the block's bitmaps are all that is read of RAM before.
 * The file is only read, so several may do that at once.
 *
 * Two moments decide. Before RUN goes out, what fails breaks the connection, and the destination fails without having run
 * the guest. From RUN on the destination has the only guest there is: whatever fails, an abort too, then leaves it in QEMU's
 * state `postcopy-paused`, and never ends the stream as if all were there; option `recover` goes on from the same file. The
 * SHUT 0 ends it: what fails later changes nothing. What is told then is in fate.ts.
 *
 *     recover: RECV_BITMAP a block ---->
 *                                 <---- which pages it has
 *              POSTCOPY_RESUME    ---->
 *                                 <---- RESUME_ACK, and all that it waits for is asked for again
 *              pages, as above
 *
 * Called on the calling thread; there are no others.
 */
import { performance } from 'node:perf_hooks';
import { MultifdError } from '../errors.js';
import { offsetForPostcopy, readSaveImage } from '../libvirt/save-image.js';
import { requireSound, type MappedRamDescription } from '../mapped-ram/description.js';
import { readOtherSections, readTail } from '../mapped-ram/pages.js';
import { tryDirectReads } from '../mapped-ram/read-pages.js';
import { readMappedRam } from '../mapped-ram/read.js';
import { refusedBy } from '../migration/answer.js';
import { connectMain } from '../migration/destination.js';
import { settles, withLimit } from '../migration/limits.js';
import { callHook, requireOptions, requirePageSizeTold } from '../migration/options.js';
import { watchMigration } from '../migration/watch.js';
import { checkMaxBandwidth } from '../options.js';
import { machineRules } from '../stream/machine.js';
import { MigrationFile } from '../packed/open.js';
import type { MainConnection } from '../transport/main-connection.js';
import { PostcopyAnswers } from './answers.js';
import { told } from './fate.js';
import { HotPages } from './hot.js';
import { checkPostcopy, hostPageSizes, type CheckedPostcopy, type PostcopyOptions } from './options.js';
import { PageMap } from './page-map.js';
import type { PageFile } from './piece.js';
import { Pusher } from './push.js';
import {
  followStats,
  type PostcopyResult,
  type PostcopySession,
  type PostcopyStart,
  type PostcopyState,
  type PostcopyStats,
} from './session.js';
import { PONG_ADVISED, PONG_LOADED, PostcopyStream, deviceBytes } from './stream.js';

/**
 * RUN stands right behind the PING that says that the guest runs, and nothing answers it: a connection that broke in between
 * would fail the destination, where one that breaks later leaves it to be recovered. So we break it no sooner than that.
 */
const RUN_MS = 250;

/** The guest waits no longer for pages that a hint has; the rest of them follows when it runs. By choice. */
const EARLY_MS = 500;

/**
 * Starts the guest from the file; resolves when the destination has all of its memory.
 *
 * @throws MultifdError ERR_MULTIFD_POSTCOPY_PAUSED for what fails while the guest runs, see fate.ts; else as sendMigration()
 */
export async function sendPostcopy(options: PostcopyOptions): Promise<PostcopyResult> {
  const begun = performance.now();
  const checked = await checkPostcopy(requireOptions(options));
  const { file, directIo, address, connectTimeoutMs, signal, tls } = checked;
  await using opened = await MigrationFile.open(file, directIo);
  const { content } = opened;
  const pages: PageFile = { content, direct: opened.directPages };
  let main: MainConnection | undefined;
  let migration: PostcopyMigration | undefined;
  try {
    const { pageSize, bounds } = checked;
    const offset = offsetForPostcopy(await readSaveImage(content, checked.offset), checked.offset);
    const description = await readMappedRam(content, {
      offset,
      ...(pageSize !== undefined && { pageSize }),
      ...bounds,
    });
    requireSound(description);
    requirePageSizeTold(description.pageSize, pageSize);
    const maps = await PageMap.readAll(content, description, hostPageSizes(checked, description));
    if (pages.direct !== undefined) await tryDirectReads(pages.direct, description);
    const warn = (message: string): void => callHook('onWarning', () => options.onWarning?.(message));
    const hot = checked.hot ? await HotPages.open(file, content, description, maps, warn) : undefined;
    main = await connectMain(address, connectTimeoutMs, signal, tls);
    migration = new PostcopyMigration({ checked, options, main, pages, description, maps, hot, begun });
    return await migration.run();
  } finally {
    main?.destroy();
  }
}

interface Parts {
  checked: CheckedPostcopy;
  options: PostcopyOptions;
  main: MainConnection;
  pages: PageFile;
  description: MappedRamDescription;
  maps: readonly PageMap[];
  /** What the guest will want first; undefined where that is not asked for. */
  hot: HotPages | undefined;
  begun: number;
}

class PostcopyMigration {
  readonly #parts: Parts;
  readonly #stream: PostcopyStream;
  readonly #pusher: Pusher;
  readonly #answers: PostcopyAnswers;
  #state: PostcopyState;
  #runsAfterMs: number | undefined;
  #runsSince = 0;
  #written = 0;
  #pong = 0;
  #isRefused = false;
  #bitmapsDue = 0;
  #error: MultifdError | undefined;
  /** What is waited for, each until it holds or something fails. */
  readonly #waits = new Set<() => void>();

  constructor(parts: Parts) {
    const { checked, main, pages, description, maps, hot } = parts;
    this.#parts = parts;
    this.#state = checked.recover ? 'recovering' : 'setup';
    this.#stream = streamOf(parts);
    const write = (bytes: Buffer): Promise<void> => this.#write(bytes);
    const { pageSize } = description;
    const known = checked.recover ? [] : hot?.known;
    this.#pusher = new Pusher({ write }, pages, maps, pageSize, checked.maxBandwidth, known);
    this.#bitmapsDue = checked.recover ? maps.length : 0;
    this.#answers = new PostcopyAnswers(main.reader, new Map(maps.map((map) => [map.block.name, map])), {
      request: async (map, page) => {
        hot?.asked(map, page);
        await this.#pusher.request(map, page);
      },
      pong: (value) => {
        this.#pong = value;
        if (value === PONG_LOADED && this.#state === 'starting') this.#runs();
        this.#look();
      },
      bitmap: (map, bytes) => {
        map.setReceived(bytes);
        this.#bitmapsDue--;
        this.#look();
      },
      resumed: () => {
        this.#runs();
        this.#look();
      },
    });
  }

  async run(): Promise<PostcopyResult> {
    const { checked, options, main } = this.#parts;
    const { signal, stallTimeoutMs } = checked;
    const abort = (): void => {
      const cause: unknown = signal?.reason;
      this.#fail(new MultifdError('ERR_MULTIFD_ABORTED', 'aborted', { cause }));
    };
    const ended = this.#answers.shut.then(
      (status) => {
        if (status === 0) this.#state = 'completed';
        else {
          this.#isRefused = true;
          this.#fail(refusedBy(status));
        }
      },
      (error: unknown) => this.#fail(MultifdError.wrap(error, 'ERR_MULTIFD_CONNECTION', 'main stream')),
    );
    const start = this.#start();
    let end!: () => void;
    const over = new Promise<void>((resolve) => (end = resolve));
    const unwatch = watchMigration(
      stallTimeoutMs,
      // While it sleeps for its bandwidth it moves.
      () => (this.#pusher.isSleeping ? performance.now() : this.#written),
      (error) => this.#fail(error),
    );
    signal?.addEventListener('abort', abort, { once: true });
    try {
      if (signal?.aborted === true) abort();
      callHook('onStart', () => options.onStart?.(start));
      const session = this.#session(over);
      callHook('onSession', () => options.onSession?.(session));
      if (checked.recover) await this.#recover();
      else await this.#startGuest();
      await this.#push();
      await settles(main.end());
      return { ...start, stats: this.stats() };
    } catch (thrown) {
      // What the destination itself says counts more than that it is gone.
      const error = MultifdError.wrap(thrown, 'ERR_MULTIFD_CONNECTION', 'migration');
      if (error.code === 'ERR_MULTIFD_CONNECTION' && this.#error === undefined) await settles(ended);
      this.#fail(error);
      // The connection is broken by then, see RUN_MS.
      if (this.#state === 'running') await settles(ended);
      if (this.#state === 'completed') return { ...start, stats: this.stats() };
      throw told(this.#error as unknown as MultifdError, {
        state: this.#state,
        pong: this.#pong,
        machine: this.#parts.description.machine,
        pagesLeft: this.#pusher.left,
        isRefused: this.#isRefused,
        isOfFile: this.#error !== undefined && this.#error === this.#pusher.fileError,
      });
    } finally {
      unwatch();
      // Also of a guest that lacks the rest; nothing that fails now changes what has become of it.
      if (this.#runsAfterMs !== undefined) await settles(Promise.resolve(this.#parts.hot?.keep()));
      signal?.removeEventListener('abort', abort);
      end();
    }
  }

  #start(): PostcopyStart {
    const { description } = this.#parts;
    return {
      machine: description.machine,
      blocks: description.blocks.map(({ name, usedLength, presentPages }) => ({
        name,
        size: usedLength,
        presentPages,
      })),
      pageBytes: description.presentPages * description.pageSize,
    };
  }

  #session(over: Promise<void>): PostcopySession {
    const { rate } = this.#pusher;
    const stats = (): PostcopyStats => this.stats();
    const wake = (): void => this.#pusher.wake();
    return {
      get maxBandwidth() {
        return rate.limit;
      },
      set maxBandwidth(bytesPerSecond) {
        rate.limit = checkMaxBandwidth(bytesPerSecond);
        wake();
      },
      stats,
      progress: () => followStats(stats, over),
    };
  }

  stats(): PostcopyStats {
    const { description, begun } = this.#parts;
    const { counts } = this.#pusher;
    return {
      state: this.#state,
      runsAfterMs: this.#runsAfterMs,
      ...counts,
      pagesLeft: this.#pusher.left,
      pageBytes: (counts.pagesRequested + counts.pagesHot + counts.pagesPushed) * description.pageSize,
      bytes: this.#written,
      elapsedMs: performance.now() - begun,
    };
  }

  /** Up to RUN. */
  async #startGuest(): Promise<void> {
    const { checked, description, pages } = this.#parts;
    const { content } = pages;
    const { connectTimeoutMs } = checked;
    await this.#write(this.#stream.begin());
    const late = `the destination has not answered POSTCOPY_ADVISE within ${connectTimeoutMs} ms: does it wait for channels (capability multifd)?`;
    await this.#until(() => this.#pong === PONG_ADVISED, late);
    for await (const piece of readOtherSections(content, description.sectionsBeforeRam))
      await this.#write(piece);
    await this.#write(this.#stream.blocks());
    for await (const piece of readOtherSections(content, description.sectionsBesideRam))
      await this.#write(piece);
    const bytes = await deviceBytes(content, description);
    await this.#write(this.#stream.discard());
    await this.#sendHot();
    // Devices touch RAM while they are loaded.
    this.#answers.expectRequests();
    await this.#write(this.#stream.listen(bytes));
    for await (const piece of readTail(content, { ...description, tailBytes: bytes }))
      await this.#write(piece);
    if (this.#error !== undefined) throw this.#error;
    this.#state = 'starting';
    await this.#write(this.#stream.run());
  }

  async #sendHot(): Promise<void> {
    const { hot, checked } = this.#parts;
    if (hot === undefined || hot.known.length === 0 || checked.maxHot === 0) return;
    await this.#write(this.#stream.pages());
    await this.#pusher.early(checked.maxHot, EARLY_MS);
    await this.#write(this.#stream.endPages());
  }

  async #recover(): Promise<void> {
    const { maps, checked } = this.#parts;
    const { connectTimeoutMs } = checked;
    this.#answers.expectBitmaps();
    for (const { block } of maps) await this.#write(this.#stream.askBitmap(block.name));
    const late = `the destination has not answered RECV_BITMAP within ${connectTimeoutMs} ms: is it postcopy-paused, and does it listen by migrate-recover?`;
    await this.#until(() => this.#bitmapsDue === 0, late);
    this.#answers.expectResume();
    this.#answers.expectRequests();
    await this.#write(this.#stream.resume());
    const lateResume = `the destination has not answered POSTCOPY_RESUME within ${connectTimeoutMs} ms`;
    await this.#until(() => this.#state === 'running', lateResume);
  }

  async #push(): Promise<void> {
    const { stallTimeoutMs } = this.#parts.checked;
    await this.#write(this.#stream.pages());
    await this.#pusher.run();
    if (this.#error !== undefined) throw this.#error;
    this.#answers.expectShut();
    await this.#write(this.#stream.end());
    const late = `the destination has all pages, but has not said within ${stallTimeoutMs} ms that it is done`;
    await withLimit(this.#answers.shut, stallTimeoutMs, 'ERR_MULTIFD_STALL', late);
    if (this.#state !== 'completed') throw this.#error as unknown as MultifdError;
  }

  #runs(): void {
    const { begun, options } = this.#parts;
    this.#state = 'running';
    this.#runsSince = performance.now();
    const afterMs = performance.now() - begun;
    this.#runsAfterMs = afterMs;
    callHook('onRunning', () => options.onRunning?.(afterMs));
  }

  async #write(bytes: Buffer): Promise<void> {
    if (this.#error !== undefined) throw this.#error;
    await this.#parts.main.write(bytes);
    this.#written += bytes.length;
  }

  async #until(holds: () => boolean, late: string): Promise<void> {
    const wait = new Promise<void>((resolve, reject) => {
      const look = (): void => {
        if (this.#error !== undefined) reject(this.#error);
        else if (holds()) resolve();
        else return;
        this.#waits.delete(look);
      };
      this.#waits.add(look);
      look();
    });
    await withLimit(wait, this.#parts.checked.connectTimeoutMs, 'ERR_MULTIFD_TIMEOUT', late);
  }

  #look(): void {
    for (const look of [...this.#waits]) look();
  }

  /** The first error counts, and breaks the connection; nothing does when all has arrived. */
  #fail(error: MultifdError): void {
    if (this.#state === 'completed') return;
    if (this.#error !== undefined) {
      if (error !== this.#error) this.#error.suppressed.push(error);
      return;
    }
    this.#error = error;
    this.#pusher.fail(error);
    this.#look();
    const early = this.#parts.checked.recover ? 0 : RUN_MS - (performance.now() - this.#runsSince);
    if (this.#state === 'running' && early > 0) setTimeout(() => this.#parts.main.breakOff(), early);
    else this.#parts.main.breakOff();
  }
}

function streamOf({ checked, description, maps }: Parts): PostcopyStream {
  const { hostPageSize } = checked;
  let pageSizes = 0n;
  const blocks = description.blocks.map(({ name, usedLength, address }, i) => {
    const size = maps[i].hostPages * description.pageSize;
    pageSizes |= BigInt(size);
    return {
      name,
      usedLength,
      ...(size !== hostPageSize && { hostPageSize: size }),
      ...(address !== undefined && { address }),
    };
  });
  return new PostcopyStream({
    description,
    blocks,
    rules: machineRules(description.configuration?.machine, checked.peer),
    pageSizes: Number(pageSizes),
    normalPageSize: hostPageSize,
  });
}
