/**
 * A paused guest into a file on a disk and back, past the page cache: `directIo` against QEMU's `direct-io`, and beside it our
 * own plain way, whose file is forced to the disk at the end as well, and read from there.
 *
 *            clock on                        clock off
 *     save   `migrate` at the source         the source says completed, and ours: `multifd receive` has given its result
 *     load   QEMU: `migrate-incoming`        the destination says completed, and ours: sendMigration() is done
 *            ours: sendMigration()
 *
 * RAM lies in memory, the files where TMPDIR is, or the system's temporary folder. Both sides load the file that ours saved.
 * What each saved and loaded is compared with the guest's RAM once.
 */
import { spawnSync } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { MISSING_QEMU, findQemu } from '../src/cli/demo/qemu/programs.js';
import { Child } from './support/child.js';
import { Command } from './support/command.js';
import { writeImage } from './support/image.js';
import { alternate, clock, ratios, row, type Row } from './support/measure.js';
import { remark } from './support/remark.js';
import { type PausedQemu, RAM_BYTES, makeRam, mustBeSame, withQemu, workFolder } from './support/qemu.js';

const PAIRS = 5;
const FLOOR = 1;
const CHANNELS = 2;
const PARAMETERS = { 'multifd-channels': CHANNELS };
/** Of statfs(2): files in memory. */
const TMPFS = 0x01021994;
const LIMIT_MS = 60_000;
const NAME = 'direct-io';

export async function* run(): AsyncGenerator<Row> {
  if (findQemu() === undefined) {
    remark(NAME, `skipped: it needs ${MISSING_QEMU}`);
    return;
  }
  const folder = workFolder();
  const disk = fs.mkdtempSync(path.join(os.tmpdir(), 'multifd-bench-disk-'));
  const clear = (): void => fs.rmSync(disk, { recursive: true, force: true });
  process.on('exit', clear);
  try {
    if (fs.statfsSync(disk).type === TMPFS) {
      remark(NAME, `skipped: ${os.tmpdir()} is in memory; set TMPDIR to a folder on a disk`);
      return;
    }
    const bench = new DirectBench(folder.path, disk);
    yield* bench.save();
    yield* bench.load();
  } finally {
    clear();
    process.off('exit', clear);
    folder.remove();
  }
}

class DirectBench {
  readonly #folder: string;
  readonly #image: string;
  readonly #target: string;
  readonly #ours: string;
  readonly #qemus: string;

  constructor(folder: string, disk: string) {
    this.#folder = folder;
    this.#image = path.join(folder, 'image');
    this.#target = path.join(folder, 'target.ram');
    this.#ours = path.join(disk, 'ours.mig');
    this.#qemus = path.join(disk, 'qemu.mig');
    writeImage(this.#image, RAM_BYTES, 'mixed');
  }

  async *save(): AsyncGenerator<Row> {
    const seconds = await alternate(
      {
        qemu: () => this.#saveByQemu(),
        plain: () => this.#saveByOurs([]),
        ours: () => this.#saveByOurs(['--direct-io']),
      },
      PAIRS,
    );
    yield* rowsOf('save', seconds);
    const blocks = (file: string): number => (512 * fs.statSync(file).blocks) / 2 ** 20;
    yield row(NAME, '1 GiB mixed: space on disk, QEMU', 'MiB', [blocks(this.#qemus)]);
    yield row(NAME, '1 GiB mixed: space on disk, multifd', 'MiB', [blocks(this.#ours)]);
  }

  async *load(): AsyncGenerator<Row> {
    const seconds = await alternate(
      {
        qemu: () => this.#loadByQemu(this.#ours),
        plain: () => this.#loadByOurs(false),
        ours: () => this.#loadByOurs(true),
      },
      PAIRS,
    );
    yield* rowsOf('load', seconds);
    await this.#loadByQemu(this.#qemus);
    mustBeSame(this.#image, this.#target, "QEMU, from QEMU's file");
    await this.#loadByQemu(this.#ours);
    mustBeSame(this.#image, this.#target, 'QEMU, from our file');
    await this.#loadByOurs(true);
    mustBeSame(this.#image, this.#target, 'multifd send');
  }

  async #saveByQemu(): Promise<number> {
    fs.rmSync(this.#qemus, { force: true });
    return this.#withSource(['multifd', 'mapped-ram'], { 'direct-io': true }, (source) =>
      clock(async () => {
        await source.execute('migrate', { uri: `file:${this.#qemus}` });
        await source.migrated();
      }),
    );
  }

  async #saveByOurs(more: readonly string[]): Promise<number> {
    fs.rmSync(this.#ours, { force: true });
    const args = [
      '--listen',
      'tcp:127.0.0.1:0',
      '--out',
      this.#ours,
      '--channels',
      String(CHANNELS),
      ...more,
    ];
    const receive = new Command('receive', args);
    try {
      const { address: uri } = await receive.record<{ address: string }>('listening');
      return await this.#withSource(['multifd', 'return-path'], {}, (source) =>
        clock(async () => {
          const result = receive.record('result');
          await source.execute('migrate', { uri });
          await Promise.all([source.migrated(), result]);
        }),
      );
    } finally {
      await receive.end();
    }
  }

  async #loadByQemu(file: string): Promise<number> {
    uncache(file);
    return this.#withDestination(['multifd', 'mapped-ram'], { 'direct-io': true }, (destination) =>
      clock(async () => {
        await destination.execute('migrate-incoming', { uri: `file:${file}` });
        await destination.migrated();
      }),
    );
  }

  async #loadByOurs(directIo: boolean): Promise<number> {
    uncache(this.#ours);
    const sender = new Child('./file-sender.js', {});
    await sender.next();
    const seconds = await this.#withDestination(['multifd'], {}, async (destination) => {
      const to = await destination.listen();
      return clock(async () => {
        sender.tell({ file: this.#ours, to, channels: CHANNELS, directIo });
        await Promise.all([sender.next(), destination.migrated()]);
      });
    });
    await sender.end();
    return seconds;
  }

  async #withSource<T>(
    capabilities: string[],
    parameters: object,
    use: (source: PausedQemu) => Promise<T>,
  ): Promise<T> {
    const options = { ram: this.#image, prealloc: true };
    return withQemu([this.#folder, 'from', options], capabilities, { ...PARAMETERS, ...parameters }, use);
  }

  async #withDestination<T>(
    capabilities: string[],
    parameters: object,
    use: (to: PausedQemu) => Promise<T>,
  ): Promise<T> {
    makeRam(this.#target, false);
    const options = { ram: this.#target, prealloc: false, incoming: true };
    return withQemu([this.#folder, 'to', options], capabilities, { ...PARAMETERS, ...parameters }, use);
  }
}

/** Takes the file out of the page cache, so that each side reads it from the disk. */
function uncache(file: string): void {
  const args = [`of=${file}`, 'oflag=nocache', 'conv=notrunc,fdatasync', 'count=0', 'status=none'];
  const { status, stderr } = spawnSync('dd', args, { encoding: 'utf8', timeout: LIMIT_MS });
  if (status !== 0) throw new Error(`dd: ${stderr}`);
}

function rowsOf(what: string, sides: { qemu: number[]; plain: number[]; ours: number[] }): Row[] {
  const { qemu, plain, ours } = sides;
  const name = `1 GiB mixed on disk, ${what}`;
  return [
    row(NAME, `${name}: QEMU ${findQemu()?.version}, direct-io`, 's', qemu),
    row(NAME, `${name}: multifd, directIo`, 's', ours),
    row(NAME, `${name}: multifd, plain`, 's', plain),
    row(NAME, `${name}: directIo, speed against QEMU`, '', ratios(qemu, ours), { floor: FLOOR }),
    row(NAME, `${name}: directIo, speed against plain`, '', ratios(plain, ours)),
  ];
}
