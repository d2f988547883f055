/** `multifd relay`: passes a live migration on while it runs, with other channels or another method. */
import { Command, Option } from 'commander';
import type { SwitchoverAck } from '../../migration/switchover-ack.js';
import { type Compression } from '../../options.js';
import { formatAddress, type AddressText } from '../../transport/address.js';
import type { Bounds } from '../../stream/bounds.js';
import type { TlsOptions } from '../../transport/tls/options.js';
import { EXIT_OK } from '../cli-error.js';
import { formatRate, formatSize } from '../terminal/format.js';
import {
  acceptTimeoutOption,
  addBoundOptions,
  addOutputOptions,
  addSessionOptions,
  addressFrom,
  channelsOption,
  checkZeroCopyFlag,
  checked,
  compressionOption,
  listenModeOption,
  maxStraysOption,
  levelFor,
  pageSizeOption,
  requireOptions,
  sessionOptions,
  switchoverAckOption,
  zeroCopySendOption,
  type SessionFlags,
} from './migration-options.js';
import { countsOf, followProgress, zeroCopyOf, zeroCopyRows } from '../terminal/migration-progress.js';
import { choiceOf, sizeFrom } from './option-values.js';
import { outputFor, table, type OutputFlags } from '../terminal/output.js';
import { runCommand } from './run-command.js';
import { runMigration } from './run-migration.js';
import { addTlsOptions, tlsFrom } from './tls-options.js';

interface RelayFlags extends SessionFlags, OutputFlags, Bounds {
  listen: AddressText;
  to: AddressText;
  channelsIn: number;
  channelsOut: number;
  compressionIn: Compression;
  compressionOut: Compression;
  levelOut?: string;
  zeroPageDetectionOut: 'none' | 'multifd';
  pageSize?: number;
  acceptTimeout: number;
  listenMode: number;
  maxStrays: number;
  switchoverAck: SwitchoverAck;
  maxBandwidth: number;
  zeroCopySend?: true;
}

const DETECTIONS_OUT = ['none', 'multifd'] as const;

const EXAMPLES = `
The source migrates to --listen, the destination waits at --to with -incoming.
Nothing is stored, and the return path is passed through, so both learn how it
ended.

Examples:
  $ multifd relay --listen unix:/run/out.sock --to tcp:far.example:4444 \\
      --compression-out zstd --channels-out 4
  $ multifd relay --listen unix:/run/out.sock --to tcp:far.example:4444 \\
      --tls-creds-out /etc/pki/qemu
                                     plain on this host, TLS between hosts

Exit codes: 0 passed on to the end, 1 failed, 2 wrong usage, 130 cancelled by
Ctrl-C, 143 by SIGTERM, 129 by SIGHUP.`;

export function addRelayCommand(program: Command): void {
  const command = program
    .command('relay')
    .description('Passes a live migration on while it runs, with other channels, another method or level.')
    .optionsGroup('Migration:')
    .addOption(
      new Option('--listen <address>', 'where the source connects: tcp:HOST:PORT or unix:PATH').argParser(
        addressFrom(0),
      ),
    )
    .addOption(new Option('--to <address>', 'where the destination waits').argParser(addressFrom(1)))
    .addOption(channelsOption('--channels-in', "the source's multifd-channels"))
    .addOption(channelsOption('--channels-out', "the destination's multifd-channels"))
    .addOption(compressionOption('--compression-in', "the source's multifd-compression"))
    .addOption(compressionOption('--compression-out', "the destination's multifd-compression"))
    .option('--level-out <n>', 'compression level to the destination: zlib 0 to 9, zstd 1 to 20; default 1')
    .addOption(
      new Option(
        '--zero-page-detection-out <where>',
        'look for zero pages among those that came with data (a destination from 9.0 on), or do not',
      )
        .choices(DETECTIONS_OUT)
        .argParser(choiceOf(DETECTIONS_OUT))
        .default('none'),
    )
    .addOption(pageSizeOption())
    .addOption(listenModeOption())
    .addOption(maxStraysOption())
    .addOption(acceptTimeoutOption())
    .addOption(switchoverAckOption('when the destination sends it'))
    .addOption(
      new Option('--max-bandwidth <bytes>', 'bytes a second to the destination; 0 for no limit')
        .default(0)
        .argParser(sizeFrom(0, 'bytes a second')),
    )
    .addOption(zeroCopySendOption());
  requireOptions(command, '--listen', '--to');
  addBoundOptions(addSessionOptions(command));
  addTlsOptions(command, ['server'], 'the source', '-in');
  addOutputOptions(addTlsOptions(command, ['client'], 'the destination', '-out'))
    .addHelpText('after', EXAMPLES)
    .action(async (flags: RelayFlags, command: Command) => {
      const level = checked(command, () => levelFor('--level-out', flags.levelOut, flags.compressionOut));
      const tlsIn = await tlsFrom(command, 'server', '-in');
      const tlsOut = await tlsFrom(command, 'client', '-out', flags.to);
      const { to, compressionOut: compression } = flags;
      checked(command, () => checkZeroCopyFlag(flags.zeroCopySend, { compression, to, tls: tlsOut }));
      await runCommand(flags.verbose === true, async (cancelled) => {
        await relay(
          flags,
          { in: { ...(tlsIn && { tls: tlsIn }) }, out: { ...level, ...(tlsOut && { tls: tlsOut }) } },
          cancelled,
        );
        return EXIT_OK;
      });
    });
}

async function relay(
  flags: RelayFlags,
  more: {
    in: { tls?: TlsOptions };
    out: { zlibLevel?: number; zstdLevel?: number; tls?: TlsOptions };
  },
  cancelled: AbortSignal,
): Promise<void> {
  const output = outputFor(flags);
  const { relayMigration } = await import('../../migration/relay.js');
  await runMigration(
    output,
    cancelled,
    (follow) =>
      relayMigration({
        ...sessionOptions(flags),
        maxRam: flags.maxRam,
        maxBlocks: flags.maxBlocks,
        maxDescription: flags.maxDescription,
        listen: flags.listen,
        to: flags.to,
        in: { ...more.in, channels: flags.channelsIn, compression: flags.compressionIn },
        out: {
          ...more.out,
          channels: flags.channelsOut,
          compression: flags.compressionOut,
          zeroPageDetection: flags.zeroPageDetectionOut,
          maxBandwidth: flags.maxBandwidth,
          zeroCopySend: flags.zeroCopySend,
        },
        pageSize: flags.pageSize,
        acceptTimeoutMs: flags.acceptTimeout * 1000,
        listenMode: flags.listenMode,
        maxStrays: flags.maxStrays,
        switchoverAck: flags.switchoverAck,
        signal: cancelled,
        onListening: (address) => {
          const text = formatAddress(address);
          output.said('listening', { address: text }, `listening on ${text}`);
        },
        onStart: (start) => output.said('start', start, `relaying ${start.machine || 'a machine'}`),
        onSession: (_receiver, sender) => follow(followProgress(sender, output)),
      }),
    ({ machine, uuid, blocks, received, sent, sourceTold }, seconds) => {
      const counts = { received: countsOf(received), sent: countsOf(sent) };
      const zeroCopy = zeroCopyOf(sent, flags.zeroCopySend === true);
      return {
        record: { machine, uuid, blocks, seconds, ...counts, zeroCopy, strays: received.strays, sourceTold },
        text: () =>
          table([
            ['machine', machine || '-'],
            ['uuid', uuid ?? '-'],
            ['pages', `${formatSize(counts.sent.bytes)}, ${formatRate(counts.sent.bytes / seconds)}`],
            ['in', `${formatSize(counts.received.wireBytes)} on the wire, ${flags.compressionIn}`],
            ['out', `${formatSize(counts.sent.wireBytes)} on the wire, ${flags.compressionOut}`],
            ...zeroCopyRows(zeroCopy),
            ['source', sourceTold ? 'told that all is loaded' : 'not told: no return path, or gone'],
            ['migration', `${seconds.toFixed(3)} s`],
          ]),
      };
    },
  );
}
