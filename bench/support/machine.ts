/** What the figures were measured on, and with; not the machine's name. */
import { execFileSync } from 'node:child_process';
import os from 'node:os';
import { findQemu } from '../../src/cli/demo/qemu/programs.js';

export interface Machine {
  cpu: string;
  cores: number;
  memoryGiB: number;
  kernel: string;
  node: string;
  qemu: string;
  revision: string;
  /** ISO 8601, when the benches began. */
  date: string;
}

export function describeMachine(): Machine {
  return {
    cpu: os.cpus()[0]?.model ?? 'unknown',
    cores: os.availableParallelism(),
    memoryGiB: Math.round(os.totalmem() / 2 ** 30),
    kernel: `${os.type()} ${os.release()} ${os.arch()}`,
    node: process.version,
    qemu: findQemu()?.version ?? 'none',
    revision: revision(),
    date: new Date().toISOString(),
  };
}

/** With `-dirty` where the checkout is not what was committed. */
function revision(): string {
  try {
    return execFileSync('git', ['describe', '--always', '--dirty', '--exclude', '*'], {
      stdio: ['ignore', 'pipe', 'ignore'],
      encoding: 'utf8',
    }).trim();
  } catch {
    return 'none';
  }
}
