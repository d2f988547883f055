/**
 * Whose a RAM block is, by its name: all that a file tells of that.
 *
 *     pc.ram, mach-virt.ram, ram            the machine's own memory, of -m
 *     /objects/mem0                         a memory backend's (-object), as machine types before 4.1 name it
 *     mem0                                  the same, as all later ones do; a device may have such a name on many a board
 *     0000:00:02.0/vga.vram, pc.bios,       a device's
 *     /rom@etc/acpi/tables, system.flash0
 *
 * A name without any sign in it is taken for a backend's on the boards of BOARDS alone, whose devices are known. A backend's
 * id may have a dot in it; then nothing is said of it.
 */

export type MemoryKind = 'own' | 'backend' | 'device';

/** By the machine type's begin: how the board calls its own memory. Since QEMU 5.0 that is a backend's as well, by default. */
const BOARDS: readonly [RegExp, string][] = [
  [/^pc-(?:i440fx|q35)-/, 'pc.ram'],
  [/^virt-/, 'mach-virt.ram'],
];
/** TPM (`tpm-ppi`, `tpm-crb-cmd`) and Hyper-V's `synic-0-msg-page`. */
const DEVICES = /^(?:tpm|synic)-/;

export function memoryKind(machine: string, name: string): MemoryKind {
  if (name.startsWith('/objects/')) return 'backend';
  const board = BOARDS.find(([machines]) => machines.test(machine));
  // `ppc_spapr.ram`, `s390.ram`, and `ram` of smaller boards.
  if (board === undefined) return !name.includes('/') && /(?:^|\.)ram$/.test(name) ? 'own' : 'device';
  if (name === board[1]) return 'own';
  return /^[A-Za-z][\w-]*$/.test(name) && !DEVICES.test(name) ? 'backend' : 'device';
}

/** The id of a backend's object; the machine's own memory has its block's name. */
export function backendId(name: string): string {
  return name.replace(/^\/objects\//, '');
}
