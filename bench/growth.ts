/**
 * How it grows: time and memory with the guest's RAM, the channels and the page size. Method none, a mixed guest, two
 * fresh processes for each migration, digests compared. The smallest and the largest guest that are compared with each
 * other are migrated in turn, so both are there at the same time.
 */
import fs from 'node:fs';
import os from 'node:os';
import { alternate, counted, ratios, row, type Plot, type Row } from './support/measure.js';
import { migrate, Migration, type MigrationReport } from './support/migrate.js';
import { remark } from './support/remark.js';

const MIB = 2 ** 20;
const GIB = 2 ** 30;
const CHANNELS = 2;
const PAGE_SIZE = 4096;
const SMALL = GIB;
const LARGE = 8 * GIB;
const OTHER_SIZES = [256 * MIB, 2 * GIB, 4 * GIB];
/** Passes of the two that are compared. */
const ROUNDS = 3;
/** Passes of all others; a guest of more than a GiB has one. */
const PASSES = 2;
/** Time per GiB at 8 GiB against that at 1 GiB. */
const TIME_CEILING = 1.1;
/** MiB a channel. */
const MEMORY_CEILING = 25;
/**
 * MiB a channel that 7 GiB more of RAM may add. The bitmaps of 2 million pages are 256 KiB; when the collector happens to
 * run moves a peak by 3 MiB.
 */
const FLAT_CEILING = 5;
/** For the processes and all else, beside the guests' RAM. */
const SPARE_BYTES = 512 * MIB;

type Side = 'send' | 'receive';
const SIDES = Object.entries({ send: 'sender', receive: 'receiver' }) as [Side, string][];

export async function run(): Promise<Row[]> {
  const reports = new Map<number, MigrationReport>();
  for (const size of OTHER_SIZES) {
    if (enoughMemory([size])) reports.set(size, await migrated(size));
  }
  const small = enoughMemory([SMALL, LARGE]) ? await compared(reports) : await migrated(SMALL);
  reports.set(SMALL, small);
  return [...ram(reports), ...(await channels(small)), ...(await pageSizes(small))];
}

function migrated(
  size: number,
  more: { channels?: number; pageSize?: number } = {},
): Promise<MigrationReport> {
  const how = { size, channels: CHANNELS, pageSize: PAGE_SIZE, warmUpBytes: size, ...more };
  return migrate(how, size > SMALL ? 1 : PASSES);
}

/** The small and the large guest in turn; returns the small one's report. */
async function compared(reports: Map<number, MigrationReport>): Promise<MigrationReport> {
  const open = (size: number): Promise<Migration> =>
    Migration.open({ size, channels: CHANNELS, warmUpBytes: size });
  const [small, large] = await Promise.all([open(SMALL), open(LARGE)]);
  const sides = { small: () => small.pass(), large: () => large.pass() };
  // Each has had its own.
  const seconds = await alternate(sides, ROUNDS, { warmUp: false });
  reports.set(LARGE, { seconds: seconds.large, ...(await large.close()) });
  return { seconds: seconds.small, ...(await small.close()) };
}

function secondsPerGib(size: number, { seconds }: MigrationReport): number[] {
  return seconds.map((value) => value / (size / GIB));
}

function ram(reports: Map<number, MigrationReport>): Row[] {
  const rows: Row[] = [];
  const ofSize = [...reports].sort(([a], [b]) => a - b);
  for (const [size, report] of ofSize) {
    const name = `RAM of ${size / MIB} MiB, ${CHANNELS} channels`;
    const plot: Plot = { chart: 'size', series: 'none, mixed', x: size / GIB };
    rows.push(row('growth', `${name}: time per GiB`, 's', secondsPerGib(size, report), { plot }));
    for (const [side, title] of SIDES) {
      const above = report[side].above / CHANNELS / MIB;
      const plot: Plot = { chart: 'memory-size', series: title, x: size / GIB };
      const more = { ceiling: MEMORY_CEILING, plot };
      rows.push(row('growth', `${name}: ${title} above the guest, a channel`, 'MiB', [above], more));
    }
  }
  const small = reports.get(SMALL);
  const large = reports.get(LARGE);
  if (small === undefined || large === undefined) return rows;
  const time = ratios(secondsPerGib(LARGE, large), secondsPerGib(SMALL, small));
  const against = `${LARGE / GIB} GiB of RAM against ${SMALL / GIB} GiB`;
  rows.push(row('growth', `time per GiB, ${against}`, '', time, { ceiling: TIME_CEILING }));
  for (const [side, title] of SIDES) {
    const more = (large[side].above - small[side].above) / CHANNELS / MIB;
    const name = `${title} above the guest, ${against}: more a channel`;
    rows.push(row('growth', name, 'MiB', [more], { ceiling: FLAT_CEILING }));
  }
  return rows;
}

async function channels(known: MigrationReport): Promise<Row[]> {
  const rows: Row[] = [];
  for (const channels of [1, 2, 4, 8, 16]) {
    const report = channels === CHANNELS ? known : await migrated(SMALL, { channels });
    const name = `${counted(channels, 'channel')}, RAM of 1024 MiB`;
    const plot: Plot = { chart: 'growth-channels', series: 'none, mixed', x: channels };
    rows.push(row('growth', name, 'GB/s', speeds(report), { plot }));
    for (const [side, title] of SIDES) {
      const above = report[side].above / channels / MIB;
      const plot: Plot = { chart: 'memory-channels', series: title, x: channels };
      const more = { ceiling: MEMORY_CEILING, plot };
      rows.push(row('growth', `${name}: ${title} above the guest, a channel`, 'MiB', [above], more));
    }
  }
  return rows;
}

async function pageSizes(known: MigrationReport): Promise<Row[]> {
  const rows: Row[] = [];
  for (const pageSize of [4096, 16384, 65536]) {
    const report = pageSize === PAGE_SIZE ? known : await migrated(SMALL, { pageSize });
    const plot: Plot = { chart: 'page-size', series: 'none, mixed', x: pageSize / 1024 };
    const name = `pages of ${pageSize / 1024} KiB, RAM of 1024 MiB, ${CHANNELS} channels`;
    rows.push(row('growth', name, 'GB/s', speeds(report), { plot }));
  }
  return rows;
}

function speeds({ seconds }: MigrationReport): number[] {
  return seconds.map((value) => SMALL / 1e9 / value);
}

/** Is there memory for both ends of these guests? A row that is missing must not look like one that passed. */
function enoughMemory(sizes: number[]): boolean {
  const needed = 2 * sizes.reduce((sum, size) => sum + size, 0) + SPARE_BYTES;
  const available = availableBytes();
  if (needed <= available) return true;
  const names = sizes.map((size) => `${size / MIB} MiB`).join(' beside ');
  const there = `${Math.floor(available / MIB)} MiB of memory available, ${needed / MIB} needed`;
  remark('growth', `RAM of ${names} left out: ${there}`);
  return false;
}

/** With what the system would take back from its caches. */
function availableBytes(): number {
  try {
    const match = /^MemAvailable:\s+(\d+) kB/m.exec(fs.readFileSync('/proc/meminfo', 'utf8'));
    if (match !== null) return Number(match[1]) * 1024;
  } catch {
    // Not Linux.
  }
  return os.freemem();
}
