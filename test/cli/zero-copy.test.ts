/** --zero-copy-send of demo, send and relay: what they tell of it, and what it is refused with. */
import path from 'node:path';
import t, { type Test } from 'tap';
import { findKoffi, whyNoKoffi } from '../../src/native/koffi.js';
import { checkAddress } from '../../src/transport/address.js';
import { CAPTURES, play, streamsOf } from '../migration/captures.js';
import { Run, run, type Line } from './cli.js';

const [NONE] = CAPTURES;
const ZERO_COPY = '--zero-copy-send';

async function listening(t: Test, args: string[]): Promise<{ command: Run; address: string }> {
  const command = new Run(t, [...args, '--json']);
  const { address } = (await command.line((line) => line.type === 'listening')) as Line & { address: string };
  return { command, address };
}

const receiver = (t: Test, out: string): Promise<{ command: Run; address: string }> =>
  listening(t, ['receive', '--listen', 'tcp:127.0.0.1:0', '--out', out, '--channels', '2']);

/** What a record says of packets: some, and not more copied than there are. */
function counted(t: Test, record: unknown): void {
  const { packets, copied } = record as { packets: number; copied: number };
  t.ok(packets > 0, `${packets} packets`);
  t.ok(copied <= packets, `${copied} of them copied`);
}

if (findKoffi() === undefined) {
  t.test('without koffi it is refused in one sentence', async (t) => {
    const { code, stderr } = await run(t, ['demo', '--size', '1M', ZERO_COPY]);
    t.equal(code, 1);
    t.match(stderr, `option ${ZERO_COPY}: ${whyNoKoffi()}`);
  });
} else {
  t.test('a demo with it proves the same, and tells how many packets were copied all the same', async (t) => {
    for (const backing of ['shared', 'file']) {
      const args = ['demo', '--size', '16M', '--dirty-rounds', '2', '--backing', backing, ZERO_COPY];
      const { code, stdout, stderr } = await run(t, args);
      t.equal(code, 0, stderr);
      t.match(stdout, /^zero-copy +\d+ packets, \d+ of them copied by the kernel all the same$/m);
      t.match(stdout, /Proven/);
    }
    const { result } = await run(t, ['demo', '--size', '16M', ZERO_COPY, '--json']);
    t.match(result, { ok: true, zeroCopySend: true });
    counted(t, result?.zeroCopy);
    const without = await run(t, ['demo', '--size', '16M', '--json']);
    t.match(without.result, { ok: true, zeroCopySend: false, zeroCopy: null });
  });

  t.test('a file sent with it, and relayed with it, is the same file at the end', async (t) => {
    const folder = t.testdir({});
    const first = path.join(folder, 'first.mig');
    const { command, address } = await receiver(t, first);
    const { closed } = await play(checkAddress(address, 1), streamsOf(NONE));
    await closed;
    t.equal((await command.ended).code, 0);
    const digests = async (file: string): Promise<unknown> => {
      const { result } = await run(t, ['inspect', file, '--verify', '--json']);
      return (result?.blocks as { name: string; sha256: string }[]).map(({ name, sha256 }) => [name, sha256]);
    };
    const second = path.join(folder, 'second.mig');
    const sink = await receiver(t, second);
    const relay = await listening(t, [
      'relay',
      '--listen',
      'tcp:127.0.0.1:0',
      '--to',
      sink.address,
      ZERO_COPY,
    ]);
    const sent = await run(t, ['send', first, '--to', relay.address, ZERO_COPY, '--json']);
    t.equal(sent.code, 0, sent.stderr);
    counted(t, sent.result?.zeroCopy);
    t.equal((await relay.command.ended).code, 0);
    counted(t, relay.command.result?.zeroCopy);
    t.equal((await sink.command.ended).code, 0);
    t.same(await digests(second), await digests(first));
  });

  t.test('what does not go with it is wrong usage', async (t) => {
    const relay = ['relay', '--listen', 'tcp:127.0.0.1:0'];
    const cases: [args: string[], message: RegExp][] = [
      [['send', 'x', '--to', 'unix:/nowhere'], /only over TCP: a unix socket cannot/],
      [
        ['send', 'x', '--to', 'tcp:127.0.0.1:1', '--compression', 'zlib'],
        /only with compression none, not zlib/,
      ],
      [[...relay, '--to', 'unix:/nowhere'], /only over TCP: a unix socket cannot/],
      [
        [...relay, '--to', 'tcp:127.0.0.1:1', '--compression-out', 'zstd'],
        /only with compression none, not zstd/,
      ],
    ];
    for (const [args, message] of cases) {
      const { code, stdout, stderr } = await run(t, [...args, ZERO_COPY]);
      t.same([code, stdout], [2, ''], args.join(' '));
      t.match(stderr, /option '--zero-copy-send' is invalid. Allowed/);
      t.match(stderr, message);
    }
  });
}
