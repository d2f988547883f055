/**
 * Runs the built CLI as a user does: a process of its own, with its stdout, stderr and exit code. Everything that a
 * test starts is killed when the test ends.
 */
import { spawn, type ChildProcess } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { createInterface } from 'node:readline';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import type { Test } from 'tap';

/**
 * tap's loader, which it puts into every child's NODE_OPTIONS, takes each process and worker twice its own time; and what it
 * finds of its own terminal it passes on by FORCE_COLOR.
 */
export const WITHOUT_TAP = ['-u', 'NODE_OPTIONS', '-u', 'FORCE_COLOR'];
/** What users run; coverage counts the modules that it is made of. */
const BUILT = process.env.NODE_V8_COVERAGE === undefined ? '../../cli/main.js' : '../../src/cli/main.js';
export const MAIN = fileURLToPath(new URL(BUILT, import.meta.url));

/** A line of --json, loosely. */
export interface Line {
  type: string;
  ok?: boolean;
  error?: { code: string; message: string };
  [key: string]: unknown;
}

export interface BlockLine {
  name: string;
  size: number;
  sha256Source: string;
  sha256Destination: string;
  equal: boolean;
}

export interface Ended {
  code: number | null;
  signal: NodeJS.Signals | null;
  stdout: string;
  stderr: string;
}

export interface RunOptions {
  /** Another program than the CLI. */
  main?: string;
  env?: NodeJS.ProcessEnv;
  /** A process group of its own, to be signalled as a terminal does. */
  detached?: boolean;
}

export class Run {
  readonly child: ChildProcess;
  readonly ended: Promise<Ended>;
  /** With --json. */
  readonly lines: Line[] = [];
  #stdout = '';
  #stderr = '';
  #wake = (): void => {};
  #over = false;

  constructor(t: Test, args: string[], options: RunOptions = {}) {
    const env = { ...process.env, ...options.env };
    for (const [name, value] of Object.entries(env)) if (value === undefined) delete env[name];
    this.child = spawn('env', [...WITHOUT_TAP, process.execPath, options.main ?? MAIN, ...args], {
      stdio: ['ignore', 'pipe', 'pipe'],
      env,
      detached: options.detached,
    });
    t.teardown(() => this.child.kill('SIGKILL'));
    const { stdout, stderr } = this.child;
    stdout!.setEncoding('utf8').on('data', (text: string) => (this.#stdout += text));
    stderr!.setEncoding('utf8').on('data', (text: string) => (this.#stderr += text));
    createInterface({ input: stdout! }).on('line', (line) => {
      if (!line.startsWith('{')) return;
      this.lines.push(JSON.parse(line) as Line);
      this.#wake();
    });
    this.ended = new Promise((resolve) => {
      this.child.on('close', (code, signal) => {
        this.#over = true;
        this.#wake();
        resolve({ code, signal, stdout: this.#stdout, stderr: this.#stderr });
      });
    });
  }

  /** The first line that is like this; throws if the process ends without it. */
  async line(like: (line: Line) => boolean): Promise<Line> {
    for (;;) {
      const found = this.lines.find(like);
      if (found !== undefined) return found;
      if (this.#over) throw new Error(`ended without the line: ${this.#stdout}${this.#stderr}`);
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
    }
  }

  /** The channels are up and pages are on their way. */
  async running(): Promise<{ start: Line; destinationPid: number }> {
    const start = await this.line((line) => line.type === 'start');
    await this.line((line) => line.type === 'progress' && (line.bytes as number) > 0);
    return { start, destinationPid: start.destinationPid as number };
  }

  get result(): Line | undefined {
    return this.lines.find((line) => line.type === 'result');
  }
}

/** Runs to the end. */
export async function run(
  t: Test,
  args: string[],
  options?: RunOptions,
): Promise<Ended & { lines: Line[]; result: Line | undefined }> {
  const started = new Run(t, args, options);
  const ended = await started.ended;
  return { ...ended, lines: started.lines, result: started.result };
}

/** A directory for temporary files that only this test's processes use. */
export function tempRoot(t: Test): { env: NodeJS.ProcessEnv; path: string; left: () => string[] } {
  // Short, for sockets lie in it.
  const root = fs.mkdtempSync(path.join(os.tmpdir(), 'mfd-'));
  t.teardown(() => fs.rmSync(root, { recursive: true, force: true }));
  return {
    env: { TMPDIR: root },
    path: root,
    left: () => fs.readdirSync(root).filter((name) => name.startsWith('multifd-')),
  };
}

/** Resolves when there is no such process; one that nobody has reaped counts as gone. */
export async function gone(pid: number): Promise<void> {
  while (isAlive(pid)) await sleep(20);
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
  } catch {
    return false;
  }
  if (process.platform !== 'linux') return true;
  try {
    return !/^\d+ \(.*\) Z/s.test(fs.readFileSync(`/proc/${pid}/stat`, 'utf8'));
  } catch {
    return false;
  }
}
