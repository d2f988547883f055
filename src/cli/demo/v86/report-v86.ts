/** What `multifd demo --v86` tells: its records, as --json prints them, and the same for people. */
import type { Compression, MigrationProgress } from '../../../index.js';
import { CliError } from '../../cli-error.js';
import { paintFor, type Paint } from '../../terminal/colour.js';
import { columnsOf, wrap } from '../../terminal/columns.js';
import { formatRate, formatSize } from '../../terminal/format.js';
import { table, type Output } from '../../terminal/output.js';

/** From one process (its pid) or a file to another. */
export interface Hop {
  what: 'moved' | 'parked' | 'resumed';
  from: number | string | undefined;
  to: number | string | undefined;
  seconds: number;
  wireBytes: number;
  /** Those below are a running guest's; the last round is sent while it stands still. */
  rounds?: number;
  dirtyBytesPerSecond?: number;
  downtimeMs?: number;
}

export interface FinishedGuest {
  pid: number | undefined;
  /** On its console, the first ones before it was moved among them. */
  lines: number;
  /** null: it is not the demo's own. */
  steps: number | null;
  /** A byte of its region that is not what its steps make of it; null: none. */
  differsAt: number | null;
}

export interface V86DemoResult {
  /** Its version. */
  v86: string;
  /** Linux's version; null: the demo's own guest, on the bare PC. */
  kernel: string | null;
  channels: number;
  compression: Compression;
  ramBytes: number;
  /** What the demo's own guest writes to; null: it is not. */
  regionBytes: number | null;
  fileBytes: number;
  hops: readonly Hop[];
  guests: readonly FinishedGuest[];
}

/** @throws CliError where the memory of a guest is not what it has to be */
export function tellV86(result: V86DemoResult, output: Output): void {
  const wrong = result.guests.find(({ differsAt }) => differsAt !== null);
  const message = `the guest's memory in process ${wrong?.pid} differs at byte ${wrong?.differsAt} of what it writes to`;
  const error = wrong === undefined ? undefined : new CliError('ERR_CLI_DIFFERENT', message);
  const text = (): string => textOf(result, paintFor(process.stdout, process.env), columnsOf(process.stdout));
  output.result({ ...result, equal: error === undefined }, text, error);
  if (error !== undefined) throw error;
}

/** For the progress line. */
export function noteText({ ram }: MigrationProgress): string {
  const rate = formatRate(ram.dirtyPagesRate * ram.pageSize);
  return `round ${ram.dirtySyncCount}, ${formatSize(ram.remaining)} left, ${rate} dirtied`;
}

export function hopText(hop: Hop): string {
  return `${hop.what} ${wayText(hop)}`;
}

function wayText(hop: Hop): string {
  const place = (where: number | string | undefined): string =>
    typeof where === 'string' ? where : `process ${where}`;
  return `from ${place(hop.from)} to ${place(hop.to)}: ${figuresText(hop)}`;
}

function figuresText({ seconds, wireBytes, rounds, dirtyBytesPerSecond, downtimeMs }: Hop): string {
  const figures = [`${seconds.toFixed(3)} s`, `${formatSize(wireBytes)} on the wire`];
  if (rounds !== undefined) figures.push(`${rounds} rounds`);
  if (dirtyBytesPerSecond !== undefined) figures.push(`${formatRate(dirtyBytesPerSecond)} dirtied`);
  if (downtimeMs !== undefined) figures.push(`downtime ${downtimeMs.toFixed(1)} ms`);
  return figures.join(', ');
}

export function textOf(result: V86DemoResult, paint: Paint, columns: number): string {
  const { v86, kernel, channels, compression, ramBytes, fileBytes, hops, guests } = result;
  const memoryText = ({ steps, differsAt }: FinishedGuest): string =>
    steps === null
      ? ''
      : `, ${steps} steps, memory ${differsAt === null ? 'equal' : `DIFFERENT at byte ${differsAt}`}`;
  const guestText = (guest: FinishedGuest): string =>
    `in process ${guest.pid}: ${guest.lines} lines${memoryText(guest)}`;
  const rows: [string, string][] = [
    ['PC', `v86 ${v86}, ${formatSize(ramBytes)} of RAM${kernel === null ? '' : `, Linux ${kernel}`}`],
    ['channels', `${channels}, compression ${compression}`],
    ...hops.map((hop): [string, string] => [hop.what, wayText(hop)]),
    ['file', `${formatSize(fileBytes)}, sparse`],
    ...guests.map((guest): [string, string] => ['guest', guestText(guest)]),
  ];
  return `${table(rows, columns)}\n${formatVerdict(result, paint, columns).join('\n')}\n`;
}

function formatVerdict({ guests, regionBytes }: V86DemoResult, paint: Paint, columns: number): string[] {
  if (regionBytes === null) {
    const text =
      'Moved there and back with all of its memory compared by digest before it ran on (verify), and it has spoken wherever it was brought. What it says is its own: nobody has checked it.';
    return wrap(text, columns).map(paint.good);
  }
  const compared = `all ${formatSize(regionBytes)} that it writes to, held against what its steps make of them`;
  if (guests.some(({ differsAt }) => differsAt !== null))
    return wrap(`The guest's memory DIFFERS: ${compared}.`, columns).map(paint.bad);
  const text = `Proven: the guest has lost nothing. Each of its lines followed the one before, with the sum of its memory; and at the end ${compared}, byte by byte.`;
  return wrap(text, columns).map(paint.good);
}
