/** Kernels for the PC of v86: a real one, where there is one, and such as only look like one. */
import fs from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

const root = fileURLToPath(new URL('../../../', import.meta.url));

/** MULTIFD_TEST_LINUX, what .ci/linux has unpacked, or this machine's own. */
export function linuxKernel(): string | undefined {
  if (process.env.MULTIFD_TEST_LINUX) return process.env.MULTIFD_TEST_LINUX;
  for (const folder of [path.join(root, '.qemu/linux/boot'), '/boot']) {
    if (!fs.existsSync(folder)) continue;
    const name = fs.readdirSync(folder).find((name) => /^vmlinuz-.*-686(-pae)?$/.test(name));
    if (name !== undefined) return path.join(folder, name);
  }
  return undefined;
}

export const NO_KERNEL = 'skipped: no kernel of 32 bits here (MULTIFD_TEST_LINUX names one)';

export function findBios(): string | undefined {
  return ['/usr/share/seabios/bios.bin', '/usr/share/qemu/bios.bin'].find((file) => fs.existsSync(file));
}

export interface FakeKernel {
  version?: string;
  is64?: boolean;
  /** Said on the serial port; then it stands still. */
  says?: string;
}

/** What Linux's boot protocol asks of a file, with code of 16 bits. */
export function fakeKernel({ version = '1.2.3-fake #1', is64 = false, says = '' }: FakeKernel = {}): Buffer {
  const file = Buffer.alloc(4096);
  file[0x1f1] = 1; // sectors of set-up behind the first one
  file.writeUInt16LE(0xaa55, 0x1fe);
  file.writeUInt16LE(0x6eeb, 0x200); // jmp 270
  file.write('HdrS', 0x202, 'latin1');
  file.writeUInt16LE(0x20f, 0x206);
  file.writeUInt16LE(0x100, 0x20e);
  file[0x211] = 1; // loaded high
  file.writeUInt16LE(is64 ? 1 : 0, 0x236);
  file.writeUInt32LE(255, 0x238);
  // mov dx, 3f8; mov si, 380; next: lodsb; test al, al; jz end; out dx, al; jmp next; end: cli; hlt
  file.write('baf803be8003ac84c07403eeebf8faf4', 0x270, 'hex');
  file.write(`${version}\0`, 0x300, 'latin1');
  file.write(`${says}\0`, 0x380, 'latin1');
  return file;
}
