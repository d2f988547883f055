/**
 * QEMU 11.1 (or later) in the place of 10.0: to be imported before a file with tests, which then runs its rows with it
 * (of long tables a third, see rows.ts). `.ci/qemu` unpacks it into `.qemu/11.1` of the checkout; `MULTIFD_QEMU_11_1`
 * names another folder.
 */
import { spawnSync } from 'node:child_process';
import path from 'node:path';
import { NEW_FOLDER, isNewest } from '../../src/cli/demo/qemu/folders.js';

const bin = path.join(NEW_FOLDER, 'bin');
const command = path.join(bin, 'qemu-system-x86_64');
const { stdout } = spawnSync(command, ['--version'], { encoding: 'utf8', timeout: 20_000 });
const version = /version (\d+\.\d+)/.exec(stdout ?? '')?.[1];
if (version === undefined || !isNewest(version)) {
  throw new Error(`missing: QEMU 11.1 or later in ${NEW_FOLDER}. On Debian, .ci/qemu unpacks it.`);
}
process.env.MULTIFD_QEMU = command;
process.env.MULTIFD_TEST_ROWS ??= 'third';
// For the README's commands.
process.env.PATH = `${bin}:${process.env.PATH}`;
