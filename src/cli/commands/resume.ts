/** `multifd resume`: a VM goes on from a file, in a QEMU that waits; it is told what to do. */
import { Command, Option } from 'commander';
import type { Compression, ZeroPageDetection } from '../../options.js';
import type { QemuTlsOptions } from '../../qmp/qemu-tls.js';
import type { ResumedVm } from '../../qmp/resume.js';
import type { InstantlyResumedVm } from '../../qmp/resume-instant.js';
import type { Bounds } from '../../stream/bounds.js';
import type { AddressText } from '../../transport/address.js';
import type { TlsOptions } from '../../transport/tls/options.js';
import { EXIT_OK, UsageError } from '../cli-error.js';
import { formatRate, formatSize } from '../terminal/format.js';
import { countsOfSent, followProgress, wireRows } from '../terminal/migration-progress.js';
import { outputFor, table, type OutputFlags } from '../terminal/output.js';
import {
  addBoundOptions,
  addOutputOptions,
  addSessionOptions,
  addressFrom,
  channelsOption,
  checkPeer,
  checked,
  compressionOption,
  directIoOption,
  levelFor,
  maxBandwidthOption,
  offsetOption,
  requireOptions,
  sessionOptions,
  zeroPageDetectionOption,
  type SessionFlags,
} from './migration-options.js';
import { addQemuTlsOptions, qemuTlsFrom, qmpOption, toldByQmp, type QmpFlags } from './qmp-options.js';
import { runCommand } from './run-command.js';
import { addPostcopyOptions, checkMode, runPostcopy, type PostcopyFlags } from './send-postcopy.js';
import { runMigration } from './run-migration.js';
import { addTlsOptions, tlsFrom } from './tls-options.js';

interface ResumeFlags
  extends
    QmpFlags,
    SessionFlags,
    OutputFlags,
    Bounds,
    Pick<PostcopyFlags, 'recover' | 'hugePages' | 'hostPageSize' | 'hot' | 'maxHot'> {
  instant?: true;
  to?: AddressText;
  channels: number;
  compression: Compression;
  level?: string;
  zeroPageDetection?: ZeroPageDetection;
  peer?: string;
  maxBandwidth: number;
  cont?: true;
  paused?: true;
  offset: number;
  directIo?: true;
}

/** By which option which mode. */
const MODES = { postcopy: 'with --instant', precopy: 'without --instant' };

const EXAMPLES = `
QEMU is started as the one that was parked, with -incoming defer: \`multifd
inspect FILE\` says how. It is told the rest by its QMP socket. The guest then
runs if it ran when it was parked, unless QEMU was started with -S. A domain
that ran when libvirt saved it runs with -S as well, but for --instant.

Examples:
  $ multifd resume vm.mig --qmp unix:/run/new.qmp
  $ multifd resume vm.mig --qmp unix:/run/new.qmp --channels 8 --cont
  $ multifd resume vm.mig --qmp unix:/run/new.qmp --instant
                                     the guest runs at once, by postcopy; when
                                     that has broken off, go on with --recover
                                     and the very same file
  $ multifd resume vm.mig --qmp tcp:host2:4445 --to tcp:host2:4444
                                     a QEMU on another host

Exit codes: 0 QEMU has loaded it, 1 failed, 2 wrong usage, 130 cancelled by
Ctrl-C, 143 by SIGTERM, 129 by SIGHUP.`;

export function addResumeCommand(program: Command): void {
  const command = program
    .command('resume')
    .description('Resumes a VM from its file in a QEMU that waits, which is told what to do.')
    .argument('<file>', 'a mapped-ram file, or what `virsh save` made')
    .optionsGroup('Migration:')
    .addOption(qmpOption())
    .addOption(
      new Option(
        '--to <address>',
        'where QEMU listens: tcp:HOST:PORT or unix:PATH; default a private unix socket',
      ).argParser(addressFrom(0)),
    )
    .addOption(channelsOption('--channels', "QEMU's multifd-channels"))
    .addOption(compressionOption('--compression', "QEMU's multifd-compression"))
    .option('--level <n>', 'compression level: zlib 0 to 9, zstd 1 to 20; default 1')
    .addOption(zeroPageDetectionOption())
    .option(
      '--peer <version>',
      'the version of QEMU, such as 7.2, where it is older than the machine type says',
    )
    .addOption(maxBandwidthOption())
    .option('--instant', 'the guest runs before its memory has been read, by postcopy')
    .option('--cont', 'the guest runs in the end, however it was parked and QEMU was started')
    .option('--paused', 'the guest does not run in the end')
    .addOption(offsetOption())
    .addOption(directIoOption('read'));
  addPostcopyOptions(command);
  requireOptions(command, '--qmp');
  addBoundOptions(addSessionOptions(command));
  addQemuTlsOptions(addTlsOptions(command, ['client'], 'QEMU'), 'server');
  addOutputOptions(command)
    .addHelpText('after', EXAMPLES)
    .action(async (file: string, flags: ResumeFlags, command: Command) => {
      const level = checked(command, () => {
        checkMode(command, flags.instant === true ? 'postcopy' : 'precopy', MODES);
        if (flags.cont === true && flags.paused === true) {
          throw new UsageError("option '--cont' cannot be used with option '--paused'");
        }
        checkPeer(flags.peer);
        return levelFor('--level', flags.level, flags.compression);
      });
      const tls = await tlsFrom(command, 'client', '', flags.to ?? 'unix:/private');
      const qemuTls = qemuTlsFrom(command, flags, tls);
      await runCommand(flags.verbose === true, async (cancelled) => {
        const more = { ...(tls && { tls }), ...(qemuTls && { qemuTls }) };
        if (flags.instant === true) await resumeInstantly(file, flags, more, cancelled);
        else await resume(file, flags, { ...level, ...more }, cancelled);
        return EXIT_OK;
      });
    });
}

async function resumeInstantly(
  file: string,
  flags: ResumeFlags,
  { tls, qemuTls }: { tls?: TlsOptions; qemuTls?: QemuTlsOptions },
  cancelled: AbortSignal,
): Promise<void> {
  await runPostcopy<InstantlyResumedVm>(
    file,
    flags,
    { tls, cancelled },
    {
      send: async (options) => {
        const { resumeVm } = await import('../../qmp/resume.js');
        return resumeVm({
          ...options,
          qmp: flags.qmp,
          ...(flags.to !== undefined && { to: flags.to }),
          ...(flags.cont === true && { run: true }),
          ...(flags.paused === true && { run: false }),
          ...(qemuTls && { qemuTls }),
        }).catch((error: unknown) => {
          throw toldByQmp(error, cancelled);
        });
      },
      record: { mode: 'postcopy' },
      rows: resultRows,
      words: { runs: 'the guest runs', ran: 'the guest ran', loaded: 'the guest was there' },
    },
  );
}

function resultRows(result: Pick<ResumedVm, 'status' | 'switchedOff' | 'problem'>): [string, string][] {
  const { status, switchedOff, problem } = result;
  return [
    ['guest', status],
    ...(switchedOff.length === 0 ? [] : [['off meanwhile', switchedOff.join(', ')] as [string, string]]),
    ...(problem === undefined ? [] : [['PROBLEM', problem] as [string, string]]),
  ];
}

async function resume(
  file: string,
  flags: ResumeFlags,
  more: { zlibLevel?: number; zstdLevel?: number; tls?: TlsOptions; qemuTls?: QemuTlsOptions },
  cancelled: AbortSignal,
): Promise<void> {
  const output = outputFor(flags);
  let totalBytes = 0;
  output.note(`reading ${file}`);
  const { resumeVm } = await import('../../qmp/resume.js');
  await runMigration(
    output,
    cancelled,
    async (follow) => {
      try {
        return await resumeVm({
          ...sessionOptions(flags),
          ...more,
          maxRam: flags.maxRam,
          maxBlocks: flags.maxBlocks,
          maxDescription: flags.maxDescription,
          file,
          qmp: flags.qmp,
          ...(flags.to !== undefined && { to: flags.to }),
          offset: flags.offset,
          directIo: flags.directIo === true,
          channels: flags.channels,
          compression: flags.compression,
          ...(flags.zeroPageDetection !== undefined && { zeroPageDetection: flags.zeroPageDetection }),
          ...(flags.peer !== undefined && { peer: flags.peer }),
          maxBandwidth: flags.maxBandwidth,
          ...(flags.cont === true && { run: true }),
          ...(flags.paused === true && { run: false }),
          signal: cancelled,
          onStart: (start) => {
            totalBytes = start.channelBytes;
            output.said('start', start);
          },
          onSession: (sender) => follow(followProgress(sender, output, { totalBytes })),
        });
      } catch (error) {
        throw toldByQmp(error, cancelled);
      }
    },
    ({ stats, ...result }, seconds) => {
      const counts = countsOfSent({ stats, records: result.records });
      const size = result.blocks.reduce((sum, block) => sum + block.size, 0);
      return {
        record: { file, ...result, problem: result.problem ?? null, seconds, ...counts },
        text: () =>
          table([
            ['machine', result.machine || '-'],
            ['guest RAM', `${formatSize(size)} in ${result.blocks.length} blocks`],
            ...wireRows({ stats, records: result.records }),
            ['migration', `${seconds.toFixed(3)} s, ${formatRate(size / seconds)}`],
            ...resultRows(result),
          ]),
      };
    },
  );
}
