/**
 * The command line. One file a command, in commands/; what they have in common is there in run-command.ts and
 * option-values.ts. What the demo is made of is in demo/, what is printed for people in terminal/.
 *
 * Data goes to stdout, everything else to stderr. Exit codes: 0 ok, 1 failed, 2 wrong usage, 128 + n for signal n.
 */
import { Command, CommanderError } from 'commander';
import { printableJson, printableLines } from '../printable.js';
import { EXIT_USAGE } from './cli-error.js';
import { commandLine, EXAMPLES } from './help.js';

interface Entry {
  /** As usage has it, with its arguments. */
  readonly usage: string;
  readonly summary: string;
  /** Loads what declares the command on the program. */
  readonly load: () => Promise<(program: Command) => void>;
}

const COMMANDS: Record<string, Entry> = {
  park: {
    usage: 'park',
    summary: 'park a VM in a file, by its QMP socket',
    load: async () => (await import('./commands/park.js')).addParkCommand,
  },
  resume: {
    usage: 'resume <file>',
    summary: 'resume such a file in a waiting QEMU, by its QMP socket',
    load: async () => (await import('./commands/resume.js')).addResumeCommand,
  },
  receive: {
    usage: 'receive',
    summary: 'take in a live migration from QEMU, into a file',
    load: async () => (await import('./commands/receive.js')).addReceiveCommand,
  },
  send: {
    usage: 'send <file>',
    summary: 'resume such a file in a waiting QEMU',
    load: async () => (await import('./commands/send.js')).addSendCommand,
  },
  relay: {
    usage: 'relay',
    summary: 'pass a live migration on, with other channels or another method',
    load: async () => (await import('./commands/relay.js')).addRelayCommand,
  },
  inspect: {
    usage: 'inspect <file>',
    summary: 'say what such a file holds',
    load: async () => (await import('./commands/inspect.js')).addInspectCommand,
  },
  pack: {
    usage: 'pack <file>',
    summary: 'pack such a file; all of these commands read it packed',
    load: async () => (await import('./commands/pack.js')).addPackCommand,
  },
  unpack: {
    usage: 'unpack <file>',
    summary: 'make the plain file of it again',
    load: async () => (await import('./commands/pack.js')).addUnpackCommand,
  },
  'tls-creds': {
    usage: 'tls-creds <folder>',
    summary: 'write new TLS credentials for a pair of hosts',
    load: async () => (await import('./commands/tls-creds.js')).addTlsCredsCommand,
  },
  stress: {
    usage: 'stress',
    summary: 'break migrations in every way, again and again',
    load: async () => (await import('./commands/stress.js')).addStressCommand,
  },
  demo: {
    usage: 'demo',
    summary: 'migrate a guest from one process to another, and prove it',
    load: async () => (await import('./commands/demo.js')).addDemoCommand,
  },
};

/** @param args without the program's name */
export async function runProgram(version: string, args: readonly string[]): Promise<void> {
  const program = new Command('multifd')
    .description("QEMU's multifd live-migration data plane: guest RAM over several channels at once.")
    .version(version)
    .exitOverride()
    // What was given is said again in an error.
    .configureOutput({ writeErr: (text) => void process.stderr.write(printableLines(text)) })
    .showHelpAfterError('(--help shows what is allowed)')
    .addHelpText('after', EXAMPLES);
  const line = commandLine(args, Object.keys(COMMANDS));
  // The program itself has no option that takes a value.
  const wanted = line.find((arg) => !arg.startsWith('-'));
  for (const [name, { usage, summary, load }] of Object.entries(COMMANDS)) {
    if (name === wanted) (await load())(program);
    else program.command(usage).summary(summary);
  }

  // A pipe to `head` that has seen enough of the help. Commands have more to do then: see run-command.ts.
  process.stdout.on('error', () => {});
  // There is no place to say that stderr is gone.
  process.stderr.on('error', () => {});

  try {
    await program.parseAsync(line, { from: 'user' });
  } catch (error) {
    // It has been printed already, but for machines.
    if (!(error instanceof CommanderError)) throw error;
    process.exitCode = error.exitCode === 0 ? 0 : EXIT_USAGE;
    if (error.exitCode !== 0 && args.includes('--json')) {
      const message = error.message.replace(/^error: /, '');
      console.log(printableJson({ type: 'result', ok: false, error: { code: 'ERR_CLI_USAGE', message } }));
    }
  }
}
