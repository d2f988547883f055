/**
 * The commands receive, send, relay and inspect, as processes of their own; the sources are captures of real QEMUs. That
 * a real QEMU takes what they make is shown in test/qemu.
 */
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import t, { type Test } from 'tap';
import { checkAddress } from '../../src/transport/address.js';
import { CAPTURES, PC_RAM, play, ramOf, readBytes, streamsOf } from '../migration/captures.js';
import { Run, run, type Line } from './cli.js';

const PC_RAM_SHA256 = '1cb56c95f1aaa80439dcb66d0275b310883101adbcb741aea49b84a6633ec80e';
const ZSTD = CAPTURES[2];

async function listening(t: Test, args: string[]): Promise<{ command: Run; address: string }> {
  const command = new Run(t, [...args, '--json']);
  const { address } = (await command.line((line) => line.type === 'listening')) as Line & { address: string };
  return { command, address };
}

const receiveArgs = (out: string, compression: string, channels = '2'): string[] => [
  'receive',
  ...['--listen', 'tcp:127.0.0.1:0', '--out', out, '--compression', compression, '--channels', channels],
];

/** Plays a capture to a command that listens. */
async function played(address: string, capture = ZSTD): Promise<void> {
  const { closed } = await play(checkAddress(address, 1), streamsOf(capture));
  await closed;
}

async function received(t: Test, out: string): Promise<Line> {
  const { command, address } = await listening(t, receiveArgs(out, ZSTD.compression));
  await played(address);
  const { code, stderr } = await command.ended;
  t.equal(code, 0, 'receive');
  t.equal(stderr, '');
  return command.result as Line;
}

t.test('received, inspected, sent twice, relayed: the same RAM at the end', async (t) => {
  const directory = t.testdir({});
  const out = path.join(directory, 'vm.mig');
  const result = await received(t, out);
  t.match(result, { ok: true, out, machine: 'pc-i440fx-10.0', returnPath: false, strays: 0 });
  t.ok((result.bytes as number) > 4 * 2 ** 20 && (result.normalPages as number) >= 80);

  const inspected = await run(t, ['inspect', out, '--verify', '--json']);
  t.equal(inspected.code, 0);
  const [ram] = inspected.result?.blocks as { name: string; sha256: string; presentPages: number }[];
  t.match(ram, { name: 'pc.ram', sha256: PC_RAM_SHA256, presentPages: 80 });
  t.match(inspected.result, { kind: 'mapped-ram', sound: true, problems: [] });
  t.equal((inspected.result?.devices as unknown[]).length, 31);
  const text = await run(t, ['inspect', out]);
  t.equal(text.code, 0);
  t.match(text.stdout, /^machine +pc-i440fx-10\.0$/m);
  t.match(text.stdout, /^problems +none$/m);
  t.match(text.stdout, /^pc\.ram +4 MiB +80 present +944 zero$/m);
  t.match(text.stdout, /^cpu +instance 0 +version 12 +\d+ bytes$/m);

  // Sent once straight, once through a relay, to two receivers.
  for (const way of ['straight', 'relayed']) {
    const again = path.join(directory, `${way}.mig`);
    const sink = await listening(t, receiveArgs(again, 'zlib', '3'));
    let to = sink.address;
    let relay: Run | undefined;
    if (way === 'relayed') {
      const ins = ['--listen', 'tcp:127.0.0.1:0', '--channels-in', '3', '--compression-in', 'zlib'];
      const outs = [
        '--to',
        sink.address,
        '--channels-out',
        '3',
        '--compression-out',
        'zlib',
        '--level-out',
        '9',
      ];
      ({ command: relay, address: to } = await listening(t, ['relay', ...ins, ...outs]));
    }
    const args = ['send', out, '--to', to, '--channels', '3', '--compression', 'zlib', '--level', '3'];
    const sent = await run(t, [...args, '--json']);
    t.equal(sent.code, 0, `${way}: ${sent.stderr}`);
    t.match(sent.result, { ok: true, machine: 'pc-i440fx-10.0', zeroPageDetection: 'multifd' });
    t.match(sent.lines[0], { type: 'start', channelBytes: sent.result?.bytes });
    t.equal((await sink.command.ended).code, 0);
    t.match(sink.command.result, { ok: true, returnPath: true });
    if (relay !== undefined) {
      t.equal((await relay.ended).code, 0);
      const { received, sent } = relay.result as unknown as Record<string, { normalPages: number }>;
      t.equal(received.normalPages, sent.normalPages);
    }
    t.ok((await ramOf(again)).equals(PC_RAM), `${way}: RAM`);
  }
});

t.test('for people: where it listens on stderr, a short table on stdout', async (t) => {
  const out = path.join(t.testdir({}), 'vm.mig');
  const command = new Run(t, receiveArgs(out, ZSTD.compression));
  const address = await new Promise<string>((resolve) => {
    let stderr = '';
    command.child.stderr!.on('data', (text: string) => {
      const match = /^listening on (\S+)\n/m.exec((stderr += text));
      if (match !== null) resolve(match[1]);
    });
  });
  await played(address);
  const { code, stdout, stderr } = await command.ended;
  t.equal(code, 0);
  t.equal(stderr, `listening on ${address}\nreceiving pc-i440fx-10.0\n`);
  t.match(stdout, /^file +.*vm\.mig, .*MiB$/m);
  t.match(stdout, /^migration +\d+\.\d{3} s/m);
});

t.test('inspect: a capture of the main stream, a cut file, no such stream at all', async (t) => {
  const directory = t.testdir({ text: 'no stream at all' });
  const main = path.join(directory, 'main.bin');
  fs.writeFileSync(main, readBytes('q72-none.main.bin'));
  const stream = await run(t, ['inspect', main, '--json']);
  t.equal(stream.code, 0);
  t.match(stream.result, {
    ok: true,
    kind: 'main-stream',
    machine: 'pc-i440fx-7.2',
    marker: 'eos',
    syncPoints: 3,
  });
  t.match((await run(t, ['inspect', main])).stdout, /^sync points +3, marked by eos$/m);

  const cut = path.join(directory, 'cut.mig');
  fs.writeFileSync(cut, readBytes('q100-mappedram-single.mig').subarray(0, 1_000_000));
  const unsound = await run(t, ['inspect', cut, '--json', '--verify']);
  t.equal(unsound.code, 1);
  t.match(unsound.result, { ok: false, sound: false, error: { code: 'ERR_CLI_UNSOUND' }, verified: false });
  const text = await run(t, ['inspect', cut]);
  t.equal(text.code, 1);
  t.match(text.stdout, /^PROBLEM /m);

  for (const [file, code] of [
    ['text', 'ERR_MULTIFD_STREAM'],
    ['missing', 'ERR_MULTIFD_IO'],
  ]) {
    const failed = await run(t, ['inspect', path.join(directory, file), '--json']);
    t.equal(failed.code, 1);
    t.match(failed.result, { ok: false, error: { code } });
    t.match(failed.stderr, new RegExp(`^multifd: ${code}: `));
  }
});

t.test('what fails: exit code 1, a result line, nothing under the name', async (t) => {
  const directory = t.testdir({ there: 'precious' });
  const files = (): string[] => fs.readdirSync(directory).sort();
  const out = path.join(directory, 'vm.mig');

  const wrong = await listening(t, receiveArgs(out, 'zlib'));
  await played(wrong.address);
  t.equal((await wrong.command.ended).code, 1);
  t.match(wrong.command.result, { ok: false, error: { code: 'ERR_MULTIFD_METHOD' } });
  t.same(files(), ['there'], 'wrong method');

  // The source dies: in the devices, in a channel; or it has fewer channels.
  const streams = streamsOf(ZSTD);
  for (const [name, broken, order, code] of [
    ['main', { ...streams, main: streams.main.subarray(0, -100) }, ['main', 0, 1], 'ERR_MULTIFD_EOF'],
    [
      'channel',
      { ...streams, channels: [streams.channels[0].subarray(0, 5000), streams.channels[1]] },
      [0, 1, 'main'],
      'ERR_MULTIFD_EOF',
    ],
    ['fewer', streams, ['main', 0], 'ERR_MULTIFD_TIMEOUT'],
  ] as [string, typeof streams, ('main' | number)[], string][]) {
    const { command, address } = await listening(t, [
      ...receiveArgs(out, ZSTD.compression),
      ...['--connect-timeout', '1'],
    ]);
    const { closed } = await play(checkAddress(address, 1), broken, order);
    await closed;
    t.equal((await command.ended).code, 1, name);
    t.match(command.result, { ok: false, error: { code } });
    t.same(files(), ['there'], name);
  }

  const kept = await listening(t, [...receiveArgs(out, 'zlib'), '--keep-partial']);
  await played(kept.address);
  t.equal((await kept.command.ended).code, 1);
  t.same(files(), ['there', 'vm.mig.part'], '--keep-partial');
  const blocked = await run(t, receiveArgs(out, 'zstd'));
  t.equal(blocked.code, 1);
  t.match(blocked.stderr, /ERR_MULTIFD_IO: .*vm\.mig\.part exists/);
  fs.rmSync(`${out}.part`);

  const there = await run(t, receiveArgs(path.join(directory, 'there'), 'zstd'));
  t.equal(there.code, 1);
  t.match(there.stderr, /ERR_MULTIFD_IO: .*there exists already/);
  const nowhere = await run(t, receiveArgs(path.join(directory, 'no', 'vm.mig'), 'zstd'));
  t.equal(nowhere.code, 1);
  t.match(nowhere.stderr, /ERR_MULTIFD_IO: .*ENOENT/);

  const { command } = await listening(t, receiveArgs(out, 'none'));
  command.child.kill('SIGINT');
  t.equal((await command.ended).code, 130);
  t.match(command.result, { ok: false, error: { code: 'ERR_CLI_SIGNAL' } });
  t.same(files(), ['there'], 'Ctrl-C');
  t.equal(fs.readFileSync(path.join(directory, 'there'), 'utf8'), 'precious');

  const late = await run(t, [...receiveArgs(out, 'none'), '--accept-timeout', '1', '--json']);
  t.equal(late.code, 1);
  t.match(late.result, { ok: false, error: { code: 'ERR_MULTIFD_TIMEOUT' } });

  // A short path: a socket's has an end.
  const nobody = `unix:${path.join(os.tmpdir(), `nobody-${process.pid}`)}`;
  fs.writeFileSync(out, readBytes('q100-mappedram-multifd.mig'));
  const send = await run(t, ['send', out, '--to', nobody, '--json']);
  t.equal(send.code, 1);
  t.match(send.result, { ok: false, error: { code: 'ERR_MULTIFD_CONNECT' } });
});

const WRONG: [string[], RegExp][] = [
  [['receive'], /required option '--listen <address>'/],
  [['receive', '--listen', 'unix:/x'], /required option '--out <file>'/],
  [['receive', '--listen', '127.0.0.1:4444', '--out', 'x'], /tcp:HOST:PORT/],
  [['receive', '--listen', 'tcp:127.0.0.1:70000', '--out', 'x'], /tcp:HOST:PORT/],
  [['receive', '--listen', 'unix:/x', '--out', 'x', '--uuid', '12'], /'12'.*Allowed is a uuid/],
  [['receive', '--listen', 'unix:/x', '--out', 'x', '--stall-timeout', '0'], /'0'.*from 1 to/],
  [['receive', '--listen', 'unix:/x', '--out', 'x', '--switchover-ack', 'yes'], /'yes'.*auto, always, never/],
  [['relay', '--listen', 'unix:/x', '--to', 'unix:/y', '--switchover-ack', ''], /auto, always, never/],
  [['send', 'x'], /required option '--to <address>'/],
  [['send', '--to', 'unix:/x'], /missing required argument 'file'/],
  [['send', 'x', '--to', 'tcp:h:0'], /tcp:HOST:PORT/],
  [['send', 'x', '--to', 'unix:/x', '--peer', 'new'], /'new'.*a version such as 7\.2/],
  [['send', 'x', '--to', 'unix:/x', '--level', '3'], /only with method zlib or zstd/],
  [['relay', '--listen', 'unix:/x'], /required option '--to <address>'/],
  [
    ['relay', '--listen', 'unix:/x', '--to', 'unix:/y', '--compression-out', 'zlib', '--level-out', '10'],
    /'10'.*0 to 9/,
  ],
  [
    ['relay', '--listen', 'unix:/x', '--to', 'unix:/y', '--zero-page-detection-out', 'legacy'],
    /none, multifd/,
  ],
  [['inspect'], /missing required argument 'file'/],
];

t.test('each wrong use: exit code 2, nothing on stdout', { jobs: 3 }, async (t) => {
  for (const [args, message] of WRONG) {
    t.test(args.join(' '), { buffered: true }, async (t) => {
      const { code, stdout, stderr } = await run(t, args);
      t.equal(code, 2);
      t.equal(stdout, '');
      t.match(stderr, message);
    });
  }
});
