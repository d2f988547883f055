/**
 * A directory for guest RAM in files. In memory (/dev/shm) where there is room, as a VMM would have it; else where
 * temporary files go. Whoever sets TMPDIR has chosen.
 *
 * It is removed by remove(), by an 'exit' handler if that was not reached, and by the destination process if this
 * one is killed.
 */
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { CliError } from '../cli-error.js';

export class TempDirectory {
  readonly path: string;

  private constructor(directory: string) {
    this.path = directory;
    process.on('exit', this.#removeNow);
  }

  /** @throws CliError ERR_CLI_ROOM if `bytes` fit nowhere */
  static make(bytes: number): TempDirectory {
    const tried: string[] = [];
    for (const root of process.env.TMPDIR ? [os.tmpdir()] : ['/dev/shm', os.tmpdir()]) {
      const free = roomIn(root);
      if (free >= bytes) {
        try {
          return new TempDirectory(fs.mkdtempSync(path.join(root, 'multifd-demo-')));
        } catch (error) {
          tried.push(`${root}: ${(error as Error).message}`);
        }
      } else {
        tried.push(`${root} has ${free} bytes free`);
      }
    }
    throw new CliError('ERR_CLI_ROOM', `files of ${bytes} bytes are needed; ${tried.join('; ')}`);
  }

  file(name: string): string {
    return path.join(this.path, name);
  }

  remove(): void {
    this.#removeNow();
    process.off('exit', this.#removeNow);
  }

  readonly #removeNow = (): void => {
    fs.rmSync(this.path, { recursive: true, force: true });
  };
}

function roomIn(root: string): number {
  try {
    const { bavail, bsize } = fs.statfsSync(root);
    const free = bavail * bsize;
    // A tmpfs promises a size of its own, whatever memory is left.
    return root === '/dev/shm' ? Math.min(free, os.freemem()) : free;
  } catch {
    return 0;
  }
}
