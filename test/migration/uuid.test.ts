/** The uuid of a VM: what the first channel says holds for all, unless one was given. */
import fs from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import t, { type Test } from 'tap';
import { receiveMigration, relayMigration, type Address } from '../../src/index.js';
import { within } from '../support/within.js';
import { CAPTURES, PC_RAM, play, ramOf, streamsOf } from './captures.js';

const WAIT_MS = 20_000;
const UUID = '00112233-4455-6677-8899-aabbccddeeff';
const OTHER = 'ffeeddcc-bbaa-9988-7766-554433221100';
const side = { channels: 2, compression: CAPTURES[0].compression };

/** The capture, as of a source with these uuids in its channels' hellos: bytes 8 to 23. */
function streamsWith(...uuids: (string | null)[]): ReturnType<typeof streamsOf> {
  const { main, channels } = streamsOf(CAPTURES[0]);
  channels.forEach((bytes, id) => {
    const uuid = uuids[id];
    if (uuid !== null) Buffer.from(uuid.replaceAll('-', ''), 'hex').copy(bytes, 8);
  });
  return { main, channels };
}

function outFile(t: Test): string {
  const directory = fs.mkdtempSync(path.join(os.tmpdir(), 'multifd-uuid-'));
  t.teardown(() => fs.rmSync(directory, { recursive: true, force: true }));
  return path.join(directory, 'vm.mig');
}

async function listening<T>(
  call: (onListening: (address: Address) => void) => Promise<T>,
): Promise<{ address: Address; result: Promise<T> }> {
  let result!: Promise<T>;
  const address = await new Promise<Address>((resolve, reject) => {
    result = call(resolve);
    result.catch(reject);
  });
  return { address, result };
}

for (const uuid of [UUID, null]) {
  t.test(`uuid ${uuid}: taken from the source by receive, and by a relay that says it on`, async (t) => {
    const out = outFile(t);
    // The receiver behind the relay is strict about it.
    const sink = await listening((onListening) =>
      receiveMigration({ address: { port: 0 }, out, ...side, ...(uuid !== null && { uuid }), onListening }),
    );
    const relay = await listening((onListening) =>
      relayMigration({ listen: { port: 0 }, to: sink.address, in: side, out: side, onListening }),
    );
    await play(relay.address, streamsWith(uuid, uuid));
    const [relayed, received] = await within(Promise.all([relay.result, sink.result]), WAIT_MS, 'both');
    t.equal(relayed.uuid, uuid);
    t.equal(received.uuid, uuid);
    t.ok((await ramOf(out)).equals(PC_RAM));
    const direct = await listening((onListening) =>
      receiveMigration({ address: { port: 0 }, out: outFile(t), ...side, onListening }),
    );
    await play(direct.address, streamsWith(uuid, uuid));
    t.equal((await within(direct.result, WAIT_MS, 'receive')).uuid, uuid);
  });
}

t.test('a channel with another uuid than the first, or than the one given, is refused by name', async (t) => {
  for (const [uuids, given] of [
    [[UUID, OTHER], undefined],
    [[UUID, null], undefined],
    [[OTHER, OTHER], UUID],
    [[null, null], UUID],
  ] as [(string | null)[], string | undefined][]) {
    const { address, result } = await listening((onListening) =>
      receiveMigration({ address: { port: 0 }, out: outFile(t), ...side, uuid: given, onListening }),
    );
    await play(address, streamsWith(...uuids));
    await t.rejects(within(result, WAIT_MS, 'receive'), {
      code: 'ERR_MULTIFD_UUID',
      message: /hello uuid: received .*, expected .* \(option uuid, --uuid, QEMU's -uuid\)/,
    });
  }
});
