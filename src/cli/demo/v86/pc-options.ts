/** How the demo's PC is built, the same in every process that it comes to. */
import fs from 'node:fs';
import { fileURLToPath } from 'node:url';
import type { V86Options } from 'v86';
import { CliError, EXIT_USAGE } from '../../cli-error.js';

const MIB = 2 ** 20;
export const RAM_BYTES = 32 * MIB;
/** What its guest writes to. */
export const REGION_BYTES = 4 * MIB;

/** Without a guest's image: a PC that a guest comes to. */
export function pcOptions(multiboot?: ArrayBuffer, ramBytes = RAM_BYTES): V86Options {
  return {
    wasm_path: fileURLToPath(import.meta.resolve('v86/build/v86.wasm')),
    memory_size: ramBytes,
    vga_memory_size: MIB,
    hda: { buffer: new ArrayBuffer(512) },
    ...(multiboot && { multiboot: { buffer: multiboot } }),
  };
}

/**
 * @returns its version
 * @throws CliError ERR_CLI_V86 where it is not installed
 */
export function requireV86(): string {
  try {
    const file = fileURLToPath(import.meta.resolve('v86/package.json'));
    return (JSON.parse(fs.readFileSync(file, 'utf8')) as { version: string }).version;
  } catch (cause) {
    const message = 'this needs the package v86, which is not installed (npm install v86)';
    throw new CliError('ERR_CLI_V86', message, { exitCode: EXIT_USAGE, cause });
  }
}
