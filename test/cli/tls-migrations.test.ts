/** receive, send and relay through TLS, by their flags: the same RAM, wrong credentials, and that no key is told. */
import fs from 'node:fs';
import path from 'node:path';
import t, { type Test } from 'tap';
import { checkAddress } from '../../src/transport/address.js';
import { CAPTURES, PC_RAM, play, ramOf, streamsOf } from '../migration/captures.js';
import { Run, run, type Line } from './cli.js';
import { host, other, psk, tellsNoKey } from './tls-folders.js';

const ZSTD = CAPTURES[2];
const TIMEOUT = { timeout: 60_000 };

async function listening(t: Test, args: string[]): Promise<{ command: Run; address: string }> {
  const command = new Run(t, [...args, '--json', '--verbose']);
  const { address } = (await command.line((line) => line.type === 'listening')) as Line & { address: string };
  return { command, address };
}

for (const [kind, dir, ofServer] of [
  ['a PSK', psk, ['--tls-authz', 'qemu']],
  ['certificates', host, ['--tls-authz', 'CN=host?', '--tls-min-version', '1.3']],
] as const) {
  t.test(
    `plain to a relay, TLS with ${kind} from there on and again from a file: the same RAM`,
    TIMEOUT,
    async (t) => {
      const directory = t.testdir({});
      const [first, second] = ['first.mig', 'second.mig'].map((name) => path.join(directory, name));
      const sink = (out: string): string[] => [
        ...['receive', '--listen', 'tcp:127.0.0.1:0', '--out', out, '--compression', 'zstd'],
        ...['--tls-creds', dir, ...ofServer],
      ];
      const one = await listening(t, sink(first));
      const between = await listening(t, [
        ...['relay', '--listen', 'tcp:127.0.0.1:0', '--to', one.address, '--tls-creds-out', dir],
        ...['--compression-in', 'zstd', '--compression-out', 'zstd'],
      ]);
      const { closed } = await play(checkAddress(between.address, 1), streamsOf(ZSTD));
      await closed;
      const ends = [await between.command.ended, await one.command.ended];
      for (const { code, stderr } of ends) t.equal(code, 0, stderr);

      const two = await listening(t, sink(second));
      const sent = await run(t, [
        ...['send', first, '--to', two.address, '--compression', 'zstd', '--tls-creds', dir],
        ...['--json', '--verbose'],
      ]);
      t.equal(sent.code, 0, sent.stderr);
      ends.push(await two.command.ended);
      t.equal(ends[2].code, 0, ends[2].stderr);
      t.ok((await ramOf(second)).equals(PC_RAM));
      tellsNoKey(t, ...[...ends, sent].flatMap(({ stdout, stderr }) => [stdout, stderr]));

      const three = await listening(t, sink(path.join(directory, 'third.mig')));
      const wrong = await run(t, [
        ...['send', first, '--to', three.address, '--compression', 'zstd', '--tls-creds', other],
        ...['--tls-identity', 'other', '--json', '--verbose'],
      ]);
      t.equal(wrong.code, 1);
      t.match(wrong.result, { ok: false, error: { code: 'ERR_MULTIFD_TLS' } });
      const refused = await three.command.ended;
      t.equal(refused.code, 1);
      t.match(three.command.result, { ok: false, error: { code: 'ERR_MULTIFD_TLS' } });
      t.notOk(fs.existsSync(path.join(directory, 'third.mig')), 'nothing under the final name');
      tellsNoKey(t, wrong.stdout, wrong.stderr, refused.stdout, refused.stderr);
    },
  );
}
