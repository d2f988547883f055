/** Who asks for help gets it on stdout, in 80 columns and with examples; who mistypes a command is told, beside `help` as well. */
import { Command, CommanderError } from 'commander';
import t from 'tap';
import { addDemoCommand } from '../../src/cli/commands/demo.js';
import { commandLine } from '../../src/cli/help.js';
import { addInspectCommand } from '../../src/cli/commands/inspect.js';
import { addPackCommand, addUnpackCommand } from '../../src/cli/commands/pack.js';
import { addParkCommand } from '../../src/cli/commands/park.js';
import { addReceiveCommand } from '../../src/cli/commands/receive.js';
import { addRelayCommand } from '../../src/cli/commands/relay.js';
import { addResumeCommand } from '../../src/cli/commands/resume.js';
import { addSendCommand } from '../../src/cli/commands/send.js';
import { addStressCommand } from '../../src/cli/commands/stress.js';
import { addTlsCredsCommand } from '../../src/cli/commands/tls-creds.js';
import { run } from './cli.js';

const COMMANDS = [
  'park',
  'resume',
  'receive',
  'send',
  'relay',
  'inspect',
  'pack',
  'unpack',
  'tls-creds',
  'stress',
  'demo',
];

t.test('a command line that asks for help is one that commander answers as it should', async (t) => {
  const cases: [string[], string[]][] = [
    [[], []],
    [['help'], ['help']],
    [['help', 'help'], ['help']],
    [['help', '--json'], ['help']],
    [['--help'], ['--help']],
    [
      ['help', 'demo'],
      ['demo', '--help'],
    ],
    [
      ['help', '--json', 'demo', 'more'],
      ['demo', '--help'],
    ],
    [['help', 'nosuch'], ['nosuch']],
    [['nosuch', '--help'], ['nosuch']],
    [['--help', 'nosuch'], ['nosuch']],
    [['nosuch', 'demo'], ['nosuch']],
    [
      ['demo', 'help', '--size', '1M'],
      ['demo', 'help', '--size', '1M'],
    ],
  ];
  for (const [typed, parsed] of cases) t.same(commandLine(typed, COMMANDS), parsed, typed.join(' '));
});

t.test('the help of each command has examples, and fits 80 columns', async (t) => {
  for (const name of COMMANDS) {
    let shown = '';
    const program = new Command('multifd').exitOverride().configureOutput({
      writeOut: (text) => (shown += text),
      getOutHelpWidth: () => 80,
    });
    addParkCommand(program);
    addResumeCommand(program);
    addReceiveCommand(program);
    addSendCommand(program);
    addRelayCommand(program);
    addInspectCommand(program);
    addPackCommand(program);
    addUnpackCommand(program);
    addTlsCredsCommand(program);
    addStressCommand(program);
    addDemoCommand(program);
    t.same(
      program.commands.map((command) => command.name()),
      COMMANDS,
    );
    await t.rejects(program.parseAsync([name, '--help'], { from: 'user' }), CommanderError);
    t.match(shown, new RegExp(`^Usage: multifd ${name} `), name);
    t.match(shown, new RegExp(`^Examples:\\n {2}\\$ multifd ${name} `, 'm'), name);
    t.match(shown, /^Exit codes: 0 /m, name);
    if (shown.includes('143')) t.match(shown, '129 by SIGHUP', name);
    t.same(
      shown.split('\n').filter((line) => line.length > 80),
      [],
      name,
    );
  }
});

t.test(
  '`help` beside a mistyped command: exit code 2, what was meant, and no help of something else',
  async (t) => {
    for (const args of [
      ['help', 'recieve', '--json'],
      ['recieve', '--help', '--json'],
    ]) {
      const { code, stderr, lines } = await run(t, args);
      t.equal(code, 2);
      t.equal(
        stderr,
        "error: unknown command 'recieve'\n(Did you mean receive?)\n(--help shows what is allowed)\n",
      );
      t.match(lines, [{ type: 'result', ok: false, error: { code: 'ERR_CLI_USAGE', message: /recieve/ } }]);
    }
  },
);

t.test('`help` alone is answered on stdout, with an example', async (t) => {
  const { code, stdout, stderr } = await run(t, ['help']);
  t.equal(code, 0);
  t.equal(stderr, '');
  for (const name of COMMANDS) t.match(stdout, new RegExp(`^ {2}${name} `, 'm'));
  t.match(stdout, /^Examples:\n {2}\$ multifd demo /m);
  t.same(
    stdout.split('\n').filter((line) => line.length > 80),
    [],
  );
});
