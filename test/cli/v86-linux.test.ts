/** Linux in the demo's PC: its init, the archive that it comes in, what it says, and what is asked of the files. */
import { spawn, spawnSync } from 'node:child_process';
import fs from 'node:fs';
import path from 'node:path';
import t from 'tap';
import { cpioArchive } from '../../src/cli/demo/v86/cpio.js';
import { GuestConsole } from '../../src/cli/demo/v86/guest-console.js';
import { linuxGuest, linuxInitrd } from '../../src/cli/demo/v86/linux-guest.js';
import { linuxInit } from '../../src/cli/demo/v86/linux-init.js';
import { fakeKernel } from '../support/linux.js';
import { within } from '../support/within.js';
import { run } from './cli.js';

const REGION_BYTES = 2 ** 16;
const MIB = 2 ** 20;
const GUEST = { regionBytes: REGION_BYTES, ticksPerLine: 2 };
const WAIT_MS = 30_000;

function isMissing(program: string): string | false {
  return spawnSync(program, ['--version']).error !== undefined && `skipped: no ${program} here`;
}

t.test(
  'an archive, byte by byte: numbers in hex, names and files to multiples of 4, the trailer',
  async (t) => {
    const archive = cpioArchive([
      { name: 'dev/tty', mode: 0o20600, device: { major: 5, minor: 10 } },
      { name: 'a', mode: 0o100755, data: Buffer.from('12345') },
    ]);
    const zero = '00000000';
    const head = (inode: string, mode: string, bytes: string, device: string, name: string): string =>
      `070701${inode}${mode}${zero}${zero}00000001${zero}${bytes}${zero}${zero}${device}${name}${zero}`;
    const expected =
      head('00000001', '00002180', zero, '000000050000000a', '00000008') +
      'dev/tty\0' +
      '\0\0' +
      head('00000002', '000081ed', '00000005', zero + zero, '00000002') +
      'a\0' +
      '12345\0\0\0' +
      head(zero, zero, zero, zero + zero, '0000000b') +
      'TRAILER!!!\0' +
      '\0\0\0';
    t.equal(archive.toString('latin1'), expected);
  },
);

t.test('cpio lists what Linux starts from', { skip: isMissing('cpio') }, async (t) => {
  const { stdout, stderr, status } = spawnSync('cpio', ['-itv'], { input: linuxInitrd(GUEST) });
  t.equal(status, 0, String(stderr));
  const bytes = linuxInit(GUEST).length;
  const lines = String(stdout).trimEnd().split('\n');
  t.match(lines, [
    /^drwxr-xr-x .* dev$/,
    /^crw------- .* 5, +1 .* dev\/console$/,
    new RegExp(`^-rwxr-xr-x .* ${bytes} .* init$`),
  ]);
});

t.test('readelf finds a program of one segment in init', { skip: isMissing('readelf') }, async (t) => {
  const file = path.join(t.testdir({}), 'init');
  fs.writeFileSync(file, linuxInit(GUEST));
  const { stdout, stderr } = spawnSync('readelf', ['-hl', file], { env: { ...process.env, LC_ALL: 'C' } });
  const text = String(stdout);
  t.equal(String(stderr), '');
  t.match(text, /Class: +ELF32/);
  t.match(text, /Type: +EXEC/);
  t.match(text, /Machine: +Intel 80386/);
  t.match(text, /Entry point address: +0x100054/);
  const bytes = fs.statSync(file).size.toString(16).padStart(6, '0');
  t.match(
    text,
    new RegExp(`LOAD +0x000000 0x00100000 0x00100000 0x0*${bytes.replace(/^0+/, '')} 0x110000 RWE 0x1000`),
  );
});

t.test('init as a program of this machine: what it says is what its twin says', async (t) => {
  const file = path.join(t.testdir({}), 'init');
  fs.writeFileSync(file, linuxInit(GUEST), { mode: 0o755 });
  // By bash, which refuses what the kernel does not run; by itself it would be given to a shell, as a script.
  const child = spawn('bash', ['-c', 'exec "$0"', file], { stdio: ['ignore', 'pipe', 'ignore'] });
  t.teardown(() => child.kill('SIGKILL'));
  const stop = new AbortController();
  // Programs of 32 bits are an option of the kernel's.
  let isRun = true;
  child.on('error', (error) => {
    isRun = false;
    stop.abort(error);
  });
  child.on('exit', (code, signal) => {
    isRun = code === null;
    stop.abort(new Error(`it ended by ${code ?? signal}`));
  });
  const console = new GuestConsole(REGION_BYTES, 0, () => {});
  child.stdout.setEncoding('latin1').on('data', (text: string) => {
    try {
      console.take(0, text);
    } catch (error) {
      stop.abort(error);
    }
  });
  const lines = console.more(3, stop.signal, WAIT_MS).catch((error: unknown) => {
    if (isRun) throw error;
  });
  await within(lines, WAIT_MS, 'three lines');
  if (isRun) t.ok(console.count >= 3);
  else t.pass('skipped: this kernel runs no programs of 32 bits');
});

const BOOT = '[    0.000000] Linux version 6.1\r\n[    9.310217] Run /init as init process\r\n';
const FIRST = 'line 00000001 steps 00000000 sum 00000000 ok\r\n';

t.test('what the kernel says comes before the lines, and never among them', async (t) => {
  const heard: string[] = [];
  const console = new GuestConsole(REGION_BYTES, 0, ({ text }) => heard.push(text), 'boot, then lines');
  console.take(0, BOOT + FIRST);
  t.equal(console.count, 1);
  t.same(heard, (BOOT + FIRST).trimEnd().split('\r\n'));
  t.throws(() => console.take(0, '[   12.0] Oops\r\n'), { code: 'ERR_CLI_DIFFERENT', message: /\] Oops/ });
});

t.test("another initrd's lines count from when the kernel has started it, whatever they are", async (t) => {
  const console = new GuestConsole(REGION_BYTES, 0, () => {}, 'boot, then anything');
  console.take(0, '[    0.000000] Linux version 6.1\r\n');
  t.equal(console.count, 0);
  console.take(0, BOOT + 'hello\r\n');
  t.equal(console.count, 2);
});

t.test('lines that do not come are waited for so long, and the error says what was seen last', async (t) => {
  const { signal } = new AbortController();
  const console = new GuestConsole(REGION_BYTES, 0, () => {}, 'boot, then lines');
  const code = 'ERR_CLI_GUEST';
  await t.rejects(console.more(3, signal, 20), { code, message: /line 3 .* 0\.02 s; nothing was seen/ });
  console.take(0, BOOT);
  await t.rejects(console.more(3, signal, 20), {
    code,
    message: /last .*"\[ +9\.310217\] Run \/init as init process"/,
  });
  console.take(0, 'Kernel pan');
  await t.rejects(console.more(3, signal, 20), { code, message: /last on its serial port: "Kernel pan"/ });
});

t.test('what is asked of the files: each refusal names the option', async (t) => {
  const folder = t.testdir({
    kernel: fakeKernel({ version: '6.1.0-50-686 (debian) #1' }),
    kernel64: fakeKernel({ version: '6.1.0-50-amd64 (debian) #1', is64: true }),
    text: 'no kernel'.repeat(200),
    bios: Buffer.alloc(2 ** 17),
    short: Buffer.alloc(1000),
    initrd: Buffer.alloc(5 * MIB),
  });
  const file = (name: string): string => path.join(folder, name);
  const [kernel, bios] = [file('kernel'), file('bios')];
  t.match(linuxGuest(kernel, undefined, bios), {
    files: { kernel, initrd: null, bios },
    version: '6.1.0-50-686',
    ramBytes: 96 * MIB,
  });
  t.equal(linuxGuest(kernel, file('initrd'), bios).ramBytes, 128 * MIB, 'room to unpack what is larger');
  const refused: [Parameters<typeof linuxGuest>, RegExp][] = [
    [[file('no')], /'--kernel <file>' argument '.*\/no' .* can be read: ENOENT/],
    [[file('text')], /'--kernel <file>' .* kernel of Linux for x86/],
    [[bios], /'--kernel <file>' .* kernel of Linux for x86/],
    [[file('kernel64')], /'--kernel <file>' .* 32 bits, .* linux-image-686; 6\.1\.0-50-amd64 has 64/],
    [[kernel, file('no'), bios], /'--initrd <file>' .* ENOENT/],
    [[kernel, undefined, file('no')], /'--bios <file>' .* ENOENT/],
    [[kernel, undefined, file('short')], /'--bios <file>' .* it has 1000 bytes/],
  ];
  for (const [args, message] of refused) t.throws(() => linuxGuest(...args), { name: 'UsageError', message });
});

t.test('--kernel goes with --v86, --initrd and --bios with --kernel', async (t) => {
  for (const [args, message] of [
    [['--kernel', 'x'], /'--kernel <file>' is allowed only with --v86/],
    [['--v86', '--initrd', 'x'], /'--initrd <file>' is allowed only with --kernel/],
    [['--v86', '--bios', 'x'], /'--bios <file>' is allowed only with --kernel/],
    [
      ['--v86', '--kernel', '/no/such/file'],
      /'--kernel <file>' argument '\/no\/such\/file' is invalid.*ENOENT/,
    ],
  ] as const) {
    const { code, stdout, stderr } = await run(t, ['demo', ...args]);
    t.same([code, stdout], [2, '']);
    t.match(stderr, message);
  }
});
