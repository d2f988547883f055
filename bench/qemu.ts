/**
 * Against QEMU's own multifd: the same image, the same channels, the same machine, in alternation. QEMU migrates a paused
 * guest, whose RAM is a prepared file, to another QEMU; ours is the demo's source and destination process with the same
 * file. Both clocks run from the start of the migration to the last page in place; processes and memory are there before.
 * Digests of both sides' RAM are compared, in QEMU's by its files.
 */
import { spawn, spawnSync } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { MISSING_QEMU, QEMU } from '../src/cli/qemu/programs.js';
import { Qmp } from '../src/cli/qemu/qmp.js';
import type { Compression } from '../src/index.js';
import { writeImage, type Image } from './support/image.js';
import { alternate, row, type Row } from './support/measure.js';

const MAIN = fileURLToPath(new URL('../src/cli/main.js', import.meta.url));
const GiB = 2 ** 30;
const PAIRS = 5;
const WAIT_MS = 60_000;

interface Case {
  image: Image;
  compression: Compression;
  channels: number;
  prefault: boolean;
  /** Speed against QEMU that must be reached. */
  floor?: number;
}

/** The rows with a floor, then how it scales. */
const CASES: Case[] = [
  { image: 'random', compression: 'none', channels: 2, prefault: true, floor: 0.9 },
  { image: 'random', compression: 'none', channels: 2, prefault: false, floor: 1 },
  { image: 'mixed', compression: 'none', channels: 2, prefault: true, floor: 1 },
  { image: 'mixed', compression: 'none', channels: 2, prefault: false, floor: 1 },
  { image: 'zero', compression: 'none', channels: 2, prefault: true, floor: 2 },
  { image: 'zero', compression: 'none', channels: 2, prefault: false, floor: 1 },
  { image: 'mixed', compression: 'zstd', channels: 2, prefault: true, floor: 1.1 },
  { image: 'mixed', compression: 'zstd', channels: 2, prefault: false, floor: 1 },
  { image: 'mixed', compression: 'zlib', channels: 2, prefault: true, floor: 1.2 },
  { image: 'random', compression: 'none', channels: 1, prefault: true },
  { image: 'random', compression: 'none', channels: 4, prefault: true },
];

interface Figure {
  seconds: number;
  wireBytes: number;
}

/** A QEMU with its RAM in `file`; never runs its guest. */
async function startQemu(
  folder: string,
  name: string,
  file: string,
  extra: string[],
): Promise<{ qmp: Qmp; kill: () => Promise<void> }> {
  if (QEMU === undefined) throw new Error(`missing: ${MISSING_QEMU}`);
  const socket = path.join(folder, `${name}.qmp`);
  fs.rmSync(socket, { force: true });
  const child = spawn(
    QEMU.command,
    [
      ...['-nodefaults', '-display', 'none', '-accel', 'tcg', '-S', '-m', '1G'],
      ...['-machine', 'pc,memory-backend=ram', '-qmp', `unix:${socket},server=on,wait=off`],
      ...[
        '-object',
        `memory-backend-file,id=ram,size=1G,mem-path=${file},share=on${extra.includes('-incoming') ? '' : ',prealloc=on'}`,
      ],
      ...extra,
    ],
    { stdio: 'ignore' },
  );
  const kill = async (): Promise<void> => {
    qmp?.close();
    if (child.exitCode !== null || child.signalCode !== null) return;
    const exit = new Promise((resolve) => child.once('exit', resolve));
    child.kill('SIGKILL');
    await exit;
  };
  let qmp: Qmp | undefined;
  const late = performance.now() + WAIT_MS;
  while (qmp === undefined) {
    if (performance.now() > late) throw new Error('QEMU did not start');
    qmp = await Qmp.connect(socket).catch(() => undefined);
    if (qmp === undefined) await sleep(20);
  }
  return { qmp, kill };
}

async function qemuToQemu(folder: string, source: string, it: Case): Promise<Figure> {
  const target = path.join(folder, 'target.ram');
  fs.rmSync(target, { force: true });
  fs.writeFileSync(target, '');
  fs.truncateSync(target, GiB);
  // prealloc=on writes each page; without it the file is fresh.
  const from = await startQemu(folder, 'from', source, []);
  const to = await startQemu(folder, 'to', target, ['-incoming', 'defer']);
  try {
    if (it.prefault) prealloc(target);
    for (const { qmp } of [from, to]) {
      await qmp.execute('migrate-set-capabilities', {
        capabilities: [
          { capability: 'multifd', state: true },
          { capability: 'return-path', state: true },
        ],
      });
      await qmp.execute('migrate-set-parameters', {
        'multifd-channels': it.channels,
        'multifd-compression': it.compression,
        'max-bandwidth': 2 ** 40,
        'downtime-limit': 100_000,
      });
    }
    const uri = 'tcp:127.0.0.1:0';
    await to.qmp.execute('migrate-incoming', { uri });
    const { 'socket-address': addresses } = (await to.qmp.execute('query-migrate')) as {
      'socket-address': { port: string }[];
    };
    await from.qmp.execute('migrate', { uri: `tcp:127.0.0.1:${addresses[0].port}` });
    for (;;) {
      const info = (await from.qmp.execute('query-migrate')) as {
        status: string;
        'total-time': number;
        ram: { transferred: number };
      };
      if (info.status === 'completed') {
        const { status, stderr } = spawnSync('cmp', [source, target], { encoding: 'utf8' });
        if (status !== 0) throw new Error(`QEMU's RAM differs: ${stderr}`);
        return { seconds: info['total-time'] / 1000, wireBytes: info.ram.transferred };
      }
      if (info.status === 'failed') throw new Error('QEMU failed to migrate');
      await sleep(5);
    }
  } finally {
    await from.kill();
    await to.kill();
  }
}

/** The file's pages are there, and written: QEMU maps the same ones. */
function prealloc(file: string): void {
  const handle = fs.openSync(file, 'r+');
  const piece = Buffer.alloc(2 ** 20);
  for (let at = 0; at < GiB; at += piece.length) fs.writeSync(handle, piece, 0, piece.length, at);
  fs.closeSync(handle);
}

function oursToOurs(source: string, it: Case): Figure {
  const args = ['demo', '--ram', source, '--json', '--no-progress', '--channels', String(it.channels)];
  args.push('--compression', it.compression);
  if (it.prefault) args.push('--prefault');
  const { stdout, status, stderr } = spawnSync(process.execPath, [MAIN, ...args], {
    encoding: 'utf8',
    timeout: WAIT_MS,
  });
  if (status !== 0) throw new Error(`multifd demo: ${stderr}`);
  // The result's digests are compared by the command.
  return JSON.parse(stdout.trim().split('\n').at(-1) as string) as Figure;
}

export async function run(): Promise<Row[]> {
  if (QEMU === undefined) {
    console.log(`qemu: skipped: ${MISSING_QEMU}`);
    return [];
  }
  const rows: Row[] = [];
  const root = process.env.TMPDIR === undefined && fs.existsSync('/dev/shm') ? '/dev/shm' : os.tmpdir();
  const folder = fs.mkdtempSync(path.join(root, 'multifd-bench-'));
  try {
    for (const image of ['random', 'mixed', 'zero'] as const)
      writeImage(path.join(folder, image), GiB, image);
    for (const it of CASES) {
      const source = path.join(folder, it.image);
      const wire: Record<string, number[]> = { qemu: [], ours: [] };
      const noted = (side: string, figure: Figure): number => {
        wire[side].push(figure.wireBytes / 1e6);
        return figure.seconds;
      };
      const seconds = await alternate(
        {
          qemu: async () => noted('qemu', await qemuToQemu(folder, source, it)),
          ours: () => Promise.resolve(noted('ours', oursToOurs(source, it))),
        },
        PAIRS,
      );
      const memory = it.prefault ? 'prefaulted' : 'fresh';
      const name = `${it.compression}, ${it.image}, ${it.channels} channels, ${memory}`;
      const speed = seconds.qemu.map((value, i) => value / seconds.ours[i]);
      rows.push(row('qemu', `${name}: QEMU ${QEMU.version}`, 's', seconds.qemu));
      rows.push(row('qemu', `${name}: multifd`, 's', seconds.ours));
      rows.push(
        row(
          'qemu',
          `${name}: speed against QEMU`,
          '',
          speed,
          it.floor === undefined ? {} : { floor: it.floor },
        ),
      );
      if (it.compression !== 'none' && it.prefault) {
        const size = wire.ours.map((value, i) => value / wire.qemu[i]);
        const ceiling = it.compression === 'zstd' ? 1 : 1.05;
        rows.push(row('qemu', `${name}: size on the wire against QEMU`, '', size, { ceiling }));
      }
    }
    return rows;
  } finally {
    fs.rmSync(folder, { recursive: true, force: true });
  }
}
