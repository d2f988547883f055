/** `multifd stress`: what is stressed is a command of its own. */
import { Command } from 'commander';
import { addStressEngineCommand } from './stress-engine.js';
import { addStressQemuCommand } from './stress-qemu.js';

const EXAMPLES = `
Faults, at random moments and repeatable, against migrations that run one after
the other. \`--help\` of each has more.

Examples:
  $ multifd stress engine --minutes 10
  $ multifd stress engine --seed 7 --run 42    the same run again
  $ multifd stress qemu --qmp unix:/run/vm.qmp

Exit codes: 0 all ended as they have to, 1 some did not, 2 wrong usage, 130
cancelled by Ctrl-C, 143 by SIGTERM, 129 by SIGHUP.`;

export function addStressCommand(program: Command): void {
  const stress = program
    .command('stress')
    .description(
      'Breaks migrations in every way that a network and a machine know, and sees what becomes of them.',
    )
    .addHelpText('after', EXAMPLES);
  addStressEngineCommand(stress);
  addStressQemuCommand(stress);
}
