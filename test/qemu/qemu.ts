/** The QEMUs of src/cli/demo/qemu, ended and cleared away with the test that started them. */
import fs from 'node:fs';
import type { Test } from 'tap';
import type { Program } from '../../src/cli/demo/qemu/programs.js';
import { Qemu as Machine, makeFolder, type QemuOptions } from '../../src/cli/demo/qemu/qemu.js';

export type { MigrationInfo, Outgoing, QemuOptions } from '../../src/cli/demo/qemu/qemu.js';

export type Qemu = Machine;

export const Qemu = {
  async start(t: Test, program: Program, folder: string, options: QemuOptions = {}): Promise<Qemu> {
    const qemu = await Machine.start(program, folder, options);
    t.teardown(() => qemu.kill());
    return qemu;
  },
};

/** A folder of its own with the guest's disk. */
export function workFolder(t: Test): string {
  const folder = makeFolder();
  t.teardown(() => fs.rmSync(folder, { recursive: true, force: true }));
  return folder;
}
