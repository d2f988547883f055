/**
 * The limits of file-limit.c, compiled for this machine: a real QEMU's guest into a file and back by a C program that does
 * nothing else, in place of `receive` and `send`.
 */
import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { createInterface } from 'node:readline';
import { within } from '../../src/qmp/within.js';
import { compile } from './limit.js';

/** What a bench says where there is none. */
export const NO_FILE_LIMIT = 'rows in C left out: no cc that compiles file-limit.c';
/** file-limit.c ends itself before. */
const LIMIT_MS = 130_000;

/** A buffer in between, or the kernel alone: splice, sendfile. */
export type Ways = 'read' | 'splice' | 'sendfile';

/** Undefined where there is no `cc` that can compile it. */
export function buildFileLimit(): FileLimit | undefined {
  const program = compile('file-limit');
  return program === undefined ? undefined : new FileLimit(program);
}

export interface FileReceiver {
  port: number;
  /** All connections have ended, and the file is on disk. */
  done: Promise<void>;
  end: () => void;
}

export class FileLimit {
  readonly #program: string;

  /** @internal use buildFileLimit() */
  constructor(program: string) {
    this.#program = program;
  }

  async receive(file: string, connections: number, how: Ways): Promise<FileReceiver> {
    const child = this.#start(['receive', file, String(connections), how]);
    const lines = createInterface({ input: child.stdout as NodeJS.ReadableStream });
    const ended = this.#ended(child);
    const port = new Promise<number>((resolve) => lines.once('line', (text) => resolve(Number(text))));
    const first = await within(Promise.race([port, ended]), LIMIT_MS, 'port of file-limit receive');
    if (first === undefined) throw new Error('file-limit receive ended without a port');
    return {
      port: first,
      done: within(ended, LIMIT_MS, 'end of file-limit receive'),
      end: () => child.kill('SIGKILL'),
    };
  }

  /** Resolves when the peer has ended all connections. */
  async send(port: string, how: Ways, files: readonly string[]): Promise<void> {
    const child = this.#start(['send', port, how, ...files]);
    try {
      await within(this.#ended(child), LIMIT_MS, 'end of file-limit send');
    } finally {
      child.kill('SIGKILL');
    }
  }

  #start(args: string[]): ChildProcess {
    return spawn(this.#program, args, { stdio: ['ignore', 'pipe', 'inherit'] });
  }

  #ended(child: ChildProcess): Promise<undefined> {
    const ended = once(child, 'close').then(([code, signal]) => {
      if (code !== 0) throw new Error(`file-limit: ${signal ?? `exit code ${code}`}`);
      return undefined;
    });
    ended.catch(() => {});
    return ended;
  }
}
