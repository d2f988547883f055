/**
 * `multifd tls-creds`: new credentials for a pair of hosts, ready for QEMU and for this package.
 *
 * What is printed is where the files go and which options take them. No key is: a terminal is remembered and logged.
 */
import path from 'node:path';
import type { Command } from 'commander';
import { MultifdError } from '../../errors.js';
import { CliError, EXIT_OK } from '../cli-error.js';
import { optionValue, shellWord } from '../../shell-word.js';
import { outputFor, type OutputFlags } from '../terminal/output.js';
import { addOutputOptions } from './migration-options.js';
import { runCommand } from './run-command.js';

const DEFAULT_IDENTITY = 'qemu';

interface TlsCredsFlags extends OutputFlags {
  identity?: string;
  x509?: string;
  force?: true;
}

interface Written {
  kind: 'psk' | 'x509';
  /** What each host gets: a folder, and where it is. */
  folders: { host: string | null; path: string }[];
  identity: string | null;
  /** The key that signs more hosts. */
  authority: string | null;
}

const EXAMPLES = `
By default one random key (PSK), which both hosts have. With --x509 certificates
for each host and an authority of their own; a host's folder serves it as source
and as destination. Files and folders are for their owner alone. What is there
already is not replaced without --force: the other host would be locked out.

Examples:
  $ multifd tls-creds /etc/multifd/tls
  $ multifd tls-creds tls --x509 host1.example,host2.example
  $ multifd receive --listen tcp:0.0.0.0:4444 --out vm.mig \\
      --tls-creds /etc/multifd/tls

Exit codes: 0 written, 1 failed, 2 wrong usage, 130 cancelled by Ctrl-C, 143 by
SIGTERM, 129 by SIGHUP.`;

export function addTlsCredsCommand(program: Command): void {
  const command = program
    .command('tls-creds')
    .description('Writes new TLS credentials for a pair of hosts, for QEMU and for this package.')
    .argument('<folder>', 'where they are written; made if it is not there')
    .optionsGroup('Credentials:')
    .option('--identity <name>', `whose key it is; default ${DEFAULT_IDENTITY}. QEMU: username`)
    .option(
      '--x509 <hosts>',
      'certificates instead of a key: names or IP addresses of the hosts, as others connect to them, with commas between',
    )
    .option('--force', 'replace files that are there');
  addOutputOptions(command, false)
    .addHelpText('after', EXAMPLES)
    .action(async (folder: string, flags: TlsCredsFlags, command: Command) => {
      if (flags.x509 !== undefined && flags.identity !== undefined) {
        command.error("error: option '--identity <name>' cannot be used with option '--x509 <hosts>'");
      }
      await runCommand(flags.verbose === true, async () => {
        const output = outputFor(flags);
        try {
          const written = await write(path.resolve(folder), flags);
          output.result({ ...written }, () => textOf(written));
        } catch (thrown) {
          const error = inFlags(thrown);
          output.failed(error);
          throw error;
        }
        return EXIT_OK;
      });
    });
}

async function write(folder: string, { identity, x509, force }: TlsCredsFlags): Promise<Written> {
  const { writePskCredentials, writeX509Credentials } =
    await import('../../transport/tls/make-credentials.js');
  const overwrite = force === true;
  if (x509 === undefined) {
    await writePskCredentials(folder, { overwrite, ...(identity !== undefined && { identity }) });
    const whose = identity ?? DEFAULT_IDENTITY;
    return { kind: 'psk', folders: [{ host: null, path: folder }], identity: whose, authority: null };
  }
  const hosts = x509.split(',').map((host) => host.trim());
  const folders = await writeX509Credentials(folder, hosts, { overwrite });
  return {
    kind: 'x509',
    folders: folders.map((path, i) => ({ host: hosts[i], path })),
    identity: null,
    authority: path.join(folder, 'ca-key.pem'),
  };
}

/** The library's words for what was typed. */
function inFlags(thrown: unknown): unknown {
  if (!(thrown instanceof MultifdError)) return thrown;
  const message = thrown.message
    .replace(/^option identity:/, 'option --identity:')
    .replace(/^option hosts:/, 'option --x509:')
    .replace('with overwrite only', 'with --force only');
  if (thrown.code === 'ERR_MULTIFD_OPTION') return new CliError('ERR_CLI_USAGE', message, { exitCode: 2 });
  return new MultifdError(thrown.code, message, { cause: thrown.cause });
}

function textOf(written: Written): string {
  return written.kind === 'psk' ? pskText(written) : x509Text(written);
}

function pskText({ folders: [{ path: dir }], identity }: Written): string {
  const file = path.join(dir, 'keys.psk');
  const other = identity === DEFAULT_IDENTITY ? '' : ` --tls-identity ${shellWord(identity ?? '')}`;
  const username = identity === DEFAULT_IDENTITY ? '' : `,username=${optionValue(identity ?? '')}`;
  const object = (endpoint: string, more = ''): string =>
    shellWord(`tls-creds-psk,id=tls0,endpoint=${endpoint},dir=${optionValue(dir)}${more}`);
  return [
    `${file}: a key of the identity ${identity}`,
    '',
    'Copy it to the other host, into a folder of the same name, readable by QEMU alone,',
    'in a way that nobody reads along (scp). Whoever has it can be either host.',
    '',
    'Destination',
    `  multifd    receive ... --tls-creds ${shellWord(dir)}`,
    `  QEMU       -object ${object('server')}`,
    '             migrate_set_parameter tls-creds tls0',
    'Source',
    `  multifd    send ... --tls-creds ${shellWord(dir)}${other}`,
    `  QEMU       -object ${object('client', username)}`,
    '             migrate_set_parameter tls-creds tls0',
    '',
  ].join('\n');
}

function x509Text({ folders, authority }: Written): string {
  const [{ path: first }] = folders;
  const dir = '/etc/pki/qemu';
  const width = Math.max(...folders.map(({ path }) => path.length));
  return [
    ...folders.map(({ host, path }) => `${path.padEnd(width)}  for ${host}`),
    '',
    `Copy each folder's files to its host, to ${dir} for instance, readable by QEMU alone.`,
    `${authority} signs more hosts: keep it away from them all.`,
    '',
    'Destination',
    `  multifd    receive ... --tls-creds ${dir} --tls-authz ${shellWord(`CN=${path.basename(first)}`)}`,
    `  QEMU       -object tls-creds-x509,id=tls0,endpoint=server,dir=${dir}`,
    '             migrate_set_parameter tls-creds tls0',
    'Source',
    `  multifd    send ... --tls-creds ${dir}`,
    `  QEMU       -object tls-creds-x509,id=tls0,endpoint=client,dir=${dir}`,
    '             migrate_set_parameter tls-creds tls0',
    '             migrate_set_parameter tls-hostname HOST (to a unix socket: the name of the',
    "                                        destination's certificate)",
    '',
  ].join('\n');
}
