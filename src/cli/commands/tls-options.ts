/**
 * `--tls-creds` and its fellows: the library's option `tls`, from flags.
 *
 *     receive, send, demo      --tls-creds          the one side that there is
 *     relay                    --tls-creds-in       the source's side, where it is a server
 *                              --tls-creds-out      the destination's, where it is a client
 *
 * Each side has only what does something there: a client names the server, a server says who may come. Keys are in files
 * alone, since every process of a host sees the command line.
 */
import { Option, type Command } from 'commander';
import { MultifdError } from '../../errors.js';
import { checkAddress, type AddressText } from '../../transport/address.js';
import type { TlsFolderOptions, TlsRole, TlsVersion } from '../../transport/tls/options.js';
import { UsageError } from '../cli-error.js';
import { checked } from './migration-options.js';
import { choiceOf } from './option-values.js';

/** What the flags' names end with: a relay has two sides. */
export type Side = '' | '-in' | '-out';

const VERSIONS = ['1.2', '1.3'] as const;
/** By the library's names. */
const FLAGS = {
  dir: '--tls-creds',
  hostname: '--tls-hostname',
  verifyPeer: '--tls-no-verify-peer',
  authorize: '--tls-authz',
  identity: '--tls-identity',
  minVersion: '--tls-min-version',
  ciphers: '--tls-ciphers',
} as const;

/** @param who the other side, for the help */
export function addTlsOptions(
  command: Command,
  roles: readonly TlsRole[],
  who: string,
  side: Side = '',
): Command {
  const own = roles.map((role) => `${role}-cert.pem, ${role}-key.pem`).join(', ');
  command
    .optionsGroup(side === '' ? 'TLS:' : `TLS with ${who}:`)
    .option(
      `${FLAGS.dir}${side} <folder>`,
      `speak TLS with ${who}; a folder as QEMU has it: ca-cert.pem, ${own}, or keys.psk`,
    );
  if (roles.includes('client')) {
    command
      .option(
        `${FLAGS.hostname}${side} <name>`,
        `the name in ${who}'s certificate; default the host that is connected to. QEMU: tls-hostname`,
      )
      .option(`${FLAGS.identity}${side} <name>`, 'which key of keys.psk; default qemu. QEMU: username');
  }
  if (roles.includes('server')) {
    command.option(
      `${FLAGS.authorize}${side} <pattern>`,
      'which certificate (or identity of a key) may come: CN=host1, * and ? stand for others. QEMU: tls-authz',
    );
  }
  return command
    .option(
      `${FLAGS.verifyPeer}${side}`,
      "do not check the other side's certificate: whoever is on the way can read and change all",
    )
    .addOption(
      new Option(`${FLAGS.minVersion}${side} <version>`, 'refuse an older TLS; default 1.2')
        .choices(VERSIONS)
        .argParser(choiceOf(VERSIONS)),
    )
    .option(`${FLAGS.ciphers}${side} <list>`, 'names of OpenSSL with colons between them');
}

/**
 * The library's option, if TLS is wanted. What it would refuse for how it was called ends with a usage error here; what
 * is wrong with the files themselves is left to it.
 *
 * @param to what a client connects to
 */
export async function tlsFrom(
  command: Command,
  role: TlsRole,
  side: Side = '',
  to?: AddressText,
): Promise<TlsFolderOptions | undefined> {
  const tls = checked(command, () => optionsFrom(command, role, side));
  if (tls === undefined) return undefined;
  const { checkTlsOptions } = await import('../../transport/tls/check-options.js');
  checked(command, () => {
    try {
      // Only its host is looked at; a port 0 is for QEMU to choose (resume --to).
      checkTlsOptions(tls, role, libraryName(side), to === undefined ? undefined : checkAddress(to, 0));
    } catch (error) {
      if (!(error instanceof MultifdError)) throw error;
      if (error.code === 'ERR_MULTIFD_OPTION') throw new UsageError(inFlags(error.message));
    }
  });
  return tls;
}

function optionsFrom(command: Command, role: TlsRole, side: Side): TlsFolderOptions | undefined {
  const value = (flag: string): unknown => {
    const option = command.options.find(({ long }) => long === `${flag}${side}`);
    return option === undefined ? undefined : command.getOptionValue(option.attributeName());
  };
  const dir = value(FLAGS.dir) as string | undefined;
  if (dir === undefined) {
    const useless = Object.values(FLAGS).find((flag) => value(flag) !== undefined);
    if (useless === undefined) return undefined;
    throw new UsageError(
      `option '${useless}${side}' needs option '${FLAGS.dir}${side} <folder>': without it there is no TLS`,
    );
  }
  const minVersion = value(FLAGS.minVersion) as (typeof VERSIONS)[number] | undefined;
  const ciphers = value(FLAGS.ciphers) as string | undefined;
  const given = {
    ...(minVersion !== undefined && { minVersion: `TLSv${minVersion}` satisfies TlsVersion }),
    ...(ciphers !== undefined && { ciphers }),
    ...(value(FLAGS.verifyPeer) === true && { verifyPeer: false }),
  };
  if (role === 'server') {
    const authorize = value(FLAGS.authorize) as string | undefined;
    return { dir, ...given, ...(authorize !== undefined && { authorize }) };
  }
  const hostname = value(FLAGS.hostname) as string | undefined;
  const identity = value(FLAGS.identity) as string | undefined;
  return {
    dir,
    ...given,
    ...(hostname !== undefined && { hostname }),
    ...(identity !== undefined && { identity }),
  };
}

function libraryName(side: Side): string {
  return side === '' ? 'tls' : `${side.slice(1)}.tls`;
}

/** The error says it in the words of the command line from here on: others than the library's cannot be typed. */
export function sayInFlags(error: unknown): void {
  if (error instanceof MultifdError) error.message = inFlags(error.message);
}

/** `option in.tls.authorize` is `option --tls-authz-in`. */
function inFlags(message: string): string {
  return (
    message
      .replaceAll(/\bzeroCopySend\b/g, '--zero-copy-send')
      .replaceAll(
        /\boption (?:(in|out)\.)?tls(?:\.(\w+))?(?![\w-])/g,
        (all, side: string | undefined, name: string = 'dir') => {
          const flag = (FLAGS as Record<string, string | undefined>)[name];
          return flag === undefined ? all : `option ${flag}${side === undefined ? '' : `-${side}`}`;
        },
      )
      // Who names all three already.
      .replaceAll(/option (--tls-creds(?:-in|-out)?), --tls-creds/g, '$1')
      .replace('options minVersion, maxVersion, ciphers', `${FLAGS.minVersion}, ${FLAGS.ciphers}`)
      .replace('options minVersion, maxVersion', `option ${FLAGS.minVersion}`)
      .replace(/ since verifyPeer is (?:not )?false/, (said) =>
        said.includes('not') ? ` without ${FLAGS.verifyPeer}` : ` since ${FLAGS.verifyPeer} is given`,
      )
      .replace(/(verify-peer\S*): given false, allowed true with a PSK/, '$1: allowed with certificates only')
      .replace(/(verify-peer\S*) false here/, '$1 here')
  );
}
