/**
 * The command line: options and values of every command, in this process, one argument a line. Nothing is listened on or
 * connected to: both fail at once. Commands that need nobody else (demo, tls-creds) are parsed and not run.
 */
import { mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import net from 'node:net';
import os from 'node:os';
import path from 'node:path';
import { Command, CommanderError } from 'commander';
import { addDemoCommand } from '../../../src/cli/commands/demo.js';
import { addTlsCredsCommand } from '../../../src/cli/commands/tls-creds.js';
import { runProgram } from '../../../src/cli/program.js';
import { MultifdError } from '../../../src/errors.js';
import { readMain } from '../../stream/support.js';
import { Fault, bytes, type Fuzzer, type Seed } from '../contract.js';

/** And not run. */
const PARSED = new Map([
  ['demo', addDemoCommand],
  ['tls-creds', addTlsCredsCommand],
]);
const NO_FOLDER = '/nonexistent-folder';
const LINES = [
  'receive --listen unix:/nonexistent-folder/s --out /nonexistent-folder/vm.mig --channels 4 --compression zstd',
  'receive --listen tcp:127.0.0.1:0 --discard accept --max-strays 16 --accept-timeout 5 --stall-timeout 3 --json',
  'send main.bin --to tcp:[::1]:4444 --channels 255 --peer 7.2 --uuid 00112233-4455-6677-8899-aabbccddeeff --max-bandwidth 1G',
  'send vm.mig --to unix:/nonexistent-folder/s --mode postcopy --recover --tls-creds /nonexistent-folder --tls-identity a',
  'relay --listen tcp::4444 --to unix:/nonexistent-folder/s --channels-in 2 --compression-out zlib --level-out 9 --verbose',
  'park --qmp unix:/nonexistent-folder/q --out /nonexistent-folder/vm.mig --then quit --overwrite',
  'resume vm.mig --qmp tcp:127.0.0.1:1 --instant --cont',
  'inspect main.bin --verify --offset 4096 --max-ram 4T --max-blocks 10 --max-description 16M --direct-io',
  'inspect main.bin',
  'tls-creds /nonexistent-folder --x509 a.example,b.example',
  'demo --size 256M --channels 4 --compression zstd --level 3 --dirty-rounds 3 --json',
  'help send',
];
const WORDS = [
  '--',
  '-',
  '',
  '--json',
  '--help',
  '--version',
  '--no-color',
  '--=',
  '0',
  '-1',
  '1e9',
  '0x10',
  '1.5',
  '999999999999999999999',
  'NaN',
  'tcp:',
  'unix:',
  'tcp:[::1',
  'tcp:a:65536',
  'fd:3',
  'none',
  'zlib',
  '\u0000',
  '\u202e\u001b[2J',
  '--out',
  '--to',
  '--listen',
  '--qmp',
  '--tls-creds',
  '--level',
  '__proto__',
  'constructor',
  'help',
  'é',
];

function seedOf(line: string): Seed {
  return line.split(' ').map((word) => bytes(Buffer.from(`${word}\n`)));
}

const fuzzer: Fuzzer = {
  name: 'cli',
  what: 'arguments of the command line, of every command',
  runs: 400,
  most: { bytes: 2 ** 24, perByte: 4000 },
  maxBytes: 2 ** 12,
  words: WORDS.map((word) => Buffer.from(`${word}\n`)),
  seeds: () => LINES.map(seedOf),
  open() {
    const folder = mkdtempSync(path.join(os.tmpdir(), 'multifd-fuzz-'));
    const main = path.join(folder, 'main.bin');
    writeFileSync(main, readMain('q72-none').subarray(0, 10_000));
    return {
      async run(input) {
        const args = input.toString().split('\n').slice(0, -1);
        const line = args.map((arg) => (arg === 'main.bin' ? main : arg));
        const before = readdirSync('.').join();
        const { said, exitCode } = await quietly(() => runLine(line));
        const [, code] = /^multifd: (\S+?):/m.exec(said) ?? [];
        if (code !== undefined && !/^ERR_(MULTIFD|CLI)_/.test(code))
          throw new Fault(`failed with ${code}: ${said}`);
        if (![0, 1, 2].includes(exitCode)) throw new Fault(`exit code ${exitCode}`);
        if (readdirSync('.').join() !== before) throw new Fault('a file was left behind');
        if (exitCode !== 0) throw new MultifdError('ERR_MULTIFD_OPTION', said);
      },
      close: () => rmSync(folder, { recursive: true, force: true }),
    };
  },
};
export default fuzzer;

async function runLine(line: string[]): Promise<void> {
  const name = line.find((arg) => !arg.startsWith('-'));
  const add = PARSED.get(name ?? '');
  if (add === undefined) return runProgram('0.0.0', line);
  const program = new Command('multifd').exitOverride();
  add(program);
  for (const command of program.commands) command.action(() => {});
  try {
    await program.parseAsync(line, { from: 'user' });
  } catch (error) {
    if (!(error instanceof CommanderError)) throw error;
    process.exitCode = 2;
  }
}

/* eslint-disable @typescript-eslint/unbound-method -- they are put back as they were */
/** Without a word to the terminal, and without a socket. */
async function quietly(run: () => Promise<void>): Promise<{ said: string; exitCode: number }> {
  const { stdout, stderr } = process;
  const kept = {
    out: stdout.write,
    err: stderr.write,
    exit: process.exit,
    connect: net.connect,
    code: process.exitCode,
  };
  const listen = net.Server.prototype.listen;
  let said = '';
  const take = (text: string | Uint8Array, ...rest: unknown[]): boolean => {
    said += String(text);
    const done = rest.find((one) => typeof one === 'function') as (() => void) | undefined;
    done?.();
    return true;
  };
  Object.assign(stdout, { write: take });
  Object.assign(stderr, { write: take });
  const logged = console.log;
  console.log = (...words: unknown[]) => void (said += `${words.join(' ')}\n`);
  process.exit = (code: number) => {
    throw new Fault(`process.exit(${code})`);
  };
  process.exitCode = undefined;
  net.connect = (): net.Socket => new net.Socket().destroy(refusal('connect'));
  net.Server.prototype.listen = function (this: net.Server) {
    process.nextTick(() => this.emit('error', refusal('listen')));
    return this;
  };
  try {
    await run();
    return { said, exitCode: Number(process.exitCode ?? 0) };
  } finally {
    Object.assign(stdout, { write: kept.out });
    Object.assign(stderr, { write: kept.err });
    console.log = logged;
    process.exit = kept.exit;
    process.exitCode = kept.code;
    net.connect = kept.connect;
    net.Server.prototype.listen = listen;
  }
}

function refusal(call: string): Error {
  return Object.assign(new Error(`${call} ECONNREFUSED ${NO_FOLDER}`), { code: 'ECONNREFUSED' });
}
