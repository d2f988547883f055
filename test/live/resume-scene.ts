/**
 * A VM that is moved in several tries: a guest that writes when it is told to, so that each page which a try has to send is
 * known, through a cutter.
 */
import type { Test } from 'tap';
import {
  createMigrationDestination,
  createMigrationSource,
  type DirtyRange,
  type MigrationDestination,
  type MigrationDestinationOptions,
  type MigrationProgress,
  type MigrationSource,
  type MigrationSourceOptions,
} from '../../src/index.js';
import { eventually } from '../support/raw-channel.js';
import { Random } from '../support/random.js';
import { within } from '../support/within.js';
import { Cutter } from './cutter.js';
import { MACHINE, WAIT_MS, failure } from './scene.js';

export const PAGE = 4096;
export const PAGES = 1024;

export interface ResumeSceneOptions {
  source?: Partial<MigrationSourceOptions>;
  destination?: Partial<MigrationDestinationOptions>;
}

export class ResumeScene {
  readonly notes: string[] = [];
  readonly here = new SharedArrayBuffer(PAGES * PAGE);
  readonly there = new SharedArrayBuffer(PAGES * PAGE);
  destination!: MigrationDestination;
  cutter!: Cutter;
  source: MigrationSource | undefined;
  /**
   * Called at the begin of each round of this try, from 1 on, before the dirty pages are taken, and when the destination has all
   * of the rounds before.
   */
  onRound: (round: number) => void = () => {};
  /** Called with each dirty page that the source is about to send. */
  onPage: (page: number) => void = () => {};
  readonly #t: Test;
  readonly #options: ResumeSceneOptions;
  readonly #random = new Random(7);
  readonly #dirty = new Set<number>();
  #round = 0;

  private constructor(t: Test, options: ResumeSceneOptions) {
    this.#t = t;
    this.#options = options;
    // All but the last page, which is zero at both ends, or shall become so.
    for (let page = 0; page < PAGES - 1; page++) this.#fill(page);
    new Uint8Array(this.there).fill(0xcc);
  }

  static async open(t: Test, options: ResumeSceneOptions = {}): Promise<ResumeScene> {
    const scene = new ResumeScene(t, options);
    const { notes } = scene;
    const given = options.destination ?? {};
    scene.destination = await createMigrationDestination({
      listen: { host: '127.0.0.1', port: 0 },
      machine: MACHINE,
      blocks: [{ name: 'ram', memory: scene.there }],
      devices: [{ idstr: 'cpu', load: (data) => void notes.push(`load ${data.length}`) }],
      resumable: true,
      start: () => void notes.push('start'),
      ...given,
      onState: (state) => {
        notes.push(`destination ${state}`);
        given.onState?.(state);
      },
    } as MigrationDestinationOptions);
    t.teardown(() => scene.destination.cancel());
    scene.cutter = await Cutter.listen(t, scene.destination.address);
    return scene;
  }

  /** The guest writes to so many pages from `page` on. */
  write(page: number, count = 1): void {
    for (let i = page; i < page + count; i++) {
      this.#fill(i);
      this.#dirty.add(i);
    }
  }

  /** The guest zeroes pages. */
  zero(page: number, count: number): void {
    new Uint8Array(this.here, page * PAGE, count * PAGE).fill(0);
    for (let i = page; i < page + count; i++) this.#dirty.add(i);
  }

  #fill(page: number): void {
    this.#random.bytes(new Uint8Array(this.here, page * PAGE, PAGE));
  }

  *#ranges(): Generator<DirtyRange> {
    for (const page of [...this.#dirty]) {
      this.#dirty.delete(page);
      this.onPage(page);
      yield { block: 'ram', offset: page * PAGE, length: PAGE };
    }
  }

  /** The next try; the first one, or one that carries on. */
  async next(own: Partial<MigrationSourceOptions> = {}): Promise<MigrationSource> {
    const options = { ...this.#options.source, ...own };
    this.#round = 0;
    this.source = await createMigrationSource({
      to: this.cutter.address,
      machine: MACHINE,
      blocks: [{ name: 'ram', memory: this.here }],
      devices: [{ idstr: 'cpu', save: () => Buffer.from('state') }],
      resumable: true,
      ...(this.source !== undefined && { resumeFrom: this.source }),
      // A round goes on as long as anything is dirty.
      downtimeLimitMs: 0,
      maxRounds: 1000,
      ...options,
      dirty: async () => {
        this.#round++;
        await this.#caughtUp();
        this.onRound(this.#round);
        return this.#ranges();
      },
      pause: () => {
        this.notes.push('pause');
        return options.pause?.();
      },
      resume: () => {
        this.notes.push('resume');
        return options.resume?.();
      },
    });
    const { source } = this;
    this.#t.teardown(() => source.cancel());
    return source;
  }

  /** Nothing comes in any more, so that all that was sent before is there, and its marker has been heard. */
  async #caughtUp(): Promise<void> {
    for (let before = -1, now = this.destination.stats().bytes; now !== before;) {
      before = now;
      await new Promise((resolve) => setTimeout(resolve, 40));
      now = this.destination.stats().bytes;
    }
  }

  /** A try that breaks, and the destination's pause behind it. */
  async broken(): Promise<void> {
    await failure((this.source as MigrationSource).done);
    await this.paused();
  }

  async paused(): Promise<void> {
    await eventually(() => this.destination.state === 'precopy-paused', 'the destination waits');
  }

  /** The last try: all is there. @returns the source's figures */
  async arrives(source = this.source as MigrationSource): Promise<MigrationProgress> {
    const figures = await within(source.done, WAIT_MS, 'the source');
    await within(this.destination.done, WAIT_MS, 'the destination');
    this.#t.ok(Buffer.from(this.here).equals(Buffer.from(this.there)), 'all its memory is there');
    this.#t.equal(this.destination.state, 'completed');
    this.#t.equal(this.notes.filter((note) => note === 'start').length, 1);
    return figures;
  }
}

/** Pages that a try has sent, zero pages included. */
export function pagesOf({ ram }: MigrationProgress): number {
  return ram.normal + ram.duplicate;
}
