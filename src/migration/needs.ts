/**
 * What a QEMU must be started with to take a file in, as far as the file tells: its command line is not in it. Told by
 * `multifd inspect` before, and by resumeVm() when a QEMU refuses, whose own words may be in its log alone.
 */
import { backendId, memoryKind } from './memory-blocks.js';
import { optionValue, shellWord } from '../shell-word.js';
import { formatUuid, parseUuid } from '../wire/hello.js';

/** Of a description, or of what is known of a stream before it is read: what is looked at here. */
export interface Described {
  machine: string;
  blocks: readonly { name: string; usedLength: number }[];
  vmDescription?: { devices: readonly { name: string }[] } | undefined;
  libvirt?: { uuid: string | null } | undefined;
  configuration?: { uuid?: Uint8Array | undefined } | undefined;
}

export interface QemuNeeds {
  /** `-uuid`, where the file says it: of libvirt's it does, and with capability validate-uuid. */
  uuid: string | undefined;
  /** `-machine`; empty if the file has none. */
  machine: string;
  /** `-m`, in bytes. Undefined if no block looks like it, or it is made of several: which are plugged-in ones nothing tells. */
  memoryBytes: number | undefined;
  /** The id of the object (`-object`) that the machine's memory is, where it is not the machine's own. */
  memoryBackend: string | undefined;
  /** Other memory: objects of NUMA nodes, of modules that were plugged in, of devices. */
  otherMemory: { name: string; size: number }[];
  /** Devices that have a place on a bus, such as `0000:00:03.0/virtio-net`; the machine brings the others along. */
  devices: string[];
}

export function qemuNeeds({ machine, blocks, vmDescription, libvirt, configuration }: Described): QemuNeeds {
  const own = blocks.find(({ name }) => memoryKind(machine, name) === 'own');
  const backends = blocks.filter(({ name }) => memoryKind(machine, name) === 'backend');
  // One alone is all that the guest has.
  const only = own === undefined && backends.length === 1 ? backends[0] : undefined;
  const devices = vmDescription?.devices.map(({ name }) => name).filter((name) => name.includes('/')) ?? [];
  return {
    uuid: libvirt?.uuid ?? (configuration?.uuid && formatUuid(configuration.uuid)),
    machine,
    memoryBytes: (own ?? only)?.usedLength,
    memoryBackend: only === undefined ? undefined : backendId(only.name),
    otherMemory: backends
      .filter((block) => block !== only)
      .map(({ name, usedLength }) => ({ name, size: usedLength })),
    devices: [...new Set(devices)],
  };
}

/** As its command line has it, for a shell: whoever made the file has chosen the names. */
export function commandLineOf(needs: QemuNeeds): string {
  const { machine, memoryBytes, memoryBackend, otherMemory, uuid } = needs;
  const objects = otherMemory.map(({ name, size }) => objectOption(backendId(name), size));
  if (memoryBackend !== undefined) objects.unshift(objectOption(memoryBackend, memoryBytes ?? 0));
  return [
    ...(machine === '' ? [] : [`-machine ${shellWord(machineOption(machine, memoryBackend))}`]),
    ...(memoryBytes === undefined ? [] : [`-m ${inSuffix(memoryBytes)}`]),
    ...(uuid === undefined || parseUuid(uuid) === undefined ? [] : [`-uuid ${shellWord(uuid)}`]),
    ...objects,
    '-incoming defer',
  ].join(' ');
}

/** With its key where it would be taken for other keys than the type. */
function machineOption(machine: string, memoryBackend: string | undefined): string {
  const type = /^[\w.-]+$/.test(machine) ? machine : `type=${optionValue(machine)}`;
  return memoryBackend === undefined ? type : `${type},memory-backend=${optionValue(memoryBackend)}`;
}

/** A block is the same whatever is behind it: of the kinds the plainest. */
function objectOption(id: string, bytes: number): string {
  const option = `memory-backend-ram,id=${optionValue(id)},size=${inSuffix(bytes)}`;
  return `-object ${shellWord(option)}`;
}

function inSuffix(bytes: number): string {
  if (bytes % 2 ** 20 === 0) return `${bytes / 2 ** 20}M`;
  return bytes % 1024 === 0 ? `${bytes / 1024}K` : `${bytes}B`;
}
