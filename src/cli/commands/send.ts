/** `multifd send`: resumes a mapped-ram file, or what libvirt has saved, in a QEMU that waits with -incoming. */
import { setTimeout as sleep } from 'node:timers/promises';
import { Command, Option } from 'commander';
import { MultifdError } from '../../errors.js';
import type { Compression, ZeroPageDetection } from '../../options.js';
import type { OutgoingStart, SentMigration } from '../../migration/send.js';
import { printable } from '../../printable.js';
import type { Sender } from '../../public-session.js';
import type { AddressText } from '../../transport/address.js';
import type { TlsOptions } from '../../transport/tls/options.js';
import type { Bounds } from '../../stream/bounds.js';
import { EXIT_OK } from '../cli-error.js';
import { formatRate, formatShare, formatSize } from '../terminal/format.js';
import {
  addBoundOptions,
  addOutputOptions,
  addSessionOptions,
  addressFrom,
  channelsOption,
  checkZeroCopyFlag,
  checkPeer,
  checked,
  compressionOption,
  directIoOption,
  levelFor,
  maxBandwidthOption,
  offsetOption,
  requireOptions,
  sessionOptions,
  zeroCopySendOption,
  zeroPageDetectionOption,
  type SessionFlags,
} from './migration-options.js';
import {
  countsOfSent,
  followProgress,
  zeroCopyOf,
  zeroCopyRows,
  wireRows,
} from '../terminal/migration-progress.js';
import { integerFrom } from './option-values.js';
import { outputFor, table, type OutputFlags } from '../terminal/output.js';
import { runCommand } from './run-command.js';
import { runMigration } from './run-migration.js';
import {
  addPostcopyOptions,
  checkMode,
  modeOption,
  sendByPostcopy,
  type PostcopyFlags,
  type SendMode,
} from './send-postcopy.js';
import { addTlsOptions, tlsFrom } from './tls-options.js';

const MAX_REPEAT = 1_000_000;
const LISTEN_POLL_MS = 50;

/** One of several with --repeat. */
interface Round {
  round: number;
  seconds: number;
}

/** As often as sessions tell theirs. */
const PROGRESS_MS = 200;

interface SendFlags
  extends
    SessionFlags,
    OutputFlags,
    Bounds,
    Pick<PostcopyFlags, 'recover' | 'hugePages' | 'hostPageSize' | 'hot' | 'maxHot'> {
  mode: SendMode;
  to: AddressText;
  channels: number;
  compression: Compression;
  level?: string;
  zeroPageDetection?: ZeroPageDetection;
  peer?: string;
  offset: number;
  directIo?: true;
  maxBandwidth: number;
  repeat: number;
  zeroCopySend?: true;
}

const EXAMPLES = `
FILE is a mapped-ram file: made by \`multifd receive\`, or by QEMU's own file:
migration; or what \`virsh save\` made. It is only read, and may be sent as often
as you like. QEMU's side: -incoming defer, capability multifd on,
multifd-channels and multifd-compression as given here, then
\`migrate-incoming\` at this address.

Examples:
  $ multifd send vm.mig --to unix:/run/resume.sock
  $ multifd send vm.mig --to tcp:10.0.0.2:4444 --channels 8 \\
      --compression zstd --level 3
  $ multifd send vm.mig --to tcp:10.0.0.2:4444 --peer 7.2
                                     a destination older than the machine type
                                     says
  $ multifd send vm.mig --to tcp:host2:4444 --tls-creds /etc/pki/qemu
  $ multifd send vm.mig --to unix:/run/resume.sock --mode postcopy
                                     the guest runs at once; QEMU's side:
                                     capabilities postcopy-ram and return-path
                                     on, multifd off

Exit codes: 0 the destination has loaded it, 1 failed, 2 wrong usage, 130
cancelled by Ctrl-C, 143 by SIGTERM, 129 by SIGHUP.`;

export function addSendCommand(program: Command): void {
  const command = program
    .command('send')
    .description("Sends a mapped-ram file, or libvirt's save image, into a QEMU that waits with -incoming.")
    .argument('<file>', 'a mapped-ram file, or what `virsh save` made')
    .optionsGroup('Migration:')
    .addOption(
      new Option('--to <address>', 'where QEMU waits: tcp:HOST:PORT or unix:PATH').argParser(addressFrom(1)),
    )
    .addOption(channelsOption('--channels', "QEMU's multifd-channels"))
    .addOption(compressionOption('--compression', "QEMU's multifd-compression"))
    .option('--level <n>', 'compression level: zlib 0 to 9, zstd 1 to 20; default 1')
    .addOption(zeroPageDetectionOption())
    .option('--peer <version>', 'the version of the QEMU at the other end, such as 7.2')
    .addOption(offsetOption())
    .addOption(directIoOption('read'))
    .addOption(maxBandwidthOption())
    .addOption(zeroCopySendOption())
    .addOption(
      new Option('--repeat <n>', 'send it so often, one after the other; each destination takes one')
        .default(1)
        .argParser(integerFrom(1, MAX_REPEAT)),
    );
  addPostcopyOptions(command.addOption(modeOption()));
  requireOptions(command, '--to');
  addBoundOptions(addSessionOptions(command));
  addOutputOptions(addTlsOptions(command, ['client'], 'the destination'))
    .addHelpText('after', EXAMPLES)
    .action(async (file: string, flags: SendFlags, command: Command) => {
      const level = checked(command, () => {
        checkMode(command, flags.mode);
        checkPeer(flags.peer);
        return levelFor('--level', flags.level, flags.compression);
      });
      const tls = await tlsFrom(command, 'client', '', flags.to);
      checked(command, () => checkZeroCopyFlag(flags.zeroCopySend, { ...flags, tls }));
      await runCommand(flags.verbose === true, async (cancelled) => {
        if (flags.mode === 'postcopy') await sendByPostcopy(file, flags, tls, cancelled);
        else await send(file, flags, { ...level, ...(tls && { tls }) }, cancelled);
        return EXIT_OK;
      });
    });
}

async function send(
  file: string,
  flags: SendFlags,
  more: { zlibLevel?: number; zstdLevel?: number; tls?: TlsOptions },
  cancelled: AbortSignal,
): Promise<void> {
  const output = outputFor(flags);
  let totalBytes = 0;
  let ramBytes = 0;
  let told = performance.now();
  let session: Sender | undefined;
  output.note(`reading ${file}`);
  const { sendMigration } = await import('../../migration/send.js');
  const sendOnce = (follow: (progress: Promise<void>) => void): Promise<SentMigration> =>
    sendMigration({
      ...sessionOptions(flags),
      maxRam: flags.maxRam,
      maxBlocks: flags.maxBlocks,
      maxDescription: flags.maxDescription,
      ...more,
      file,
      to: flags.to,
      offset: flags.offset,
      directIo: flags.directIo === true,
      channels: flags.channels,
      compression: flags.compression,
      ...(flags.zeroPageDetection !== undefined && { zeroPageDetection: flags.zeroPageDetection }),
      ...(flags.peer !== undefined && { peer: flags.peer }),
      maxBandwidth: flags.maxBandwidth,
      zeroCopySend: flags.zeroCopySend,
      signal: cancelled,
      onStart: (start) => {
        totalBytes = start.channelBytes;
        ramBytes = start.blocks.reduce((sum, block) => sum + block.size, 0);
        output.said('start', withoutXml(start));
      },
      onRecords: ({ pages, zeroPages }) => {
        if (performance.now() - told < PROGRESS_MS) return;
        told = performance.now();
        const records = pages + zeroPages;
        output.progress({ pages, zeroPages, ramBytes }, () => `${records} pages of the stream sent`);
      },
      onSession: (sender) => {
        session = sender;
        follow(followProgress(sender, output, { totalBytes }));
      },
    });
  await runMigration(
    output,
    cancelled,
    async (follow) => {
      const rounds: Round[] = [];
      let last: SentMigration;
      do {
        let started = performance.now();
        const send = (): Promise<SentMigration> => {
          started = performance.now();
          session = undefined;
          return sendOnce(follow);
        };
        last = await (rounds.length === 0
          ? send()
          : whenListened(send, () => hasBegun(session), flags, cancelled));
        const seconds = (performance.now() - started) / 1000;
        const round = { round: rounds.length + 1, seconds, ...countsOfSent(last) };
        rounds.push(round);
        if (flags.repeat > 1) {
          const text = `${round.round} of ${flags.repeat}: ${seconds.toFixed(3)} s, ${formatRate(ramBytes / seconds)}`;
          output.said('round', round, text);
        }
      } while (rounds.length < flags.repeat);
      return { ...last, ...(flags.repeat > 1 && { rounds }) };
    },
    ({ stats, ...result }, seconds) => {
      const counts = countsOfSent({ stats, records: result.records });
      const size = result.blocks.reduce((sum, block) => sum + block.size, 0);
      const { zeroPages, normalPages } = counts;
      const { records } = result;
      const zeroCopy = zeroCopyOf(stats, flags.zeroCopySend === true);
      return {
        record: { file, to: flags.to, ...withoutXml(result), seconds, ...counts, zeroCopy },
        text: () =>
          table([
            ...domainRows(result.libvirt),
            ['machine', result.machine || '-'],
            ['guest RAM', `${formatSize(size)} in ${result.blocks.length} blocks`],
            ...(records === undefined
              ? ([
                  [
                    'zero pages',
                    `${formatShare(zeroPages, zeroPages + normalPages)} of the channels' pages, mode ${result.zeroPageDetection}`,
                  ],
                ] as [string, string][])
              : []),
            ...wireRows({ stats, records }),
            ...zeroCopyRows(zeroCopy),
            result.rounds === undefined
              ? ['migration', `${seconds.toFixed(3)} s, ${formatRate(size / seconds)}`]
              : ['migrations', roundsText(result.rounds, size)],
          ]),
      };
    },
  );
}

/** The domain's XML is libvirt's to print. */
function withoutXml<T extends OutgoingStart>(start: T): object {
  if (start.libvirt === undefined) return start;
  const { name, uuid, wasRunning, format } = start.libvirt;
  return { ...start, libvirt: { name, uuid, wasRunning, format } };
}

function domainRows(libvirt: OutgoingStart['libvirt']): [string, string][] {
  if (libvirt === undefined) return [];
  const { name, wasRunning, format } = libvirt;
  const state = `${wasRunning ? 'was running' : 'was paused'} when libvirt saved it`;
  return [['domain', `${printable(name ?? '-')}, ${state}, format ${format}`]];
}

function roundsText(rounds: readonly Round[], size: number): string {
  const sorted = rounds.map(({ seconds }) => seconds).sort((a, b) => a - b);
  const rates = [sorted[sorted.length - 1], sorted[sorted.length >> 1], sorted[0]].map((s) =>
    formatRate(size / s),
  );
  return `${rounds.length}, slowest ${rates[0]}, median ${rates[1]}, fastest ${rates[2]}`;
}

/** Has the destination said that all channels are in, so that something was sent on them? */
function hasBegun(session: Sender | undefined): boolean {
  const stats = session?.stats();
  return stats !== undefined && stats.packets + stats.syncs > 0;
}

/** What comes of nobody who listens, and of one who is through with another and takes nobody in any more. */
const NOBODY: readonly string[] = ['ERR_MULTIFD_CONNECT', 'ERR_MULTIFD_CONNECTION', 'ERR_MULTIFD_EOF'];

/** Who took the one before may not listen again yet: nobody there is no error for --connect-timeout. */
async function whenListened<T>(
  send: () => Promise<T>,
  begun: () => boolean,
  flags: SendFlags,
  cancelled: AbortSignal,
): Promise<T> {
  const late = performance.now() + flags.connectTimeout * 1000;
  for (;;) {
    try {
      return await send();
    } catch (error) {
      const isNobody = error instanceof MultifdError && NOBODY.includes(error.code) && !begun();
      if (!isNobody || cancelled.aborted || performance.now() > late) throw error;
    }
    await sleep(LISTEN_POLL_MS);
  }
}
