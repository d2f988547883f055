/** `multifd receive`: takes in a live migration from QEMU and keeps it as a mapped-ram file. */
import { Command, Option } from 'commander';
import { DISCARDS, type Discard } from '../../migration/discard.js';
import type { SwitchoverAck } from '../../migration/switchover-ack.js';
import { type Compression } from '../../options.js';
import { formatAddress, type AddressText } from '../../transport/address.js';
import type { Bounds } from '../../stream/bounds.js';
import type { TlsOptions } from '../../transport/tls/options.js';
import { EXIT_OK, UsageError } from '../cli-error.js';
import { formatRate, formatShare, formatSize } from '../terminal/format.js';
import {
  acceptTimeoutOption,
  addBoundOptions,
  addOutputOptions,
  addSessionOptions,
  addressFrom,
  channelsOption,
  checkPackLevel,
  checked,
  compressionOption,
  directIoOption,
  listenModeOption,
  maxStraysOption,
  packLevelOption,
  pageSizeOption,
  requireOptions,
  sessionOptions,
  switchoverAckOption,
  type SessionFlags,
} from './migration-options.js';
import { choiceOf, filePath } from './option-values.js';
import { fileRow, packingProgress } from '../terminal/packing.js';
import { countsOf, followProgress } from '../terminal/migration-progress.js';
import { outputFor, table, type OutputFlags } from '../terminal/output.js';
import { runCommand } from './run-command.js';
import { runMigration } from './run-migration.js';
import { addTlsOptions, tlsFrom } from './tls-options.js';

interface ReceiveFlags extends SessionFlags, OutputFlags, Bounds {
  listen: AddressText;
  out?: string;
  discard?: Discard;
  channels: number;
  compression: Compression;
  pageSize?: number;
  acceptTimeout: number;
  listenMode: number;
  maxStrays: number;
  switchoverAck: SwitchoverAck;
  overwrite?: true;
  keepPartial?: true;
  directIo?: true;
  packLevel?: number;
}

const EXAMPLES = `
QEMU's side: capability multifd on, multifd-channels and multifd-compression as
given here, then \`migrate\` to this address. The file appears under its name only
when it is whole and on disk. A QEMU from 9.0 on loads it with -incoming
file:FILE (capability mapped-ram), any other through \`multifd send\`.

Examples:
  $ multifd receive --listen unix:/run/park.sock --out vm.mig
  $ multifd receive --listen tcp:0.0.0.0:4444 --channels 8 --compression zstd \\
      --out vm.mig --json
  $ multifd receive --listen tcp:0.0.0.0:4444 --tls-creds /etc/pki/qemu \\
      --tls-authz 'CN=host?' --out vm.mig
  $ multifd receive --listen unix:/run/park.sock --out vm.mig.zst
                                     packed when all is there
  $ multifd receive --listen tcp:0.0.0.0:4444 --discard
                                     how fast a source is; its guest runs on

Exit codes: 0 the file is there, 1 failed, 2 wrong usage, 130 cancelled by
Ctrl-C, 143 by SIGTERM, 129 by SIGHUP.`;

export function addReceiveCommand(program: Command): void {
  const command = program
    .command('receive')
    .description('Takes in a live migration from QEMU and keeps it as a mapped-ram file.')
    .optionsGroup('Migration:')
    .addOption(
      new Option('--listen <address>', 'where QEMU connects: tcp:HOST:PORT or unix:PATH').argParser(
        addressFrom(0),
      ),
    )
    .option('--out <file>', 'the file that is made; one that ends with .zst is packed', filePath)
    .addOption(
      new Option('--discard [answer]', 'keep nothing, for throughput tests; the source is told it failed')
        .choices(DISCARDS)
        .argParser(choiceOf(DISCARDS))
        .preset('refuse'),
    )
    .addOption(channelsOption('--channels', "QEMU's multifd-channels"))
    .addOption(compressionOption('--compression', "QEMU's multifd-compression"))
    .addOption(pageSizeOption())
    .option(
      '--overwrite',
      'replace the file if it exists, at the very end; take over what a killed receiver left',
    )
    .option('--keep-partial', 'after a failure, keep what came as FILE.part')
    .addOption(packLevelOption())
    .addOption(directIoOption('write'))
    .addOption(listenModeOption())
    .addOption(maxStraysOption())
    .addOption(acceptTimeoutOption())
    .addOption(switchoverAckOption('where it may be owed and does no harm'));
  requireOptions(command, '--listen');
  addBoundOptions(addSessionOptions(command));
  addOutputOptions(addTlsOptions(command, ['server'], 'the source'))
    .addHelpText('after', EXAMPLES)
    .action(async (flags: ReceiveFlags, command: Command) => {
      checked(command, () => checkOutput(flags));
      const tls = await tlsFrom(command, 'server');
      await runCommand(flags.verbose === true, async (cancelled) => {
        await receive(flags, tls, cancelled);
        return EXIT_OK;
      });
    });
}

/** @throws UsageError */
function checkOutput(flags: ReceiveFlags): void {
  const { out, discard, overwrite, keepPartial, directIo } = flags;
  if (out === undefined && discard === undefined) {
    throw new UsageError("required option '--out <file>' not specified, nor '--discard'");
  }
  if (out !== undefined && discard !== undefined) {
    throw new UsageError("option '--out <file>' is not allowed with '--discard', which keeps nothing.");
  }
  checkPackLevel(flags);
  if (discard === undefined) return;
  for (const [flag, value] of Object.entries({
    overwrite,
    'keep-partial': keepPartial,
    'direct-io': directIo,
  })) {
    if (value === true) throw new UsageError(`option '--${flag}' is of a file: not allowed with --discard.`);
  }
}

const TOLD: Record<Discard, string> = {
  refuse: 'told that it failed, and its guest goes on',
  accept: 'told that all is well, and has given its guest up',
};

async function receive(
  flags: ReceiveFlags,
  tls: TlsOptions | undefined,
  cancelled: AbortSignal,
): Promise<void> {
  const output = outputFor(flags);
  const { receiveMigration } = await import('../../migration/receive.js');
  await runMigration(
    output,
    cancelled,
    (follow) =>
      receiveMigration({
        ...sessionOptions(flags),
        maxRam: flags.maxRam,
        maxBlocks: flags.maxBlocks,
        maxDescription: flags.maxDescription,
        address: flags.listen,
        ...(tls && { tls }),
        ...(flags.discard === undefined ? { out: flags.out } : { discard: flags.discard }),
        channels: flags.channels,
        compression: flags.compression,
        pageSize: flags.pageSize,
        acceptTimeoutMs: flags.acceptTimeout * 1000,
        listenMode: flags.listenMode,
        maxStrays: flags.maxStrays,
        switchoverAck: flags.switchoverAck,
        overwrite: flags.overwrite === true,
        keepPartial: flags.keepPartial === true,
        directIo: flags.directIo === true,
        ...(flags.packLevel !== undefined && { packLevel: flags.packLevel }),
        onPacking: packingProgress(output),
        signal: cancelled,
        onListening: (address) => {
          const text = formatAddress(address);
          output.said('listening', { address: text }, `listening on ${text}`);
        },
        onStart: (start) => output.said('start', start, `receiving ${start.machine || 'a machine'}`),
        onSession: (receiver) => {
          // What was waited for until the source came is no part of the migration.
          void receiver.ready.then(
            () => follow(followProgress(receiver, output)),
            () => {},
          );
        },
      }),
    ({ stats, ...result }, seconds) => {
      const counts = countsOf(stats);
      const pages = result.blocks.reduce((sum, block) => sum + block.size, 0) / result.pageSize;
      const present = result.blocks.reduce((sum, block) => sum + block.presentPages, 0);
      return {
        record: { ...result, seconds, ...counts, strays: stats.strays },
        text: () =>
          table([
            result.discarded === undefined
              ? fileRow(result)
              : ['discarded', `all came whole; the source was ${TOLD[result.discarded]}`],
            ['machine', result.machine || '-'],
            ['uuid', result.uuid ?? '-'],
            ['guest RAM', `${formatSize(pages * result.pageSize)} in ${result.blocks.length} blocks`],
            ['present', `${present} pages, zero ${formatShare(pages - present, pages)}`],
            ['on the wire', formatSize(counts.wireBytes)],
            ['migration', `${seconds.toFixed(3)} s, ${formatRate(counts.bytes / seconds)}`],
          ]),
      };
    },
  );
}
