/**
 * The QEMUs of this machine: `MULTIFD_QEMU` is the program (default: qemu-system-x86_64 on the path), `MULTIFD_QEMU_7_2`
 * the folder into which Debian's packages of 7.2 were unpacked, `MULTIFD_QEMU_11_1` that of 11.1 or later, with a command
 * in bin that runs it (default: `.qemu/7.2` and `.qemu/11.1` in the checkout, where `.ci/qemu` puts them).
 */
import { spawnSync } from 'node:child_process';
import path from 'node:path';
import { NEW_FOLDER, OLD_FOLDER, isNewest } from './folders.js';

export interface Program {
  /** What it says itself, such as `10.0.2`. */
  version: string;
  command: string;
  /** Where an unpacked one finds its firmware. */
  firmware: string[];
  env: NodeJS.ProcessEnv;
}

const VERSION_MS = 20_000;

function program(command: string, firmware: string[], env: NodeJS.ProcessEnv): Program | undefined {
  const { stdout } = spawnSync(command, ['--version'], { env, encoding: 'utf8', timeout: VERSION_MS });
  const version = /version (\d+\.\d+\.\d+)/.exec(stdout ?? '')?.[1];
  return version === undefined ? undefined : { version, command, firmware, env };
}

function unpacked(folder: string): Program | undefined {
  const command = path.join(folder, 'usr/bin/qemu-system-x86_64');
  const libraries = path.join(folder, 'usr/lib/x86_64-linux-gnu');
  const firmware = ['seabios', 'qemu'].flatMap((name) => ['-L', path.join(folder, 'usr/share', name)]);
  return program(command, firmware, { ...process.env, LD_LIBRARY_PATH: libraries });
}

/** Asked once, and only by who needs it: a QEMU that hangs would hang with it every start of the command. */
function once(find: () => Program | undefined): () => Program | undefined {
  let found: { program: Program | undefined } | undefined;
  return () => (found ??= { program: find() }).program;
}

/** With mapped-ram files and zero pages in packets: 9.0 or later. */
export const findQemu = once(() => {
  const installed = program(process.env.MULTIFD_QEMU ?? 'qemu-system-x86_64', [], process.env);
  return installed !== undefined && Number(installed.version.split('.')[0]) >= 9 ? installed : undefined;
});

export const findQemu72 = once(() => {
  const old = unpacked(OLD_FOLDER);
  return old?.version.startsWith('7.2.') === true ? old : undefined;
});

export const findQemu111 = once(() => {
  const newest = program(path.join(NEW_FOLDER, 'bin/qemu-system-x86_64'), [], process.env);
  return newest !== undefined && isNewest(newest.version) ? newest : undefined;
});

/** What to say where `findQemu()` finds none. */
export const MISSING_QEMU = 'qemu-system-x86_64 9.0 or later on the path (or named by MULTIFD_QEMU)';
export const MISSING_QEMU_7_2 = 'QEMU 7.2, unpacked (MULTIFD_QEMU_7_2 names the folder)';
export const MISSING_QEMU_11_1 = 'QEMU 11.1 or later, unpacked (MULTIFD_QEMU_11_1 names the folder)';
