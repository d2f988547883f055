/** `multifd park`: a running VM goes into a file; its QEMU is told what to do. */
import { Command, Option } from 'commander';
import type { Compression, ZeroPageDetection } from '../../options.js';
import type { ParkProgress, ParkThen } from '../../qmp/park-options.js';
import type { Bounds } from '../../stream/bounds.js';
import type { AddressText } from '../../transport/address.js';
import type { TlsOptions } from '../../transport/tls/options.js';
import type { QemuTlsOptions } from '../../qmp/qemu-tls.js';
import { EXIT_OK } from '../cli-error.js';
import { formatRate, formatShare, formatSize } from '../terminal/format.js';
import { fileRow, packingProgress } from '../terminal/packing.js';
import { countsOf } from '../terminal/migration-progress.js';
import { outputFor, table, type Output, type OutputFlags } from '../terminal/output.js';
import {
  addBoundOptions,
  addOutputOptions,
  addSessionOptions,
  addressFrom,
  channelsOption,
  checkPackLevel,
  checked,
  compressionOption,
  directIoOption,
  levelFor,
  packLevelOption,
  requireOptions,
  sessionOptions,
  type SessionFlags,
} from './migration-options.js';
import { choiceOf, filePath, integerFrom, sizeFrom, ZERO_PAGE_DETECTIONS } from './option-values.js';
import { addQemuTlsOptions, qemuTlsFrom, qmpOption, toldByQmp, type QmpFlags } from './qmp-options.js';
import { runCommand } from './run-command.js';
import { runMigration } from './run-migration.js';
import { addTlsOptions, tlsFrom } from './tls-options.js';

const THENS: readonly ParkThen[] = ['quit', 'stop', 'leave'];
/** QEMU's bound. */
const MAX_DOWNTIME_MS = 2_000_000;

interface ParkFlags extends QmpFlags, SessionFlags, OutputFlags, Bounds {
  out: string;
  listen?: AddressText;
  channels: number;
  compression: Compression;
  level?: string;
  zeroPageDetection?: ZeroPageDetection;
  maxBandwidth: number;
  downtimeLimit?: number;
  then: ParkThen;
  overwrite?: true;
  directIo?: true;
  packLevel?: number;
}

const EXAMPLES = `
QEMU is told all of it by its QMP socket, and migrates to a socket of our own.
If anything fails, and at Ctrl-C, the guest runs on with the settings that the
VM had, and there is no file. QEMU serves one QMP client at a time: a VM of
libvirt's needs a second socket (-qmp unix:PATH,server=on,wait=off).

Examples:
  $ multifd park --qmp unix:/run/vm.qmp --out vm.mig
  $ multifd park --qmp unix:/run/vm.qmp --out vm.mig --channels 8 \\
      --compression zstd --then quit
  $ multifd park --qmp tcp:host1:4445 --listen tcp:0.0.0.0:4444 --out vm.mig
                                     a QEMU on another host

Exit codes: 0 the guest is in the file, 1 failed, 2 wrong usage, 130 cancelled
by Ctrl-C, 143 by SIGTERM, 129 by SIGHUP.`;

export function addParkCommand(program: Command): void {
  const command = program
    .command('park')
    .description('Parks a VM in a mapped-ram file: its QEMU is told what to do.')
    .optionsGroup('Migration:')
    .addOption(qmpOption())
    .option('--out <file>', 'the file that is made; one that ends with .zst is packed', filePath)
    .addOption(
      new Option(
        '--listen <address>',
        'where QEMU connects: tcp:HOST:PORT or unix:PATH; default a private unix socket',
      ).argParser(addressFrom(0)),
    )
    .addOption(channelsOption('--channels', "QEMU's multifd-channels"))
    .addOption(compressionOption('--compression', "QEMU's multifd-compression"))
    .option('--level <n>', "QEMU's compression level: zlib 0 to 9, zstd 1 to 20; default as the VM has it")
    .addOption(
      new Option('--zero-page-detection <where>', 'where QEMU looks for zero pages; default as the VM has it')
        .choices(ZERO_PAGE_DETECTIONS)
        .argParser(choiceOf(ZERO_PAGE_DETECTIONS)),
    )
    .addOption(
      new Option('--max-bandwidth <bytes>', 'bytes a second that QEMU may send; 0 for no limit')
        .default(0)
        .argParser(sizeFrom(0, 'bytes a second')),
    )
    .addOption(
      new Option(
        '--downtime-limit <ms>',
        'how long the guest may stand still at the end; default as the VM has it',
      ).argParser(integerFrom(0, MAX_DOWNTIME_MS)),
    )
    .addOption(
      new Option(
        '--then <what>',
        'of the VM, when its guest is in the file: QEMU ends; the guest stands still; nothing is said to it',
      )
        .choices(THENS)
        .argParser(choiceOf(THENS))
        .default('stop'),
    )
    .option('--overwrite', 'replace the file if it exists, at the very end; take over what a killed one left')
    .addOption(packLevelOption())
    .addOption(directIoOption('write'));
  requireOptions(command, '--qmp', '--out');
  addBoundOptions(addSessionOptions(command));
  addQemuTlsOptions(addTlsOptions(command, ['server'], 'QEMU'), 'client');
  addOutputOptions(command)
    .addHelpText('after', EXAMPLES)
    .action(async (flags: ParkFlags, command: Command) => {
      const level = checked(command, () => {
        checkPackLevel(flags);
        return levelFor('--level', flags.level, flags.compression);
      });
      const tls = await tlsFrom(command, 'server');
      const qemuTls = qemuTlsFrom(command, flags, tls);
      await runCommand(flags.verbose === true, async (cancelled) => {
        await park(flags, { ...level, ...(tls && { tls }), ...(qemuTls && { qemuTls }) }, cancelled);
        return EXIT_OK;
      });
    });
}

async function park(
  flags: ParkFlags,
  more: { zlibLevel?: number; zstdLevel?: number; tls?: TlsOptions; qemuTls?: QemuTlsOptions },
  cancelled: AbortSignal,
): Promise<void> {
  const output = outputFor(flags);
  output.note(`asking QEMU at ${flags.qmp}`);
  const { parkVm } = await import('../../qmp/park.js');
  await runMigration(
    output,
    cancelled,
    async (follow) => {
      try {
        return await parkVm({
          ...sessionOptions(flags),
          ...more,
          maxRam: flags.maxRam,
          maxBlocks: flags.maxBlocks,
          maxDescription: flags.maxDescription,
          qmp: flags.qmp,
          out: flags.out,
          ...(flags.listen !== undefined && { listen: flags.listen }),
          channels: flags.channels,
          compression: flags.compression,
          ...(flags.zeroPageDetection !== undefined && { zeroPageDetection: flags.zeroPageDetection }),
          maxBandwidth: flags.maxBandwidth,
          ...(flags.downtimeLimit !== undefined && { downtimeLimitMs: flags.downtimeLimit }),
          then: flags.then,
          overwrite: flags.overwrite === true,
          directIo: flags.directIo === true,
          ...(flags.packLevel !== undefined && { packLevel: flags.packLevel }),
          onPacking: packingProgress(output),
          signal: cancelled,
          onStart: (start) => {
            // From here on it is measured.
            follow(Promise.resolve());
            output.said('start', start, `parking ${start.machine || 'a machine'}`);
          },
          onProgress: (progress) => tellProgress(output, progress),
        });
      } catch (error) {
        throw toldByQmp(error, cancelled);
      }
    },
    ({ stats, ...result }, seconds) => {
      const counts = countsOf(stats);
      const pages = result.blocks.reduce((sum, block) => sum + block.size, 0) / result.pageSize;
      const present = result.blocks.reduce((sum, block) => sum + block.presentPages, 0);
      return {
        record: { ...result, problem: result.problem ?? null, seconds, ...counts },
        text: () =>
          table([
            fileRow(result),
            ['machine', result.machine || '-'],
            ['uuid', result.uuid ?? '-'],
            ['guest RAM', `${formatSize(pages * result.pageSize)} in ${result.blocks.length} blocks`],
            ['present', `${present} pages, zero ${formatShare(pages - present, pages)}`],
            ['on the wire', formatSize(counts.wireBytes)],
            ['migration', `${seconds.toFixed(3)} s, ${formatRate(counts.bytes / seconds)}`],
            ['QEMU', result.source],
            ...(result.switchedOff.length === 0
              ? []
              : [['off meanwhile', result.switchedOff.join(', ')] as const]),
            ...(result.problem === undefined ? [] : [['PROBLEM', result.problem] as const]),
          ]),
      };
    },
  );
}

function tellProgress(output: Output, { source, received }: ParkProgress): void {
  const counts = received === undefined ? {} : countsOf(received);
  output.progress({ source, ...counts }, () => {
    const { status, remainingBytes, totalBytes, dirtySyncCount } = source;
    const left = `${formatSize(remainingBytes)} of ${formatSize(totalBytes)} left`;
    const came = received === undefined ? '' : `, ${formatSize(received.pageBytes)} received`;
    return `${status}, pass ${dirtySyncCount}: ${left}${came}`;
  });
}
