/**
 * `multifd demo --v86`: a running PC of v86 is moved from one process to another, and back, parked in a file and resumed twice.
 *
 *     first process    second process    a file
 *     runs  --- move --->  runs
 *     runs  <--- move ---
 *       --- receiveMigration() --------->  vm.mig
 *                          runs  <--- sendMigration() ---
 *     runs  <--- sendMigration() ---------
 *     finish             finish            the memory of both is held against the guest's twin, byte by byte
 *
 * What the guest says on its serial port is shown as it comes, with the process that it comes from, and every line is checked:
 * its number, its steps, its sum (guest-console.ts). Linux with `--kernel`: its init is such a guest. What an `--initrd` brings is
 * not: then it is moved with a digest of its memory (`verify`), and has to go on speaking.
 */
import path from 'node:path';
import {
  MultifdError,
  receiveMigration,
  sendMigration,
  type Address,
  type Compression,
  type MigrationProgress,
} from '../../../index.js';
import type { Output } from '../../terminal/output.js';
import { TempDirectory } from '../temp-directory.js';
import { GuestConsole, type GuestLine } from './guest-console.js';
import type { LinuxGuest } from './linux-guest.js';
import { PcHost } from './pc-host.js';
import type { SessionSettings } from './pc-messages.js';
import { RAM_BYTES, REGION_BYTES, requireV86 } from './pc-options.js';
import { hopText, noteText, tellV86, type Hop, type V86DemoResult } from './report-v86.js';

/** Of the guest, before each step and behind the last. */
const LINES = 3;
/** Ticks of the guest's timer, 200 a second, between two lines. */
const TICKS_PER_LINE = 50;
const HOST = '127.0.0.1';
/** Less than by default, so that there is more than one round, and no less than it takes to read all of its memory. */
const DOWNTIME_LIMIT_MS_PER_MIB = 25 / 32;
/** Of the guest: until its first lines, and between any two; Linux is there in 15 seconds on a slow day. */
const BOOT_LIMIT_MS = 300_000;
const LINES_LIMIT_MS = 60_000;

export interface V86DemoPlan {
  channels: number;
  compression: Compression;
  level: { zlibLevel?: number; zstdLevel?: number };
  maxBandwidth: number;
  /** null: the demo's own guest, on the bare PC. */
  linux: LinuxGuest | null;
  bootLimitMs?: number;
}

/**
 * Runs it and tells the result.
 *
 * @throws MultifdError, CliError, or the reason of `cancelled`
 */
export async function v86Demo(plan: V86DemoPlan, output: Output, cancelled: AbortSignal): Promise<void> {
  const stop = new AbortController();
  const onCancel = (): void => stop.abort(cancelled.reason);
  cancelled.addEventListener('abort', onCancel, { once: true });
  const made: (() => unknown)[] = [];
  let result;
  try {
    result = await new V86Demo(plan, output, stop, made).run();
  } catch (thrown) {
    stop.abort(namingBandwidth(thrown, plan.maxBandwidth));
    const reason: unknown = stop.signal.reason;
    output.failed(reason);
    throw reason;
  } finally {
    cancelled.removeEventListener('abort', onCancel);
    for (const takeDown of made.reverse()) await takeDown();
  }
  tellV86(result, output);
}

/** Less than a packet in the time that somebody waits looks like a stall. */
export function namingBandwidth(thrown: unknown, maxBandwidth: number): unknown {
  if (maxBandwidth === 0 || !(thrown instanceof MultifdError)) return thrown;
  if (thrown.code !== 'ERR_MULTIFD_TIMEOUT' && thrown.code !== 'ERR_MULTIFD_STALL') return thrown;
  const message = `${thrown.message}; option --max-bandwidth: ${maxBandwidth} bytes a second may be too few`;
  return new MultifdError(thrown.code, message, { ...thrown, cause: thrown.cause ?? thrown });
}

class V86Demo {
  readonly #plan: V86DemoPlan;
  readonly #output: Output;
  readonly #stop: AbortController;
  readonly #made: (() => unknown)[];
  /** Which has its guest in this process, and hears what is said there. */
  readonly #consoles: (GuestConsole | undefined)[] = [];
  readonly #hosts: PcHost[] = [];

  constructor(plan: V86DemoPlan, output: Output, stop: AbortController, made: (() => unknown)[]) {
    this.#plan = plan;
    this.#output = output;
    this.#stop = stop;
    this.#made = made;
  }

  async run(): Promise<V86DemoResult> {
    const version = requireV86();
    const { channels, compression, linux } = this.#plan;
    const ramBytes = this.#ramBytes;
    const kernel = linux?.version ?? null;
    this.#output.note('starting two processes and the guest');
    for (const name of ['first', 'second']) this.#hosts.push(this.#start(name));
    const [first, second] = this.#hosts;
    const pids = this.#hosts.map((host) => host.pid);
    this.#output.said('start', { v86: version, pids, channels, compression, ramBytes, kernel });
    const console = this.#console(0);
    this.#consoles.push(console, console);
    const guest = { regionBytes: REGION_BYTES, ticksPerLine: TICKS_PER_LINE };
    if (linux === null) await first.ask({ type: 'boot', guest });
    else await first.ask({ type: 'bootLinux', files: linux.files, guest, ramBytes });
    await console.more(LINES, this.#stop.signal, this.#plan.bootLimitMs ?? BOOT_LIMIT_MS);

    const hops: Hop[] = [];
    for (const [from, to] of [
      [0, 1],
      [1, 0],
    ]) {
      hops.push(await this.#move(console, from, to));
      await console.more(LINES, this.#stop.signal, LINES_LIMIT_MS);
    }

    const directory = TempDirectory.make(ramBytes);
    this.#made.push(() => directory.remove());
    const file = directory.file('vm.mig');
    const { hop, fileBytes } = await this.#park(file);
    hops.push(hop);
    // Two guests from here on, each with what the first one has begun to say.
    const consoles = [console.fork(0), console.fork(1)];
    this.#consoles.splice(0, 2, ...consoles);
    for (const to of [1, 0]) {
      hops.push(await this.#resume(file, to));
      await consoles[to].more(LINES, this.#stop.signal, LINES_LIMIT_MS);
    }

    const regionBytes = this.#isOurs ? REGION_BYTES : null;
    const finished = [];
    for (const [i, host] of [first, second].entries()) {
      const { steps, differsAt } = await host.ask({ type: 'finish', regionBytes });
      finished.push({ pid: host.pid, lines: consoles[i].count, steps, differsAt });
    }
    const guests = finished;
    return { v86: version, kernel, channels, compression, ramBytes, regionBytes, fileBytes, hops, guests };
  }

  get #ramBytes(): number {
    return this.#plan.linux?.ramBytes ?? RAM_BYTES;
  }

  /** It is known what the guest says and what is in its memory. */
  get #isOurs(): boolean {
    const { linux } = this.#plan;
    return linux === null || linux.files.initrd === null;
  }

  #start(name: string): PcHost {
    const index = this.#hosts.length;
    const host = new PcHost(this.#stop, `${name} PC`, {
      console: (text) => {
        try {
          this.#consoles[index]?.take(index, text);
        } catch (error) {
          this.#stop.abort(error);
        }
      },
      progress: (progress) => this.#output.progress(progress, () => noteText(progress)),
    });
    this.#made.push(() => host.end());
    return host;
  }

  #console(owner: number): GuestConsole {
    const speech = !this.#isOurs
      ? 'boot, then anything'
      : this.#plan.linux === null
        ? 'lines'
        : 'boot, then lines';
    const tell = ({ owner, text }: GuestLine): void => {
      const { pid } = this.#hosts[owner];
      this.#output.said('console', { pid, text }, `process ${pid}  ${text.replaceAll('\t', '  ')}`);
    };
    return new GuestConsole(REGION_BYTES, owner, tell, speech);
  }

  #told(hop: Hop): Hop {
    this.#output.said('hop', hop, hopText(hop));
    return hop;
  }

  async #move(console: GuestConsole, from: number, to: number): Promise<Hop> {
    const { channels, compression } = this.#plan;
    const [source, destination] = [this.#hosts[from], this.#hosts[to]];
    this.#output.note(`moving the guest to process ${destination.pid}`);
    const verify = !this.#isOurs;
    const address = await this.#listen(destination, { channels, compression, verify });
    const [progress] = await Promise.all([
      this.#migrate(source, address, verify),
      destination.ask({ type: 'arrived' }),
    ]);
    const hop = { what: 'moved' as const, from: source.pid, to: destination.pid, ...figuresOf(progress) };
    this.#told(hop);
    console.handOver(to);
    return hop;
  }

  #listen(host: PcHost, settings: SessionSettings): Promise<Address> {
    return host.ask({ type: 'listen', settings, ramBytes: this.#ramBytes });
  }

  #migrate(source: PcHost, to: Address, verify = false): Promise<MigrationProgress> {
    const { channels, compression, level, maxBandwidth } = this.#plan;
    const downtimeLimitMs = Math.round((this.#ramBytes / 2 ** 20) * DOWNTIME_LIMIT_MS_PER_MIB);
    const settings = { channels, compression, ...level, maxBandwidth, verify, downtimeLimitMs };
    return source.ask({ type: 'migrate', to, settings: { ...settings, notConverging: 'switchover' } });
  }

  async #park(out: string): Promise<{ hop: Hop; fileBytes: number }> {
    const [source] = this.#hosts;
    const { channels, compression } = this.#plan;
    this.#output.note('parking the guest');
    let receiving!: ReturnType<typeof receiveMigration>;
    const address = await new Promise<Address>((resolve, reject) => {
      const address = { host: HOST, port: 0 };
      const { signal } = this.#stop;
      receiving = receiveMigration({
        address,
        out,
        channels,
        compression,
        signal,
        onListening: resolve,
      });
      receiving.catch(reject);
    });
    const [progress, { fileBytes }] = await Promise.all([this.#migrate(source, address), receiving]);
    const hop = { what: 'parked' as const, from: source.pid, to: path.basename(out), ...figuresOf(progress) };
    return { hop: this.#told(hop), fileBytes };
  }

  async #resume(file: string, to: number): Promise<Hop> {
    const { channels, compression, level, maxBandwidth } = this.#plan;
    const host = this.#hosts[to];
    this.#output.note(`resuming the guest in process ${host.pid}`);
    const address = await this.#listen(host, { channels, compression });
    const began = performance.now();
    const { signal } = this.#stop;
    const sent = sendMigration({ file, to: address, channels, compression, ...level, maxBandwidth, signal });
    const [{ stats }] = await Promise.all([sent, host.ask({ type: 'arrived' })]);
    const seconds = (performance.now() - began) / 1000;
    const { bytes: wireBytes } = stats;
    return this.#told({ what: 'resumed', from: path.basename(file), to: host.pid, seconds, wireBytes });
  }
}

/** Of a source that has completed. */
function figuresOf({ totalTimeMs, downtimeMs, ram }: MigrationProgress): Omit<Hop, 'what' | 'from' | 'to'> {
  return {
    seconds: totalTimeMs / 1000,
    wireBytes: ram.transferred,
    // Pages are taken once before the first round, and once before each that follows; the last is the switch-over's.
    rounds: ram.dirtySyncCount - 1,
    dirtyBytesPerSecond: ram.dirtyPagesRate * ram.pageSize,
    downtimeMs,
  };
}
