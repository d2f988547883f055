/**
 * The benches: `npm run bench` runs all but those of BY_NAME, `npm run bench -- NAME ...` those named, `--json FILE` keeps the figures.
 * Each bench runs in a fresh process, in alternation within itself, on memory written before. A figure that misses its
 * bound is marked; the exit code stays 0, since on a shared machine a miss is a reason to look and not a failure.
 */
import { execFileSync, fork } from 'node:child_process';
import { once } from 'node:events';
import fs from 'node:fs';
import os from 'node:os';
import { parseArgs } from 'node:util';
import { format, type Row } from './support/measure.js';

const BENCHES = ['none', 'zero', 'codec', 'memory'];
/** Only when named: it takes eight minutes, and a QEMU. */
const BY_NAME = ['qemu'];

if (process.send !== undefined) {
  const { run } = (await import(`./${process.argv[2]}.js`)) as { run: () => Promise<Row[]> };
  process.send(await run());
  process.disconnect();
} else {
  const { values, positionals } = parseArgs({
    options: { json: { type: 'string' } },
    allowPositionals: true,
  });
  const known = [...BENCHES, ...BY_NAME];
  const unknown = positionals.filter((name) => !known.includes(name));
  if (unknown.length > 0) {
    console.error(`bench: given ${unknown.join(' ')}, allowed ${known.join(', ')}`);
    process.exit(2);
  }
  console.log(
    `${os.cpus()[0]?.model}, ${os.availableParallelism()} cores, Node ${process.version}, ${revision()}`,
  );
  const rows: Row[] = [];
  for (const name of positionals.length > 0 ? positionals : BENCHES) {
    const child = fork(new URL(import.meta.url), [name]);
    let got: Row[] = [];
    child.on('message', (message) => (got = message as Row[]));
    const [code] = (await once(child, 'exit')) as [number | null];
    if (code !== 0) throw new Error(`bench ${name} exited with ${code}`);
    for (const row of got) console.log(line(row));
    rows.push(...got);
  }
  if (values.json !== undefined) fs.writeFileSync(values.json, `${JSON.stringify(rows, null, 2)}\n`);
}

function line(row: Row): string {
  const bound =
    row.floor !== undefined
      ? `  at least ${row.floor}${row.median < row.floor ? '  MISSED' : ''}`
      : row.ceiling !== undefined
        ? `  at most ${row.ceiling}${row.median > row.ceiling ? '  MISSED' : ''}`
        : '';
  return `${row.bench}: ${row.row}: ${format(row)} ${row.unit}${bound}`;
}

function revision(): string {
  try {
    return execFileSync('git', ['rev-parse', '--short', 'HEAD'], { stdio: ['ignore', 'pipe', 'ignore'] })
      .toString()
      .trim();
  } catch {
    return 'no revision';
  }
}
