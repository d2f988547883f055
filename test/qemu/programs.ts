/** The QEMUs that these tests need. */
import {
  MISSING_QEMU,
  MISSING_QEMU_11_1,
  MISSING_QEMU_7_2,
  QEMU,
  QEMU_11_1,
  QEMU_7_2,
  type Program,
} from '../../src/cli/qemu/programs.js';

export { QEMU, QEMU_11_1, QEMU_7_2, type Program };

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
