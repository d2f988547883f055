/**
 * A paused guest into a file and back, against QEMU's own mapped-ram files with multifd. All files are in memory where there
 * is a place for that, so that no disk is measured; the clock is this process's, on both sides alike.
 *
 *            clock on                        clock off
 *     save   `migrate` at the source         the source says completed, and ours: `multifd receive` has given its result
 *     load   QEMU: `migrate-incoming`        the destination says completed, and ours: sendMigration() is done
 *            ours: sendMigration()
 *
 * Both sides load the file that ours saved, into memory without pages. What each saved and what each loaded is compared with
 * the guest's RAM once.
 *
 * The limit is file-limit.c in our place, with a buffer as ours and without: what it sends is what ours has sent, recorded.
 */
import fs from 'node:fs';
import path from 'node:path';
import { MISSING_QEMU, findQemu } from '../src/cli/demo/qemu/programs.js';
import { sendMigration, type AddressText } from '../src/index.js';
import { Child } from './support/child.js';
import { Command } from './support/command.js';
import { NO_FILE_LIMIT, buildFileLimit, type FileLimit, type Ways } from './support/file-limit.js';
import { writeImage } from './support/image.js';
import { alternate, clock, ratios, row, type Row } from './support/measure.js';
import { portOf, record } from './support/recorder.js';
import { remark } from './support/remark.js';
import { type PausedQemu, RAM_BYTES, makeRam, mustBeSame, withQemu, workFolder } from './support/qemu.js';

const PAIRS = 5;
const FLOOR = 1;
/** Of what the C program reaches. */
const LIMIT_FLOOR = 0.9;
const CHANNELS = 2;
/** With the main stream. */
const CONNECTIONS = CHANNELS + 1;
const PARAMETERS = { 'multifd-channels': CHANNELS };

export async function* run(): AsyncGenerator<Row> {
  if (findQemu() === undefined) {
    remark('qemu-file', `skipped: it needs ${MISSING_QEMU}`);
    return;
  }
  const folder = workFolder();
  try {
    const bench = new FileBench(folder.path);
    yield* bench.save();
    yield* bench.load();
  } finally {
    folder.remove();
  }
}

class FileBench {
  readonly #folder: string;
  readonly #image: string;
  readonly #target: string;
  readonly #ours: string;
  readonly #qemus: string;
  readonly #limits: string;
  readonly #limit: FileLimit | undefined;
  #recorded: string[] = [];

  constructor(folder: string) {
    this.#folder = folder;
    this.#image = path.join(folder, 'image');
    this.#target = path.join(folder, 'target.ram');
    this.#ours = path.join(folder, 'ours.mig');
    this.#qemus = path.join(folder, 'qemu.mig');
    this.#limits = path.join(folder, 'limit.ram');
    this.#limit = buildFileLimit();
    if (this.#limit === undefined) remark('qemu-file', NO_FILE_LIMIT);
    writeImage(this.#image, RAM_BYTES, 'mixed');
  }

  async *save(): AsyncGenerator<Row> {
    const seconds = await alternate(
      {
        qemu: () => this.#saveByQemu(),
        ours: () => this.#saveByOurs(true),
        oneWay: () => this.#saveByOurs(false),
        ...this.#inC((limit, how) => this.#saveByLimit(limit, how), 'splice'),
      },
      PAIRS,
    );
    fs.rmSync(this.#limits, { force: true });
    yield* rowsOf('save', seconds);
    const name = '1 GiB mixed, save: multifd, without return path';
    yield row('qemu-file', name, 's', seconds.oneWay);
    yield row('qemu-file', `${name}: speed against QEMU`, '', ratios(seconds.qemu, seconds.oneWay));
    yield* limitRows('save', seconds);
  }

  async *load(): AsyncGenerator<Row> {
    if (this.#limit !== undefined) await this.#record();
    const seconds = await alternate(
      {
        qemu: () => this.#loadByQemu(this.#ours),
        ours: () => this.#loadByOurs(),
        command: () => this.#loadByCommand(),
        ...this.#inC((limit, how) => this.#loadByLimit(limit, how), 'sendfile'),
      },
      PAIRS,
    );
    yield* rowsOf('load', seconds);
    const name = '1 GiB mixed, load: multifd send, the whole command';
    yield row('qemu-file', name, 's', seconds.command);
    yield row('qemu-file', `${name}: speed against QEMU`, '', ratios(seconds.qemu, seconds.command));
    yield* limitRows('load', seconds);
    await this.#loadByQemu(this.#qemus);
    mustBeSame(this.#image, this.#target, "QEMU, from QEMU's file");
    await this.#loadByQemu(this.#ours);
    mustBeSame(this.#image, this.#target, 'QEMU, from our file');
    await this.#loadByOurs();
    mustBeSame(this.#image, this.#target, 'multifd send');
  }

  async #saveByQemu(): Promise<number> {
    fs.rmSync(this.#qemus, { force: true });
    return this.#withSource(['multifd', 'mapped-ram'], (source) =>
      clock(async () => {
        await source.execute('migrate', { uri: `file:${this.#qemus}` });
        await source.migrated();
      }),
    );
  }

  /** With the return path the source waits to be told that the file is there. */
  async #saveByOurs(returnPath: boolean): Promise<number> {
    fs.rmSync(this.#ours, { force: true });
    const args = ['--listen', 'tcp:127.0.0.1:0', '--out', this.#ours, '--channels', String(CHANNELS)];
    const receive = new Command('receive', args);
    try {
      const { address: uri } = await receive.record<{ address: string }>('listening');
      return await this.#withSource(['multifd', ...(returnPath ? ['return-path'] : [])], (source) =>
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
    return this.#withDestination(['multifd', 'mapped-ram'], (destination) =>
      clock(async () => {
        await destination.execute('migrate-incoming', { uri: `file:${file}` });
        await destination.migrated();
      }),
    );
  }

  /** By an embedder, a process that has loaded the package before. */
  async #loadByOurs(): Promise<number> {
    const sender = new Child('./file-sender.js', {});
    await sender.next();
    const seconds = await this.#withDestination(['multifd'], async (destination) => {
      const to = await destination.listen();
      return clock(async () => {
        sender.tell({ file: this.#ours, to, channels: CHANNELS });
        await Promise.all([sender.next(), destination.migrated()]);
      });
    });
    await sender.end();
    return seconds;
  }

  /** With the start of Node, which is not small beside the rest. */
  async #loadByCommand(): Promise<number> {
    return this.#withDestination(['multifd'], async (destination) => {
      const to = await destination.listen();
      return clock(async () => {
        const send = new Command('send', [this.#ours, '--to', to, '--channels', String(CHANNELS)]);
        try {
          await Promise.all([send.record('result'), destination.migrated()]);
        } finally {
          await send.end();
        }
      });
    });
  }

  /** The sides in C, where there is a compiler. */
  #inC(
    run: (limit: FileLimit, how: Ways) => Promise<number>,
    kernel: Ways,
  ): Record<string, () => Promise<number>> {
    const limit = this.#limit;
    if (limit === undefined) return {};
    return { limit: () => run(limit, 'read'), kernel: () => run(limit, kernel) };
  }

  /** Without return path, which it cannot answer. */
  async #saveByLimit(limit: FileLimit, how: Ways): Promise<number> {
    fs.rmSync(this.#limits, { force: true });
    const receiver = await limit.receive(this.#limits, CONNECTIONS, how);
    try {
      return await this.#withSource(['multifd'], (source) =>
        clock(async () => {
          await source.execute('migrate', { uri: `tcp:127.0.0.1:${receiver.port}` });
          await Promise.all([source.migrated(), receiver.done]);
        }),
      );
    } finally {
      receiver.end();
    }
  }

  async #loadByLimit(limit: FileLimit, how: Ways): Promise<number> {
    return this.#withDestination(['multifd'], async (destination) => {
      const to = await destination.listen();
      return clock(async () => {
        await Promise.all([limit.send(String(portOf(to)), how, this.#recorded), destination.migrated()]);
      });
    });
  }

  /** What ours sends, for the C program to send as well. */
  async #record(): Promise<void> {
    await this.#withDestination(['multifd'], async (destination) => {
      const recording = await record(await destination.listen(), this.#folder);
      await Promise.all([
        sendMigration({ file: this.#ours, to: recording.address as AddressText, channels: CHANNELS }),
        destination.migrated(),
      ]);
      this.#recorded = await recording.end();
    });
  }

  async #withSource<T>(capabilities: string[], use: (source: PausedQemu) => Promise<T>): Promise<T> {
    const options = { ram: this.#image, prealloc: true };
    return withQemu([this.#folder, 'from', options], capabilities, PARAMETERS, use);
  }

  async #withDestination<T>(capabilities: string[], use: (to: PausedQemu) => Promise<T>): Promise<T> {
    makeRam(this.#target, false);
    const options = { ram: this.#target, prealloc: false, incoming: true };
    return withQemu([this.#folder, 'to', options], capabilities, PARAMETERS, use);
  }
}

function rowsOf(what: string, { qemu, ours }: { qemu: number[]; ours: number[] }): Row[] {
  const name = `1 GiB mixed, ${what}`;
  const plot = (series: string): Partial<Row> => ({ plot: { chart: 'file', series, x: what } });
  return [
    row('qemu-file', `${name}: QEMU ${findQemu()?.version}`, 's', qemu, plot('QEMU')),
    row('qemu-file', `${name}: multifd`, 's', ours, plot('multifd')),
    row('qemu-file', `${name}: speed against QEMU`, '', ratios(qemu, ours), { floor: FLOOR }),
  ];
}

function limitRows(what: string, seconds: { ours: number[]; limit?: number[]; kernel?: number[] }): Row[] {
  const { ours, limit, kernel } = seconds;
  if (limit === undefined || kernel === undefined) return [];
  const name = `1 GiB mixed, ${what}`;
  return [
    row('qemu-file', `${name}: in C, over a buffer`, 's', limit),
    row('qemu-file', `${name}: in C, by ${what === 'save' ? 'splice' : 'sendfile'}`, 's', kernel),
    row('qemu-file', `${name}: share of what C does over a buffer`, '', ratios(limit, ours), {
      floor: LIMIT_FLOOR,
    }),
  ];
}
