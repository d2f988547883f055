/**
 * A guest of `multifd demo --v86 --kernel`: the files that it takes, looked at before anything is started, and the PC that boots
 * them. v86 loads a kernel itself, behind a BIOS, and leaves out in silence what it does not take.
 */
import fs from 'node:fs';
import type { V86Options } from 'v86';
import { UsageError } from '../../cli-error.js';
import { cpioArchive } from './cpio.js';
import type { GuestStepsOptions } from './guest-steps.js';
import { linuxInit } from './linux-init.js';
import { pcOptions } from './pc-options.js';

const MIB = 2 ** 20;
/** v86 puts the initrd at 64 MiB. The kernel unpacks itself to 16 MiB, and SeaBIOS leaves it 16 MiB less than there are. */
const LINUX_RAM_BYTES = 96 * MIB;
/** Of an initrd from elsewhere: it is there a second time when it is unpacked, which is compressed to a third or so. */
const INITRD_ROOM = 4;
/** Serial console; and without what takes seconds in v86 and is of no use there. */
const COMMAND_LINE = 'console=ttyS0 noisapnp mitigations=off cryptomgr.notests';

/** Where distributions have SeaBIOS. */
const BIOS_FILES = [
  '/usr/share/seabios/bios.bin',
  '/usr/share/qemu/bios.bin',
  '/usr/local/share/qemu/bios.bin',
  '/opt/homebrew/share/qemu/bios.bin',
];
const BIOS_MAX_BYTES = MIB;

/** Of Linux's boot protocol: where what stands in the file. */
const BOOT_FLAG = 0x1fe;
const HEADER = 0x202;
const VERSION_POINTER = 0x20e;
const XLOADFLAGS = 0x236;
const XLF_KERNEL_64 = 1;

/** Paths, for the process that boots it. */
export interface LinuxFiles {
  kernel: string;
  /** null: the demo's own. */
  initrd: string | null;
  bios: string;
}

export interface LinuxGuest {
  files: LinuxFiles;
  /** As the kernel's file has it: `6.1.0-50-686`. */
  version: string;
  ramBytes: number;
}

/**
 * Looks at them.
 *
 * @param initrd undefined: the demo's own
 * @param bios undefined: where distributions have it
 * @throws UsageError that names the option
 */
export function linuxGuest(kernel: string, initrd?: string, bios?: string): LinuxGuest {
  const version = kernelVersion(readFor('--kernel', kernel), kernel);
  const initrdBytes = initrd === undefined ? 0 : readFor('--initrd', initrd).length;
  const found = bios ?? BIOS_FILES.find((file) => fs.existsSync(file));
  if (found === undefined) {
    throw new UsageError(
      `option '--kernel <file>' needs a BIOS, and there is none at ${BIOS_FILES.join(', ')}. Install seabios, or name its bios.bin with '--bios <file>'.`,
    );
  }
  const { length } = readFor('--bios', found);
  if (length === 0 || length > BIOS_MAX_BYTES || length % 65536 !== 0)
    throw wrong(
      '--bios',
      found,
      `Allowed is a BIOS such as SeaBIOS's bios.bin, of 64 KiB to 1 MiB; it has ${length} bytes.`,
    );
  const ramBytes = LINUX_RAM_BYTES + Math.ceil((INITRD_ROOM * initrdBytes) / (16 * MIB)) * 16 * MIB;
  return { files: { kernel, initrd: initrd ?? null, bios: found }, version, ramBytes };
}

function kernelVersion(file: Buffer, name: string): string {
  const isKernel =
    file.length > 1024 &&
    file.readUInt16LE(BOOT_FLAG) === 0xaa55 &&
    file.toString('latin1', HEADER, HEADER + 4) === 'HdrS';
  if (!isKernel)
    throw wrong(
      '--kernel',
      name,
      'Allowed is a kernel of Linux for x86, such as /boot/vmlinuz-6.1.0-50-686.',
    );
  const at = 512 + file.readUInt16LE(VERSION_POINTER);
  const [version] = file.toString('latin1', at, at + 128).split(/[ \0]/);
  if ((file.readUInt16LE(XLOADFLAGS) & XLF_KERNEL_64) !== 0) {
    const why = `Allowed is a kernel of 32 bits, as v86 is, such as that of Debian's linux-image-686; ${version} has 64.`;
    throw wrong('--kernel', name, why);
  }
  return version;
}

function readFor(option: string, file: string): Buffer {
  try {
    return fs.readFileSync(file);
  } catch (error) {
    throw wrong(option, file, `Allowed is a file that can be read: ${(error as Error).message}`);
  }
}

function wrong(option: string, file: string, why: string): UsageError {
  return new UsageError(`option '${option} <file>' argument '${file}' is invalid. ${why}`);
}

/** What Linux starts from: one program, and the console that it finds open. */
export function linuxInitrd(guest: GuestStepsOptions): Buffer {
  return cpioArchive([
    { name: 'dev', mode: 0o40755 },
    { name: 'dev/console', mode: 0o20600, device: { major: 5, minor: 1 } },
    { name: 'init', mode: 0o100755, data: linuxInit(guest) },
  ]);
}

export function linuxOptions(files: LinuxFiles, guest: GuestStepsOptions, ramBytes: number): V86Options {
  const { kernel, initrd, bios } = files;
  const image = (bytes: Buffer): { buffer: ArrayBuffer } => ({ buffer: Uint8Array.from(bytes).buffer });
  return {
    ...pcOptions(undefined, ramBytes),
    bios: image(fs.readFileSync(bios)),
    bzimage: image(fs.readFileSync(kernel)),
    initrd: image(initrd === null ? linuxInitrd(guest) : fs.readFileSync(initrd)),
    cmdline: COMMAND_LINE,
  };
}
