/** What resumeVm() and parkVm() refuse for their options, or for the file: a QEMU that waits is not even spoken to. */
import fs from 'node:fs';
import path from 'node:path';
import t from 'tap';
import { parkVm, resumeVm, sendMigration } from '../../src/index.js';
import { run } from '../cli/cli.js';
import { HEAD, imageOf } from '../libvirt/images.js';
import { readBytes } from '../migration/captures.js';
import { fakeQmp } from './fake-qmp.js';

const file = path.join(t.testdir({}), 'vm.mig');
fs.writeFileSync(file, readBytes('q100-mappedram-multifd.mig'));

/** As from JavaScript. */
const any = (options: object): never => options as never;
const ABORT = 'an AbortSignal';

const BOTH: [object, RegExp][] = [
  [{ file: 5 }, /^option file: given 5, allowed a path$/],
  [{ file: 'a\0b' }, /^option file: /],
  [{ file: new URL(`file://${file}`) }, /^option file: /],
  [{ signal: {} }, new RegExp(`^option signal: given {}, allowed ${ABORT}$`)],
  [{ maxBandwidth: -1 }, /^option maxBandwidth: given -1/],
  [{ maxBandwidth: NaN }, /^option maxBandwidth: given NaN/],
  [{ directIo: 3 }, /^option directIo: given 3/],
  [{ peer: 'abc' }, /^option peer: given "abc"/],
  [{ peer: 7.2 }, /^option peer: given 7\.2/],
  [{ onStart: 5 }, /^option onStart: given 5, allowed a function/],
  [{ onSession: 5 }, /^option onSession: given 5/],
  [{ stallTimeoutMs: 0 }, /^option stallTimeoutMs: /],
  [{ connectTimeoutMs: 'x' }, /^option connectTimeoutMs: /],
  [{ maxRam: -1 }, /^option maxRam: /],
  [{ offset: 1.5 }, /^option offset: given 1\.5/],
  [{ pageSize: 5000 }, /^option pageSize: /],
  [{ run: 1 }, /^option run: given 1/],
];
const PRECOPY: [object, RegExp][] = [
  [{ mode: 'post' }, /^option mode: given "post"/],
  [{ uuid: 'zz' }, /^option uuid: given "zz"/],
  [{ zlibLevel: 77 }, /^option zlibLevel: given 77/],
  [{ zstdLevel: 0 }, /^option zstdLevel: given 0/],
  [{ zeroPageDetection: 'x' }, /^option zeroPageDetection: given "x"/],
  [{ zeroCopySend: true }, /^option zeroCopySend: .*over TCP/],
  [{ onRecords: 5 }, /^option onRecords: given 5/],
  [{ channels: 0 }, /^option channels: given 0/],
];
const INSTANT: [object, RegExp][] = [
  [{ recover: 1 }, /^option recover: given 1/],
  [{ hot: 1 }, /^option hot: given 1/],
  [{ maxHot: 1 }, /^option maxHot: given 1, allowed none without option hot/],
  [{ hostPageSize: 1 }, /^option hostPageSize: given 1/],
  [{ hostPageSize: 2 ** 33 }, /^option hostPageSize: .* a part of the block's size/],
  [{ hugePages: 5 }, /^option hugePages: given 5/],
  [{ hugePages: { nosuch: 2 ** 21 } }, /^option hugePages: given "nosuch", allowed one of the file's blocks/],
  [{ onRunning: 5 }, /^option onRunning: given 5/],
  [{ onWarning: 5 }, /^option onWarning: given 5/],
  [{ onProgress: 5 }, /^option onProgress: given "an unknown option"/],
  [{ channels: 2 }, /^option channels: given 2/],
];

t.test('resumeVm(): a wrong option, whichever it is', async (t) => {
  const fake = await fakeQmp(t);
  const qmp = { path: fake.path };
  for (const [options, message] of [...BOTH, ...PRECOPY]) {
    await t.rejects(resumeVm(any({ file, qmp, ...options })), { code: 'ERR_MULTIFD_OPTION', message });
  }
  for (const [options, message] of [...BOTH, ...INSTANT]) {
    const call = resumeVm(any({ mode: 'postcopy', file, qmp, ...options }));
    await t.rejects(call, { code: 'ERR_MULTIFD_OPTION', message });
  }
  t.same(fake.commands, []);
});

t.test('resumeVm(): a file that cannot be sent', async (t) => {
  const fake = await fakeQmp(t);
  const qmp = { path: fake.path };
  const folder = t.testdir({});
  const at = (name: string, bytes: Uint8Array): string => {
    fs.writeFileSync(path.join(folder, name), bytes);
    return path.join(folder, name);
  };
  const noGzip = at('gzip.save', imageOf('gzip', Buffer.from('this is no gzip')));
  await t.rejects(resumeVm({ file: noGzip, qmp }), { message: /received data that is no whole gzip/ });
  const empty = at('raw.save', HEAD);
  await t.rejects(resumeVm({ file: empty, qmp }), { code: /^ERR_MULTIFD_/ });
  await t.rejects(resumeVm({ file: empty, qmp, directIo: true }), { message: /option directIo/ });
  const other = resumeVm({ file, qmp, pageSize: 8192 });
  await t.rejects(other, { code: 'ERR_MULTIFD_STREAM', message: /page size/ });
  await t.rejects(resumeVm({ file: `${file}.nosuch`, qmp }), { code: 'ERR_MULTIFD_IO' });
  await t.rejects(resumeVm({ mode: 'postcopy', file: empty, qmp }), {
    code: 'ERR_MULTIFD_OPTION',
    message: /^option mode: given "postcopy", allowed only for a file with a place for each page: .*not raw$/,
  });
  const { code, stderr } = await run(t, ['resume', empty, '--qmp', `unix:${fake.path}`, '--instant']);
  t.equal(code, 1);
  t.match(stderr, /^multifd: ERR_MULTIFD_OPTION: option --instant: allowed only for a file with a place/);
  await t.rejects(sendMigration({ mode: 'postcopy', file: empty, to: 'tcp:127.0.0.1:1' }), {
    code: 'ERR_MULTIFD_OPTION',
  });
  t.same(fake.commands, []);
});

t.test('parkVm(): a wrong option, and nothing is made', async (t) => {
  const fake = await fakeQmp(t);
  const folder = t.testdir({});
  const given = { qmp: { path: fake.path }, out: path.join(folder, 'vm.mig') };
  const cases: [object, RegExp][] = [
    [{ signal: {} }, new RegExp(`^option signal: given {}, allowed ${ABORT}`)],
    [{ onStart: 5 }, /^option onStart: given 5/],
    [{ onSession: 5 }, /^option onSession: given 5/],
    [{ onPacking: 5, packed: true }, /^option onPacking: given 5/],
    [{ overwrite: 1 }, /^option overwrite: given 1/],
    [{ keepPartial: 'no' }, /^option keepPartial: given "no"/],
    [{ out: '' }, /^option out: given "", allowed a path/],
    [{ out: 'a\0b' }, /^option out: /],
    [{ out: new URL('file:///tmp/x') }, /^option out: /],
  ];
  for (const [options, message] of cases) {
    const call = parkVm(any({ ...given, ...options }));
    await t.rejects(call, { code: 'ERR_MULTIFD_OPTION', message });
  }
  t.same(fake.commands, []);
  t.same(fs.readdirSync(folder), []);
});

t.test('multifd resume --instant: a wrong option', async (t) => {
  const fake = await fakeQmp(t);
  const args = ['resume', file, '--qmp', `unix:${fake.path}`, '--instant'];
  const alone = await run(t, [...args, '--max-hot', '1M']);
  t.equal(alone.code, 2);
  t.match(alone.stderr, /option '--max-hot <bytes>' is invalid. Allowed only with --hot\./);
  const block = await run(t, [...args, '--huge-pages', 'nosuch=2M']);
  t.equal(block.code, 1);
  t.match(block.stderr, /ERR_MULTIFD_OPTION: .*"nosuch", allowed one of the file's blocks/);
  t.same(fake.commands, []);
});
