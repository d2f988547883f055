/** `multifd pack` and `multifd unpack`: a mapped-ram file in the seekable zstd format, and back. */
import { Command } from 'commander';
import type { PackedMigration } from '../../migration/pack.js';
import { EXIT_OK } from '../cli-error.js';
import { formatRate, formatShare, formatSize } from '../terminal/format.js';
import { outputFor, table, type Output, type OutputFlags } from '../terminal/output.js';
import { packingProgress } from '../terminal/packing.js';
import { addOutputOptions, directIoOption, packLevelOption } from './migration-options.js';
import { filePath } from './option-values.js';
import { runCommand } from './run-command.js';

interface UnpackFlags extends OutputFlags {
  out?: string;
  overwrite?: true;
  directIo?: true;
}

interface PackFlags extends UnpackFlags {
  packLevel?: number;
}

const PACK_EXAMPLES = `
The file that is read stays. What is made is a zstd file (the seekable format):
\`zstd -d\` makes the plain file again, which QEMU itself loads; inspect, send and
resume, --instant too, read it as it is.

Examples:
  $ multifd pack vm.mig && rm vm.mig           makes vm.mig.zst
  $ multifd pack vm.mig --pack-level 12 --out /backup/vm.mig.zst

Exit codes: 0 the packed file is there, 1 failed, 2 wrong usage, 130 cancelled
by Ctrl-C, 143 by SIGTERM, 129 by SIGHUP.`;

const UNPACK_EXAMPLES = `
The file that is read stays. Pages that are zero become holes.

Examples:
  $ multifd unpack vm.mig.zst                  makes vm.mig

Exit codes: 0 the plain file is there, 1 failed, 2 wrong usage, 130 cancelled
by Ctrl-C, 143 by SIGTERM, 129 by SIGHUP.`;

export function addPackCommand(program: Command): void {
  const command = program
    .command('pack')
    .description('Packs a mapped-ram file in the seekable zstd format.')
    .argument('<file>', "a mapped-ram file, or libvirt's in format sparse")
    .option('--out <file>', 'the file that is made; default FILE.zst', filePath)
    .option('--overwrite', 'replace it if it exists, at the very end')
    .addOption(packLevelOption())
    .addOption(directIoOption('read and write'));
  addOutputOptions(command)
    .addHelpText('after', PACK_EXAMPLES)
    .action(async (file: string, flags: PackFlags) => {
      await runCommand(flags.verbose === true, async (signal) => {
        const { packMigration } = await import('../../migration/pack.js');
        const output = outputFor(flags);
        await told(output, signal, 'packed', () =>
          packMigration({
            ...filesOf(file, flags),
            ...(flags.packLevel !== undefined && { zstdLevel: flags.packLevel }),
            onProgress: packingProgress(output),
            signal,
          }),
        );
        return EXIT_OK;
      });
    });
}

export function addUnpackCommand(program: Command): void {
  const command = program
    .command('unpack')
    .description('Makes the plain mapped-ram file of one that was packed.')
    .argument('<file>', 'what `multifd pack`, or receive and park, have made')
    .option('--out <file>', 'the file that is made; default FILE without .zst', filePath)
    .option('--overwrite', 'replace it if it exists, at the very end')
    .addOption(directIoOption('read and write'));
  addOutputOptions(command)
    .addHelpText('after', UNPACK_EXAMPLES)
    .action(async (file: string, flags: UnpackFlags) => {
      await runCommand(flags.verbose === true, async (signal) => {
        const { unpackMigration } = await import('../../migration/pack.js');
        const output = outputFor(flags);
        const onProgress = packingProgress(output, 'unpacked');
        await told(output, signal, 'unpacked', () =>
          unpackMigration({ ...filesOf(file, flags), onProgress, signal }),
        );
        return EXIT_OK;
      });
    });
}

function filesOf(
  file: string,
  { out, overwrite, directIo }: UnpackFlags,
): { file: string; out?: string; overwrite: boolean; directIo: boolean } {
  const flags = { overwrite: overwrite === true, directIo: directIo === true };
  return { file, ...(out !== undefined && { out }), ...flags };
}

async function told(
  output: Output,
  signal: AbortSignal,
  what: string,
  make: () => Promise<PackedMigration>,
): Promise<void> {
  const begun = performance.now();
  try {
    const made = await make();
    const { out, plainBytes, packedBytes } = made;
    const seconds = (performance.now() - begun) / 1000;
    output.result({ ...made, seconds }, () =>
      table([
        ['file', out],
        ['plain', formatSize(plainBytes)],
        ['packed', `${formatSize(packedBytes)}, ${formatShare(packedBytes, plainBytes)}`],
        [what, `${seconds.toFixed(3)} s, ${formatRate(plainBytes / seconds)}`],
      ]),
    );
  } catch (error) {
    const reason: unknown = signal.aborted ? signal.reason : error;
    output.failed(reason);
    throw reason;
  }
}
