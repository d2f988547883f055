/**
 * The limits of limit.c, compiled for this machine: plain sockets between two processes, and zero detection as C does
 * it. Where there is no C compiler there are none, and Node's own sockets (node-sockets.ts) are the limit that is left.
 */
import { execFileSync, spawnSync } from 'node:child_process';
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

/** What a bench says then. */
export const NO_LIMIT = 'rows in C left out: no cc that compiles limit.c';
const COMPILE_MS = 60_000;
const RUN_MS = 120_000;
/** limit.c: this processor has not got what is asked for. */
const EXIT_CANNOT = 3;

export interface SocketsCase {
  /** One thread on each side for each of them. */
  connections: number;
  /** Of all connections together; a multiple of 8 for each. */
  bytes: number;
  /** Is the destination's memory written before? */
  prefault: boolean;
  /** Where the source's bytes come from; random ones without. */
  file?: string;
}

/** Compiles NAME.c, which lies beside this; undefined where there is no `cc` that can. The directory goes with this process. */
export function compile(name: string): string | undefined {
  const source = fileURLToPath(new URL(`../../../bench/support/${name}.c`, import.meta.url));
  const folder = fs.mkdtempSync(path.join(os.tmpdir(), `multifd-${name}-`));
  process.once('exit', () => fs.rmSync(folder, { recursive: true, force: true }));
  const program = path.join(folder, name);
  try {
    execFileSync('cc', ['-O2', '-pthread', '-o', program, source], { timeout: COMPILE_MS, stdio: 'ignore' });
  } catch {
    return undefined;
  }
  return program;
}

/** Undefined where there is no `cc` that can compile it. */
export function buildLimit(): Limit | undefined {
  const program = compile('limit');
  return program === undefined ? undefined : new Limit(program);
}

export class Limit {
  readonly #program: string;

  /** @internal use buildLimit() */
  constructor(program: string) {
    this.#program = program;
  }

  /** GB a second from the first write to the last byte in place. The program compares what came with what was sent. */
  sockets({ connections, bytes, prefault, file }: SocketsCase): number {
    const args = [connections, bytes, prefault ? 'prefault' : 'fresh', ...(file === undefined ? [] : [file])];
    const seconds = this.#run(['sockets', ...args.map(String)]);
    if (seconds === undefined) throw new Error('limit sockets: not on this machine');
    return bytes / 1e9 / seconds;
  }

  /** GB a second over zero memory, the median of five passes; undefined if this processor has no AVX2. */
  zero(kind: 'memcmp' | 'avx2', threads: number, bytes: number): number | undefined {
    const seconds = this.#run(['zero', kind, String(threads), String(bytes)]);
    return seconds === undefined ? undefined : bytes / 1e9 / seconds;
  }

  #run(args: string[]): number | undefined {
    const { status, signal, stdout, stderr } = spawnSync(this.#program, args, {
      encoding: 'utf8',
      timeout: RUN_MS,
      killSignal: 'SIGKILL',
    });
    if (status === EXIT_CANNOT) return undefined;
    if (status !== 0)
      throw new Error(`limit ${args.join(' ')}: ${signal ?? `exit code ${status}`} ${stderr}`);
    return Number(stdout);
  }
}
