/**
 * The pages that a guest is known to want first: from the hint of an earlier start (hot-file.ts), and what is asked for this
 * time, for the next one.
 *
 *     open()      the hint is read; what is wrong with it is a warning
 *     known       its pages, for the schedule
 *     asked()     each request of this guest
 *     keep()      the hint anew: what it had, and behind it what was asked for all the same
 *
 * A page of the hint that no guest asks for any more stays in it: it is not asked for since it is there. The bound drops the
 * latest.
 */
import type { ReadableFile } from '../stream/positioned-file.js';
import type { MappedRamDescription } from '../mapped-ram/description.js';
import { describeThrown } from '../errors.js';
import { quote } from '../stream/codes.js';
import { MAX_HOT_PAGES, digestOf, hotPath, readHot, writeHot, type HotPage } from './hot-file.js';
import type { PageMap } from './page-map.js';

export class HotPages {
  readonly #path: string;
  readonly #digest: string;
  readonly #warn: (message: string) => void;
  readonly #all: HotPage[] = [];
  readonly #seen = new Map<PageMap, Set<number>>();
  #isNew = false;
  /** How many of them the hint had. */
  readonly #knownPages: number;

  private constructor(
    path: string,
    digest: string,
    known: readonly HotPage[],
    warn: (message: string) => void,
  ) {
    this.#path = path;
    this.#digest = digest;
    this.#warn = warn;
    for (const { map, page } of known) this.#add(map, page);
    this.#knownPages = this.#all.length;
  }

  static async open(
    file: string,
    handle: ReadableFile,
    description: MappedRamDescription,
    maps: readonly PageMap[],
    warn: (message: string) => void,
  ): Promise<HotPages> {
    const path = hotPath(file);
    const digest = await digestOf(handle, description, maps);
    let known: HotPage[] = [];
    try {
      known = (await readHot(path, digest, maps)) ?? [];
    } catch (error) {
      warn(`hint ${quote(path)} is left aside: ${describeThrown(error)}`);
    }
    return new HotPages(path, digest, known, warn);
  }

  /** In the order in which they were asked for, each once. */
  get known(): readonly HotPage[] {
    return this.#all.slice(0, this.#knownPages);
  }

  /** @param page of the target: the first of a host page */
  asked(map: PageMap, page: number): void {
    if (this.#all.length < MAX_HOT_PAGES && this.#add(map, page)) this.#isNew = true;
  }

  #add(map: PageMap, page: number): boolean {
    let seen = this.#seen.get(map);
    if (seen === undefined) this.#seen.set(map, (seen = new Set()));
    if (seen.has(page)) return false;
    seen.add(page);
    this.#all.push({ map, page });
    return true;
  }

  /** Once, when no more is asked for. Never fails. */
  async keep(): Promise<void> {
    if (!this.#isNew) return;
    try {
      await writeHot(this.#path, this.#digest, this.#all[0].map.pageSize, this.#all);
    } catch (error) {
      this.#warn(`hint ${quote(this.#path)} is not kept: ${describeThrown(error)}`);
    }
  }
}
