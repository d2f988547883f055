/** `multifd stress qemu`: its options, and what is told of it. The work is src/stress/'s. */
import { randomInt } from 'node:crypto';
import { Option, type Command } from 'commander';
import type { Compression } from '../../options.js';
import { QEMU_FAULTS, type QemuFaultKind } from '../../stress/qemu-plan.js';
import type { QemuRunReport, QemuTotals, Verdict } from '../../stress/qemu-report.js';
import { shellWord } from '../../shell-word.js';
import type { QemuStressOptions } from '../../stress/qemu.js';
import { checkAddress, formatAddress, type Address, type AddressText } from '../../transport/address.js';
import { isThisHost } from '../../transport/this-host.js';
import { CliError, EXIT_OK, UsageError } from '../cli-error.js';
import { outputFor, table, type Output, type OutputFlags } from '../terminal/output.js';
import {
  addOutputOptions,
  addressFrom,
  channelsOption,
  checked,
  compressionOption,
} from './migration-options.js';
import { choiceOf, integerFrom, pageSize } from './option-values.js';
import { qmpOption } from './qmp-options.js';
import { runCommand } from './run-command.js';

const MAX_SEED = 2 ** 32 - 1;
const MAX_RUN = 2 ** 31 - 1;
const MAX_MINUTES = 100_000;
const MAX_LIMIT = 3600;
/** Of QEMU: what somebody will look for, with the same run again. */
const TO_REPEAT: readonly Verdict[] = ['crashed', 'gone', 'hung', 'monitor dead', 'monitor lost'];

interface StressQemuFlags extends OutputFlags {
  incoming?: AddressText;
  file?: string;
  start?: string;
  qmp?: AddressText;
  yesThisHost?: string;
  channels: number;
  compression: Compression;
  pageSize: number;
  limit: number;
  minutes?: number;
  seed?: number;
  run?: number;
  fault?: QemuFaultKind;
}

const EXAMPLES = `
A migration goes through a relay that drops, holds back, cuts, flips a bit, or
sends twice; what QEMU makes of it is told. Of a destination "loaded", "loaded
wrong RAM" and "hung" are inferred from what went out to it, its answer, and
whether it is alive; its memory and monitor are not looked at. As destination (--incoming) a QEMU
is sent a file; it is of no more use behind a fault, so that more than one run
needs --start, a command that starts it anew (killed behind each run). As source
(--qmp) it migrates to here, is told in the end that it failed, and its guest
runs on. Never a VM that somebody needs: a QEMU may hang for good.

Examples:
  $ multifd stress qemu --incoming unix:/run/in.sock --file vm.mig
  $ multifd stress qemu --incoming unix:/run/in.sock --file vm.mig \\
      --minutes 5 --start 'exec qemu-system-x86_64 -m 256M -nodefaults
      -display none -global migration.x-multifd=on -incoming unix:/run/in.sock'
  $ multifd stress qemu --qmp unix:/run/vm.qmp --minutes 5
  $ multifd stress qemu --qmp unix:/run/vm.qmp --seed 7 --run 42

Exit codes: 0 this side did as it should, whatever QEMU did, 1 failed, 2 wrong
usage, 130 cancelled by Ctrl-C, 143 by SIGTERM, 129 by SIGHUP.`;

export function addStressQemuCommand(stress: Command): void {
  const command = stress
    .command('qemu')
    .description('Stresses a QEMU, as destination or as source, and tells what it does.')
    .optionsGroup('QEMU:')
    .addOption(
      new Option('--incoming <address>', 'where a QEMU waits with -incoming: it is the destination')
        .argParser(addressFrom(1))
        .conflicts('qmp'),
    )
    .option('--file <file>', 'with --incoming: the mapped-ram file that is sent to it')
    .option('--start <command>', 'with --incoming unix:PATH: starts the QEMU, for each run anew')
    .addOption(qmpOption())
    .addOption(channelsOption('--channels', "QEMU's multifd-channels"))
    .addOption(compressionOption('--compression', "QEMU's multifd-compression"))
    .addOption(
      new Option('--page-size <bytes>', "with --qmp: the target's page size")
        .default(4096, '4K')
        .argParser(pageSize),
    )
    .option('--yes-this-host <host>', 'the host of the address, where it is not this one')
    .optionsGroup('Stress:')
    .addOption(
      new Option('--limit <seconds>', 'without a word or a byte from QEMU for so long, it is taken to hang')
        .default(10)
        .argParser(integerFrom(1, MAX_LIMIT)),
    )
    .addOption(
      new Option('--minutes <n>', 'how long; without it until Ctrl-C').argParser(integerFrom(1, MAX_MINUTES)),
    )
    .addOption(
      new Option('--seed <n>', 'of all that is left to chance; without it a new one').argParser(
        integerFrom(0, MAX_SEED),
      ),
    )
    .addOption(new Option('--run <n>', 'only this run of the seed').argParser(integerFrom(0, MAX_RUN)))
    .addOption(
      new Option('--fault <kind>', 'only faults of this kind')
        .choices(QEMU_FAULTS)
        .argParser(choiceOf(QEMU_FAULTS)),
    );
  addOutputOptions(command)
    .addHelpText('after', EXAMPLES)
    .action(async (flags: StressQemuFlags, command: Command) => {
      const qemu = checked(command, () => qemuOf(flags));
      await runCommand(flags.verbose === true, (cancelled) =>
        stressNow(flags, qemu, outputFor(flags), cancelled),
      );
    });
}

/** @throws UsageError */
function qemuOf(flags: StressQemuFlags): QemuStressOptions['qemu'] {
  const { incoming, qmp, file, start, channels, compression } = flags;
  const limitMs = flags.limit * 1000;
  if (incoming === undefined && qmp === undefined)
    throw new UsageError("one of options '--incoming <address>' and '--qmp <address>' is needed.");
  const name = incoming === undefined ? '--qmp' : '--incoming';
  const address = checkAddress(incoming ?? qmp, 1, name);
  checkHost(name, address, flags.yesThisHost);
  if (incoming === undefined) {
    for (const [option, value] of Object.entries({ file, start })) {
      if (value !== undefined) throw new UsageError(`option '--${option}' is for --incoming alone.`);
    }
    return { role: 'source', qmp: address, channels, compression, pageSize: flags.pageSize, limitMs };
  }
  if (file === undefined) throw new UsageError("option '--incoming <address>' needs option '--file <file>'.");
  if (start !== undefined && address.path === undefined)
    throw new UsageError("option '--start <command>' needs option '--incoming unix:PATH'.");
  return { role: 'destination', incoming: address, file, channels, compression, start, limitMs };
}

/** @throws UsageError for another host than this one, unless it is named */
function checkHost(name: string, { host }: Address, named: string | undefined): void {
  if (host === undefined || isThisHost(host) || host === named) return;
  throw new UsageError(
    `option '${name} <address>' names host ${host}: stress is for QEMUs that nobody needs. If it is one, give --yes-this-host ${host}.`,
  );
}

async function stressNow(
  flags: StressQemuFlags,
  qemu: QemuStressOptions['qemu'],
  output: Output,
  cancelled: AbortSignal,
): Promise<number> {
  const { stressQemu } = await import('../../stress/qemu.js');
  const { seed = randomInt(MAX_SEED), run, fault, minutes } = flags;
  const isOnce = run !== undefined || (qemu.role === 'destination' && qemu.start === undefined);
  const totals: QemuTotals = { runs: 0, faults: {}, failed: [] };
  const started = performance.now();
  const record = () => ({ seed, role: qemu.role, seconds: (performance.now() - started) / 1000, ...totals });
  output.said('start', { seed, role: qemu.role, fault: fault ?? null }, `seed ${seed}`);
  try {
    const options: QemuStressOptions = {
      seed,
      firstRun: run ?? 0,
      count: isOnce ? 1 : Infinity,
      minutes: minutes ?? Infinity,
      only: fault,
      qemu,
    };
    await stressQemu(
      options,
      totals,
      (report) => sayRun(output, report, repeatOf(flags, qemu, report.plan)),
      cancelled,
    );
    if (totals.problem !== undefined) throw new CliError('ERR_CLI_STRESS', totals.problem);
    if (totals.failed.length > 0) {
      const of = `${totals.failed.length} of ${totals.runs} runs`;
      throw new CliError('ERR_CLI_STRESS', `in ${of} this side did not do as it should`);
    }
  } catch (thrown) {
    const error = thrown instanceof Error ? thrown : new Error(String(thrown));
    // Of no run there is nothing to tell.
    if (totals.runs === 0 && totals.problem === undefined) output.failed(error);
    else output.result(record(), () => resultText(seed, totals), error);
    throw thrown;
  }
  output.result(record(), () => resultText(seed, totals));
  return EXIT_OK;
}

/** The command that plays a run again. */
export function repeatOf(
  flags: Pick<StressQemuFlags, 'limit' | 'fault' | 'yesThisHost'>,
  qemu: QemuStressOptions['qemu'],
  { seed, run }: { seed: number; run: number },
): string {
  const of =
    qemu.role === 'source'
      ? { qmp: formatAddress(qemu.qmp), pageSize: qemu.pageSize }
      : { incoming: formatAddress(qemu.incoming), file: qemu.file, start: qemu.start };
  const { channels, compression } = qemu;
  const { limit, fault, yesThisHost } = flags;
  const all = { ...of, channels, compression, limit, fault, yesThisHost, seed, run };
  const words = Object.entries(all).flatMap(([name, value]) =>
    value === undefined ? [] : [`--${name.replace(/[A-Z]/g, '-$&').toLowerCase()}`, shellWord(`${value}`)],
  );
  return ['multifd stress qemu', ...words].join(' ');
}

function sayRun(
  output: Output,
  { plan, struck, what, verdict, words, ours, tookMs, wrong }: QemuRunReport,
  repeat: string,
): void {
  const { run, kind } = plan;
  const where = struck ? (what === '' ? '' : ` at ${what}`) : ', which did not come to strike';
  const took = tookMs === undefined ? '' : `, after ${(tookMs / 1000).toFixed(1)} s`;
  const lines = [`run ${run}: ${kind}${kind === 'none' ? '' : where}: QEMU ${verdict}${took}`];
  if (words !== '') lines.push(`  QEMU says: ${words}`);
  if (ours !== 'completed') lines.push(`  here: ${ours}`);
  lines.push(...wrong.map((text) => `  WRONG: ${text}`));
  if (wrong.length > 0 || TO_REPEAT.includes(verdict)) lines.push(`  again: ${repeat}`);
  output.said(
    'run',
    { run, kind, struck, what, verdict, words, ours, tookMs: tookMs ?? null, wrong, repeat },
    lines.join('\n'),
  );
  output.note(`run ${run + 1}`);
}

function resultText(seed: number, { runs, faults, failed, problem }: QemuTotals): string {
  const rows: [string, string][] = [
    ['seed', `${seed}`],
    ['runs', `${runs}`],
    [
      'this side',
      failed.length === 0 ? 'did as it should' : `WRONG in runs ${failed.map(({ run }) => run).join(', ')}`,
    ],
    ...(problem === undefined ? [] : [['left behind', problem] as [string, string]]),
  ];
  const kinds = Object.entries(faults);
  const width = Math.max(...kinds.map(([kind]) => kind.length), 'fault'.length);
  const lines = kinds.map(([kind, { runs: all, struck, verdicts }]) => {
    const said = Object.entries(verdicts).map(([verdict, count]) => `${verdict} ${count}`);
    const hit = kind === 'none' ? '' : `${struck}`;
    return `${kind.padEnd(width)}  ${`${all}`.padStart(5)}  ${hit.padStart(6)}  ${said.join(', ')}`;
  });
  const head = `${'fault'.padEnd(width)}  ${'runs'.padStart(5)}  struck  QEMU`;
  return `${table(rows)}\n${[head, ...lines].join('\n')}\n`;
}
