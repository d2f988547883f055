/** `multifd send --mode postcopy` and `multifd resume --instant`: the guest runs before its memory has been read from the file. */
import { InvalidArgumentError, Option, type Command } from 'commander';
import type {
  PostcopyOptions,
  PostcopyResult,
  PostcopySession,
  PostcopyState,
  PostcopyStats,
} from '../../index.js';
import type { AddressText } from '../../transport/address.js';
import type { TlsOptions } from '../../transport/tls/options.js';
import type { Bounds } from '../../stream/bounds.js';
import { MultifdError } from '../../errors.js';
import { UsageError } from '../cli-error.js';
import { formatRate, formatSize } from '../terminal/format.js';
import { outputFor, table, type Output, type OutputFlags } from '../terminal/output.js';
import { progressText } from '../terminal/progress-line.js';
import type { SessionFlags } from './migration-options.js';
import { choiceOf, sizeFrom } from './option-values.js';
import { runMigration } from './run-migration.js';
import { parseSize } from './sizes.js';

export const SEND_MODES = ['precopy', 'postcopy'] as const;
export type SendMode = (typeof SEND_MODES)[number];

export interface PostcopyFlags extends SessionFlags, OutputFlags, Bounds {
  recover?: true;
  hot?: true;
  maxHot?: number;
  hugePages?: Record<string, number>;
  hostPageSize?: number;
  peer?: string;
  offset: number;
  directIo?: true;
  maxBandwidth: number;
}

/** What belongs to channels, of which postcopy has none. */
const OF_PRECOPY = [
  'repeat',
  'channels',
  'compression',
  'level',
  'zeroPageDetection',
  'zeroCopySend',
  'uuid',
];
const OF_POSTCOPY = ['recover', 'hugePages', 'hostPageSize', 'hot', 'maxHot'];

export function modeOption(): Option {
  return new Option('--mode <when>', 'postcopy: the guest runs at once, and gets its memory meanwhile')
    .choices(SEND_MODES)
    .argParser(choiceOf(SEND_MODES))
    .default('precopy');
}

export function addPostcopyOptions(command: Command): Command {
  return command
    .option('--recover', 'postcopy: go on where a connection broke, after migrate-recover there')
    .addOption(
      new Option(
        '--huge-pages <block=bytes>',
        'postcopy: a block that is on huge pages at the destination, such as pc.ram=2M; may be repeated',
      ).argParser(hugePagesFrom),
    )
    .addOption(
      new Option('--host-page-size <bytes>', "postcopy: the destination host's normal pages (4K)").argParser(
        hostPageFrom,
      ),
    )
    .option(
      '--hot',
      'postcopy: send first what the guest asked for in earlier starts, and keep that as FILE.hot for the next',
    )
    .addOption(
      new Option('--max-hot <bytes>', 'of that: bytes that go before the guest runs (32M)').argParser(
        sizeFrom(0),
      ),
    );
}

function hugePagesFrom(text: string, before: Record<string, number> = {}): Record<string, number> {
  const [, name, size] = /^(.+)=([^=]+)$/.exec(text) ?? [];
  const bytes = size === undefined ? undefined : parseSize(size);
  if (bytes === undefined || !isPowerOfTwo(bytes))
    throw new InvalidArgumentError('Allowed is a block and a power of two, such as pc.ram=2M.');
  return { ...before, [name]: bytes };
}

function hostPageFrom(text: string): number {
  const bytes = parseSize(text);
  if (bytes === undefined || !isPowerOfTwo(bytes))
    throw new InvalidArgumentError('Allowed is a power of two such as 4K or 64K.');
  return bytes;
}

function isPowerOfTwo(bytes: number): boolean {
  return bytes >= 4096 && Number.isInteger(Math.log2(bytes));
}

/**
 * @param chosenBy what chooses postcopy, and what the other mode
 * @throws UsageError for options that belong to the other mode
 */
export function checkMode(
  command: Command,
  mode: SendMode,
  chosenBy = { postcopy: 'with --mode postcopy', precopy: 'with --mode precopy' },
): void {
  const [others, only] =
    mode === 'postcopy' ? ([OF_PRECOPY, 'precopy'] as const) : ([OF_POSTCOPY, 'postcopy'] as const);
  for (const name of others) {
    if (command.getOptionValueSource(name) !== 'cli') continue;
    const option = command.options.find((candidate) => candidate.attributeName() === name);
    const why = mode === 'postcopy' ? ': postcopy has one plain connection' : '';
    throw new UsageError(`option '${option?.flags}' is invalid. Allowed only ${chosenBy[only]}${why}.`);
  }
  if (command.getOptionValue('maxHot') !== undefined && command.getOptionValue('hot') !== true)
    throw new UsageError("option '--max-hot <bytes>' is invalid. Allowed only with --hot.");
}

export async function sendByPostcopy(
  file: string,
  flags: PostcopyFlags & { to: AddressText },
  tls: TlsOptions | undefined,
  cancelled: AbortSignal,
): Promise<void> {
  const { to } = flags;
  await runPostcopy(
    file,
    flags,
    { tls, cancelled },
    {
      send: async (options) => {
        const { sendPostcopy } = await import('../../postcopy/send.js');
        return sendPostcopy({ ...options, to });
      },
      record: { to, mode: 'postcopy' },
      rows: () => [],
      // Nobody here can ask its QEMU.
      words: { runs: 'the guest is told to run', ran: 'told to run', loaded: 'told to run' },
    },
  );
}

/** What a command makes of it. */
interface Postcopy<R extends PostcopyResult> {
  send: (options: Omit<PostcopyOptions, 'to'>) => Promise<R>;
  /** Of its result, beside what is known anyhow. */
  record: object;
  rows: (result: Omit<R, 'stats'>) => [string, string][];
  /** Of a guest that runs, that ran, and that was loaded and does not run. */
  words: { runs: string; ran: string; loaded: string };
}

export async function runPostcopy<R extends PostcopyResult>(
  file: string,
  flags: PostcopyFlags,
  { tls, cancelled }: { tls: TlsOptions | undefined; cancelled: AbortSignal },
  { send, record, rows, words }: Postcopy<R>,
): Promise<void> {
  const output = outputFor(flags);
  let totalBytes = 0;
  let stateOf: (() => PostcopyState) | undefined;
  let runs = false;
  output.note(`reading ${file}`);
  await runMigration(
    output,
    cancelled,
    (follow) =>
      send({
        mode: 'postcopy',
        file,
        recover: flags.recover === true,
        offset: flags.offset,
        directIo: flags.directIo === true,
        maxBandwidth: flags.maxBandwidth,
        maxRam: flags.maxRam,
        maxBlocks: flags.maxBlocks,
        maxDescription: flags.maxDescription,
        stallTimeoutMs: flags.stallTimeout * 1000,
        connectTimeoutMs: flags.connectTimeout * 1000,
        ...(flags.peer !== undefined && { peer: flags.peer }),
        ...(flags.hugePages !== undefined && { hugePages: flags.hugePages }),
        ...(flags.hostPageSize !== undefined && { hostPageSize: flags.hostPageSize }),
        hot: flags.hot === true,
        ...(flags.maxHot !== undefined && { maxHot: flags.maxHot }),
        ...(tls !== undefined && { tls }),
        signal: cancelled,
        onStart: (start) => {
          totalBytes = start.pageBytes;
          output.said('start', start);
        },
        onRunning: (afterMs) => {
          runs = true;
          output.said('running', { afterMs }, `${words.runs}, after ${Math.round(afterMs)} ms`);
        },
        onWarning: (message) => output.said('warning', { message }, `warning: ${message}`),
        onSession: (session) => {
          stateOf = () => session.stats().state;
          follow(followPostcopy(session, output, totalBytes));
        },
      }).catch((error: unknown) => {
        // A cancelled command tells no more than that, unless the error is one of its own: here the guest may run already.
        const isUnderWay = stateOf !== undefined && stateOf() !== 'setup';
        if (!isUnderWay || !(error instanceof MultifdError)) throw error;
        throw new MultifdError(error.code, error.message, { cause: error });
      }),
    ({ stats, ...result }, seconds) => {
      const size = result.blocks.reduce((sum, block) => sum + block.size, 0);
      const after = stats.runsAfterMs ?? 0;
      return {
        record: { file, ...record, ...result, seconds, ...stats },
        text: () =>
          table([
            ['machine', result.machine || '-'],
            ['guest RAM', `${formatSize(size)} in ${result.blocks.length} blocks`],
            [runs ? words.ran : words.loaded, `after ${after.toFixed(0)} ms`],
            ['pages', pagesText(stats)],
            ['on the wire', formatSize(stats.bytes)],
            ['migration', `${seconds.toFixed(3)} s, ${formatRate(stats.pageBytes / seconds)}`],
            ...rows(result),
          ]),
      };
    },
  );
}

function pagesText({ pagesRequested, pagesHot, pagesPushed }: PostcopyStats): string {
  const hot = pagesHot === 0 ? '' : `, ${pagesHot} sent ahead`;
  return `${pagesRequested} asked for${hot}, ${pagesPushed} others`;
}

/** As followProgress(), of what postcopy counts. */
async function followPostcopy(session: PostcopySession, output: Output, totalBytes: number): Promise<void> {
  let before: Pick<PostcopyStats, 'elapsedMs' | 'pageBytes'> = { elapsedMs: 0, pageBytes: 0 };
  for await (const stats of session.progress()) {
    const elapsedMs = stats.elapsedMs - before.elapsedMs;
    const bytesPerSecond = elapsedMs > 0 ? (1000 * (stats.pageBytes - before.pageBytes)) / elapsedMs : 0;
    before = stats;
    const record = {
      totalBytes,
      seconds: stats.elapsedMs / 1000,
      bytes: stats.pageBytes,
      wireBytes: stats.bytes,
      normalPages: stats.pagesRequested + stats.pagesHot + stats.pagesPushed - stats.zeroPages,
      zeroPages: stats.zeroPages,
      pagesRequested: stats.pagesRequested,
      pagesLeft: stats.pagesLeft,
      state: stats.state,
      bytesPerSecond,
    };
    output.progress(record, (columns) => progressText(record, columns));
  }
}
