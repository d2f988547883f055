/**
 * Does a waiting QEMU fit a file? It would say so itself, but in its log, and after all RAM has been sent. Compared is what
 * its monitor tells; what it does not tell is no reason to refuse.
 */
import { MultifdError, receivedExpected } from '../errors.js';
import { commandLineOf, qemuNeeds, type Described } from '../migration/needs.js';
import { quote } from '../printable.js';
import { textOf } from './json.js';
import type { Qmp } from './qmp.js';

/** @throws MultifdError ERR_MULTIFD_QMP that says what to start QEMU with */
export async function requireFit(qmp: Qmp, file: Described): Promise<void> {
  const wrong = [
    ...wrongMachine(await asked(qmp, 'qom-get', { path: '/machine', property: 'type' }), file),
    ...wrongMemory(await asked(qmp, 'query-memdev'), file),
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

/** Of memory that has a block in the file. By default the object's name is the block's; older machines' have it in a path. */
function wrongMemory(memdevs: unknown, { blocks }: Described): string[] {
  if (!Array.isArray(memdevs)) return [];
  return (memdevs as ({ id?: unknown; size?: unknown } | null)[]).flatMap((memdev) => {
    const block = blocks.find(({ name }) => name === memdev?.id || name === `/objects/${textOf(memdev?.id)}`);
    if (block === undefined || typeof memdev?.size !== 'number' || memdev.size === block.usedLength)
      return [];
    return [
      receivedExpected(
        `bytes of RAM block ${named(block.name)}`,
        memdev.size,
        `${block.usedLength}, the file's`,
      ),
    ];
  });
}

/** They stand beside a command that may be copied: one that a shell would take for more is in quotes. */
function named(name: string): string {
  return /^[\w./:@-]+$/.test(name) ? name : quote(name);
}
