/**
 * `multifd demo --qemu`: a running guest of a real QEMU is parked in a file and resumed in a second QEMU.
 *
 *     QEMU 1 runs the test guest  -- migrate -->  receiveMigration()  -->  file  -->  sendMigration()  -->  QEMU 2
 *     paused; its RAM is read                                                         paused; its RAM is read
 *                                    compared, page by page; then QEMU 2's guest runs on
 */
import fs from 'node:fs';
import path from 'node:path';
import {
  receiveMigration,
  sendMigration,
  type Compression,
  type ReceivedMigration,
  type SentMigration,
  type Stats,
} from '../../index.js';
import { CliError } from '../cli-error.js';
import { paintFor, type Paint } from '../terminal/colour.js';
import { columnsOf, wrap } from '../terminal/columns.js';
import { formatRate, formatRatio, formatShare, formatSize } from '../terminal/format.js';
import { countsOf, followProgress } from '../terminal/migration-progress.js';
import { table, type Output } from '../terminal/output.js';
import {
  AgreedWatch,
  credentialsText,
  throwAwayCredentials,
  tlsText,
  type DemoTls,
  type TlsKind,
  type TlsReport,
} from './demo-tls.js';
import { differingPages } from './qemu/compare-ram.js';
import { MISSING_QEMU, findQemu, type Program } from './qemu/programs.js';
import { Qemu, makeFolder } from './qemu/qemu.js';

const PAGE_BYTES = 4096;
/** In the certificate: unix sockets have no names of their own. */
const HOST = 'demo.invalid';

export interface QemuDemoPlan {
  channels: number;
  compression: Compression;
  level: { zlibLevel?: number; zstdLevel?: number };
  tls: TlsKind | null;
}

export interface QemuDemoResult {
  /** Its version. */
  qemu: string;
  parked: ReceivedMigration & { seconds: number };
  resumed: SentMigration & { seconds: number };
  ramBytes: number;
  /** Ranges of guest addresses. */
  differing: string[];
  /** Does the guest count on in the second QEMU? */
  running: boolean;
  /** null without. */
  tls: { park: TlsReport; resume: TlsReport } | null;
}

/**
 * Runs it and tells the result.
 *
 * @throws MultifdError, CliError, or the reason of `cancelled`
 */
export async function qemuDemo(plan: QemuDemoPlan, output: Output, cancelled: AbortSignal): Promise<void> {
  let result;
  try {
    result = await run(plan, output, cancelled);
  } catch (error) {
    const reason: unknown = cancelled.aborted ? cancelled.reason : error;
    output.failed(reason);
    throw reason;
  }
  const error = failureOf(result);
  output.result(
    recordOf(plan, result),
    () => textOf(plan, result, paintFor(process.stdout, process.env), columnsOf(process.stdout)),
    error,
  );
  if (error !== undefined) throw error;
}

async function run(plan: QemuDemoPlan, output: Output, cancelled: AbortSignal): Promise<QemuDemoResult> {
  const program = findQemu();
  if (program === undefined) throw new CliError('ERR_CLI_QEMU', `this needs ${MISSING_QEMU}`);
  const folder = makeFolder();
  const demo = new QemuDemo(plan, program, output, cancelled, folder);
  const ended = new Promise<never>((_, reject) => {
    cancelled.addEventListener('abort', () => reject(cancelled.reason as Error), { once: true });
  });
  ended.catch(() => {});
  try {
    return await Promise.race([demo.run(), ended]);
  } finally {
    await demo.end();
    fs.rmSync(folder, { recursive: true, force: true });
  }
}

class QemuDemo {
  readonly #plan: QemuDemoPlan;
  readonly #program: Program;
  readonly #output: Output;
  readonly #signal: AbortSignal;
  readonly #folder: string;
  readonly #qemus: Qemu[] = [];
  /** What is under way and ends by itself once the signal has fired. */
  #working: Promise<unknown> = Promise.resolve();
  #ended = false;
  #tls: DemoTls | undefined;
  /** Of the park, and of the resume. */
  readonly #watches: AgreedWatch[] = [];

  constructor(plan: QemuDemoPlan, program: Program, output: Output, signal: AbortSignal, folder: string) {
    this.#plan = plan;
    this.#program = program;
    this.#output = output;
    this.#signal = signal;
    this.#folder = folder;
  }

  async run(): Promise<QemuDemoResult> {
    const { channels, compression } = this.#plan;
    const { tls } = this.#plan;
    if (tls !== null) this.#tls = await throwAwayCredentials(tls, this.#folder, HOST);
    this.#output.note('starting QEMU and its guest');
    const source = await this.#start(false);
    await source.waitUntilReady();
    const version = source.program.version;
    this.#output.said('start', { qemu: version, channels, compression });

    const parked = await this.#park(source);
    await source.migrationEnd();
    const ram = await source.ram();
    const counter = await source.counter();

    this.#output.note('starting the second QEMU');
    const destination = await this.#start(true, parked.machine);
    const sent = await this.#resume(destination, parked.out);
    await destination.migrationEnd();
    this.#output.note('comparing all RAM');
    const differing = differingPages(ram, await destination.ram());
    let running = false;
    if (differing.length === 0) {
      this.#output.note('letting the guest run on');
      await destination.execute('cont');
      await destination.waitForSerial(/\.{2}/);
      running = (await destination.status()) === 'running' && (await destination.counter()) > counter;
    }
    return {
      qemu: version,
      parked,
      resumed: sent,
      ramBytes: ram.length,
      differing,
      running,
      tls: tls === null ? null : { park: this.#told(tls, 0), resume: this.#told(tls, 1) },
    };
  }

  #told(tls: TlsKind, session: number): TlsReport {
    return { credentials: credentialsText(tls), ...this.#watches[session]?.agreed };
  }

  /** What the channels of the session that follows agree on. */
  #watch(point: 'multifd_send_thread_start' | 'multifd_recv_thread_start'): void {
    if (this.#tls !== undefined) this.#watches.push(new AgreedWatch(point));
  }

  /** QEMU's side of it: the object at its start, and the parameters that choose it. */
  #qemuTls(endpoint: 'client' | 'server'): { extra: string[]; parameters: Record<string, string> } {
    if (this.#tls === undefined) return { extra: [], parameters: {} };
    const { tls } = this.#plan;
    const { dir } = this.#tls[endpoint];
    const object = `tls-creds-${tls},id=tls0,endpoint=${endpoint},dir=${dir.replaceAll(',', ',,')}`;
    const parameters: Record<string, string> = { 'tls-creds': 'tls0' };
    if (tls === 'x509' && endpoint === 'client') parameters['tls-hostname'] = HOST;
    return { extra: ['-object', object], parameters };
  }

  async #start(incoming: boolean, machine?: string): Promise<Qemu> {
    const qemu = await Qemu.start(this.#program, this.#folder, {
      incoming,
      extra: this.#qemuTls(incoming ? 'server' : 'client').extra,
      ...(machine !== undefined && { machine }),
    });
    this.#qemus.push(qemu);
    if (this.#ended) await qemu.kill();
    return qemu;
  }

  async #park(source: Qemu): Promise<ReceivedMigration & { seconds: number }> {
    const { channels, compression } = this.#plan;
    const address = `unix:${path.join(this.#folder, 'park.sock')}` as const;
    await source.setMultifd({ channels, compression, returnPath: true });
    await source.setParameters({ 'max-bandwidth': 2 ** 40, ...this.#qemuTls('client').parameters });
    this.#watch('multifd_recv_thread_start');
    let started = 0;
    const receiving = receiveMigration({
      address,
      out: path.join(this.#folder, 'vm.mig'),
      channels,
      compression,
      ...(this.#tls && { tls: this.#tls.server }),
      signal: this.#signal,
      onListening: () => {
        started = performance.now();
        source.execute('migrate', { uri: address }).catch(() => {});
      },
      onSession: (receiver) => void followProgress(receiver, this.#output, { phase: 'park' }),
    });
    this.#working = receiving.catch(() => {});
    const parked = await receiving;
    return { ...parked, seconds: (performance.now() - started) / 1000 };
  }

  async #resume(destination: Qemu, file: string): Promise<SentMigration & { seconds: number }> {
    const { channels, compression, level } = this.#plan;
    const to = `unix:${path.join(this.#folder, 'resume.sock')}` as const;
    await destination.setMultifd({ channels, compression });
    await destination.setParameters(this.#qemuTls('server').parameters);
    this.#watch('multifd_send_thread_start');
    await destination.execute('migrate-incoming', { uri: to });
    const started = performance.now();
    const sending = sendMigration({
      file,
      to,
      channels,
      compression,
      ...level,
      ...(this.#tls && { tls: this.#tls.client }),
      signal: this.#signal,
      onSession: (sender) => void followProgress(sender, this.#output, { phase: 'resume' }),
    });
    this.#working = sending.catch(() => {});
    const sent = await sending;
    return { ...sent, seconds: (performance.now() - started) / 1000 };
  }

  async end(): Promise<void> {
    this.#ended = true;
    for (const watch of this.#watches) watch.end();
    if (this.#signal.aborted) await this.#working;
    for (const qemu of this.#qemus) await qemu.kill();
  }
}

function failureOf({ differing, running }: QemuDemoResult): CliError | undefined {
  if (differing.length > 0) {
    const where = differing.join(', ');
    return new CliError('ERR_CLI_DIFFERENT', `the RAM of the two QEMUs differs at ${where}`);
  }
  return running ? undefined : new CliError('ERR_CLI_DIFFERENT', 'the guest does not run on');
}

function recordOf({ channels, compression }: QemuDemoPlan, result: QemuDemoResult): object {
  const { qemu, parked, resumed, ramBytes, differing, running, tls } = result;
  return {
    qemu,
    machine: parked.machine,
    channels,
    compression,
    fileBytes: parked.fileBytes,
    park: { seconds: parked.seconds, ...countsOf(parked.stats) },
    resume: { seconds: resumed.seconds, ...countsOf(resumed.stats) },
    ramBytes,
    equal: differing.length === 0,
    differing,
    running,
    tls,
  };
}

export function textOf(
  { channels, compression }: QemuDemoPlan,
  result: QemuDemoResult,
  paint: Paint,
  columns: number,
): string {
  const { qemu, parked, resumed, ramBytes, differing, running } = result;
  const present = parked.blocks.reduce((sum, block) => sum + block.presentPages, 0);
  const pages = parked.blocks.reduce((sum, block) => sum + block.size, 0) / PAGE_BYTES;
  const line = ({ stats, seconds }: { stats: Stats; seconds: number }): string => {
    const { bytes, wireBytes } = countsOf(stats);
    const wire = `${formatSize(wireBytes)} on the wire, ratio ${formatRatio(bytes, wireBytes)}`;
    return `${seconds.toFixed(3)} s, ${formatRate(bytes / seconds)}, ${wire}`;
  };
  const equal = differing.length === 0 ? 'equal' : `DIFFERENT at ${differing.join(', ')}`;
  const rows: [string, string][] = [
    ['QEMU', `${qemu}, machine ${parked.machine}`],
    ['channels', `${channels}, compression ${compression}`],
    ['parked', line(parked)],
    ['file', `${formatSize(parked.fileBytes)}, zero pages ${formatShare(pages - present, pages)}`],
    ['resumed', line(resumed)],
    ['RAM', `${formatSize(ramBytes)}, ${equal}`],
    ['guest', running ? 'runs on' : 'DOES NOT RUN ON'],
  ];
  if (result.tls !== null) {
    rows.splice(
      2,
      0,
      ['TLS, parked', tlsText(result.tls.park)],
      ['TLS, resumed', tlsText(result.tls.resume)],
    );
  }
  return `${table(rows, columns)}\n${formatVerdict(result, paint, columns).join('\n')}\n`;
}

function formatVerdict(
  { ramBytes, differing, running }: QemuDemoResult,
  paint: Paint,
  columns: number,
): string[] {
  const compared = `compared byte by byte, ${formatSize(ramBytes)} without VGA memory and shadows of ROMs`;
  const [text, how] =
    differing.length > 0
      ? [`The second QEMU's RAM DIFFERS from the first's: ${compared}.`, paint.bad]
      : running
        ? [
            `Proven: the second QEMU's RAM equals the first's, ${compared}, and the guest runs on.`,
            paint.good,
          ]
        : [
            `The second QEMU's RAM equals the first's, ${compared}, but the guest DOES NOT RUN ON.`,
            paint.bad,
          ];
  return wrap(text, columns).map(how);
}
