#!/usr/bin/env node
/**
 * The command `multifd`. One file a command; what they have in common is in run-command.ts and option-values.ts.
 *
 * Data goes to stdout, everything else to stderr. Exit codes: 0 ok, 1 failed, 2 wrong usage, 128 + n for signal n.
 */
import fs from 'node:fs';
import { Command, CommanderError } from 'commander';
import { EXIT_USAGE } from './cli-error.js';
import { addDemoCommand } from './demo.js';
import { addInspectCommand } from './inspect.js';
import { addReceiveCommand } from './receive.js';
import { addRelayCommand } from './relay.js';
import { addSendCommand } from './send.js';

const { version } = JSON.parse(
  fs.readFileSync(new URL('../../../package.json', import.meta.url), 'utf8'),
) as { version: string };

const program = new Command('multifd')
  .description("QEMU's multifd live-migration data plane: guest RAM over several channels at once.")
  .version(version)
  .exitOverride()
  .showHelpAfterError('(--help shows what is allowed)');
addReceiveCommand(program);
addSendCommand(program);
addRelayCommand(program);
addInspectCommand(program);
addDemoCommand(program);

// A pipe to `head` that has seen enough of the help. Commands have more to do then: see run-command.ts.
process.stdout.on('error', () => {});
// There is no place to say that stderr is gone.
process.stderr.on('error', () => {});

try {
  await program.parseAsync();
} catch (error) {
  // It has been printed already, but for machines.
  if (!(error instanceof CommanderError)) throw error;
  process.exitCode = error.exitCode === 0 ? 0 : EXIT_USAGE;
  if (error.exitCode !== 0 && process.argv.includes('--json')) {
    const message = error.message.replace(/^error: /, '');
    console.log(JSON.stringify({ type: 'result', ok: false, error: { code: 'ERR_CLI_USAGE', message } }));
  }
}
