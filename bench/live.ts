/**
 * How long a running guest stands still when it is moved, against QEMU: 1 GiB of random bytes, of which 50 MB are written to a
 * second, to pages spread all over it. QEMU's guest is a boot sector (support/live-sector.ts) in software emulation; ours a
 * thread that writes to the same pages at the same pace.
 *
 *            clock on                    clock off
 *     QEMU   its vCPU is to be stopped   the destination has said that all is loaded: query-migrate's `downtime`
 *     ours   before pause()              the same: stats().downtimeMs
 *
 * RAM is compared each time with ours, and with QEMU's once.
 */
import fs from 'node:fs';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { MISSING_QEMU, findQemu } from '../src/cli/demo/qemu/programs.js';
import type { Address } from '../src/index.js';
import { Child } from './support/child.js';
import { writeImage } from './support/image.js';
import type { LiveFigures, LiveStart } from './support/live-endpoint.js';
import { MAGIC, MAGIC_AT, TICKS_AT, liveFloppy } from './support/live-sector.js';
import { ratios, row, type Row } from './support/measure.js';
import { remark } from './support/remark.js';
import { PausedQemu, RAM_BYTES, makeRam, mustBeSame, workFolder } from './support/qemu.js';

const PAIRS = 5;
const CHANNELS = 2;
/** QEMU's default, and one that one round does not reach. */
const LIMITS_MS = [300, 20];
/** Against QEMU's downtime. */
const CEILING = 1;
const PAGE_BYTES = 4096;
/** The guest's BIOS, emulated. */
const BOOT_MS = 60_000;
const POLL_MS = 20;
/** Of each GiB, QEMU's most: it measures by hashes of these, a second apart. */
const SAMPLE_PAGES = 16384;
/** Of its timer: half a second. */
const TICKS = 500;

/** Part of the answer to query-dirty-rate, in MiB a second. */
interface DirtyRate {
  status: string;
  'dirty-rate'?: number;
}

type Figures = Omit<LiveFigures, 'digest'>;

export async function* run(): AsyncGenerator<Row> {
  const folder = findQemu() === undefined ? undefined : workFolder();
  if (folder === undefined) remark('live', `without QEMU's: that needs ${MISSING_QEMU}`);
  else {
    writeImage(path.join(folder.path, 'image'), RAM_BYTES, 'random');
    fs.writeFileSync(path.join(folder.path, 'live.img'), liveFloppy());
  }
  try {
    for (const limitMs of LIMITS_MS) {
      const qemu: Figures[] = [];
      const ours: Figures[] = [];
      for (let pair = 0; pair < PAIRS; pair++) {
        if (folder !== undefined) qemu.push(await byQemu(folder.path, limitMs, pair === 0));
        ours.push(await byOurs(limitMs));
      }
      yield* rowsOf(limitMs, qemu, ours);
    }
  } finally {
    folder?.remove();
  }
}

async function byOurs(downtimeLimitMs: number): Promise<Figures> {
  const start = (role: LiveStart['role']): Child =>
    new Child('./live-endpoint.js', { role, channels: CHANNELS, downtimeLimitMs } satisfies LiveStart);
  const [destination, source] = [start('destination'), start('source')];
  const { address } = await destination.next<{ address: Address }>();
  await source.next<{ filled: true }>();
  source.tell({ address });
  const [figures, there] = await Promise.all([
    source.next<LiveFigures>(),
    destination.next<{ digest: number }>(),
  ]);
  await Promise.all([source.end(), destination.end()]);
  if (figures.digest !== there.digest) throw new Error('ours: RAM differs');
  return figures;
}

async function byQemu(folder: string, limitMs: number, verify: boolean): Promise<Figures> {
  const ram = path.join(folder, 'image');
  const target = path.join(folder, 'target.ram');
  makeRam(target, true);
  // What it says when it runs may be there from the last time.
  writeWord(ram, MAGIC_AT, 0);
  const floppy = path.join(folder, 'live.img');
  const qemus: PausedQemu[] = [];
  try {
    const from = await PausedQemu.start(folder, 'from', { ram, prealloc: true, floppy });
    qemus.push(from);
    const to = await PausedQemu.start(folder, 'to', { ram: target, prealloc: true, floppy, incoming: true });
    qemus.push(to);
    for (const qemu of qemus)
      await qemu.setMigration(['multifd', 'return-path'], {
        'multifd-channels': CHANNELS,
        'downtime-limit': limitMs,
      });
    await from.execute('cont');
    const late = performance.now() + BOOT_MS;
    while (readWord(ram, MAGIC_AT) !== MAGIC || readWord(ram, TICKS_AT) < TICKS) {
      if (performance.now() > late) throw new Error(`QEMU's guest does not run after ${BOOT_MS} ms`);
      await sleep(POLL_MS);
    }
    const rate = await dirtyRate(from);
    await from.execute('migrate', { uri: await to.listen() });
    let expectedMs = 0;
    const info = await from.migrated((now) => {
      expectedMs = now['expected-downtime'] || expectedMs;
    });
    if (verify) {
      await to.migrated();
      mustBeSame(ram, target, 'QEMU, a running guest');
    }
    return { downtimeMs: Number(info.downtime), expectedMs, dirtyPagesRate: rate };
  } finally {
    await Promise.all(qemus.map((qemu) => qemu.kill()));
  }
}

/** Pages a second, by QEMU's own measure. A migration says it only when it has gone on for a second. */
async function dirtyRate(qemu: PausedQemu): Promise<number> {
  await qemu.execute('calc-dirty-rate', {
    'calc-time': 1,
    mode: 'page-sampling',
    'sample-pages': SAMPLE_PAGES,
  });
  for (const late = performance.now() + BOOT_MS; ;) {
    const { status, 'dirty-rate': mibs } = (await qemu.execute('query-dirty-rate')) as DirtyRate;
    if (status === 'measured') return ((mibs ?? 0) * 2 ** 20) / PAGE_BYTES;
    if (performance.now() > late) throw new Error(`QEMU has not measured after ${BOOT_MS} ms`);
    await sleep(POLL_MS);
  }
}

function readWord(file: string, at: number): number {
  const handle = fs.openSync(file, 'r');
  const bytes = Buffer.alloc(4);
  fs.readSync(handle, bytes, 0, 4, at);
  fs.closeSync(handle);
  return bytes.readUInt32LE();
}

function writeWord(file: string, at: number, value: number): void {
  const handle = fs.openSync(file, 'r+');
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32LE(value);
  fs.writeSync(handle, bytes, 0, 4, at);
  fs.closeSync(handle);
}

function rowsOf(limitMs: number, qemu: readonly Figures[], ours: readonly Figures[]): Row[] {
  const name = `1 GiB, 50 MB/s dirtied, at most ${limitMs} ms`;
  const rows: Row[] = [];
  const sides: [string, readonly Figures[]][] = [
    [`QEMU ${findQemu()?.version}`, qemu],
    ['multifd', ours],
  ];
  for (const [who, figures] of sides) {
    if (figures.length === 0) continue;
    const of = (key: keyof Figures): number[] => figures.map((one) => one[key]);
    rows.push(row('live', `${name}: downtime, ${who}`, 'ms', of('downtimeMs')));
    rows.push(row('live', `${name}: downtime that ${who} expected`, 'ms', of('expectedMs')));
    const rates = of('dirtyPagesRate').map((pages) => (pages * PAGE_BYTES) / 1e6);
    rows.push(row('live', `${name}: dirtied by its own figures, ${who}`, 'MB/s', rates));
  }
  if (qemu.length === 0) return rows;
  const downtimes = (figures: readonly Figures[]): number[] => figures.map((one) => one.downtimeMs);
  const against = ratios(downtimes(ours), downtimes(qemu));
  return [...rows, row('live', `${name}: downtime against QEMU's`, '', against, { ceiling: CEILING })];
}
