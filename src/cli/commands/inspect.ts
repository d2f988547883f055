/** `multifd inspect`: what a mapped-ram file, a save image of libvirt's, or a capture of a main stream, holds. */
import { Command } from 'commander';
import { describeMigrationFile, type MigrationFileDescription } from '../../migration/describe.js';
import type { Bounds } from '../../stream/bounds.js';
import { printable } from '../../printable.js';
import { quote } from '../../stream/codes.js';
import { verifyMappedRam, type VerifiedBlock } from '../../mapped-ram/verify.js';
import { CliError, EXIT_FAILED, EXIT_OK, UsageError } from '../cli-error.js';
import { columnsOf } from '../terminal/columns.js';
import { formatShare, formatSize } from '../terminal/format.js';
import {
  addBoundOptions,
  addOutputOptions,
  checked,
  directIoOption,
  offsetOption,
} from './migration-options.js';
import { commandLineOf, qemuNeeds } from '../../migration/needs.js';
import { outputFor, table, type Output, type OutputFlags } from '../terminal/output.js';
import { runCommand } from './run-command.js';

/** Lines of a table for people, by choice: more than any machine has, and no more than can be looked through. */
const MAX_LINES = 200;

interface InspectFlags extends OutputFlags, Bounds {
  verify?: true;
  directIo?: true;
  offset: number;
}

const EXAMPLES = `
Examples:
  $ multifd inspect vm.mig
  $ multifd inspect vm.mig --verify          reads all of it; SHA-256 of each
                                             block's RAM
  $ multifd inspect /var/lib/libvirt/qemu/save/vm.save
                                             as \`virsh managedsave\` has left it
  $ multifd inspect main.bin --json | jq .devices
                                             a capture of the main stream

Exit codes: 0 nothing that keeps it from being loaded, 1 problems, or it cannot
be read, 2 wrong usage.`;

export function addInspectCommand(program: Command): void {
  const command = program
    .command('inspect')
    .description(
      "Says what a mapped-ram file, libvirt's save image, or a capture of a main migration stream, holds.",
    )
    .argument('<file>', 'a mapped-ram file, what `virsh save` made, or a capture of a main stream')
    .option('--verify', 'read all pages and say whether the file is sound')
    .addOption(directIoOption('with --verify: read'))
    .addOption(offsetOption());
  addOutputOptions(addBoundOptions(command))
    .addHelpText('after', EXAMPLES)
    .action(async (file: string, flags: InspectFlags, command: Command) => {
      checked(command, () => {
        if (flags.directIo === true && flags.verify !== true)
          throw new UsageError("option '--direct-io' is for the pages: allowed only with --verify.");
      });
      await runCommand(flags.verbose === true, (cancelled) => inspect(file, flags, cancelled));
    });
}

async function inspect(file: string, flags: InspectFlags, cancelled: AbortSignal): Promise<number> {
  const output = outputFor(flags);
  try {
    output.note(`reading ${file}`);
    const description = await describeMigrationFile(file, {
      offset: flags.offset,
      maxRam: flags.maxRam,
      maxBlocks: flags.maxBlocks,
      maxDescription: flags.maxDescription,
      signal: cancelled,
    });
    const sound = !problemsOf(description).some((problem) => problem.fatal);
    const verified =
      flags.verify === true && sound ? await verify(file, flags, description, output, cancelled) : [];
    const isVerified = verified.length > 0;
    const notVerified = flags.verify === true && !isVerified ? whyNotVerified(description, sound) : undefined;
    const record = {
      file,
      ...recordOf(description, verified),
      ...{ sound, verified: isVerified, notVerified: notVerified ?? null },
    };
    const problem = problemsOf(description).find(({ fatal }) => fatal);
    const error = problem === undefined ? undefined : new CliError('ERR_CLI_UNSOUND', problem.message);
    output.result(record, () => textOf(file, description, verified, notVerified), error);
    return sound ? EXIT_OK : EXIT_FAILED;
  } catch (error) {
    const reason: unknown = cancelled.aborted ? cancelled.reason : error;
    output.failed(reason);
    throw reason;
  }
}

async function verify(
  file: string,
  flags: InspectFlags,
  description: MigrationFileDescription,
  output: Output,
  cancelled: AbortSignal,
): Promise<VerifiedBlock[]> {
  if (description.kind !== 'mapped-ram') return [];
  const totalBytes = description.blocks.reduce((sum, block) => sum + block.usedLength, 0);
  let told = performance.now();
  return verifyMappedRam(file, description, {
    signal: cancelled,
    directIo: flags.directIo === true,
    onProgress: (bytes) => {
      if (performance.now() - told < 200) return;
      told = performance.now();
      output.progress(
        { bytes, totalBytes },
        () => `${formatSize(bytes)} of ${formatSize(totalBytes)} verified`,
      );
    },
  });
}

interface Problem {
  fatal: boolean;
  message: string;
}

function problemsOf(description: MigrationFileDescription): Problem[] {
  if (description.kind === 'mapped-ram') return description.problems;
  return description.problem === undefined ? [] : [{ fatal: true, message: description.problem.message }];
}

/** Everything that JSON can say. */
function recordOf(description: MigrationFileDescription, verified: VerifiedBlock[]): object {
  const { kind, machine, capabilities, pageSize, vmDescription, tailBytes } = description;
  const common = {
    kind,
    machine,
    pageSize,
    capabilities,
    uuid: qemuNeeds(description).uuid ?? null,
    tailBytes: tailBytes ?? null,
    devices: vmDescription?.devices ?? null,
    needs: needsOf(description),
    problems: problemsOf(description),
    libvirt: libvirtRecord(description),
    packed: description.packed ?? null,
  };
  if (description.kind === 'main-stream') {
    const { marker, commands, sections, zeroRecords, pageRecords, flushRecords, syncPoints } = description;
    return {
      ...common,
      blocks: description.blocks.map(({ name, usedLength }) => ({ name, size: usedLength })),
      marker: marker ?? null,
      ...{ commands, sections, zeroRecords, pageRecords, flushRecords, syncPoints },
    };
  }
  const { fileSize, offset, presentPages, zeroPages, unreadBytes } = description;
  return {
    ...common,
    ...{ fileSize, offset, presentPages, zeroPages, unreadBytes: unreadBytes ?? null },
    blocks: description.blocks.map((block, i) => ({
      name: block.name,
      size: block.usedLength,
      presentPages: block.presentPages,
      zeroPages: block.zeroPages,
      bitmapOffset: block.bitmapOffset,
      pagesOffset: block.pagesOffset,
      ...(verified[i] !== undefined && {
        presentZeroPages: verified[i].presentZeroPages,
        sha256: verified[i].sha256,
      }),
    })),
  };
}

/** What a QEMU must be started with; null where the file does not tell. */
function needsOf(description: MigrationFileDescription): object {
  const { machine, memoryBytes, memoryBackend, uuid, otherMemory, devices } = qemuNeeds(description);
  return {
    machine: machine || null,
    uuid: uuid ?? null,
    memoryBytes: memoryBytes ?? null,
    memoryBackend: memoryBackend ?? null,
    otherMemory,
    devices,
  };
}

/** With --verify. */
function whyNotVerified({ kind }: MigrationFileDescription, sound: boolean): string {
  if (kind !== 'mapped-ram') return 'it is a stream: --verify reads the pages of a mapped-ram file';
  return sound ? 'it has no RAM' : 'it is not sound';
}

function textOf(
  file: string,
  description: MigrationFileDescription,
  verified: VerifiedBlock[],
  notVerified: string | undefined,
): string {
  const { machine, capabilities, pageSize, blocks, vmDescription, tailBytes } = description;
  const size = blocks.reduce((sum, block) => sum + block.usedLength, 0);
  const rows: [string, string][] = [
    ['file', file],
    ...libvirtRows(description),
    ['kind', description.kind === 'mapped-ram' ? 'mapped-ram file' : 'main migration stream'],
    ['machine', machine || '-'],
    ['capabilities', capabilities.join(', ') || '-'],
    ['guest RAM', `${formatSize(size)} in ${blocks.length} blocks, pages of ${formatSize(pageSize)}`],
  ];
  if (description.kind === 'mapped-ram') {
    const { presentPages, zeroPages, fileSize, unreadBytes = 0 } = description;
    rows.push(['present', `${presentPages} pages, ${formatSize(presentPages * pageSize)}`]);
    rows.push(['zero', `${zeroPages} pages, ${formatShare(zeroPages, presentPages + zeroPages)}`]);
    const unread = unreadBytes > 0 ? `, ${formatSize(unreadBytes)} of it behind the stream's end` : '';
    rows.push(['file size', `${formatSize(fileSize)}${unread}`]);
    const { packed } = description;
    if (packed !== undefined) {
      const share = formatShare(packed.bytes, packed.plainBytes);
      rows.push(['packed', `to ${formatSize(packed.bytes)}, ${share}; places are those of the plain file`]);
    }
  } else {
    const { marker, syncPoints, zeroRecords, pageRecords } = description;
    // A stream without multifd has none.
    if (description.libvirt === undefined)
      rows.push(['sync points', `${syncPoints}, marked by ${marker ?? 'nothing'}`]);
    rows.push(['records', `${zeroRecords} ZERO, ${pageRecords} PAGE`]);
  }
  rows.push([
    'devices',
    `${vmDescription?.devices.length ?? 'unknown'}, ${formatSize(tailBytes ?? 0)} of state`,
  ]);
  const needs = qemuNeeds(description);
  rows.push(['resume in', `qemu-system-... ${commandLineOf(needs)}`]);
  for (const { name, size } of needs.otherMemory)
    rows.push(['with memory', `${plain(name)}, ${formatSize(size)}`]);
  if (needs.devices.length > 0) {
    const shown = needs.devices.slice(0, MAX_LINES).map(plain).join(', ');
    rows.push(['with devices', `${shown}${needs.devices.length > MAX_LINES ? ', ...' : ''}`]);
  }
  const problems = problemsOf(description);
  if (problems.length === 0) rows.push(['problems', 'none']);
  for (const { fatal, message } of problems) rows.push([fatal ? 'PROBLEM' : 'remark', message]);
  if (verified.length > 0) rows.push(['verified', 'every page was read']);
  if (notVerified !== undefined) rows.push(['not verified', notVerified]);
  const blocksPart = blockTable(description, verified, columnsOf(process.stdout));
  return [table(rows), blocksPart, deviceTable(description)].filter((part) => part !== '').join('\n');
}

/** Its XML is libvirt's to print, as `virsh save-image-dumpxml` does. */
function libvirtRecord({ libvirt }: MigrationFileDescription): object | null {
  if (libvirt === undefined) return null;
  const { name, uuid, wasRunning, format } = libvirt;
  return { name, uuid, wasRunning, format };
}

function libvirtRows({ libvirt }: MigrationFileDescription): [string, string][] {
  if (libvirt === undefined) return [];
  const { name, uuid, wasRunning, format } = libvirt;
  return [
    [
      'domain',
      `${printable(name ?? '-')}, ${wasRunning ? 'was running' : 'was paused'} when libvirt saved it`,
    ],
    ['uuid', uuid ?? '-'],
    ['format', format],
  ];
}

/** @param width of the terminal: a digest that does not fit beside its block stands whole below it */
export function blockTable(
  description: Pick<MigrationFileDescription, 'blocks'>,
  verified: Pick<VerifiedBlock, 'sha256'>[],
  width: number,
): string {
  const { blocks } = description;
  const rows = blocks
    .slice(0, MAX_LINES)
    .map((block) => [
      plain(block.name),
      formatSize(block.usedLength),
      ...('presentPages' in block ? [`${block.presentPages} present`, `${block.zeroPages} zero`] : []),
    ]);
  const beside = columns(
    rows.map((row, i) => (verified[i] === undefined ? row : [...row, verified[i].sha256])),
  );
  const rest = more(blocks.length, 'blocks');
  if (verified.length === 0 || beside.split('\n').every((line) => line.length <= width)) return beside + rest;
  const below = columns(rows).trimEnd().split('\n');
  return below.map((line, i) => `${line}\n  ${verified[i].sha256}\n`).join('') + rest;
}

function deviceTable({ vmDescription }: MigrationFileDescription): string {
  const devices = vmDescription?.devices ?? [];
  const rows = devices
    .slice(0, MAX_LINES)
    .map(({ name, instanceId, version, bytes }) => [
      plain(name),
      `instance ${instanceId}`,
      version === undefined ? '' : `version ${version}`,
      bytes === undefined ? '' : `${bytes} bytes`,
    ]);
  return columns(rows) + more(devices.length, 'devices');
}

/** What a table leaves out. */
function more(count: number, what: string): string {
  return count > MAX_LINES ? `and ${count - MAX_LINES} more ${what}: --json has them all\n` : '';
}

function columns(rows: string[][]): string {
  if (rows.length === 0) return '';
  const widths = rows[0].map((_, column) => Math.max(...rows.map((row) => row[column].length)));
  return rows
    .map(
      (row) =>
        `${row
          .map((text, column) => text.padEnd(widths[column]))
          .join('  ')
          .trimEnd()}\n`,
    )
    .join('');
}

/** Names come from the file: nothing in them may move a terminal's cursor. */
function plain(name: string): string {
  return /^[\x20-\x7e]*$/.test(name) ? name : quote(name);
}
