/**
 * Does a waiting QEMU fit a file? It would say so itself, but in its log, and after all RAM has been sent. Compared is what
 * its monitor tells; what it does not tell is no reason to refuse.
 */
import { MultifdError, receivedExpected } from '../errors.js';
import { backendId, memoryKind } from '../migration/memory-blocks.js';
import { commandLineOf, qemuNeeds, type Described } from '../migration/needs.js';
import { quote } from '../printable.js';
import type { Qmp } from './qmp.js';

/** @throws MultifdError ERR_MULTIFD_QMP that says what to start QEMU with */
export async function requireFit(qmp: Qmp, file: Described): Promise<void> {
  const memdevs = memdevsOf(await asked(qmp, 'query-memdev'));
  // Since 5.0, from when on the machine's own memory is a backend as well.
  const backend = await asked(qmp, 'qom-get', { path: '/machine', property: 'memory-backend' });
  const wrongType = wrongMachine(await asked(qmp, 'qom-get', { path: '/machine', property: 'type' }), file);
  const wrong = [
    ...wrongType,
    ...wrongMemory(memdevs, file),
    // Another machine calls its memory by other names.
    ...(wrongType.length === 0 && typeof backend === 'string' ? missingMemory(memdevs, file) : []),
  ];
  if (wrong.length === 0) return;
  const start = `start QEMU with ${commandLineOf(qemuNeeds(file))}`;
  throw new MultifdError(
    'ERR_MULTIFD_QMP',
    `${qmp.address}: the file does not fit this QEMU: ${wrong.join('; ')}: ${start}`,
  );
}

/** What may be the matter, where QEMU does not say it. */
export function explainRefusal(file: Described, how: string): string {
  const needs = qemuNeeds(file);
  const devices =
    needs.devices.length === 0 ? '' : `, with the devices ${needs.devices.map(named).join(', ')}`;
  const blocks = file.blocks
    .map(({ name, usedLength }) => `${named(name)} of ${usedLength} bytes`)
    .join(', ');
  return `the file is of a QEMU with ${commandLineOf(needs)}${devices}, and RAM blocks ${blocks}; sent with ${how}`;
}

/** A command that a build may lack. */
async function asked(qmp: Qmp, command: string, args: object = {}): Promise<unknown> {
  return qmp.execute(command, args).catch((error: unknown) => {
    if (!qmp.isOpen) throw error;
    return undefined;
  });
}

function wrongMachine(type: unknown, { machine }: Described): string[] {
  if (typeof type !== 'string' || machine === '') return [];
  const name = type.replace(/-machine$/, '');
  return name === machine
    ? []
    : [receivedExpected('machine type', named(name), `${named(machine)}, the file's`)];
}

interface Memdev {
  id: string;
  size: number;
}

/** Undefined where it is not told, or not of each. */
function memdevsOf(told: unknown): Memdev[] | undefined {
  if (!Array.isArray(told)) return undefined;
  const memdevs = (told as ({ id?: unknown; size?: unknown } | null)[]).map((memdev) => ({
    id: memdev?.id,
    size: memdev?.size,
  }));
  const isTold = ({ id, size }: (typeof memdevs)[number]): boolean =>
    typeof id === 'string' && typeof size === 'number';
  return memdevs.every(isTold) ? (memdevs as Memdev[]) : undefined;
}

/** Of memory that has a block in the file. By default the object's name is the block's; older machines' have it in a path. */
function wrongMemory(memdevs: Memdev[] | undefined, { blocks }: Described): string[] {
  return (memdevs ?? []).flatMap(({ id, size }) => {
    const block = blocks.find(({ name }) => name === id || name === `/objects/${id}`);
    if (block === undefined || size === block.usedLength) return [];
    return [
      receivedExpected(`bytes of RAM block ${named(block.name)}`, size, `${block.usedLength}, the file's`),
    ];
  });
}

/** Memory of the file that can only be a backend's, and that no backend here can be. */
function missingMemory(memdevs: Memdev[] | undefined, { machine, blocks }: Described): string[] {
  if (memdevs === undefined) return [];
  const ids = memdevs.map(({ id }) => id);
  return blocks
    .filter(({ name }) => !ids.includes(backendId(name)) && isSurelyBackend(machine, name))
    .map(({ name, usedLength }) => {
      const here = ids.length === 0 ? 'none' : `none, but ${ids.map(named).join(', ')}`;
      return receivedExpected(`RAM block ${named(name)}`, here, `${usedLength} bytes, the file's`);
    });
}

/** The machine's own too, where the board is known. */
function isSurelyBackend(machine: string, name: string): boolean {
  const kind = memoryKind(machine, name);
  return kind === 'backend' || (kind === 'own' && /^(?:pc|mach-virt)\.ram$/.test(name));
}

/** They stand beside a command that may be copied: one that a shell would take for more is in quotes. */
function named(name: string): string {
  return /^[\w./:@-]+$/.test(name) ? name : quote(name);
}
