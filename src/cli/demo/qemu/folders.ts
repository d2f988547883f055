/** Where `.ci/qemu` unpacks the QEMUs that are not installed. */
import path from 'node:path';
import { packageFolder } from '../../package-folder.js';

const CHECKOUT = packageFolder();

export const OLD_FOLDER = process.env.MULTIFD_QEMU_7_2 ?? path.join(CHECKOUT, '.qemu/7.2');
export const NEW_FOLDER = process.env.MULTIFD_QEMU_11_1 ?? path.join(CHECKOUT, '.qemu/11.1');

/** A version such as `11.1.3`: 11.1 or later, since the suite that it comes from goes on. */
export function isNewest(version: string): boolean {
  const [major, minor] = version.split('.').map(Number);
  return major > 11 || (major === 11 && minor >= 1);
}
