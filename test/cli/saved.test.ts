/** inspect and send with what libvirt has saved, as processes of their own. */
import fs from 'node:fs';
import path from 'node:path';
import zlib from 'node:zlib';
import t from 'tap';
import { HEAD, NAME, RAW, STREAM, UUID, imageOf, readImage } from '../libvirt/images.js';
import { readBytes } from '../migration/captures.js';
import { Run, run, type Line } from './cli.js';

t.test('inspect says whose the domain is, and with --verify what a sparse one has in its RAM', async (t) => {
  const folder = t.testdir({});
  const file = path.join(folder, 'vm.save');
  const running = Buffer.from(RAW);
  running.writeUInt32LE(1, 24);
  fs.writeFileSync(file, running);
  const text = await run(t, ['inspect', file]);
  t.equal(text.code, 0, text.stderr);
  t.match(text.stdout, /^domain +tiny & schön, was running when libvirt saved it$/m);
  t.match(text.stdout, new RegExp(`^uuid +${UUID}$`, 'm'));
  t.match(text.stdout, /^format +raw$/m);
  t.match(text.stdout, /^machine +pc-i440fx-9\.2$/m);
  t.match(text.stdout, new RegExp(`^resume in .*-uuid ${UUID} -incoming defer$`, 'm'));
  t.notMatch(text.stdout, /sync points/);
  t.notMatch(text.stdout, /verified/);
  const stream = await run(t, ['inspect', file, '--verify']);
  t.equal(stream.code, 0, stream.stderr);
  t.match(stream.stdout, /^not verified +it is a stream: --verify reads the pages of a mapped-ram file$/m);
  const record = await run(t, ['inspect', file, '--verify', '--json']);
  t.match(record.result, {
    verified: false,
    notVerified: /^it is a stream/,
    uuid: UUID,
    needs: { uuid: UUID },
  });
  fs.writeFileSync(file, readImage('sparse'));
  const sparse = await run(t, ['inspect', file, '--verify', '--json']);
  t.equal(sparse.code, 0, sparse.stderr);
  const libvirt = { name: NAME, uuid: UUID, wasRunning: false, format: 'sparse' };
  t.match(sparse.result, {
    kind: 'mapped-ram',
    sound: true,
    verified: true,
    notVerified: null,
    offset: HEAD.length,
  });
  t.same(sparse.result?.libvirt, libvirt);
  const cut = zlib.gzipSync(STREAM).subarray(0, -100);
  fs.writeFileSync(file, imageOf('gzip', cut));
  const unsound = await run(t, ['inspect', file, '--json']);
  t.equal(unsound.code, 1);
  t.match(unsound.result, { ok: false, error: { code: 'ERR_CLI_UNSOUND', message: /its end is missing/ } });
});

t.test(
  'what cannot be loaded is a problem: a cut capture, one with a spoilt end, sparse around a stream',
  async (t) => {
    const file = path.join(t.testdir({}), 'vm.bin');
    const refused = async (bytes: Buffer, message: RegExp): Promise<void> => {
      fs.writeFileSync(file, bytes);
      const { code, result } = await run(t, ['inspect', file, '--json']);
      t.equal(code, 1);
      t.match(result, { ok: false, sound: false, error: { code: 'ERR_CLI_UNSOUND', message } });
    };
    const main = readBytes('q100-none.main.bin');
    await refused(
      main.subarray(0, 100_000),
      /^migration file: end at byte \d+ of the devices' state: .*may be cut$/,
    );
    const spoilt = Buffer.from(main);
    spoilt.write('!', main.indexOf('{"'));
    await refused(spoilt, /received a VM description that is no JSON/);
    await refused(
      imageOf('sparse', STREAM),
      /a migration stream without capability mapped-ram, expected mapped-ram$/,
    );
  },
);

t.test('a name cannot move a terminal', async (t) => {
  const file = path.join(t.testdir({}), 'vm.save');
  fs.writeFileSync(file, Buffer.from(RAW.toString('latin1').replace('tiny &amp;', 'ti&#27;[2J'), 'latin1'));
  const { stdout } = await run(t, ['inspect', file]);
  t.match(stdout, /^domain +ti\\x1b\[2J/m);
});

t.test('sent: what libvirt says is in the records, its XML is not', async (t) => {
  const folder = t.testdir({});
  const file = path.join(folder, 'vm.save');
  fs.writeFileSync(file, imageOf('gzip', zlib.gzipSync(STREAM)));
  const out = path.join(folder, 'vm.mig');
  const receiver = new Run(t, ['receive', '--listen', 'tcp:127.0.0.1:0', '--out', out, '--json']);
  const { address } = (await receiver.line((line) => line.type === 'listening')) as Line & {
    address: string;
  };
  const sent = await run(t, ['send', file, '--to', address, '--json']);
  t.equal(sent.code, 0, sent.stderr);
  const libvirt = { name: NAME, uuid: UUID, wasRunning: false, format: 'gzip' };
  t.same(sent.lines[0].libvirt, libvirt);
  t.same(sent.result?.libvirt, libvirt);
  const { records, wireBytes } = sent.result as Line & { records: { bytes: number }; wireBytes: number };
  t.match(records, { pages: 114, zeroPages: 4112 });
  t.ok(records.bytes > 114 * 4096 && records.bytes <= STREAM.length + 100, 'all of the main stream');
  t.ok(wireBytes > records.bytes, "and the channels' SYNCs");
  t.equal((await receiver.ended).code, 0);
  t.equal(receiver.result?.uuid, UUID);
});

t.test('--repeat sends it so often, with the figures of each; an error ends it', async (t) => {
  const folder = t.testdir({});
  const file = path.join(folder, 'vm.save');
  fs.writeFileSync(file, RAW);
  const listen = async (address: string): Promise<{ sink: Run; address: string }> => {
    const sink = new Run(t, [
      'receive',
      '--listen',
      address,
      '--discard',
      'accept',
      '--accept-timeout',
      '60',
      '--json',
    ]);
    const line = (await sink.line(({ type }) => type === 'listening')) as Line & { address: string };
    return { sink, address: line.address };
  };
  const first = await listen('tcp:127.0.0.1:0');
  const args = ['send', file, '--to', first.address, '--repeat', '3', '--connect-timeout', '20', '--json'];
  const sending = new Run(t, args);
  t.equal((await first.sink.ended).code, 0);
  for (let i = 0; i < 2; i++) t.equal((await (await listen(first.address)).sink.ended).code, 0);
  t.equal((await sending.ended).code, 0);
  const rounds = sending.lines.filter(({ type }) => type === 'round');
  t.same(
    rounds.map(({ round }) => round),
    [1, 2, 3],
  );
  t.equal((sending.result?.rounds as unknown[]).length, 3);
  const sink = new Run(t, ['receive', '--listen', first.address, '--discard', '--json']);
  await sink.line(({ type }) => type === 'listening');
  const refused = await run(t, args);
  t.equal(refused.code, 1);
  t.match(refused.result, { ok: false, error: { message: /SHUT: received 1, expected 0/ } });
  t.notOk(refused.lines.some(({ type }) => type === 'round'));
  t.equal((await sink.ended).code, 0);
  t.match(sink.result, { discarded: 'refuse' });
});
