/**
 * The help of `multifd` itself, and which command line asks for it.
 *
 *     help                as it is: the help of all, on stdout
 *     help COMMAND        COMMAND --help
 *     help WRONG          WRONG    an unknown command, with what may have been meant and exit code 2, and not the help of
 *     WRONG --help        WRONG    all, which a script that asks for a command's help would take for an answer
 */
export const EXAMPLES = `
Examples:
  $ multifd demo                 moves 1 GiB between two processes and proves it
  $ multifd park --qmp unix:/run/vm.qmp --out vm.mig
  $ multifd resume vm.mig --qmp unix:/run/new.qmp

\`multifd help COMMAND\` has a command's options and more examples.
Exit codes: 0 ok, 1 failed, 2 wrong usage, 130 cancelled by Ctrl-C, 143 by
SIGTERM, 129 by SIGHUP.`;

const HELP = 'help';

/**
 * @param args what was typed behind `multifd`
 * @param commands names of all there are
 * @returns what is to be parsed instead
 */
export function commandLine(args: readonly string[], commands: readonly string[]): string[] {
  const [first, second] = args.filter((arg) => !arg.startsWith('-'));
  const known = (name: string | undefined): boolean => name === undefined || commands.includes(name);
  if (first !== HELP) return known(first) ? [...args] : [first];
  if (second === undefined || second === HELP) return [HELP];
  return known(second) ? [second, '--help'] : [second];
}
