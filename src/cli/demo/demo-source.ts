/**
 * The demo's source side: makes the guest's RAM, starts the destination process, migrates, compares.
 *
 *     RAM made and written | fork ... all channels up | queue, sync, [dirty, queue, sync]... | digests of both sides
 *                          |<---- startupSeconds ---->|<------------ seconds -------------->|
 *
 * `stop` is the one place where a failure is told, whoever has it: the first reason wins, ends the sender, refuses
 * what the destination is asked, and is what the caller gets. All that was made is taken down in reverse order.
 */
import os from 'node:os';
import { performance } from 'node:perf_hooks';
import { setImmediate as turnEventLoop, setTimeout as sleep } from 'node:timers/promises';
import { MultifdError } from '../../errors.js';
import { createSender, type Sender } from '../../send/sender.js';
import type { Stats } from '../../session-stats.js';
import { CliError } from '../cli-error.js';
import { zeroCopyOf } from '../terminal/migration-progress.js';
import { DestinationProcess } from './destination-process.js';
import {
  AgreedWatch,
  credentialsText,
  throwAwayCredentials,
  type DemoTls,
  type DemoTlsPlan,
} from './demo-tls.js';
import { digestBlocks } from './digest.js';
import { dirtyPageCount, dirtyPages, type DirtyCounts } from './dirty-pages.js';
import { fillGuestImage, guestBlocks } from './guest-image.js';
import { FileRam, SharedRam, type BlockPlan, type GuestRam } from './guest-ram.js';
import { loadRamFile, ramFileBlocks } from './ram-file.js';
import { seededRandom } from './random.js';
import type { Reporter } from './report.js';
import type { BlockResult, DemoResult, DemoSettings } from './report-records.js';
import { TempDirectory } from './temp-directory.js';
import { ZeroRanges } from './zero-ranges.js';

export interface DemoPlan extends DemoSettings {
  /** Bytes: of the guest, or with `ram` of the file. */
  size: number;
  tls: DemoTlsPlan | null;
}

/** A connection that breaks is mostly the other side's doing: how long its own account of it is waited for. */
const LAST_WORDS_MS = 500;
const DIRTY_SEED = 0x44332211;
const YIELD_MS = 5;

/** @throws MultifdError, CliError, or the reason of `cancelled` */
export async function migrate(plan: DemoPlan, report: Reporter, cancelled: AbortSignal): Promise<DemoResult> {
  const stop = new AbortController();
  const onCancel = (): void => stop.abort(cancelled.reason);
  cancelled.addEventListener('abort', onCancel, { once: true });
  const made: (() => unknown)[] = [];
  try {
    return await new DemoSource(plan, report, stop, made).run();
  } catch (thrown) {
    await lastWords(thrown, stop.signal);
    stop.abort(thrown);
    throw stop.signal.reason;
  } finally {
    cancelled.removeEventListener('abort', onCancel);
    for (const takeDown of made.reverse()) await takeDown();
  }
}

/** Waits for a better reason than a connection that broke, if there is one. */
async function lastWords(error: unknown, stop: AbortSignal): Promise<void> {
  const code = error instanceof MultifdError ? error.code : undefined;
  if (code !== 'ERR_MULTIFD_CONNECTION' && code !== 'ERR_MULTIFD_CONNECT') return;
  await sleep(LAST_WORDS_MS, undefined, { signal: stop }).catch(() => {});
}

class DemoSource {
  readonly #plan: DemoPlan;
  readonly #settings: DemoSettings;
  readonly #tlsPlan: DemoTlsPlan | null;
  readonly #report: Reporter;
  readonly #stop: AbortController;
  readonly #signal: AbortSignal;
  readonly #made: (() => unknown)[];
  readonly #blocks: readonly BlockPlan[];
  readonly #dirtyCounts: DirtyCounts = { rewritten: 0, becameZero: 0, stoppedBeingZero: 0 };

  constructor(plan: DemoPlan, report: Reporter, stop: AbortController, made: (() => unknown)[]) {
    const { size, tls, ...settings } = plan;
    this.#tlsPlan = tls;
    this.#plan = plan;
    this.#settings = settings;
    this.#report = report;
    this.#stop = stop;
    this.#signal = stop.signal;
    this.#made = made;
    this.#blocks = plan.ram === null ? guestBlocks(size) : ramFileBlocks(size, plan.pageSize);
  }

  async run(): Promise<DemoResult> {
    const { channels, compression, pageSize, prefault, hugePages, zeroPageDetection } = this.#plan;
    const { ram, directory: ramDirectory, sourceFile } = await this.#makeRam();
    const destinationFile = ramDirectory?.file('destination.ram');
    const { tls, directory } = await this.#makeTls(ramDirectory);

    this.#report.note('starting the destination process');
    const forked = performance.now();
    const destination = new DestinationProcess(this.#stop);
    this.#made.push(() => destination.end());
    const address = await destination.ask({
      type: 'listen',
      setup: {
        blocks: this.#blocks,
        file: destinationFile,
        tempDirectory: directory?.path,
        prefault,
        hugePages,
        channels,
        compression,
        pageSize,
        tls: tls?.server,
      },
    });
    const zeroRanges = new ZeroRanges(destination);
    const watch = tls === undefined ? undefined : new AgreedWatch('multifd_send_thread_start');
    this.#made.push(() => watch?.end());
    const sender = await createSender({
      address,
      blocks: ram.engineBlocks,
      channels,
      compression,
      pageSize,
      ...this.#level(),
      zeroPageDetection,
      maxBandwidth: this.#plan.maxBandwidth,
      zeroCopySend: this.#plan.zeroCopySend,
      onZeroPages: zeroPageDetection === 'legacy' ? zeroRanges.add : undefined,
      signal: this.#signal,
      ...(tls && { tls: tls.client }),
    });
    this.#made.push(() => sender.close());
    sender.done.catch((error) => lastWords(error, this.#signal).then(() => this.#stop.abort(error)));
    await destination.ask({ type: 'ready' });
    const startupSeconds = secondsSince(forked);

    const perRound = dirtyPageCount(this.#blocks, pageSize) * pageSize;
    const totalBytes = sizeOf(this.#blocks) + this.#plan.dirtyRounds * perRound;
    this.#report.start({
      ...this.#settings,
      pid: process.pid,
      destinationPid: destination.pid,
      sourceFile: sourceFile ?? null,
      destinationFile: destinationFile ?? null,
      startupSeconds,
      totalBytes,
      blocks: this.#blocks,
    });

    const started = performance.now();
    const progress = this.#followProgress(sender, zeroRanges, started, totalBytes);
    await this.#transfer(ram, sender, destination, zeroRanges);
    const seconds = secondsSince(started);

    await sender.end();
    await destination.ask({ type: 'end' });
    await progress;
    this.#report.note('comparing SHA-256 of every block');
    const [ours, theirs] = await Promise.all([
      digestBlocks(ram, this.#signal),
      destination.ask({ type: 'digest' }),
    ]);
    const counts = this.#counts(sender.stats(), zeroRanges);
    return {
      ...this.#settings,
      ...counts,
      seconds,
      startupSeconds,
      bytesPerSecond: counts.bytes / seconds,
      zeroCopy: zeroCopyOf(sender.stats(), this.#plan.zeroCopySend),
      tls:
        this.#plan.tls === null ? null : { credentials: credentialsText(this.#plan.tls), ...watch?.agreed },
      dirtyPages: this.#dirtyCounts,
      blocks: this.#blocks.map(({ name, size }): BlockResult => {
        const [sha256Source, sha256Destination] = [ours[name], theirs[name]];
        return { name, size, sha256Source, sha256Destination, equal: sha256Source === sha256Destination };
      }),
    };
  }

  // ---- before the clock ----

  /** The source's RAM, with every byte written. */
  async #makeRam(): Promise<{ ram: GuestRam; directory?: TempDirectory; sourceFile?: string }> {
    const { ram: file, backing, dirtyRounds, size, pageSize } = this.#plan;
    const bytes = sizeOf(this.#blocks);
    this.#report.note('writing the guest image');
    if (backing === 'shared') {
      checkMemory(2 * bytes);
      return { ram: await this.#fill(new SharedRam(this.#blocks, this.#plan.hugePages)) };
    }
    // In place, if it need not be padded and is not written to.
    const inPlace = file !== null && dirtyRounds === 0 && size % pageSize === 0;
    const directory = TempDirectory.make(inPlace ? bytes : 2 * bytes);
    this.#made.push(() => directory.remove());
    const sourceFile = inPlace ? file : directory.file('source.ram');
    const ram = new FileRam(this.#blocks, sourceFile, inPlace ? 'r' : 'w+');
    return { ram: inPlace ? this.#own(ram) : await this.#fill(ram), directory, sourceFile };
  }

  /** @param directory of the RAM, where it is in files */
  async #makeTls(
    directory: TempDirectory | undefined,
  ): Promise<{ tls?: DemoTls; directory: TempDirectory | undefined }> {
    const tls = this.#tlsPlan;
    if (tls === null) return { directory };
    if (typeof tls !== 'string') return { tls, directory };
    let own = directory;
    if (own === undefined) {
      const made = (own = TempDirectory.make(0));
      this.#made.push(() => made.remove());
    }
    return { tls: await throwAwayCredentials(tls, own.path, '127.0.0.1'), directory: own };
  }

  async #fill(ram: GuestRam): Promise<GuestRam> {
    const { ram: file, size } = this.#plan;
    this.#own(ram);
    if (file === null) await fillGuestImage(ram, this.#signal);
    else await loadRamFile(ram, file, size, this.#signal);
    return ram;
  }

  #own(ram: GuestRam): GuestRam {
    this.#made.push(() => ram.close());
    return ram;
  }

  #level(): { zlibLevel?: number; zstdLevel?: number } {
    const { compression, level } = this.#plan;
    if (level === null) return {};
    return compression === 'zlib' ? { zlibLevel: level } : { zstdLevel: level };
  }

  // ---- while the clock runs ----

  async #transfer(
    ram: GuestRam,
    sender: Sender,
    destination: DestinationProcess,
    zeroRanges: ZeroRanges,
  ): Promise<void> {
    for (const block of this.#blocks) await sender.queueRange(block.name, 0, block.size);
    await this.#sync(sender, destination, zeroRanges);
    const random = seededRandom(DIRTY_SEED);
    for (let round = 0; round < this.#plan.dirtyRounds; round++) {
      await this.#dirty(ram, sender, random);
      await this.#sync(sender, destination, zeroRanges);
    }
  }

  /** Resolves when everything queued before is in place at the destination. */
  async #sync(sender: Sender, destination: DestinationProcess, zeroRanges: ZeroRanges): Promise<void> {
    if (this.#plan.zeroPageDetection === 'legacy') {
      // Zero pages of this phase must be zero over there before its sync() lets the channels read the next one's.
      await sender.sync();
      await zeroRanges.flush();
      await destination.ask({ type: 'sync' });
    } else {
      await Promise.all([sender.sync(), destination.ask({ type: 'sync' })]);
    }
  }

  async #dirty(ram: GuestRam, sender: Sender, random: (limit: number) => number): Promise<void> {
    let last = performance.now();
    for (const { block, offset } of dirtyPages(ram, this.#plan.pageSize, random, this.#dirtyCounts)) {
      await sender.queuePage(block.name, offset);
      if (performance.now() - last > YIELD_MS) {
        await turnEventLoop();
        last = performance.now();
      }
    }
  }

  async #followProgress(
    sender: Sender,
    zeroRanges: ZeroRanges,
    started: number,
    totalBytes: number,
  ): Promise<void> {
    let before = { seconds: 0, bytes: 0 };
    for await (const stats of sender.progress()) {
      const counts = this.#counts(stats, zeroRanges);
      const now = { seconds: secondsSince(started), bytes: counts.bytes };
      const elapsed = now.seconds - before.seconds;
      const bytesPerSecond = elapsed > 0 ? (now.bytes - before.bytes) / elapsed : 0;
      before = now;
      if (this.#signal.aborted) continue;
      this.#report.progress({ seconds: now.seconds, totalBytes, bytesPerSecond, ...counts });
    }
  }

  /** The channels' counters, and the zero pages that went another way. */
  #counts(stats: Stats, zeroRanges: ZeroRanges) {
    return {
      bytes: stats.pageBytes + zeroRanges.bytes,
      wireBytes: stats.bytes,
      normalPages: stats.normalPages,
      zeroPages: stats.zeroPages + zeroRanges.bytes / this.#plan.pageSize,
    };
  }
}

/** @throws CliError ERR_CLI_ROOM where it would end in the kernel's out-of-memory killer for certain */
function checkMemory(bytes: number): void {
  const total = os.totalmem();
  if (bytes <= total) return;
  throw new CliError(
    'ERR_CLI_ROOM',
    `both sides together need ${bytes} bytes of memory, this machine has ${total}; --backing file needs none`,
  );
}

function sizeOf(blocks: readonly BlockPlan[]): number {
  return blocks.reduce((sum, block) => sum + block.size, 0);
}

function secondsSince(start: number): number {
  return (performance.now() - start) / 1000;
}
