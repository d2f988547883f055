/**
 * What it costs a live migration to prove its memory (option verify), and to find what has changed without dirty tracking: the
 * downtime and all of the time of a guest that stands still, both ends in this process, the three by turns.
 *
 *     tracked             option dirty, nothing dirty: the downtime is that of the hand-over
 *     verify              the same, with digests of all memory made at both ends in the downtime
 *     not tracked         no option dirty: each round reads all memory, the last one in the downtime
 *
 * And the digests themselves on one thread: of a page, as the channels make it, beside those that Node has; of a chunk.
 */
import { createHash } from 'node:crypto';
import zlib from 'node:zlib';
import {
  createMigrationDestination,
  createMigrationSource,
  type MigrationProgress,
  type MigrationSourceOptions,
} from '../src/index.js';
import { CHUNK_BYTES, digestOf } from '../src/ram/chunks.js';
import { PageDigests } from '../src/ram/page-digest.js';
import { fillImage, prefault, type Image } from './support/image.js';
import { alternate, row, type Row } from './support/measure.js';

const RAM_BYTES = 2 ** 28;
const ROUNDS = 5;
const PAGE = 4096;
/** A side runs so long, in a loop without a clock. */
const SIDE_BYTES = 2 ** 26;
const IMAGES = ['mixed', 'random'] as const satisfies Image[];

export async function run(): Promise<Row[]> {
  const memory = new SharedArrayBuffer(RAM_BYTES);
  const there = new SharedArrayBuffer(RAM_BYTES);
  prefault(there);
  const rows: Row[] = [];
  for (const image of IMAGES) {
    prefault(memory);
    fillImage(memory, image);
    rows.push(...(await migrations(memory, there, image)));
  }
  // Random by now.
  return [...rows, ...(await digests(Buffer.from(memory)))];
}

type Case = Pick<MigrationSourceOptions, 'dirty' | 'verify'>;
const CASES: Record<string, Case> = {
  tracked: { dirty: () => [] },
  verify: { dirty: () => [], verify: true },
  'not tracked': {},
};

async function migrations(memory: SharedArrayBuffer, there: SharedArrayBuffer, image: Image): Promise<Row[]> {
  const totals: Record<string, number[]> = {};
  const sides = Object.fromEntries(
    Object.entries(CASES).map(([name, how]) => [
      name,
      async () => {
        const { downtimeMs, totalTimeMs } = await migrate(memory, there, how);
        (totals[name] ??= []).push(totalTimeMs);
        return downtimeMs;
      },
    ]),
  );
  const downtimes = await alternate(sides, ROUNDS);
  return Object.keys(CASES).flatMap((name) => {
    const of = `256 MiB, ${image}, 2 channels: ${name}`;
    return [
      row('verify', `downtime of ${of}`, 'ms', downtimes[name]),
      row('verify', `all of the time of ${of}`, 'ms', totals[name].slice(1)),
    ];
  });
}

async function migrate(
  memory: SharedArrayBuffer,
  there: SharedArrayBuffer,
  { dirty, verify }: Case,
): Promise<MigrationProgress> {
  const both = { machine: 'bench-1.0', channels: 2, verify };
  const destination = await createMigrationDestination({
    ...both,
    listen: { host: '127.0.0.1', port: 0 },
    blocks: [{ name: 'ram', memory: there }],
    start: () => {},
  });
  const source = await createMigrationSource({
    ...both,
    to: destination.address,
    blocks: [{ name: 'ram', memory }],
    dirty,
    // Long enough for a round without dirty tracking to fit.
    downtimeLimitMs: 2000,
    pause: () => {},
    resume: () => {},
  });
  const [progress] = await Promise.all([source.done, destination.done]);
  if (Buffer.compare(Buffer.from(memory), Buffer.from(there)) !== 0) throw new Error('a byte is another');
  return progress;
}

/** GB/s of a loop over SIDE_BYTES of memory. */
function speed(bytes: number, call: (at: number) => unknown): () => Promise<number> {
  return () => {
    const begun = performance.now();
    for (let at = 0; at < SIDE_BYTES; at += bytes) call(at);
    return Promise.resolve(SIDE_BYTES / 1e6 / (performance.now() - begun));
  };
}

async function digests(memory: Buffer): Promise<Row[]> {
  const pages = new PageDigests(PAGE);
  const view = (at: number): Buffer => memory.subarray(at, at + PAGE);
  const figures = await alternate(
    {
      'a page, copied, XXH64': speed(PAGE, (at) => {
        pages.memory.set(view(at));
        pages.of(0, PAGE);
      }),
      "a page, Node's CRC-32": speed(PAGE, (at) => zlib.crc32(view(at))),
      "a page, Node's SHA-1": speed(PAGE, (at) => createHash('sha1').update(view(at)).digest()),
      '512 KiB, SHA-256': speed(CHUNK_BYTES, (at) => digestOf(memory, at, CHUNK_BYTES)),
    },
    ROUNDS,
  );
  return Object.entries(figures).map(([name, values]) => row('verify', `digest of ${name}`, 'GB/s', values));
}
