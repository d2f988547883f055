/** Options that receive, send and relay have in common. */
import { Command, InvalidArgumentError, Option } from 'commander';
import { MultifdError } from '../../errors.js';
import { SWITCHOVER_ACKS } from '../../migration/switchover-ack.js';
import { refusedZeroCopySend, type Compression } from '../../options.js';
import { addressMeant, checkAddress, type AddressText } from '../../transport/address.js';
import { EXIT_USAGE, UsageError } from '../cli-error.js';
import { BOUND_RANGES, DEFAULT_BOUNDS, type Bounds } from '../../stream/bounds.js';
import { parseQemuVersion } from '../../stream/machine.js';
import { formatSize } from '../terminal/format.js';
import {
  COMPRESSIONS,
  LEVELS,
  MAX_CHANNELS,
  ZERO_PAGE_DETECTIONS,
  choiceOf,
  integerFrom,
  pageSize,
  sizeFrom,
} from './option-values.js';

const PACKED_SUFFIX = '.zst';
const MAX_SECONDS = 24 * 60 * 60;

/** `tcp:HOST:PORT` or `unix:PATH`. */
export function addressFrom(lowestPort: 0 | 1): (text: string) => AddressText {
  return (text) => {
    try {
      checkAddress(text, lowestPort);
      return text as AddressText;
    } catch (error) {
      if (!(error instanceof MultifdError)) throw error;
      const long = /given "(a path of \d+ bytes)", allowed (.*)$/.exec(error.message);
      if (long !== null)
        throw new InvalidArgumentError(`Given is ${long[1]}, allowed ${long[2]}: a socket's is short.`);
      const meant = addressMeant(text).replace(/^; did (.*)$/, '\n(Did $1)');
      throw new InvalidArgumentError(
        'Allowed are tcp:HOST:PORT, tcp:[V6]:PORT and unix:PATH, also as tcp://HOST:PORT and unix:///PATH.' +
          meant,
      );
    }
  };
}

/**
 * As commander's own mandatory options, but told behind what is unknown: an option that is missing may be one that is
 * misspelt.
 */
export function requireOptions(command: Command, ...names: string[]): void {
  command.hook('preAction', () => {
    for (const name of names) {
      const option = command.options.find(({ long }) => long === name) as Option;
      if (command.getOptionValue(option.attributeName()) !== undefined) continue;
      const code = 'commander.missingMandatoryOptionValue';
      command.error(`error: required option '${option.flags}' not specified`, { code });
    }
  });
}

export function uuidFrom(text: string): string {
  if (/^[\da-f]{8}-[\da-f]{4}-[\da-f]{4}-[\da-f]{4}-[\da-f]{12}$/i.test(text)) return text;
  throw new InvalidArgumentError('Allowed is a uuid such as 12345678-9abc-def0-1234-56789abcdef0.');
}

export function channelsOption(name: string, whose: string): Option {
  return new Option(`${name} <n>`, `connections beside the main stream; ${whose}`)
    .default(2)
    .argParser(integerFrom(1, MAX_CHANNELS));
}

export function compressionOption(name: string, whose: string): Option {
  return new Option(`${name} <method>`, `method; ${whose}`)
    .choices(COMPRESSIONS)
    .argParser(choiceOf(COMPRESSIONS))
    .default('none');
}

/** Of who sends what was parked. */
export function zeroPageDetectionOption(): Option {
  return new Option(
    '--zero-page-detection <where>',
    'how zero pages travel: in the channels, or as records of the main stream; default by the machine type',
  )
    .choices(ZERO_PAGE_DETECTIONS)
    .argParser(choiceOf(ZERO_PAGE_DETECTIONS));
}

export function maxBandwidthOption(): Option {
  return new Option('--max-bandwidth <bytes>', 'bytes a second on the channels; 0 for no limit')
    .default(0)
    .argParser(sizeFrom(0, 'bytes a second'));
}

export function offsetOption(): Option {
  return new Option('--offset <bytes>', 'where the stream begins in the file')
    .default(0)
    .argParser(sizeFrom(0));
}

/** @throws UsageError unless it is a version, or not given */
export function checkPeer(peer: string | undefined): void {
  if (peer === undefined || parseQemuVersion(peer) !== undefined) return;
  throw new UsageError(
    `option '--peer <version>' argument '${peer}' is invalid. Allowed is a version such as 7.2 or 10.0.2.`,
  );
}

export function pageSizeOption(): Option {
  return new Option(
    '--page-size <bytes>',
    'target page size, where the source does not tell it (4K)',
  ).argParser(pageSize);
}

export function switchoverAckOption(auto: string): Option {
  return new Option('--switchover-ack <when>', `SWITCHOVER_ACK to the source; auto: ${auto}`)
    .choices(SWITCHOVER_ACKS)
    .argParser(choiceOf(SWITCHOVER_ACKS))
    .default('auto');
}

export function packLevelOption(): Option {
  return new Option('--pack-level <n>', "zstd's level of a packed file: 1 to 20; default 3").argParser(
    integerFrom(1, 20),
  );
}

/** @throws UsageError where there is nothing to pack */
export function checkPackLevel({ out, packLevel }: { out?: string; packLevel?: number }): void {
  if (packLevel === undefined || out?.endsWith(PACKED_SUFFIX) === true) return;
  throw new UsageError(
    `option '--pack-level <n>' is invalid. Allowed only with an --out that ends with ${PACKED_SUFFIX}, which is packed.`,
  );
}

/** @param what is done with the file */
export function directIoOption(what: string): Option {
  return new Option('--direct-io', `${what} its pages past the page cache (O_DIRECT); QEMU's direct-io`);
}

export function listenModeOption(): Option {
  return new Option('--listen-mode <octal>', 'mode of the unix socket: who may write to it may connect')
    .default(0o600, '600')
    .argParser((text) => {
      if (/^0?[0-7]{3}$/.test(text)) return parseInt(text, 8);
      throw new InvalidArgumentError('Allowed is an octal mode such as 600 or 660.');
    });
}

export function acceptTimeoutOption(): Option {
  return new Option('--accept-timeout <seconds>', 'give up if nobody connects for so long; 0 waits')
    .default(0)
    .argParser(integerFrom(0, MAX_SECONDS));
}

const BOUND_FLAGS = {
  maxRam: ['--max-ram <bytes>', 'refuse more guest RAM than that'],
  maxBlocks: ['--max-blocks <n>', 'refuse more RAM blocks than that'],
  maxDescription: ['--max-description <bytes>', 'refuse a longer VM description'],
} as const;

/** What a peer or a file may claim at the most. */
export function addBoundOptions(command: Command): Command {
  for (const [name, [flags, description]] of Object.entries(BOUND_FLAGS)) {
    const bound = name as keyof Bounds;
    const { min, max } = BOUND_RANGES[bound];
    const byDefault = DEFAULT_BOUNDS[bound];
    const shown = bound === 'maxBlocks' ? String(byDefault) : formatSize(byDefault);
    command.addOption(
      new Option(flags, description)
        .default(byDefault, shown)
        .argParser(bound === 'maxBlocks' ? integerFrom(min, max) : sizeFrom(min, 'bytes', max)),
    );
  }
  return command;
}

export function maxStraysOption(): Option {
  return new Option(
    '--max-strays <n>',
    'connections that have not said yet what they are; then the oldest goes',
  )
    .default(256)
    .argParser(integerFrom(1, 65536));
}

export function addSessionOptions(command: Command): Command {
  return command
    .addOption(
      new Option('--uuid <uuid>', "the VM's uuid; receive and relay take it from the source").argParser(
        uuidFrom,
      ),
    )
    .addOption(
      new Option('--stall-timeout <seconds>', 'give up when nothing moves for so long')
        .default(30)
        .argParser(integerFrom(1, MAX_SECONDS)),
    )
    .addOption(
      new Option('--connect-timeout <seconds>', 'for all connections to be there, once the first is')
        .default(8)
        .argParser(integerFrom(1, MAX_SECONDS)),
    );
}

export interface SessionFlags {
  uuid?: string;
  stallTimeout: number;
  connectTimeout: number;
}

export function sessionOptions(flags: SessionFlags): {
  uuid?: string;
  stallTimeoutMs: number;
  connectTimeoutMs: number;
} {
  return {
    ...(flags.uuid !== undefined && { uuid: flags.uuid }),
    stallTimeoutMs: flags.stallTimeout * 1000,
    connectTimeoutMs: flags.connectTimeout * 1000,
  };
}

export function addOutputOptions(command: Command, progress = true): Command {
  command.optionsGroup('Output:').option('--json', 'NDJSON on stdout, as the last line the result');
  if (progress) command.option('--no-progress', 'neither a progress line nor progress records');
  return command.option('--verbose', 'stack traces with errors');
}

export function zeroCopySendOption(): Option {
  return new Option(
    '--zero-copy-send',
    'the kernel sends pages from where they lie: over tcp, with method none, without TLS',
  );
}

/**
 * @param wanted is the option given?
 * @throws UsageError as the library's checkZeroCopySend()
 */
export function checkZeroCopyFlag(
  wanted: true | undefined,
  how: { compression: Compression; to: AddressText; tls: unknown },
): void {
  if (wanted === undefined) return;
  const { compression, tls } = how;
  const refused = refusedZeroCopySend({ compression, tls, address: checkAddress(how.to, 1) });
  if (refused !== undefined)
    throw new UsageError(`option '--zero-copy-send' is invalid. Allowed only ${refused}.`);
}

/** zlibLevel or zstdLevel of the library, from one --level. */
export function levelFor(
  name: string,
  level: string | undefined,
  compression: Compression,
): { zlibLevel?: number; zstdLevel?: number } {
  if (level === undefined) return {};
  const value = parseLevel(name, level, 'method', compression);
  return compression === 'zlib' ? { zlibLevel: value } : { zstdLevel: value };
}

/**
 * @param option the option with the level; `method` is how the one with the method is called
 * @throws UsageError
 */
export function parseLevel(option: string, level: string, method: string, compression: Compression): number {
  const wrong = (allowed: string): UsageError =>
    new UsageError(`option '${option} <n>' argument '${level}' is invalid. Allowed ${allowed}.`);
  if (compression === 'none') throw wrong(`only with ${method} zlib or zstd, not none`);
  const { min, max } = LEVELS[compression];
  const value = /^\d+$/.test(level) ? Number(level) : NaN;
  if (value >= min && value <= max) return value;
  throw wrong(`with ${method} ${compression} is an integer from ${min} to ${max}`);
}

/** What the options mean together; ends with a usage error where they do not fit. */
export function checked<T>(command: Command, plan: () => T): T {
  try {
    return plan();
  } catch (error) {
    if (error instanceof UsageError) command.error(`error: ${error.message}`, { exitCode: EXIT_USAGE });
    throw error;
  }
}
