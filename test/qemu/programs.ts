/** The QEMUs that these tests need. */
import {
  MISSING_QEMU,
  MISSING_QEMU_11_1,
  MISSING_QEMU_7_2,
  findQemu,
  findQemu111,
  findQemu72,
  type Program,
} from '../../src/cli/demo/qemu/programs.js';

export type { Program };
export const QEMU = findQemu();
export const QEMU_7_2 = findQemu72();
export const QEMU_11_1 = findQemu111();

/** What is missing, in words; empty if all is there. */
export const MISSING: readonly string[] = [
  ...(QEMU === undefined ? [MISSING_QEMU] : []),
  ...(QEMU_7_2 === undefined ? [MISSING_QEMU_7_2] : []),
  ...(QEMU_11_1 === undefined ? [MISSING_QEMU_11_1] : []),
];

/** For tests that are run on purpose: without QEMU they fail. */
export function requirePrograms(): { qemu: Program; qemu72: Program } {
  if (QEMU === undefined || QEMU_7_2 === undefined) {
    throw new Error(`missing: ${MISSING.join('; ')}. On Debian, .ci/qemu installs both.`);
  }
  return { qemu: QEMU, qemu72: QEMU_7_2 };
}
