/** What is misspelt on the command line: the option that was meant is named, also where it is one that must be there. */
import { Command, CommanderError } from 'commander';
import t from 'tap';
import { addDemoCommand } from '../../src/cli/commands/demo.js';
import { addInspectCommand } from '../../src/cli/commands/inspect.js';
import { addReceiveCommand } from '../../src/cli/commands/receive.js';
import { addRelayCommand } from '../../src/cli/commands/relay.js';
import { addSendCommand } from '../../src/cli/commands/send.js';

/** What a command line that is wrong says, without a process of its own. */
async function complaint(line: string): Promise<string> {
  let said = '';
  const program = new Command('multifd')
    .exitOverride()
    .configureOutput({ writeErr: (text) => (said += text), writeOut: () => {} });
  addReceiveCommand(program);
  addSendCommand(program);
  addRelayCommand(program);
  addInspectCommand(program);
  addDemoCommand(program);
  try {
    await program.parseAsync(line.split(' '), { from: 'user' });
  } catch (error) {
    if (!(error instanceof CommanderError)) throw error;
    return said;
  }
  throw new Error(`taken: ${line}`);
}

const PORT = '--listen tcp:127.0.0.1:0';

t.test('commands, options and values that are misspelt', async (t) => {
  const cases: [line: string, wrong: string, meant: string][] = [
    ['recieve', "unknown command 'recieve'", 'receive'],
    [`receive ${PORT} --out x --chanels 2`, "unknown option '--chanels'", '--channels'],
    ['receive --chanels 2', "unknown option '--chanels'", '--channels'],
    ['receive --lisen unix:/x --out x', "unknown option '--lisen'", '--listen'],
    [`receive ${PORT} --uot x`, "unknown option '--uot'", '--out'],
    ['send x --too unix:/x', "unknown option '--too'", '--to'],
    ['relay --channels 2', "unknown option '--channels'", '--channels-in'],
    ['inspect x --verfy', "unknown option '--verfy'", '--verify'],
    ['demo --dirty-round 2', "unknown option '--dirty-round'", '--dirty-rounds'],
    [`receive ${PORT} --compression zst`, "'zst' is invalid. Allowed choices are none, zlib, zstd.", 'zstd'],
    ['relay --compression-out Zlib', "'Zlib' is invalid.", 'zlib'],
    ['relay --zero-page-detection-out multifdd', "'multifdd' is invalid.", 'multifd'],
    ['send x --zero-page-detection legasy', "'legasy' is invalid.", 'legacy'],
    ['receive --switchover-ack allways', "'allways' is invalid.", 'always'],
    ['demo --backing files', "'files' is invalid.", 'file'],
    ['demo --compression zst', "'zst' is invalid.", 'zstd'],
    ['receive --listen localhost:4444', "'localhost:4444' is invalid.", 'tcp:localhost:4444'],
    ['send x --to /run/vm.sock', "'/run/vm.sock' is invalid.", 'unix:/run/vm.sock'],
  ];
  for (const [line, wrong, meant] of cases) {
    const said = await complaint(line);
    t.ok(said.includes(wrong), said);
    t.ok(said.includes(`\n(Did you mean ${meant}?)\n`), said);
  }
  t.notMatch(await complaint('demo --compression lz4'), /Did you mean/);
});

t.test('an option that must be there is asked for where nothing is misspelt', async (t) => {
  const required = (option: string): string => `error: required option '${option}' not specified\n`;
  t.equal(await complaint('receive --out x'), required('--listen <address>'));
  const out = "error: required option '--out <file>' not specified, nor '--discard'\n";
  t.equal(await complaint(`receive ${PORT}`), out);
  t.equal(await complaint('send x'), required('--to <address>'));
  t.equal(await complaint(`relay ${PORT}`), required('--to <address>'));
});
