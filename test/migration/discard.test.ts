/** A sink: all is read and counted, nothing is kept, and by default no source believes that its guest is anywhere. */
import fs from 'node:fs';
import path from 'node:path';
import t, { type Test } from 'tap';
import {
  type Address,
  type ReceiveMigrationOptions,
  receiveMigration,
  sendMigration,
} from '../../src/index.js';
import { eventually } from '../support/raw-channel.js';
import { within } from '../support/within.js';
import { CAPTURES, play, readBytes, streamsOf } from './captures.js';
import { HandSource, SHUT_0, SHUT_1, askingMain } from './peers.js';

const WAIT_MS = 20_000;

async function sink(
  options: Partial<ReceiveMigrationOptions>,
): Promise<{ address: Address; result: ReturnType<typeof receiveMigration> }> {
  let result!: ReturnType<typeof receiveMigration>;
  const address = await new Promise<Address>((resolve, reject) => {
    result = receiveMigration({
      address: 'tcp:127.0.0.1:0',
      discard: true,
      ...options,
      onListening: resolve,
    });
    result.catch(reject);
  });
  return { address, result };
}

/** Sends all of a capture and waits to be told. */
function ask(t: Test, address: Address, i: number): HandSource {
  const { main, channels } = streamsOf(CAPTURES[i]);
  const source = new HandSource(t, address, channels.length);
  source.main.write(askingMain(main));
  for (const [id, bytes] of channels.entries()) source.channels[id].write(bytes);
  return source;
}

for (const [discard, shut] of [
  [true, SHUT_1],
  ['refuse', SHUT_1],
  ['accept', SHUT_0],
] as const) {
  t.test(`discard ${discard}: all is counted, and the source hears one SHUT, ${shut.at(-1)}`, async (t) => {
    for (const i of [0, 1, 2]) {
      const { compression } = CAPTURES[i];
      const { address, result } = await sink({ discard, compression });
      const source = ask(t, address, i);
      const received = await within(result, WAIT_MS, 'receiveMigration()');
      t.match(received, { out: '', discarded: discard === 'accept' ? 'accept' : 'refuse', returnPath: true });
      t.equal(received.blocks[0].presentPages, 80, `${compression}: the pages that a file would have`);
      await eventually(() => Buffer.concat(source.back).includes(shut), 'the SHUT comes');
      t.notOk(Buffer.concat(source.back).includes(shut === SHUT_0 ? SHUT_1 : SHUT_0));
      source.destroy();
    }
  });
}

t.test('a source without return path is refused before its RAM, unless all is accepted', async (t) => {
  const { address, result } = await sink({});
  play(address, streamsOf(CAPTURES[0])).catch(() => {});
  await t.rejects(within(result, WAIT_MS, 'receiveMigration()'), {
    code: 'ERR_MULTIFD_STREAM',
    message: /capability return-path: received off, expected on: .*--discard accept/,
  });
  const other = await sink({ discard: 'accept' });
  await play(other.address, streamsOf(CAPTURES[0]));
  t.match(await within(other.result, WAIT_MS, 'receiveMigration()'), {
    returnPath: false,
    discarded: 'accept',
  });
});

t.test('what is wrong in the stream is refused as with a file', async (t) => {
  const { address, result } = await sink({});
  const { main, channels } = streamsOf(CAPTURES[0]);
  const source = new HandSource(t, address, channels.length);
  const bytes = Buffer.from(channels[0]);
  // The magic of its first packet, behind the hello.
  bytes[64] ^= 1;
  source.main.write(askingMain(main));
  source.channels[0].write(bytes);
  source.channels[1].write(channels[1]);
  await t.rejects(within(result, WAIT_MS, 'receiveMigration()'), { name: 'MultifdError' });
  t.notOk(source.told);
});

t.test('a send of ours hears that it failed', async (t) => {
  const file = path.join(t.testdir({}), 'vm.mig');
  fs.writeFileSync(file, readBytes('q100-mappedram-multifd.mig'));
  const { address, result } = await sink({});
  const sent = sendMigration({ file, to: address });
  await t.rejects(within(sent, WAIT_MS, 'sendMigration()'), { message: /SHUT: received 1, expected 0/ });
  t.match(await within(result, WAIT_MS, 'receiveMigration()'), { discarded: 'refuse' });
});

t.test('with a file, or with what is of files, it is a wrong option', async (t) => {
  const address = { port: 0 };
  for (const more of [
    { discard: true, out: '/x' },
    { discard: 'never' },
    { discard: true, overwrite: true },
    { discard: true, keepPartial: true },
    { discard: false },
    {},
  ]) {
    const options = { address, ...more } as unknown as ReceiveMigrationOptions;
    await t.rejects(receiveMigration(options), { code: 'ERR_MULTIFD_OPTION' }, JSON.stringify(more));
  }
});
