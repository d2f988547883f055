/**
 * Ours against QEMU's own multifd: the same image, the same channels, the same machine, in alternation. QEMU migrates a
 * paused guest, whose RAM is a prepared file, to another QEMU; ours is the two processes of migrate.ts with the same file.
 * Both clocks run from the start of the migration to the last page in place (QEMU's: total-time); processes and their
 * memory are there before.
 *
 *     the destination's memory   QEMU                                       ours
 *     fresh                      a file without pages                       never touched
 *     prefaulted                 a file with all its pages, prealloc=on     written
 *
 * With method none, where memory is most of the time, each side begins on memory that was in use just before; ours with
 * allocateRam() on huge pages that were.
 *
 * With TLS both sides use the same certificates, and TLS 1.3.
 *
 * RAM is compared each time with ours, and between the QEMUs once for each method and image.
 */
import { spawnSync } from 'node:child_process';
import os from 'node:os';
import path from 'node:path';
import { MISSING_QEMU, findQemu } from '../../src/cli/demo/qemu/programs.js';
import type { Compression } from '../../src/index.js';
import { writeX509Credentials } from '../../src/transport/tls/make-credentials.js';
import { buildLimit, NO_LIMIT } from './limit.js';
import { migrate } from './migrate.js';
import { nodeSockets } from './node-sockets.js';
import { writeImage, type Image } from './image.js';
import { counted, ratios, row, type Plot, type Row } from './measure.js';
import { CREDENTIALS, PausedQemu, RAM_BYTES, makeRam, mustBeSame, workFolder } from './qemu.js';
import { remark } from './remark.js';

export interface Case {
  compression: Compression;
  image: Image;
  channels: number;
  prefault: boolean;
  /** Ours by allocateRam(), at both ends. */
  hugePages?: boolean;
  pairs: number;
  tls?: boolean;
  /** Pages go without a copy, on both sides. */
  zeroCopySend?: boolean;
  /** Speed against QEMU that must be reached. */
  floor?: number;
  /** Size on the wire against QEMU's that must not be passed. */
  wireCeiling?: number;
  /** What can be reached, in C or over Node's TLS sockets, and the share of it that must be. */
  limit?: { of: keyof typeof LIMITS; floor: number };
}

const LIMITS = {
  sockets: 'the plain sockets in C',
  memcmp: 'memcmp on all cores',
  'TLS sockets': "Node's TLS sockets",
} as const;

const TLS = 'tls';
const HOST = '127.0.0.1';
const LEVEL_MS = 60_000;
const LIBRARY = new URL('../../lib/index.js', import.meta.url).href;

type Side = 'qemu' | 'ours' | 'limit';
const SIDES: readonly Side[] = ['qemu', 'ours', 'limit'];

interface Moved {
  seconds: number;
  wireBytes: number;
}

/** One migration, or undefined where a case does not want this side. */
type Sides = Record<Side, (it: Case) => Promise<Moved | undefined>>;

/** Of each side, in the order of the rounds. */
type Figures = Record<Side, { speed: number[]; wireBytes: number[] }>;

export async function* compare(bench: string, cases: readonly Case[]): AsyncGenerator<Row> {
  if (findQemu() === undefined) {
    remark(bench, `skipped: it needs ${MISSING_QEMU}`);
    return;
  }
  const folder = workFolder();
  try {
    for (const image of new Set(cases.map((it) => it.image)))
      writeImage(path.join(folder.path, image), RAM_BYTES, image);
    if (cases.some((it) => it.tls)) await writeX509Credentials(path.join(folder.path, TLS), [HOST]);
    const sides = openSides(folder.path, bench, cases);
    // The programs are read from the disk before they count.
    await measure(sides, { ...cases[0], pairs: 1 });
    for (const it of cases) yield* rowsOf(bench, it, await measure(sides, it));
  } finally {
    folder.remove();
  }
}

function openSides(folder: string, bench: string, cases: readonly Case[]): Sides {
  const limit = buildLimit();
  if (limit === undefined && cases.some((it) => it.limit !== undefined && !it.tls)) remark(bench, NO_LIMIT);
  const cores = os.availableParallelism();
  const verified = new Set<string>();
  return {
    qemu: (it) => {
      const verify = !verified.has(methodOf(it));
      verified.add(methodOf(it));
      return qemuToQemu(folder, it, verify);
    },
    ours: (it) => ourOwn(folder, it),
    limit: async (it) => {
      const { channels: connections, prefault } = it;
      const how = { connections, bytes: RAM_BYTES, prefault };
      let rate: number | undefined;
      if (it.limit?.of === 'TLS sockets') {
        rate = await nodeSockets({ ...how, tlsFolder: tlsFolder(folder) });
      } else if (it.limit?.of === 'sockets') rate = limit?.sockets(how);
      else if (it.limit?.of === 'memcmp') rate = limit?.zero('memcmp', cores, RAM_BYTES);
      return rate === undefined ? undefined : { seconds: RAM_BYTES / 1e9 / rate, wireBytes: RAM_BYTES };
    },
  };
}

/**
 * Takes as much memory as ours needs, a guest at both ends, and gives it back. A virtual machine's host takes what is free
 * for some seconds, and gives other memory later, in single pages and zeroed anew: then a first touch takes twice as long,
 * and a scan is slower by half. So what a side finds depends on who ran before it. QEMU and C come after ours, which has
 * just given back as much; ours comes after QEMU, whose guests are files that stay, and would be the only one to pay.
 */
function levelMemory(hugePages: boolean | undefined): void {
  const bytes = 2 * RAM_BYTES;
  const code = hugePages
    ? `import(${JSON.stringify(LIBRARY)}).then((m) => Buffer.from(m.allocateRam(${bytes})).fill(1))`
    : `Buffer.alloc(${bytes}).fill(1)`;
  const { status } = spawnSync(process.execPath, ['-e', code], {
    timeout: LEVEL_MS,
    killSignal: 'SIGKILL',
  });
  if (status !== 0) throw new Error(`${bytes} bytes of memory could not be had`);
}

/** No round is left out at the start: each has fresh processes, and the image is in memory. */
async function measure(sides: Sides, it: Case): Promise<Figures> {
  const none = (): Figures[Side] => ({ speed: [], wireBytes: [] });
  const figures: Figures = { qemu: none(), ours: none(), limit: none() };
  for (let pair = 0; pair < it.pairs; pair++) {
    for (const side of SIDES) {
      if (side === 'ours' && it.compression === 'none') levelMemory(it.hugePages);
      const moved = await sides[side](it);
      if (moved === undefined) continue;
      figures[side].speed.push(RAM_BYTES / 1e9 / moved.seconds);
      figures[side].wireBytes.push(moved.wireBytes);
    }
  }
  return figures;
}

async function ourOwn(folder: string, it: Case): Promise<Moved> {
  const { channels, compression, prefault, hugePages, zeroCopySend } = it;
  const file = path.join(folder, it.image);
  const how = {
    size: RAM_BYTES,
    file,
    channels,
    compression,
    prefault,
    hugePages,
    zeroCopySend,
    ...tlsOf(folder, it),
  };
  const { seconds, send } = await migrate(how);
  return { seconds: seconds[0], wireBytes: send.wireBytes };
}

async function qemuToQemu(folder: string, it: Case, verify: boolean): Promise<Moved> {
  const source = path.join(folder, it.image);
  const target = path.join(folder, 'target.ram');
  makeRam(target, it.prefault);
  const started = await Promise.allSettled([
    PausedQemu.start(folder, 'from', { ram: source, prealloc: true, ...tlsOf(folder, it) }),
    PausedQemu.start(folder, 'to', {
      ram: target,
      prealloc: it.prefault,
      incoming: true,
      ...tlsOf(folder, it),
    }),
  ]);
  try {
    const [from, to] = started.map((one) => {
      if (one.status === 'rejected') throw one.reason;
      return one.value;
    });
    for (const qemu of [from, to]) {
      const more = it.zeroCopySend === true && qemu === from ? ['zero-copy-send'] : [];
      await qemu.setMigration(['multifd', 'return-path', ...more], {
        'multifd-channels': it.channels,
        'multifd-compression': it.compression,
        ...(it.tls && { 'tls-creds': CREDENTIALS }),
      });
    }
    await from.execute('migrate', { uri: await to.listen() });
    const info = await from.migrated();
    if (verify) {
      await to.migrated();
      mustBeSame(source, target, `QEMU, ${methodOf(it)}`);
    }
    return { seconds: Number(info['total-time']) / 1000, wireBytes: Number(info.ram?.transferred) };
  } finally {
    await Promise.all(
      started.map(async (one) => {
        if (one.status === 'fulfilled') await one.value.kill();
      }),
    );
  }
}

/** The one host's, which has the credentials of both roles. */
function tlsFolder(folder: string): string {
  return path.join(folder, TLS, HOST);
}

function tlsOf(folder: string, { tls }: Case): { tlsFolder?: string } {
  return tls === true ? { tlsFolder: tlsFolder(folder) } : {};
}

function methodOf({ compression, image }: Case): string {
  return `${compression}, ${image}`;
}

function rowsOf(bench: string, it: Case, { qemu, ours, limit }: Figures): Row[] {
  const { compression, channels, floor, wireCeiling } = it;
  const method = `${methodOf(it)}${it.tls ? ', TLS 1.3' : ''}${it.zeroCopySend ? ', without copies' : ''}`;
  const memory = `${it.prefault ? 'prefaulted' : 'fresh'}${it.hugePages ? ', huge pages' : ''}`;
  const name = `${method}, ${counted(channels, 'channel')}, ${memory}`;
  const speed = (who: string, { speed }: Figures[Side], series?: string): Row =>
    row(bench, `${name}: ${who}`, 'GB/s', speed, {
      // The page's chart by method takes its bars from these with 2 channels.
      ...(it.prefault &&
        series !== undefined && {
          plot: { chart: 'channels', series: `${method}: ${series}`, x: channels },
        }),
    });
  const plot = (chart: 'against' | 'wire'): Plot => {
    return { chart, series: `${counted(channels, 'channel')}, ${memory}`, x: method };
  };
  const share = (what: string, other: Figures[Side], more: Partial<Row> = {}): Row =>
    row(bench, `${name}: ${what}`, '', ratios(ours.speed, other.speed), more);

  const rows = [
    speed(`QEMU ${findQemu()?.version}`, qemu, 'QEMU'),
    speed('multifd', ours, 'multifd'),
    share('speed against QEMU', qemu, { floor, plot: plot('against') }),
  ];
  if (compression !== 'none') {
    const sizes = ratios(ours.wireBytes, qemu.wireBytes);
    const more = { ceiling: wireCeiling, plot: plot('wire') };
    rows.push(row(bench, `${name}: size on the wire against QEMU`, '', sizes, more));
  }
  if (it.limit !== undefined && limit.speed.length > 0) {
    const what = LIMITS[it.limit.of];
    const plot: Plot = { chart: 'limit', series: 'multifd', x: `${method}: ${what}` };
    rows.push(speed(what, limit), share(`share of ${what}`, limit, { floor: it.limit.floor, plot }));
  }
  return rows;
}
