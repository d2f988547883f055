/**
 * How soon a guest runs from a mapped-ram file: by postcopy, which starts it at once, against a load of all of it, by QEMU
 * itself and by `send`. The guest has the same pages in all three; the clock begins at the call, and ends
 *
 *     postcopy   when the destination has loaded the devices and is told to run     sendMigration()'s onRunning
 *     QEMU       when it says completed: before that no guest runs                  migrate-incoming file:
 *     send       the same                                                           sendMigration()
 *
 * By postcopy that time is to be the same whatever the size; MULTIFD_BENCH_INSTANT=4096 has a guest of so many MiB beside the
 * others. Guests of 1, 4 and 8 GiB in alternation have 64 MiB of pages each, spread all over them, so that all of them have room
 * on one machine, and one bound for all three. From our first byte to our last before the guest runs it is 5 ms whatever the
 * size; what QEMU then does to catch the faults of that much memory is 1 to 10. What came is compared with the guest's RAM once.
 */
import fs from 'node:fs';
import path from 'node:path';
import { sendMigration, type AddressText } from '../src/index.js';
import { MISSING_QEMU, findQemu } from '../src/cli/demo/qemu/programs.js';
import { writeImage } from './support/image.js';
import { alternate, clock, ratios, row, type Row } from './support/measure.js';
import { remark } from './support/remark.js';
import { type PausedQemu, makeRam, mustBeSame, withQemu, workFolder } from './support/qemu.js';

const NAME = 'instant';
const PAIRS = 5;
const MiB = 2 ** 20;
/** Of the time with four times the memory: what a machine's noise makes of two equal ones. By choice. */
const MOST_GROWTH = 2;
/** Until a guest runs, of whatever size: what nobody notices. By choice. */
const MOST_SECONDS = 0.1;
const { MULTIFD_BENCH_INSTANT: more } = process.env;
const GiB = 2 ** 30;
const SPREAD_GIB = [1, 4, 8] as const;
const SPREAD_PAGES = 2 ** 14;
const PAGE_BYTES = 4096;
const SIZES = [256, 1024, ...(more === undefined ? [] : [Number(more)])];

export async function* run(): AsyncGenerator<Row> {
  if (findQemu() === undefined) {
    remark(NAME, `skipped: it needs ${MISSING_QEMU}`);
    return;
  }
  let smallest: number[] | undefined;
  for (const size of SIZES) {
    const folder = workFolder();
    try {
      const bench = new InstantBench(folder.path, size * MiB);
      await bench.save();
      const { instant, qemu, send } = await alternate(
        { instant: () => bench.instant(), qemu: () => bench.byQemu(), send: () => bench.bySend() },
        PAIRS,
      );
      const name = `${size} MiB mixed`;
      yield row(NAME, `${name}: the guest runs, postcopy`, 's', instant);
      yield row(NAME, `${name}: the guest runs, QEMU ${findQemu()?.version} loads`, 's', qemu);
      yield row(NAME, `${name}: the guest runs, send`, 's', send);
      yield row(NAME, `${name}: postcopy, until all is there`, 's', bench.whole.slice(-PAIRS));
      yield row(NAME, `${name}: sooner than QEMU's own load`, '', ratios(qemu, instant), { floor: 1 });
      if (smallest !== undefined)
        yield row(NAME, `${name}: against ${SIZES[0]} MiB`, '', ratios(instant, smallest), {
          ceiling: MOST_GROWTH,
        });
      smallest ??= instant;
    } finally {
      folder.remove();
    }
  }
  yield* spread();
}

async function* spread(): AsyncGenerator<Row> {
  const folders = SPREAD_GIB.map(() => workFolder());
  try {
    const [one, four, eight] = SPREAD_GIB.map((gib, i) => new InstantBench(folders[i].path, gib * GiB, true));
    for (const bench of [one, four, eight]) await bench.save();
    const figures = await alternate(
      { one: () => one.instant(), four: () => four.instant(), eight: () => eight.instant() },
      PAIRS,
    );
    for (const [gib, seconds] of [
      [1, figures.one],
      [4, figures.four],
      [8, figures.eight],
    ] as const)
      yield row(NAME, `${gib} GiB spread: the guest runs, postcopy`, 's', seconds, { ceiling: MOST_SECONDS });
  } finally {
    for (const folder of folders) folder.remove();
  }
}

/** A file with holes: SPREAD_PAGES pages, each with its number. */
function writeSpread(file: string, bytes: number): void {
  fs.rmSync(file, { force: true });
  const handle = fs.openSync(file, 'wx');
  try {
    fs.ftruncateSync(handle, bytes);
    const page = Buffer.alloc(PAGE_BYTES, 0x5a);
    for (let i = 0; i < SPREAD_PAGES; i++) {
      page.writeUInt32LE(i, 0);
      fs.writeSync(handle, page, 0, PAGE_BYTES, i * (bytes / SPREAD_PAGES));
    }
  } finally {
    fs.closeSync(handle);
  }
}

class InstantBench {
  readonly whole: number[] = [];
  readonly #folder: string;
  readonly #bytes: number;
  readonly #image: string;
  readonly #target: string;
  readonly #file: string;
  readonly #isSpread: boolean;

  constructor(folder: string, bytes: number, isSpread = false) {
    this.#isSpread = isSpread;
    this.#folder = folder;
    this.#bytes = bytes;
    this.#image = path.join(folder, 'image');
    this.#target = path.join(folder, 'target.ram');
    this.#file = path.join(folder, 'vm.mig');
  }

  async save(): Promise<void> {
    if (this.#isSpread) writeSpread(this.#image, this.#bytes);
    else writeImage(this.#image, this.#bytes, 'mixed');
    const options = { ram: this.#image, ramBytes: this.#bytes, prealloc: !this.#isSpread };
    await withQemu([this.#folder, 'from', options], ['mapped-ram'], {}, async (source) => {
      await source.execute('migrate', { uri: `file:${this.#file}` });
      await source.migrated();
    });
    // QEMU has filled its holes, by looking at them.
    if (this.#isSpread) writeSpread(this.#image, this.#bytes);
  }

  async instant(): Promise<number> {
    return this.#into(['postcopy-ram', 'return-path'], {}, async (destination) => {
      const to = (await destination.listen()) as AddressText;
      let runs = NaN;
      const seconds = await clock(async () => {
        await sendMigration({
          mode: 'postcopy',
          file: this.#file,
          to,
          onRunning: (afterMs) => (runs = afterMs / 1000),
        });
        await destination.migrated();
      });
      if (this.whole.length === 0) mustBeSame(this.#image, this.#target, 'postcopy');
      this.whole.push(seconds);
      return runs;
    });
  }

  async byQemu(): Promise<number> {
    return this.#into(['mapped-ram'], {}, async (destination) =>
      clock(async () => {
        await destination.execute('migrate-incoming', { uri: `file:${this.#file}` });
        await destination.migrated();
      }),
    );
  }

  async bySend(): Promise<number> {
    return this.#into(['multifd'], { 'multifd-channels': 2 }, async (destination) => {
      const to = (await destination.listen()) as AddressText;
      return clock(async () => {
        await sendMigration({ file: this.#file, to, channels: 2 });
        await destination.migrated();
      });
    });
  }

  async #into<T>(
    capabilities: string[],
    parameters: object,
    use: (destination: PausedQemu) => Promise<T>,
  ): Promise<T> {
    makeRam(this.#target, false, this.#bytes);
    const options = { ram: this.#target, ramBytes: this.#bytes, prealloc: false, incoming: true };
    return withQemu([this.#folder, 'to', options], capabilities, parameters, use);
  }
}
