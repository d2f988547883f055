/** `--direct-io` of receive, send and inspect. */
import fs from 'node:fs';
import path from 'node:path';
import t from 'tap';
import { checkAddress } from '../../src/transport/address.js';
import { CAPTURES, PC_RAM, play, ramOf, streamsOf } from '../migration/captures.js';
import { folder, refusedHere } from '../migration/direct.js';
import { Run, run, type Line } from './cli.js';

t.test('received, verified and sent with --direct-io: the same RAM at the end', async (t) => {
  if (await refusedHere(t)) return;
  const directory = folder(t);
  const receive = async (name: string): Promise<{ command: Run; address: string; out: string }> => {
    const out = path.join(directory, name);
    const args = ['receive', '--listen', 'tcp:127.0.0.1:0', '--out', out, '--direct-io', '--json'];
    const command = new Run(t, args);
    const line = (await command.line(({ type }) => type === 'listening')) as Line & { address: string };
    return { command, address: line.address, out };
  };
  const first = await receive('vm.mig');
  await play(checkAddress(first.address, 1), streamsOf(CAPTURES[0]));
  t.equal((await first.command.ended).code, 0);
  const inspected = await run(t, ['inspect', first.out, '--verify', '--direct-io', '--json']);
  t.equal(inspected.code, 0);
  t.equal(inspected.result?.verified, true);
  const plain = await run(t, ['inspect', first.out, '--verify', '--json']);
  t.same(inspected.result, plain.result);
  const second = await receive('again.mig');
  const sent = await run(t, ['send', first.out, '--to', second.address, '--direct-io', '--json']);
  t.equal(sent.code, 0, sent.stderr);
  t.equal((await second.command.ended).code, 0);
  t.ok((await ramOf(second.out)).equals(PC_RAM));
});

t.test('--direct-io is given to the library: where it is refused the command says so', async (t) => {
  if (await refusedHere(t)) return;
  const sent = await run(t, ['send', '/proc/version', '--to', 'unix:/nobody', '--direct-io', '--json']);
  t.equal(sent.code, 1);
  t.match(sent.result?.error, { code: 'ERR_MULTIFD_IO', message: /directIo/ });
});

t.test('inspect --direct-io without --verify is wrong usage', async (t) => {
  const file = path.join(t.testdir({}), 'any');
  fs.writeFileSync(file, '');
  const { code, stderr } = await run(t, ['inspect', file, '--direct-io']);
  t.equal(code, 2);
  t.match(stderr, /'--direct-io' is for the pages: allowed only with --verify/);
});
