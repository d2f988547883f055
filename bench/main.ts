/**
 * The benches, each in a fresh process, in alternation within itself, on memory written before.
 *
 *     this process                          a bench's process, with a process group of its own
 *     fork NAME                      ---->  its run()
 *     prints, marks missed bounds    <----  Row and Remark ..., as they come or all at the end
 *     goes on, whatever came of it   <----  exits
 *     --json, --html
 *
 * A missed bound leaves the exit code 0, since on a shared machine it is a reason to look and not a failure; a bench that
 * fails makes it 1, after all others have run. Whatever ends a run, the files have the rows that there are.
 */
import { fork, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import fs from 'node:fs';
import { parseArgs } from 'node:util';
import { describeMachine } from './support/machine.js';
import type { Row } from './support/measure.js';
import { remark, remarksTold, type Remark } from './support/remark.js';
import { boundOf, figure, isMissed, type Results } from './support/results.js';

const BENCHES = [
  ...['limit', 'kernels', 'handover', 'none', 'zero', 'codec', 'memory', 'growth', 'startup', 'attack'],
  ...['qemu', 'live', 'qemu-file', 'instant', 'direct-io', 'tls', 'zero-copy', 'verify', 'pack'],
];
/** Only when named, for the time that they take. */
const BY_NAME = ['qemu-all'];

const HELP = `Usage: npm run bench -- [options] [NAME ...]

Runs the benches NAME ..., by default all of the first line.

  ${BENCHES.join(' ')}
  ${BY_NAME.join(' ')}  (takes long: only when named)

Options:
  --json FILE  all figures, with the machine and the versions; after Ctrl-C those there are
  --html FILE  the same as a page with plots, all in one file
  -h, --help   display help

Exit codes: 0 all have run, MISSED bounds or not, 1 a bench failed, 2 wrong usage, 130 after Ctrl-C, 143 after SIGTERM.`;

/** The first argument of a bench's process. */
const CHILD = 'run-one';
const EXIT_FAILED = 1;
/** For a bench's processes that were told to end to remove their files; then they are killed. */
const END_MS = 3000;

interface Usage {
  names: string[];
  json?: string;
  html?: string;
}

/** The bench that runs now. */
let running: ChildProcess | undefined;

if (process.argv[2] === CHILD && process.send !== undefined) await beBench(process.argv[3]);
else await main(readUsage());

// ---- a bench's process ----

async function beBench(name: string): Promise<void> {
  // Ends in order, with what is done on 'exit': processes killed, files removed.
  process.on('SIGTERM', () => process.exit(143));
  const orphaned = (): void => process.exit(1);
  process.on('disconnect', orphaned);
  try {
    const { run } = (await import(`./${name}.js`)) as { run: () => Promise<Row[]> | AsyncIterable<Row> };
    const rows = await run();
    for await (const row of rows)
      await new Promise((resolve) => process.send?.(row, undefined, undefined, resolve));
  } catch (error) {
    remark(name, error instanceof Error ? error.message : String(error));
    throw error;
  } finally {
    await remarksTold();
  }
  process.off('disconnect', orphaned);
  process.disconnect();
}

// ---- this process ----

async function main({ names, json, html }: Usage): Promise<void> {
  // The plotting library is asked for only here, and before the work.
  const page = html === undefined ? undefined : await import('./support/page.js');
  const machine = describeMachine();
  const rows: Row[] = [];
  const remarks: Remark[] = [];
  const done = new Set<string>();
  // Those that had no time count as well.
  const failed = (): string[] => names.filter((name) => !done.has(name));
  const begun = performance.now();
  const elapsed = (): number => (performance.now() - begun) / 1000;
  const keep = (): boolean => {
    const results: Results = {
      machine,
      seconds: elapsed(),
      benches: names,
      failed: failed(),
      remarks,
      rows,
    };
    const kept = [
      json === undefined || write(json, `${JSON.stringify(results, null, 2)}\n`),
      html === undefined || page === undefined || write(html, page.renderPage(results)),
    ];
    return kept.every(Boolean);
  };
  let ending = false;
  const end = (code: number): void => {
    if (ending) return;
    ending = true;
    endBench(() => process.exit(keep() ? code : EXIT_FAILED));
  };
  process.on('SIGINT', () => end(130));
  process.on('SIGTERM', () => end(143));
  // A pipe to `head` that has seen enough: what is left to do is for the files.
  process.stdout.on('error', () => {
    if (json === undefined && html === undefined) end(EXIT_FAILED);
  });
  console.log(
    Object.entries(machine)
      .map(([name, value]) => `${name} ${value}`)
      .join(', '),
  );
  for (const name of names) {
    const how = await runBench(name, (told) => {
      if ('remark' in told) {
        remarks.push(told);
        console.log(`${told.bench}: ${told.remark}`);
      } else {
        rows.push(told);
        console.log(line(told));
      }
    });
    if (how === undefined) {
      done.add(name);
      continue;
    }
    remarks.push({ bench: name, remark: `failed: ${how}` });
    console.error(`bench: ${name} failed: ${how}`);
  }
  const missed = rows.filter(isMissed).length;
  const bounded = rows.filter((row) => boundOf(row) !== undefined).length;
  console.log(`${rows.length} rows, ${missed} of ${bounded} bounds MISSED, ${elapsed().toFixed()} s`);
  if (failed().length > 0) console.log(`failed: ${failed().join(' ')}`);
  if (!keep() || failed().length > 0) process.exitCode = EXIT_FAILED;
}

/** @returns whether it could */
function write(file: string, text: string): boolean {
  try {
    fs.writeFileSync(file, text);
    return true;
  } catch (error) {
    console.error(`bench: ${file} could not be written: ${(error as Error).message}`);
    return false;
  }
}

function line(row: Row): string {
  const { bench, row: name, unit, median, min, max } = row;
  const bound = boundOf(row);
  const judged = bound === undefined ? '' : `  ${bound}${isMissed(row) ? '  MISSED' : ''}`;
  return `${bench}: ${name}: ${figure(median)} (${figure(min)} to ${figure(max)}) ${unit}`.trimEnd() + judged;
}

/** @returns how it failed, or undefined */
async function runBench(name: string, take: (told: Row | Remark) => void): Promise<string | undefined> {
  // A group of its own, so that whatever it starts is ended with it.
  const child = fork(new URL(import.meta.url), [CHILD, name], { detached: true });
  running = child;
  child.on('message', (message) => take(message as Row | Remark));
  try {
    // Its last rows may be read after it is gone; the channel's end comes after them.
    await Promise.all([once(child, 'exit'), once(child, 'disconnect')]);
  } catch (error) {
    return (error as Error).message;
  } finally {
    running = undefined;
    endGroup(child, 'SIGKILL');
  }
  if (child.exitCode === 0) return undefined;
  return `ended with ${child.exitCode ?? child.signalCode}`;
}

function endGroup({ pid }: ChildProcess, signal: NodeJS.Signals): void {
  try {
    if (pid !== undefined) process.kill(-pid, signal);
  } catch {
    // Nobody is left in it.
  }
}

/** The terminal's Ctrl-C reaches only this process: the bench has a group of its own. */
function endBench(then: () => void): void {
  const child = running;
  if (child === undefined) return then();
  child.removeAllListeners();
  child.once('exit', () => {
    endGroup(child, 'SIGKILL');
    then();
  });
  endGroup(child, 'SIGTERM');
  setTimeout(() => endGroup(child, 'SIGKILL'), END_MS);
}

// ---- its arguments ----

function readUsage(): Usage {
  try {
    const { values, positionals } = parseArgs({
      options: {
        json: { type: 'string' },
        html: { type: 'string' },
        help: { type: 'boolean', short: 'h' },
      },
      allowPositionals: true,
    });
    if (values.help === true) {
      console.log(HELP);
      process.exit();
    }
    const { json, html } = values;
    const known = [...BENCHES, ...BY_NAME];
    const unknown = positionals.filter((name) => !known.includes(name));
    if (unknown.length > 0) throw new Error(`given ${unknown.join(' ')}, allowed ${known.join(', ')}`);
    checkFiles([json, html].filter((file) => file !== undefined));
    return { names: positionals.length > 0 ? [...new Set(positionals)] : BENCHES, json, html };
  } catch (error) {
    console.error(`bench: ${(error as Error).message}; --help lists all options`);
    return process.exit(2);
  }
}

/**
 * Can they be written? Now, and not after a quarter of an hour. What a file has stays there until then, and one that is
 * not there is made at the end.
 */
function checkFiles(files: readonly string[]): void {
  const made = files.filter((file) => !fs.existsSync(file));
  try {
    const opened = files.map((file) => {
      const handle = fs.openSync(file, 'a');
      const stat = fs.fstatSync(handle);
      fs.closeSync(handle);
      return stat;
    });
    // By whatever names and links.
    const [one, other] = opened;
    if (other?.isFile() && one.dev === other.dev && one.ino === other.ino)
      throw new Error('given the same file for --json and --html');
  } finally {
    for (const file of made) fs.rmSync(file, { force: true });
  }
}
