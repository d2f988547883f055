/** `multifd stress engine`: its options, and what is told of it. The work is src/stress/'s. */
import { randomInt } from 'node:crypto';
import { Option, type Command } from 'commander';
import { FAULT_KINDS, type FaultKind } from '../../stress/engine-plan.js';
import type { RunReport } from '../../stress/engine-run.js';
import type { EngineTotals } from '../../stress/engine.js';
import { CliError, EXIT_OK } from '../cli-error.js';
import { formatSize } from '../terminal/format.js';
import { outputFor, table, type Output, type OutputFlags } from '../terminal/output.js';
import { addOutputOptions } from './migration-options.js';
import { choiceOf, integerFrom } from './option-values.js';
import { runCommand } from './run-command.js';

const MAX_SEED = 2 ** 32 - 1;
const MAX_RUN = 2 ** 31 - 1;
const MAX_MINUTES = 100_000;
const KINDS = ['no-fault', ...FAULT_KINDS] as const;

interface StressEngineFlags extends OutputFlags {
  minutes?: number;
  seed?: number;
  run?: number;
  runs?: number;
  fault?: FaultKind | 'no-fault';
}

const EXAMPLES = `
Two processes migrate to each other, again and again, with blocks, page sizes,
methods, channels, memory, dirty pages, TLS and the like by chance, and one
fault a run at a random moment. What each run does follows from seed and run
alone. A run is well when both ends have completed with the same RAM, or have
said in time and with the right error that they have not, and nothing is left
behind. One that is not keeps its evidence, and says how it is repeated.
Without --minutes it goes on until Ctrl-C.

Examples:
  $ multifd stress engine --minutes 10
  $ multifd stress engine --seed 7 --run 42    the same run again
  $ multifd stress engine --seed 7 --run 0 --runs 43
                                               as memory that grows is repeated
  $ multifd stress engine --fault reset --minutes 1
  $ multifd stress engine --json --minutes 1 | jq 'select(.type == "result")'

Exit codes: 0 all runs were well, 1 some were not, 2 wrong usage, 130 cancelled
by Ctrl-C, 143 by SIGTERM, 129 by SIGHUP.`;

export function addStressEngineCommand(stress: Command): void {
  const command = stress
    .command('engine')
    .description('Stresses this engine: migrations between two processes, with faults at random moments.')
    .optionsGroup('Stress:')
    .addOption(
      new Option('--minutes <n>', 'how long; without it until Ctrl-C').argParser(integerFrom(1, MAX_MINUTES)),
    )
    .addOption(
      new Option(
        '--seed <n>',
        'of all that is left to chance; without it a new one, which is told',
      ).argParser(integerFrom(0, MAX_SEED)),
    )
    .addOption(
      new Option('--run <n>', 'only this run of the seed, or the first of --runs').argParser(
        integerFrom(0, MAX_RUN),
      ),
    )
    .addOption(
      new Option('--runs <n>', 'so many runs, from --run or 0 on').argParser(integerFrom(1, MAX_RUN)),
    )
    .addOption(
      new Option('--fault <kind>', 'only faults of this kind').choices(KINDS).argParser(choiceOf(KINDS)),
    );
  addOutputOptions(command)
    .addHelpText('after', EXAMPLES)
    .action(async (flags: StressEngineFlags) => {
      await runCommand(flags.verbose === true, (cancelled) => stressNow(flags, outputFor(flags), cancelled));
    });
}

async function stressNow(flags: StressEngineFlags, output: Output, cancelled: AbortSignal): Promise<number> {
  const { stressEngine, EngineTotals } = await import('../../stress/engine.js');
  const { seed = randomInt(MAX_SEED), run, runs, fault, minutes } = flags;
  const totals = new EngineTotals();
  const started = performance.now();
  const record = () => ({ seed, seconds: (performance.now() - started) / 1000, ...recordOf(totals) });
  output.said('start', { seed, fault: fault ?? null }, `seed ${seed}`);
  try {
    await stressEngine(
      {
        seed,
        firstRun: run ?? 0,
        count: runs ?? (run === undefined ? Infinity : 1),
        minutes: minutes ?? Infinity,
        only: fault,
      },
      {
        run: (report) => {
          if (report.wrong.length > 0) sayFailed(output, report, fault);
          else output.progress({ ...record(), run: report.plan.run }, () => progressText(totals));
        },
      },
      totals,
      cancelled,
    );
    if (totals.failed.length > 0) {
      const of = `${totals.failed.length} of ${totals.runs} runs`;
      throw new CliError('ERR_CLI_STRESS', `${of} did not end as they have to`);
    }
  } catch (thrown) {
    const error = thrown instanceof Error ? thrown : new Error(String(thrown));
    // Of no run there is nothing to tell.
    if (totals.runs === 0) output.failed(error);
    else output.result(record(), () => resultText(seed, totals), error);
    throw thrown;
  }
  output.result(record(), () => resultText(seed, totals));
  return EXIT_OK;
}

function sayFailed(
  output: Output,
  { plan, wrong, folder, repeat: again }: RunReport,
  fault: string | undefined,
): void {
  const only = fault === undefined ? '' : ` --fault ${fault}`;
  const runs = again.runs === 1 ? '' : ` --runs ${again.runs}`;
  const repeat = `multifd stress engine --seed ${plan.seed} --run ${again.run}${runs}${only}`;
  const { run, way } = plan;
  const kind = plan.fault?.kind ?? 'no fault';
  const lines = [
    `run ${run} (${way}, ${kind}) did not end as it has to:`,
    ...wrong.map((text) => `  ${text}`),
  ];
  lines.push(`  again: ${repeat}`, `  evidence: ${folder}`);
  output.said('failed', { run, way, fault: kind, wrong, repeat, evidence: folder }, lines.join('\n'));
}

function recordOf(totals: EngineTotals) {
  const { runs, bytes, equal, errors, gap, failed, worstMs, faults, codes } = totals;
  return { runs, bytes, equal, errors, gap, failed, worstErrorMs: worstMs, faults, codes };
}

function progressText({ runs, equal, errors, gap, failed, bytes }: EngineTotals): string {
  return `${runs} runs  ${equal} equal  ${errors} errors  ${gap} gap  ${failed.length} FAILED  ${formatSize(bytes)}`;
}

function resultText(seed: number, totals: EngineTotals): string {
  const { runs, bytes, equal, errors, gap, failed, worstMs, faults, codes } = totals;
  const byCount = Object.entries(codes).sort(([, a], [, b]) => b - a);
  const rows: [string, string][] = [
    ['seed', `${seed}`],
    ['runs', `${runs}`],
    ['moved', `${formatSize(bytes)} on the wire`],
    ['equal', `${equal}: both ends completed, with the same RAM`],
    ['errors', `${errors}: both ends failed, or were killed, as they should`],
    ['gap', `${gap}: one end alone completed; the fault came when all had arrived`],
    [
      'FAILED',
      `${failed.length}${failed.length === 0 ? '' : `: runs ${failed.map(({ run }) => run).join(', ')}`}`,
    ],
    ['worst', `${(worstMs / 1000).toFixed(1)} s from a fault to an error`],
    [
      'codes',
      byCount.map(([code, count]) => `${code.replace('ERR_MULTIFD_', '')} ${count}`).join(', ') || 'none',
    ],
  ];
  const kinds = Object.entries(faults).sort(([a], [b]) => a.localeCompare(b));
  const width = Math.max(...kinds.map(([kind]) => kind.length), 'fault'.length);
  const line = (kind: string, run: string, struck: string, worst: string): string =>
    `${kind.padEnd(width)}  ${run.padStart(6)}  ${struck.padStart(6)}  ${worst.padStart(8)}`;
  const lines = kinds.map(([kind, { runs: all, struck, leftOut, worstMs: worst }]) => {
    const why = leftOut === 0 ? '' : `  ${leftOut} left out: no prlimit here`;
    const what = kind === 'none' ? '' : `${struck}`;
    return line(kind, `${all}`, what, worst === 0 ? '' : `${(worst / 1000).toFixed(1)} s`) + why;
  });
  return `${table(rows)}\n${[line('fault', 'runs', 'struck', 'worst'), ...lines].join('\n')}\n`;
}
