/** `multifd park` and `multifd resume` typed wrongly, or at a socket that is no QEMU's: exit codes, and what is said. */
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import t from 'tap';
import { answer, fakeQmp } from '../qmp/fake-qmp.js';
import { within } from '../support/within.js';
import { Run, run } from './cli.js';

const WAIT_MS = 30_000;
const GIVEN = ['park', '--qmp', 'unix:/no/such/socket', '--out', 'vm.mig'];

const CASES: [string[], RegExp][] = [
  [['park', '--out', 'x'], /required option '--qmp <address>' not specified/],
  [['park', '--qmp', 'unix:/x'], /required option '--out <file>' not specified/],
  [['park', '--qmp', '/x', '--out', 'x'], /--qmp.*'\/x'.*unix:PATH.*\n\(Did you mean unix:\/x\?\)/],
  [[...GIVEN, '--then', 'go'], /--then.*'go'.*quit, stop, leave/],
  [[...GIVEN, '--downtime-limit', '2000001'], /--downtime-limit.*from 0 to 2000000/],
  [[...GIVEN, '--level', '3'], /--level.*only with method zlib or zstd/],
  [[...GIVEN, '--qemu-tls-creds', 'tls0'], /'--qemu-tls-creds' needs option '--tls-creds <folder>'/],
  [[...GIVEN, '--qemu-tls-hostname', 'x'], /'--qemu-tls-hostname' needs option '--qemu-tls-creds <id>'/],
  [
    [...GIVEN, '--pack-level', '3'],
    /'--pack-level <n>' is invalid. Allowed only with an --out that ends with \.zst/,
  ],
  [['receive', '--listen', 'unix:/x', '--out', 'x', '--pack-level', '3'], /--pack-level.*ends with \.zst/],
  [
    ['park', '--qmp', 'unix:/x', '--out', ''],
    /'--out <file>' argument '' is invalid. Allowed is the path of a file/,
  ],
  [['pack', 'x', '--out', ''], /'--out <file>' argument '' is invalid/],
  [['unpack', 'x', '--out', ''], /'--out <file>' argument '' is invalid/],
  [['receive', '--listen', 'unix:/x', '--out', ''], /'--out <file>' argument '' is invalid/],
  [
    ['park', '--qmp', `unix:/${'x'.repeat(139)}`, '--out', 'x'],
    /Given is a path of 140 bytes, allowed at most 107/,
  ],
  [[...GIVEN, '--kept'], /unknown option '--kept'/],
];

t.test('each wrong option', { jobs: 3 }, async (t) => {
  for (const [args, message] of CASES) {
    t.test(args.join(' '), { buffered: true }, async (t) => {
      const { code, stdout, stderr } = await run(t, args);
      t.equal(code, 2);
      t.equal(stdout, '');
      t.match(stderr, message);
    });
  }
});

t.test('a socket that is not there, and one that is no QMP', async (t) => {
  const folder = t.testdir({});
  const out = path.join(folder, 'vm.mig');
  const missing = await run(t, ['park', '--qmp', `unix:/no/such/socket`, '--out', out, '--json']);
  t.equal(missing.code, 1);
  t.match(missing.result, { ok: false, error: { code: 'ERR_MULTIFD_CONNECT', message: /ENOENT/ } });
  const { path: socket } = await fakeQmp(t, answer, 'SSH-2.0-OpenSSH\r\n');
  const other = await run(t, ['park', '--qmp', `unix:${socket}`, '--out', out, '--json']);
  t.equal(other.code, 1);
  t.match(other.stderr, /^multifd: ERR_MULTIFD_QMP: .*received "SSH-2\.0-OpenSSH/);
  t.same(fs.readdirSync(folder), []);
});

t.test('a file that is there already is told before QEMU hears of anything', async (t) => {
  const folder = t.testdir({ 'vm.mig': 'a guest' });
  const fake = await fakeQmp(t);
  const { code, stderr } = await run(t, [
    ...['park', '--qmp', `unix:${fake.path}`, '--out', path.join(folder, 'vm.mig')],
  ]);
  t.equal(code, 1);
  t.match(stderr, /ERR_MULTIFD_IO.*exists already/);
  t.same(fake.commands, []);
});

for (const [signal, exitCode] of [
  ['SIGINT', 130],
  ['SIGTERM', 143],
] as const) {
  t.test(`${signal} while the monitor is busy`, async (t) => {
    // A socket's path is short.
    const folder = fs.mkdtempSync(path.join(os.tmpdir(), 'mfd-'));
    t.teardown(() => fs.rmSync(folder, { recursive: true, force: true }));
    fs.mkdirSync(path.join(folder, 'tmp'));
    const busy = await fakeQmp(t, answer, '');
    const args = ['park', '--qmp', `unix:${busy.path}`, '--out', path.join(folder, 'vm.mig')];
    const command = new Run(t, args, { env: { TMPDIR: path.join(folder, 'tmp') } });
    const begun = (): boolean => fs.existsSync(path.join(folder, 'vm.mig.part'));
    for (const late = Date.now() + WAIT_MS; !begun() && Date.now() < late;) {
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
    command.child.kill(signal);
    const { code, stderr } = await within(command.ended, WAIT_MS, 'its end');
    t.equal(code, exitCode);
    t.match(stderr, new RegExp(`^multifd: ERR_CLI_SIGNAL: cancelled by ${signal}`));
    t.same(fs.readdirSync(folder), ['tmp'], 'no file');
    t.same(fs.readdirSync(path.join(folder, 'tmp')), [], 'nor a folder with a socket');
  });
}

t.test('resume: each wrong option', { jobs: 3 }, async (t) => {
  const given = ['resume', 'vm.mig', '--qmp', 'unix:/no/such/socket'];
  for (const [args, message] of [
    [['resume', '--qmp', 'unix:/x'], /missing required argument 'file'/],
    [['resume', 'vm.mig'], /required option '--qmp <address>' not specified/],
    [[...given, '--cont', '--paused'], /'--cont' cannot be used with option '--paused'/],
    [[...given, '--peer', 'new'], /--peer.*such as 7\.2/],
    [[...given, '--qemu-tls-creds', 'tls0'], /'--qemu-tls-creds' needs option '--tls-creds <folder>'/],
  ] as const) {
    t.test(args.join(' '), { buffered: true }, async (t) => {
      const { code, stderr } = await run(t, [...args]);
      t.equal(code, 2);
      t.match(stderr, message);
    });
  }
});

t.test('resume reads the file before QEMU hears of anything', async (t) => {
  const file = path.join(t.testdir({ 'vm.mig': 'no guest' }), 'vm.mig');
  const fake = await fakeQmp(t);
  const { code, stderr } = await run(t, ['resume', file, '--qmp', `unix:${fake.path}`]);
  t.equal(code, 1);
  t.match(stderr, /^multifd: ERR_MULTIFD_\w+: /);
  t.same(fake.commands, []);
});
