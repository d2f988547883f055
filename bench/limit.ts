/**
 * Against the limit: what this machine moves between two processes over plain sockets, in C and in Node, and how fast C
 * sees that memory is zero. Our own figures are in none.ts, zero.ts and kernels.ts; each codec's own one-thread speed is
 * in codec.ts. Fresh processes for each figure, the cases in turn.
 */
import os from 'node:os';
import { buildLimit, NO_LIMIT, type Limit, type SocketsCase } from './support/limit.js';
import { alternate, counted, row, type Plot, type Row } from './support/measure.js';
import { nodeSockets } from './support/node-sockets.js';
import { remark } from './support/remark.js';

/** Enough for a quarter of a second at these speeds; writing the memory beforehand takes three times as long. */
const BYTES = 3 * 2 ** 28;
const ROUNDS = 3;
const CASES: Omit<SocketsCase, 'bytes'>[] = [
  { connections: 1, prefault: true },
  { connections: 2, prefault: true },
  { connections: 4, prefault: true },
  { connections: 2, prefault: false },
];

export async function run(): Promise<Row[]> {
  const limit = buildLimit();
  if (limit === undefined) remark('limit', NO_LIMIT);
  return [...(await sockets(limit)), ...(limit === undefined ? [] : zero(limit))];
}

async function sockets(limit: Limit | undefined): Promise<Row[]> {
  const rows: Row[] = [];
  for (const it of CASES) {
    const how = { ...it, bytes: BYTES };
    const sides: Record<string, () => Promise<number>> = {
      ...(limit !== undefined && { C: () => Promise.resolve(limit.sockets(how)) }),
      Node: () => nodeSockets(how),
    };
    const figures = await alternate(sides, ROUNDS, { warmUp: false });
    const memory = it.prefault ? 'prefaulted' : 'fresh';
    const count = counted(it.connections, 'connection');
    for (const [side, values] of Object.entries(figures)) {
      const plot: Plot = {
        chart: 'sockets',
        series: `${side}, ${memory}`,
        x: it.connections,
      };
      rows.push(row('limit', `plain sockets in ${side}, ${count}, ${memory}`, 'GB/s', values, { plot }));
    }
  }
  return rows;
}

function zero(limit: Limit): Row[] {
  const rows: Row[] = [];
  const cores = os.availableParallelism();
  for (const kind of ['memcmp', 'avx2'] as const) {
    const name = kind === 'avx2' ? 'an AVX2 loop' : 'memcmp';
    for (const threads of cores > 1 ? [1, cores] : [1]) {
      // The program's own median is the figure.
      const value = limit.zero(kind, threads, BYTES);
      if (value === undefined) {
        remark('limit', `zero detection by ${name} left out: not on this processor`);
        break;
      }
      const plot: Plot = { chart: 'zero-limit', series: name, x: threads };
      const count = counted(threads, 'thread');
      rows.push(row('limit', `zero detection by ${name}, ${count}`, 'GB/s', [value], { plot }));
    }
  }
  return rows;
}
