/**
 * A parked VM packed, against `zstd -T0` on the same file: whole commands, in alternation, at zstd's default level. Half of the
 * guest's memory is zero, a sixteenth random, the rest programs: Node's own, again and again, moved by a page.
 *
 *     zstd   zstd -T0 -3 vm.mig          one frame, jobs of several MiB with what came before as their dictionary
 *     ours   multifd pack vm.mig         frames of 1 MiB, each by itself, and a seek table
 */
import { spawnSync } from 'node:child_process';
import { randomFillSync } from 'node:crypto';
import fs from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { createMigrationSource, receiveMigration, type Address } from '../src/index.js';
import { ratios, row, type Row } from './support/measure.js';
import { mustBeSame, workFolder } from './support/qemu.js';
import { remark } from './support/remark.js';

const MAIN = fileURLToPath(new URL('../cli/main.js', import.meta.url));
/** A small guest's: less, and what is measured is how long a Node takes to start. */
const RAM_BYTES = 2 ** 31;
const PAGE_BYTES = 4096;
/** randomFillSync() takes less than 128 MiB at once. */
const RANDOM_BYTES = 2 ** 26;
const PAIRS = 5;
const LIMIT_MS = 120_000;
/** Of zstd's: time, and size. */
const CEILING = 1;
const SIZE_CEILING = 1.05;

export async function* run(): AsyncGenerator<Row> {
  const folder = workFolder();
  try {
    const file = path.join(folder.path, 'vm.mig');
    await park(file);
    const packed = `${file}.zst`;
    const other = path.join(folder.path, 'other.zst');
    const zstd = ['-q', '-f', '-3', '-T0', file, '-o', other];
    const hasZstd = spawnSync('zstd', ['--version'], { timeout: LIMIT_MS }).error === undefined;
    if (!hasZstd) remark('pack', 'without the program zstd (Debian: zstd)');
    const [ours, theirs]: [number[], number[]] = [[], []];
    for (let pair = 0; pair <= PAIRS; pair++) {
      const mine = seconds(process.execPath, [MAIN, 'pack', file, '--overwrite', '--no-progress']);
      const its = hasZstd ? seconds('zstd', zstd) : undefined;
      // The first of each warms the page cache.
      if (pair === 0) continue;
      ours.push(mine);
      if (its !== undefined) theirs.push(its);
    }
    const back = path.join(folder.path, 'back.mig');
    const unpacked = seconds(process.execPath, [MAIN, 'unpack', packed, '--out', back, '--no-progress']);
    mustBeSame(file, back, 'unpacked');
    const mib = fs.statSync(file).size / 2 ** 20;
    yield row(
      'pack',
      'multifd pack',
      'MiB/s',
      ours.map((s) => mib / s),
    );
    yield row('pack', 'multifd unpack', 'MiB/s', [mib / unpacked]);
    yield row('pack', 'packed', '%', [(100 * fs.statSync(packed).size) / fs.statSync(file).size]);
    if (!hasZstd) return;
    yield row(
      'pack',
      'zstd -T0',
      'MiB/s',
      theirs.map((s) => mib / s),
    );
    yield row('pack', "time against zstd's", '', ratios(ours, theirs), { ceiling: CEILING });
    const sizes = [fs.statSync(packed).size / fs.statSync(other).size];
    yield row('pack', "size against zstd's", '', sizes, { ceiling: SIZE_CEILING });
  } finally {
    folder.remove();
  }
}

function seconds(command: string, args: string[]): number {
  const begun = performance.now();
  const { status, error, stderr } = spawnSync(command, args, { timeout: LIMIT_MS, encoding: 'utf8' });
  if (status !== 0) throw new Error(`${command} ${args.join(' ')}: ${error?.message ?? stderr}`);
  return (performance.now() - begun) / 1000;
}

async function park(out: string): Promise<void> {
  const memory = new SharedArrayBuffer(RAM_BYTES);
  fill(new Uint8Array(memory));
  let result!: ReturnType<typeof receiveMigration>;
  const to = await new Promise<Address>((resolve, reject) => {
    result = receiveMigration({ address: { port: 0 }, out, onListening: resolve });
    result.catch(reject);
  });
  const source = await createMigrationSource({
    to,
    machine: 'bench-1.0',
    blocks: [{ name: 'ram', memory }],
    dirty: () => [],
    devices: [],
    pause: () => {},
    resume: () => {},
  });
  await Promise.all([source.done, result]);
}

function fill(ram: Uint8Array): void {
  const program = fs.readFileSync(process.execPath);
  for (let at = 0; at < RAM_BYTES / 16; at += RANDOM_BYTES) randomFillSync(ram, at, RANDOM_BYTES);
  for (let at = RAM_BYTES / 16, turn = 1; at < RAM_BYTES / 2; turn++) {
    const piece = program.subarray(turn * PAGE_BYTES, turn * PAGE_BYTES + RAM_BYTES / 2 - at);
    ram.set(piece, at);
    at += piece.length;
  }
}
