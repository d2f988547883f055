/**
 * The QEMUs of this machine: `MULTIFD_QEMU` is the program (default: qemu-system-x86_64 on the path), `MULTIFD_QEMU_7_2`
 * the folder into which Debian's packages of 7.2 were unpacked (default: `.qemu/7.2` in the checkout, where `.ci/qemu`
 * puts it).
 */
import { spawnSync } from 'node:child_process';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

export interface Program {
  /** What it says itself, such as `10.0.2`. */
  version: string;
  command: string;
  /** Where an unpacked one finds its firmware. */
  firmware: string[];
  env: NodeJS.ProcessEnv;
}

/** From the built file, dist/test/qemu. */
const CHECKOUT = fileURLToPath(new URL('../../..', import.meta.url));
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

const installed = program(process.env.MULTIFD_QEMU ?? 'qemu-system-x86_64', [], process.env);
const old = unpacked(process.env.MULTIFD_QEMU_7_2 ?? path.join(CHECKOUT, '.qemu/7.2'));

/** With mapped-ram files and zero pages in packets: 9.0 or later. */
export const QEMU: Program | undefined =
  installed !== undefined && Number(installed.version.split('.')[0]) >= 9 ? installed : undefined;
export const QEMU_7_2: Program | undefined = old?.version.startsWith('7.2.') === true ? old : undefined;

/** What is missing, in words; empty if all is there. */
export const MISSING: readonly string[] = [
  ...(QEMU === undefined ? ['qemu-system-x86_64 9.0 or later (MULTIFD_QEMU)'] : []),
  ...(QEMU_7_2 === undefined ? ['QEMU 7.2, unpacked (MULTIFD_QEMU_7_2)'] : []),
];

/** For tests that are run on purpose: without QEMU they fail. */
export function requirePrograms(): { qemu: Program; qemu72: Program } {
  if (QEMU === undefined || QEMU_7_2 === undefined) {
    throw new Error(`missing: ${MISSING.join('; ')}. On Debian, .ci/qemu installs both.`);
  }
  return { qemu: QEMU, qemu72: QEMU_7_2 };
}
