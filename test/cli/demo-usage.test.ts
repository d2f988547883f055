/** What is typed wrongly: exit code 2, nothing on stdout, and a message with what was given and what is allowed. */
import path from 'node:path';
import fs from 'node:fs';
import t from 'tap';
import { MAIN, run } from './cli.js';

const dir = t.testdir({ empty: '', ram: 'x' });
const empty = path.join(dir, 'empty');
const ram = path.join(dir, 'ram');

const CASES: [string[], RegExp][] = [
  [['--channels', '0'], /--channels.*'0'.*from 1 to 255/],
  [['--channels', '256'], /'256'.*from 1 to 255/],
  [['--channels', '2.5'], /'2.5'.*integer/],
  [['--compression', 'lz4'], /'lz4'.*none, zlib, zstd/],
  [['--level', '1'], /--level.*'1'.*only with --compression zlib or zstd/],
  [['--level', '10', '--compression', 'zlib'], /'10'.*zlib.*from 0 to 9/],
  [['--level', '0', '--compression', 'zstd'], /'0'.*zstd.*from 1 to 20/],
  [['--level', '21', '--compression', 'zstd'], /'21'.*zstd.*from 1 to 20/],
  [['--level', 'best', '--compression', 'zstd'], /'best'.*zstd.*from 1 to 20/],
  [['--zero-page-detection', 'all'], /'all'.*none, legacy, multifd/],
  [['--page-size', '2K'], /--page-size.*'2K'.*4K, 8K, 16K, 32K and 64K/],
  [['--page-size', '128K'], /'128K'.*64K/],
  [['--page-size', '6K'], /'6K'.*8K/],
  [['--size', '1000K'], /--size.*'1000K'.*1048576 or more/],
  [['--size', '-5'], /'-5'.*1048576 or more/],
  [['--size', 'big'], /'big'.*with K, M, G or T/],
  [['--size', '1100001'], /'1100001'.*multiple of the page size 4096/],
  [['--size', '1028K', '--page-size', '64K'], /'1052672'.*multiple of the page size 65536/],
  [['--ram', '/no/such/file'], /--ram.*'\/no\/such\/file'.*can be read.*ENOENT/],
  [['--ram', dir], /regular file/],
  [['--ram', empty], /1 byte or more/],
  [['--ram', ram, '--size', '32M'], /--ram.*cannot be used with.*--size/],
  [['--backing', 'disk'], /'disk'.*shared, file/],
  [['--dirty-rounds', '-1'], /--dirty-rounds.*'-1'.*from 0 to 1000/],
  [['--dirty-rounds', '1001'], /'1001'.*from 0 to 1000/],
  [['--max-bandwidth', 'fast'], /--max-bandwidth.*'fast'.*bytes a second, 0 or more/],
  [['--maxbandwidth', '1'], /unknown option '--maxbandwidth'/],
  [['--channels'], /--channels.*argument missing/],
  [['extra'], /too many arguments/],
  [['--qemu', '--size', '64M'], /'--qemu' cannot be used with option '--size/],
  [['--qemu', '--zero-copy-send'], /'--qemu' cannot be used with option '--zero-copy-send'/],
  [['--zero-copy-send', '--compression', 'zstd'], /'--zero-copy-send'.*only with compression none, not zstd/],
  [['--zero-copy-send', '--tls'], /'--zero-copy-send'.*only without TLS/],
  [['--huge-pages', '--backing', 'file'], /'--huge-pages'.*only with --backing shared/],
  [['--qemu', '--huge-pages'], /'--qemu' cannot be used with option '--huge-pages'/],
  [['--qemu', '--level', '3'], /only with method zlib or zstd/],
];

t.test('each wrong option', { jobs: 3 }, async (t) => {
  for (const [args, message] of CASES) {
    t.test(args.join(' '), { buffered: true }, async (t) => {
      const { code, stdout, stderr } = await run(t, ['demo', ...args]);
      t.equal(code, 2);
      t.equal(stdout, '');
      t.match(stderr, message);
      t.match(stderr, '--help shows what is allowed');
      t.notMatch(stderr, /\n {4}at /, 'no stack');
    });
  }
});

t.test('a wrong command, or none', async (t) => {
  const wrong = await run(t, ['fly']);
  t.equal(wrong.code, 2);
  t.match(wrong.stderr, "unknown command 'fly'");
  const none = await run(t, []);
  t.equal(none.code, 2);
  t.equal(none.stdout, '');
  t.match(none.stderr, 'Usage: multifd');
});

t.test('--help and --version are answered on stdout', async (t) => {
  const help = await run(t, ['demo', '--help']);
  t.equal(help.code, 0);
  t.equal(help.stderr, '');
  for (const option of [
    '--size',
    '--ram',
    '--backing',
    '--page-size',
    '--dirty-rounds',
    '--prefault',
    '--huge-pages',
    '--channels',
    '--compression',
    '--level',
    '--zero-page-detection',
    '--max-bandwidth',
    '--json',
    '--no-progress',
    '--verbose',
  ]) {
    t.match(help.stdout, new RegExp(`^  ${option}\\b`, 'm'), option);
  }
  t.match(help.stdout, 'Examples:');
  t.match(help.stdout, 'Exit codes: 0');
  const all = await run(t, ['--help']);
  t.equal(all.code, 0);
  t.match(all.stdout, /^ {2}demo /m);
  const version = await run(t, ['--version']);
  t.equal(version.code, 0);
  const manifest = fs.readFileSync(new URL('../../../package.json', import.meta.url), 'utf8');
  t.equal(version.stdout.trim(), (JSON.parse(manifest) as { version: string }).version);
});

t.test('a guest that fits nowhere is no wrong usage: exit code 1 and what is needed', async (t) => {
  for (const backing of ['shared', 'file']) {
    const { code, stderr, lines } = await run(t, ['demo', '--json', '--size', '4096T', '--backing', backing]);
    t.equal(code, 1, backing);
    t.match(stderr, /^multifd: ERR_CLI_ROOM: .*9007199254740992 bytes/);
    t.match(lines, [{ type: 'result', ok: false, error: { code: 'ERR_CLI_ROOM' } }]);
  }
});

t.test('no QEMU is run that the command at hand does not need', async (t) => {
  const bin = t.testdir();
  const ran = path.join(bin, 'ran');
  const hanging = path.join(bin, 'qemu-system-x86_64');
  fs.writeFileSync(hanging, `#!/bin/sh\ntouch ${ran}\nexec sleep 100\n`, { mode: 0o755 });
  const env = { PATH: `${bin}:${process.env.PATH}`, MULTIFD_QEMU: undefined };
  for (const args of [
    ['--version'],
    ['--help'],
    ['help', 'demo'],
    ['demo', '--size', '1'],
    ['inspect', ram],
  ]) {
    const { code } = await run(t, args, { env });
    t.equal(code, args[0] === 'inspect' ? 1 : args.includes('1') ? 2 : 0, args.join(' '));
    t.notOk(fs.existsSync(ran), `${args.join(' ')} ran it`);
  }
});

t.test('the version is told by a program that has loaded next to nothing', (t) => {
  const files = new Set([MAIN]);
  const others = new Set<string>();
  for (const file of files) {
    for (const [, name] of fs.readFileSync(file, 'utf8').matchAll(/^import (?:[^;]*?from )?"(.*)";$/gm)) {
      if (name.startsWith('.')) files.add(path.resolve(path.dirname(file), name));
      else others.add(name);
    }
  }
  t.strictSame([...others].sort(), ['node:fs', 'node:path', 'node:url']);
  const bytes = [...files].reduce((sum, file) => sum + fs.statSync(file).size, 0);
  t.ok(bytes < 8192, `${files.size} files, ${bytes} bytes`);
  t.end();
});

t.test('--qemu where there is no QEMU: exit code 1 and what is needed', async (t) => {
  const { code, stderr, lines } = await run(t, ['demo', '--qemu', '--json'], {
    env: { MULTIFD_QEMU: '/no/such/qemu' },
  });
  t.equal(code, 1);
  t.match(stderr, /^multifd: ERR_CLI_QEMU: this needs qemu-system-x86_64 9\.0 or later/);
  t.match(lines, [{ type: 'result', ok: false, error: { code: 'ERR_CLI_QEMU' } }]);
});
