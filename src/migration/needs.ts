/**
 * What a QEMU must be started with to take a file in, as far as the file tells: its command line is not in it. Told by
 * `multifd inspect` before, and by resumeVm() when a QEMU refuses, whose own words may be in its log alone.
 */
import { optionValue, shellWord } from '../shell-word.js';
import { parseUuid } from '../wire/hello.js';

/** Of a description, or of what is known of a stream before it is read: what is looked at here. */
export interface Described {
  machine: string;
  blocks: readonly { name: string; usedLength: number }[];
  vmDescription?: { devices: readonly { name: string }[] } | undefined;
  libvirt?: { uuid: string | null } | undefined;
}

export interface QemuNeeds {
  /** `-uuid`, where the file says it: of libvirt's it does. */
  uuid: string | undefined;
  /** `-machine`; empty if the file has none. */
  machine: string;
  /** `-m`, in bytes: of the machine's own memory. Undefined if no block looks like it. */
  memoryBytes: number | undefined;
  /** Other memory: modules that were plugged in, or objects. */
  otherMemory: { name: string; size: number }[];
  /** Devices that have a place on a bus, such as `0000:00:03.0/virtio-net`; the machine brings the others along. */
  devices: string[];
}

export function qemuNeeds({ machine, blocks, vmDescription, libvirt }: Described): QemuNeeds {
  const own = blocks.find(({ name }) => isMachineMemory(name));
  const devices = vmDescription?.devices.map(({ name }) => name).filter((name) => name.includes('/')) ?? [];
  return {
    uuid: libvirt?.uuid ?? undefined,
    machine,
    memoryBytes: own?.usedLength,
    otherMemory: blocks
      .filter(({ name }) => name.startsWith('/objects/'))
      .map(({ name, usedLength }) => ({ name, size: usedLength })),
    devices: [...new Set(devices)],
  };
}

/** `pc.ram`, `mach-virt.ram`, `ppc_spapr.ram`, `s390.ram`, and `ram` of smaller boards. */
function isMachineMemory(name: string): boolean {
  return !name.includes('/') && /(?:^|\.)ram$/.test(name);
}

/** As its command line has it, for a shell: whoever made the file has chosen the names. */
export function commandLineOf({ machine, memoryBytes, uuid }: QemuNeeds): string {
  return [
    ...(machine === '' ? [] : [`-machine ${shellWord(machineOption(machine))}`]),
    ...(memoryBytes === undefined ? [] : [`-m ${inSuffix(memoryBytes)}`]),
    ...(uuid === undefined || parseUuid(uuid) === undefined ? [] : [`-uuid ${shellWord(uuid)}`]),
    '-incoming defer',
  ].join(' ');
}

/** With its key where it would be taken for other keys than the type. */
function machineOption(machine: string): string {
  return /^[\w.-]+$/.test(machine) ? machine : `type=${optionValue(machine)}`;
}

function inSuffix(bytes: number): string {
  if (bytes % 2 ** 20 === 0) return `${bytes / 2 ** 20}M`;
  return bytes % 1024 === 0 ? `${bytes / 1024}K` : `${bytes}B`;
}
