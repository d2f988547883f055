/**
 * Runs spin on the models of this folder: Promela to C, C to a program, the program through all states, each step within bounds
 * of time and memory. Debian has it as package spin.
 */
import { spawnSync } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

const FOLDER = fileURLToPath(new URL('../../../test/model/', import.meta.url));
const MEMORY_MIB = 2500;
const MAX_DEPTH = 1_000_000;

export type Models = Record<string, string>;

/** The models, and what they include, by their file names. */
export function readModels(): Models {
  const names = fs.readdirSync(FOLDER).filter((name) => /\.(pml|h)$/.test(name));
  return Object.fromEntries(names.map((name) => [name, fs.readFileSync(path.join(FOLDER, name), 'utf8')]));
}

/** Why spin cannot be run here; undefined if it can. */
export function spinMissing(): string | undefined {
  for (const [command, flag] of [
    ['spin', '-V'],
    ['gcc', '--version'],
  ]) {
    if (spawnSync(command, [flag], { timeout: 10_000 }).status !== 0) return `${command} is not installed`;
  }
  return undefined;
}

export interface Verification {
  /** What is violated and how it came about; undefined if nothing is. */
  error: string | undefined;
  states: number;
}

export interface VerifyOptions {
  /** The file to verify, which may include the others. */
  file: string;
  /** For spin: `NAME` or `NAME=value`. */
  defines?: readonly string[];
  /** Of the program's run. */
  timeoutMs: number;
}

/** @throws Error if the search is not through within its bounds, or nothing can be made of the model */
export function verify(models: Models, { file, defines = [], timeoutMs }: VerifyOptions): Verification {
  return withProgram(models, { file, defines, bounds: [] }, (run) => {
    const output = run('./pan', [`-m${MAX_DEPTH}`, '-n'], timeoutMs);
    const said = /errors: (\d+)/.exec(output);
    if (said === null || /max search depth too small|out of memory|hash table full/.test(output))
      throw new Error(`the search of ${file} is not through:\n${output.slice(-2000)}`);
    const states = Number(/([\d.e+]+) states, stored/.exec(output)?.[1] ?? 0);
    if (said[1] === '0') return { error: undefined, states };
    const trail = run('spin', [...defines.map((define) => `-D${define}`), '-t', '-p', file], 20_000);
    const what = /pan:\d+: (.*)/.exec(output)?.[1] ?? 'an error';
    return { error: `${what}\n${trail.split('\n').slice(-60).join('\n')}`, states };
  });
}

/**
 * Which traces the model takes: those of a file as stepped/thread.ts writes it.
 *
 * @returns what trace.h says of them
 */
export function accept(
  models: Models,
  { file, defines = [], timeoutMs }: VerifyOptions,
  traces: Buffer,
): string {
  // Only the way itself is searched for, and its end may lie in the middle of a process.
  const program = { file, defines: [...defines, 'TRACE'], bounds: ['-DNOREDUCE'] };
  return withProgram({ ...models, 'traces.bin': traces }, program, (run) =>
    run('./pan', ['-m100000', '-n', '-E', '-w14'], timeoutMs),
  );
}

type Run = (command: string, args: readonly string[], timeout: number) => string;

function withProgram<T>(
  files: Record<string, string | Buffer>,
  { file, defines, bounds }: { file: string; defines: readonly string[]; bounds: readonly string[] },
  use: (run: Run) => T,
): T {
  const cwd = fs.mkdtempSync(path.join(os.tmpdir(), 'multifd-model-'));
  const run: Run = (command, args, timeout) => {
    const { status, signal, stdout, stderr } = spawnSync(command, args, {
      cwd,
      timeout,
      killSignal: 'SIGKILL',
      encoding: 'utf8',
      maxBuffer: 2 ** 26,
    });
    if (status === 0) return stdout;
    throw new Error(
      `${command} ${args.join(' ')}: ${signal ?? status}\n${stdout.slice(-2000)}${stderr.slice(-2000)}`,
    );
  };
  try {
    for (const [name, text] of Object.entries(files)) fs.writeFileSync(path.join(cwd, name), text);
    run('spin', [...defines.map((define) => `-D${define}`), '-a', file], 20_000);
    const given = [`-DMEMLIM=${MEMORY_MIB}`, '-DSAFETY', '-DCOLLAPSE', ...bounds];
    run('gcc', ['-O1', '-w', ...given, '-o', 'pan', 'pan.c'], 60_000);
    return use(run);
  } finally {
    fs.rmSync(cwd, { recursive: true, force: true });
  }
}
