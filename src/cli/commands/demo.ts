/**
 * `multifd demo`: its options, and what becomes of them. The work is demo-source.ts's.
 */
import { Command, Option } from 'commander';
import type { Compression, ZeroPageDetection } from '../../index.js';
import { CliError, EXIT_OK, UsageError } from '../cli-error.js';
import type { DemoPlan } from '../demo/demo-source.js';
import { TLS_KINDS, type DemoTlsPlan, type TlsKind } from '../demo/demo-tls.js';
import { MIN_SIZE } from '../demo/guest-image.js';
import { checkZeroCopyFlag, checked, levelFor, parseLevel, zeroCopySendOption } from './migration-options.js';
import {
  COMPRESSIONS,
  choiceOf,
  integerFrom,
  LEVELS,
  MAX_CHANNELS,
  pageSize,
  sizeFrom,
  ZERO_PAGE_DETECTIONS,
} from './option-values.js';
import { linuxGuest, type LinuxGuest } from '../demo/v86/linux-guest.js';
import { outputFor, type OutputFlags } from '../terminal/output.js';
import { checkRamFile } from '../demo/ram-file.js';
import { reportTo, type Reporter } from '../demo/report.js';
import type { Backing } from '../demo/report-records.js';
import { runCommand } from './run-command.js';
import { addTlsOptions, sayInFlags, tlsFrom } from './tls-options.js';

const MAX_DIRTY_ROUNDS = 1000;
const DEFAULT_LEVEL = 1;

interface DemoFlags extends OutputFlags {
  channels: number;
  compression: Compression;
  level?: string;
  zeroPageDetection: ZeroPageDetection;
  pageSize: number;
  maxBandwidth: number;
  zeroCopySend?: true;
  size: number;
  ram?: string;
  backing: Backing;
  prefault?: true;
  hugePages?: true;
  dirtyRounds: number;
  qemu?: true;
  v86?: true;
  kernel?: string;
  initrd?: string;
  bios?: string;
  tls?: TlsKind;
}

const BACKINGS = ['shared', 'file'] as const;

const EXAMPLES = `
The source process forks a destination process, migrates a guest's RAM to it
over loopback TCP, and compares the SHA-256 of every block on both sides. Sizes
take K, M, G and T (binary).

Examples:
  $ multifd demo                               1 GiB over 2 channels
  $ multifd demo --channels 4 --compression zstd --level 3
  $ multifd demo --ram memory.bin --backing file
                                               a snapshot's memory file, in
                                               place, never written
  $ multifd demo --size 4G --prefault --dirty-rounds 5
                                               a guest that goes on writing
  $ multifd demo --tls                         all of it through TLS
  $ multifd demo --qemu --compression zstd     a guest of QEMU, to a file and
                                               back
  $ multifd demo --v86                         a PC in WebAssembly, to another
                                               process and back
  $ multifd demo --v86 --kernel /boot/vmlinuz-6.1.0-50-686
                                               Linux in that PC
  $ multifd demo --json | jq 'select(.type == "result")'

Exit codes: 0 the RAM is equal, 1 failed, 2 wrong usage, 130 cancelled by
Ctrl-C, 143 by SIGTERM, 129 by SIGHUP.`;

export function addDemoCommand(program: Command): void {
  const command = program
    .command('demo')
    .description("Migrates a guest's RAM from this process to another one, and proves that it arrived.")
    .optionsGroup('Guest:')
    .addOption(
      new Option('--size <bytes>', 'size of the generated guest')
        .default(2 ** 30, '1G')
        .argParser(sizeFrom(MIN_SIZE)),
    )
    .addOption(new Option('--ram <file>', "this file's bytes instead of a generated guest").conflicts('size'))
    .addOption(
      new Option('--backing <kind>', 'both sides have their RAM in shared memory, or in files')
        .choices(BACKINGS)
        .argParser(choiceOf(BACKINGS))
        .default('shared'),
    )
    .addOption(new Option('--page-size <bytes>', 'target page size').default(4096, '4K').argParser(pageSize))
    .addOption(
      new Option('--dirty-rounds <n>', 'rewrite pages and send them again, this many times')
        .default(0)
        .argParser(integerFrom(0, MAX_DIRTY_ROUNDS)),
    )
    .option('--prefault', "write the destination's RAM once before the clock starts, as part of the start-up")
    .addOption(
      new Option(
        '--huge-pages',
        "both sides' shared memory in huge pages, where koffi and the kernel have them",
      ),
    )
    .addOption(
      new Option(
        '--qemu',
        'a guest of a real QEMU instead: parked in a file, resumed in a second QEMU, all RAM compared',
      ).conflicts([
        'size',
        'ram',
        'backing',
        'pageSize',
        'dirtyRounds',
        'prefault',
        'hugePages',
        'zeroPageDetection',
        'maxBandwidth',
        'zeroCopySend',
        'tlsCreds',
      ]),
    )
    .addOption(
      new Option(
        '--v86',
        'a PC of the package v86 instead: moved to another process and back, parked in a file, resumed twice',
      ).conflicts([
        'size',
        'ram',
        'backing',
        'pageSize',
        'dirtyRounds',
        'prefault',
        'zeroPageDetection',
        'zeroCopySend',
        'qemu',
        'tls',
        'tlsCreds',
      ]),
    )
    .option('--kernel <file>', '--v86: Linux in that PC, from a kernel of 32 bits (bzImage)')
    .option('--initrd <file>', "--v86 --kernel: this, and not the demo's own program as its init")
    .option('--bios <file>', "--v86 --kernel: SeaBIOS's bios.bin; by default where distributions have it")
    .optionsGroup('Migration:')
    .addOption(
      new Option('--channels <n>', 'connections, each with a thread at both ends')
        .default(2)
        .argParser(integerFrom(1, MAX_CHANNELS)),
    )
    .addOption(
      new Option('--compression <method>', 'method')
        .choices(COMPRESSIONS)
        .argParser(choiceOf(COMPRESSIONS))
        .default('none'),
    )
    .option(
      '--level <n>',
      `compression level: zlib ${range('zlib')}, zstd ${range('zstd')}; default ${DEFAULT_LEVEL}`,
    )
    .addOption(
      new Option('--zero-page-detection <where>', 'in the channels, on the queueing side, or not at all')
        .choices(ZERO_PAGE_DETECTIONS)
        .argParser(choiceOf(ZERO_PAGE_DETECTIONS))
        .default('multifd'),
    )
    .addOption(
      new Option('--max-bandwidth <bytes>', 'bytes a second on the wire; 0 for no limit')
        .default(0)
        .argParser(sizeFrom(0, 'bytes a second')),
    )
    .addOption(zeroCopySendOption());
  addTlsOptions(command, ['server', 'client'], 'each other')
    .addOption(
      new Option(
        '--tls [kind]',
        'speak TLS with credentials made for this run alone; the kind by default x509',
      )
        .choices(TLS_KINDS)
        .preset('x509')
        .argParser(choiceOf(TLS_KINDS))
        .conflicts(['tlsCreds']),
    )
    .optionsGroup('Output:')
    .option('--json', 'NDJSON on stdout: start, progress, and as the last line the result')
    .option('--no-progress', 'neither a progress line nor progress records')
    .option('--verbose', 'stack traces with errors')
    .addHelpText('after', EXAMPLES)
    .action(async (flags: DemoFlags, command: Command) => {
      const output = outputFor(flags);
      const linux = checked(command, () => linuxOf(flags));
      if (flags.qemu === true) {
        const level = checked(command, () => levelFor('--level', flags.level, flags.compression));
        const { channels, compression } = flags;
        await runCommand(flags.verbose === true, async (cancelled) => {
          const { qemuDemo } = await import('../demo/demo-qemu.js');
          await qemuDemo({ channels, compression, level, tls: flags.tls ?? null }, output, cancelled);
          return EXIT_OK;
        });
        return;
      }
      if (flags.v86 === true) {
        const level = checked(command, () => levelFor('--level', flags.level, flags.compression));
        const { channels, compression, maxBandwidth } = flags;
        await runCommand(flags.verbose === true, async (cancelled) => {
          const { v86Demo } = await import('../demo/v86/demo-v86.js');
          await v86Demo({ channels, compression, level, maxBandwidth, linux }, output, cancelled);
          return EXIT_OK;
        });
        return;
      }
      const tls = flags.tls ?? (await demoTls(command));
      const plan = checked(command, () => {
        const { compression } = flags;
        const to = 'tcp:127.0.0.1:1';
        checkZeroCopyFlag(flags.zeroCopySend, { compression, to, tls: tls ?? undefined });
        return { ...planOf(flags), tls };
      });
      await runCommand(flags.verbose === true, (cancelled) => demo(plan, reportTo(output), cancelled));
    });
}

/** Those of --tls-creds, for both sides, on this host. */
async function demoTls(command: Command): Promise<DemoTlsPlan | null> {
  const server = await tlsFrom(command, 'server');
  const client = await tlsFrom(command, 'client', '', 'tcp:127.0.0.1:1');
  return server === undefined || client === undefined ? null : { server, client };
}

/** @throws UsageError where --kernel and what goes with it do not fit */
function linuxOf({ v86, kernel, initrd, bios }: DemoFlags): LinuxGuest | null {
  const needs = (option: string, needed: string): UsageError =>
    new UsageError(`option '${option} <file>' is allowed only with ${needed}.`);
  if (kernel !== undefined && v86 !== true) throw needs('--kernel', '--v86');
  if (kernel !== undefined) return linuxGuest(kernel, initrd, bios);
  if (initrd !== undefined) throw needs('--initrd', '--kernel');
  if (bios !== undefined) throw needs('--bios', '--kernel');
  return null;
}

/**
 * What the options mean together.
 *
 * @throws UsageError where they do not fit
 */
function planOf(flags: DemoFlags): Omit<DemoPlan, 'tls'> {
  const plan = {
    channels: flags.channels,
    compression: flags.compression,
    level: levelOf(flags),
    zeroPageDetection: flags.zeroPageDetection,
    pageSize: flags.pageSize,
    maxBandwidth: flags.maxBandwidth,
    zeroCopySend: flags.zeroCopySend === true,
    backing: flags.backing,
    prefault: flags.prefault === true,
    hugePages: flags.hugePages === true,
    dirtyRounds: flags.dirtyRounds,
    ram: flags.ram ?? null,
    size: flags.ram === undefined ? flags.size : checkRamFile(flags.ram),
  };
  if (plan.hugePages && plan.backing === 'file')
    throw new UsageError("option '--huge-pages' is for shared memory: allowed only with --backing shared.");
  if (plan.ram === null && plan.size % plan.pageSize !== 0) {
    throw new UsageError(
      `option '--size <bytes>' argument '${plan.size}' is invalid. Allowed is a multiple of the page size ${plan.pageSize}.`,
    );
  }
  return plan;
}

function levelOf({ compression, level }: DemoFlags): number | null {
  if (level !== undefined) return parseLevel('--level', level, '--compression', compression);
  return compression === 'none' ? null : DEFAULT_LEVEL;
}

function range(compression: keyof typeof LEVELS): string {
  const { min, max } = LEVELS[compression];
  return `${min} to ${max}`;
}

async function demo(plan: DemoPlan, report: Reporter, cancelled: AbortSignal): Promise<number> {
  let result;
  try {
    const { migrate } = await import('../demo/demo-source.js');
    result = await migrate(plan, report, cancelled);
  } catch (error) {
    sayInFlags(error);
    report.failed(error);
    throw error;
  }
  const different = result.blocks.filter((block) => !block.equal).map((block) => block.name);
  if (different.length > 0) {
    const error = new CliError('ERR_CLI_DIFFERENT', `SHA-256 differs of ${different.join(', ')}`);
    report.result(result, error);
    throw error;
  }
  report.result(result);
  return EXIT_OK;
}
